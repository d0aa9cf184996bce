"""On the rig: backends that run a bundle, `restore` for one stack, and `watch`, the daemon.

Nothing here needs torch, except the reference backend. Import what you need from its module; importing this package
costs nothing, so that the restoring process starts quickly.
"""
