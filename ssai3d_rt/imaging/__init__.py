"""Images: the stack, reading and writing it, and the geometry of restoring it."""

from ssai3d_rt.imaging.stack import Stack

__all__ = ["Stack"]
