"""Commands of the rig: restore, watch, submit, status."""

from pathlib import Path
from typing import Annotated

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Backend, Debug, Json, VoxelXY, VoxelZ


def restore(
    stack: Annotated[Path, typer.Argument(metavar="STACK", help="A file, or the folder of one acquisition.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The OME-TIFF to write, or a folder for it.")],
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="NAME.ssai3d", help="Without it the base network as it ships (needs PyTorch)."),
    ] = None,
    backend: Backend = "auto",
    trust: Annotated[bool, typer.Option("--trust", help="Also write where not to believe the result.")] = False,
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Restore every stack of a file: same type and intensity scale, isotropic voxels, as OME-TIFF."""
    from ssai3d_rt.runtime.restore import restore_file

    with console.progress_bar(as_json=as_json) as progress:
        reports = restore_file(stack, out, bundle, progress=progress)
    console.emit({"reports": reports}, as_json=as_json)
