"""Adaptation: from one raw stack to a base network that knows the sample."""
