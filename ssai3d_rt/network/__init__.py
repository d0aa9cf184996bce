"""The network: NAFNet, its weights, and how a base network is trained."""
