"""Options that several commands share, so that they have one name, one meaning and one help text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, the last line of stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="On a failure, print the full traceback; log more.")]
VoxelZ = Annotated[
    float | None, typer.Option("--voxel-z", metavar="UM", help="Spacing of the planes in um, where the file lacks it.")
]
VoxelXY = Annotated[
    float | None, typer.Option("--voxel-xy", metavar="UM", help="Lateral pixel in um, where the file lacks it.")
]
Channel = Annotated[str | None, typer.Option(metavar="NAME|INDEX", help="Only this channel, by name or index.")]
Time = Annotated[int | None, typer.Option(metavar="INDEX", help="Only this time point, from 0.")]
Position = Annotated[str | None, typer.Option(metavar="NAME|INDEX", help="Only this position, by name or index.")]
Stacks = Annotated[
    list[Path], typer.Argument(metavar="STACK", help="TIFF, or a folder of Micro-Manager, NDTiff, OME-Zarr.")
]
Denoise = Annotated[
    Literal["auto", "off", "dct"] | None,
    typer.Option(help="Denoise first: auto only where a stack is noisy. By default auto, or as the bundle says."),
]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What runs the bundle: a name that `doctor` lists; auto, the fastest; cpu, the fastest on the CPU.",
    ),
]
