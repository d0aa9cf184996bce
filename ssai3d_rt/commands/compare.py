"""The command that compares methods on one stack."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Channel, Debug, Json, Position, Time, VoxelXY, VoxelZ
from ssai3d_rt.errors import ConfigError

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

METHODS = "raw,richardson-lucy,base,ssai3d"
"""What is compared when nothing is said."""


def compare(
    stack: Annotated[
        Path, typer.Argument(metavar="STACK", help="TIFF, or a folder of Micro-Manager, NDTiff, OME-Zarr.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT_DIR", help="Folder for stacks, table and picture.")],
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="raw, richardson-lucy, care, self-net, base, article, full, ssai3d, sparse:LAYERS.",
        ),
    ] = METHODS,
    truth: Annotated[
        Path | None, typer.Option(help="What the sample really is: isotropic voxels, any intensity scale.")
    ] = None,
    rig: Annotated[Path | None, typer.Option(help="Rig profile; without it one is measured on the stack.")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long each method may train; 5 by default.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="How many steps, whatever time they take.")] = None,
    base: Annotated[str, typer.Option(metavar="NAME|FILE", help="Base network: see `weights list`.")] = "base",
    seed: Annotated[int, typer.Option(help="Same seed, stack and iterations: same result.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a comparison in OUT_DIR.")] = False,
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    channel: Channel = None,
    time: Time = None,
    position: Position = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Restore one stack with several methods, each trained on that stack alone, and compare what comes of it.

    Writes a stack per method, a table and a picture. Without the truth the table says how sharp and how isotropic the
    results are and how well they explain the raw stack; that does not prove that what is sharp is also true.
    """
    from ssai3d_rt import compare as room
    from ssai3d_rt.calibration import calibrate
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.commands.inputs import Choice, read
    from ssai3d_rt.compare.run import compare as run
    from ssai3d_rt.compare.table import terminal

    chosen = [room.method(name.strip(), base=base) for name in methods.split(",") if name.strip()]
    budget = room.Budget(iterations=iterations, minutes=minutes, seed=seed)
    choice = Choice(channel=channel, time=time, position=position)
    stacks = read([stack], choice=choice, voxel_z=voxel_z, voxel_xy=voxel_xy)
    if len(stacks) != 1:
        raise ConfigError(f"{stack} holds {len(stacks)} channels; name one with --channel")
    given = stacks[0]
    true = _truth(truth, given.lateral_um) if truth is not None else None
    profile = RigProfile.load(rig) if rig is not None else calibrate(given)
    if rig is None:
        for warning in profile.warnings:
            console.warn(warning)
    with console.progress_bar(as_json=as_json) as progress:
        found = run(given, chosen, out, rig=profile, budget=budget, truth=true, overwrite=overwrite, progress=progress)
    if not as_json:
        console.show_table(terminal(found.rows))
    lines = [f"picture: {found.picture}", f"stacks and table: {out}"]
    console.emit({"out": str(out)} | found.record(), as_json=as_json, lines=lines)


def _truth(path: Path, lateral_um: float) -> "Stack":
    """Read the truth; where its file lacks the voxel size, it is what a truth has by definition."""
    from ssai3d_rt.errors import VoxelSizeError
    from ssai3d_rt.imaging import read_stack

    try:
        return read_stack(path)
    except VoxelSizeError:
        return read_stack(path, lateral_um, lateral_um)
