"""Images: the stack, reading and writing it, and the geometry of restoring it."""

from ssai3d_rt.imaging.limits import limits, require_restorable
from ssai3d_rt.imaging.read import Acquisition, StackKey, open_acquisition, read_stack, read_stacks
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import Written, read_provenance, verify_ome_tiff, write_ome_tiff

__all__ = [
    "Acquisition",
    "Stack",
    "StackKey",
    "Written",
    "limits",
    "open_acquisition",
    "read_provenance",
    "read_stack",
    "read_stacks",
    "require_restorable",
    "verify_ome_tiff",
    "write_ome_tiff",
]
