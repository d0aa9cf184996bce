"""The command that measures how fast a bundle runs on this machine."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Debug, Json, VoxelXY, VoxelZ
from ssai3d_rt.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from ssai3d_rt.bench.run import Bench

RECORD, PICTURE = "bench.json", "bench.png"
SHAPE = "24,128,128"
ANISOTROPY = 4
"""Plane spacing over lateral pixel of the simulated stack."""


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="NAME.ssai3d", help="The bundle to run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help=f"Folder for {RECORD} and {PICTURE}.")] = Path("bench-out"),
    backends: Annotated[
        str, typer.Option(metavar="all|NAME,...", help="What to measure; `doctor` lists the names.")
    ] = "all",
    batches: Annotated[str, typer.Option(metavar="N,...", help="Tiles that are computed at once.")] = "1,2,4,8",
    tiles: Annotated[
        str | None, typer.Option(metavar="PX,...", help="Export again with these tiles; needs the train extra.")
    ] = None,
    layer_norm: Annotated[
        str | None,
        typer.Option(
            metavar="all|MODE,...",
            help="Export again with LayerNorm as island, native32 or native16; needs the train extra.",
        ),
    ] = None,
    stack: Annotated[
        Path | None, typer.Option(help="What to restore; without it a stack is simulated.", metavar="FILE")
    ] = None,
    shape: Annotated[
        str, typer.Option(metavar="Z,Y,X", help=f"Size of the simulated stack; its planes are {ANISOTROPY} px apart.")
    ] = SHAPE,
    compare: Annotated[
        Literal["upstream-style"] | None,
        typer.Option(help="Also restore in the published way: RGB, FP32, eager PyTorch, batch 1, a file per slice."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of CPU backends; all cores by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Least number of calls per configuration.")] = 8,
    seconds: Annotated[float, typer.Option(min=0, help="Least time per configuration.")] = 1.0,
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure every way to run a bundle on this machine: speed, exactness, memory; on tiles and on a whole stack.

    Each configuration runs in a process of its own. A way that does not give the reference's numbers is refused, not
    timed. Prints tables; the last line of stdout is always one JSON object. Measure on a quiet machine.
    """
    from ssai3d_rt.bench.plan import LAYER_NORMS, Plan
    from ssai3d_rt.bench.run import bench as run
    from ssai3d_rt.bench.run import save
    from ssai3d_rt.bench.table import notes, tables
    from ssai3d_rt.export.bundle import Bundle

    modes = LAYER_NORMS if layer_norm == "all" else tuple(_words(layer_norm or ""))
    plan = Plan(
        backends=() if backends == "all" else tuple(_words(backends)),
        batches=tuple(_numbers(batches, "--batches")),
        tiles=tuple(_numbers(tiles or "", "--tiles")),
        layer_norms=modes,  # type: ignore[arg-type]  # Plan refuses names that it does not know
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        upstream=compare is not None,
    )
    opened = Bundle.open(bundle)
    size = _shape(shape)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ssai3d-bench-") as folder, console.progress_bar(as_json=as_json) as told:
        source = stack if stack is not None else _simulated(size, Path(folder))
        found = run(opened, source, plan, voxel_um=(voxel_z, voxel_xy), progress=told)
    if stack is None:
        found.stack = f"simulated, {size[0]} x {size[1]} x {size[2]}, planes {ANISOTROPY} px apart"
    save(found, out / RECORD)
    picture = _picture(found, out / PICTURE)
    if not as_json:
        for table in tables(found):
            console.show_table(table)
        console.show(*notes(found), f"stack: {found.stack}", f"picture: {picture}", f"record: {out / RECORD}")
    console.emit(found.record() | {"picture": str(picture)}, as_json=True)


def _picture(found: "Bench", path: Path) -> str:
    from ssai3d_rt.bench.picture import draw

    try:
        draw(found, path)
    except MissingPackageError as error:
        return f"left out, {error}"
    return str(path)


def _simulated(size: tuple[int, int, int], folder: Path) -> Path:
    from ssai3d_rt.bench.sample import simulated_stack
    from ssai3d_rt.imaging.write import write_ome_tiff

    path = folder / "simulated.ome.tif"
    write_ome_tiff(path, simulated_stack(size, ANISOTROPY), {})
    return path


def _shape(text: str) -> tuple[int, int, int]:
    sizes = _numbers(text, "--shape")
    if len(sizes) != 3 or sizes[0] < 3:
        raise ConfigError(f"--shape {text!r} is not Z,Y,X with at least three planes, such as {SHAPE}")
    return sizes[0], sizes[1], sizes[2]


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(word) for word in _words(text)]
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a list of numbers such as 1,2,4") from None
    if any(number < 1 for number in numbers):
        raise ConfigError(f"{option} {text!r} holds a number below 1")
    return numbers


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
