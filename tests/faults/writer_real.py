"""Write one stack as a rig's program does, frame by frame: FORMAT PATH SEED PAUSE_S [PLANES, such as 0,2,1].

Every format is written by the package that writes it on a rig, in this process, which may be stopped or killed. It says
on standard output `start`, `frame N` after each frame that it handed over, `last` just before the last one, and
`closed`, each with the seconds since 1970.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

PLANES, SIDE = 8, 32
_SCALES = {"z": 0.2, "y": 0.1, "x": 0.1}
_OME = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.2}
_PIXELS: dict[str, Any] = {"metadata": None, "photometric": "minisblack"}


def planes(seed: int) -> npt.NDArray[np.uint16]:
    """Return the stack of a seed, `(Z, Y, X)` counts, no sample of it zero."""
    return np.random.default_rng(seed).integers(1, 4000, (PLANES, SIDE, SIDE), dtype=np.uint16)


def say(word: str) -> None:
    """Tell where the writer is."""
    sys.stdout.write(f"{word} {time.time():.6f}\n")
    sys.stdout.flush()


class Frames:
    """The frames of a stack, one after the other, with a pause after each; `order` may leave out and repeat some."""

    def __init__(self, seed: int, pause_s: float, order: list[int]) -> None:
        self.data, self._pause_s, self.order = planes(seed), pause_s, order

    def __iter__(self) -> Iterator[npt.NDArray[np.uint16]]:
        return (frame for _, frame in self.numbered())

    def numbered(self) -> Iterator[tuple[int, npt.NDArray[np.uint16]]]:
        """Yield (plane, frame)."""
        for index, z in enumerate(self.order):
            if index == len(self.order) - 1:
                say("last")
            yield z, self.data[z]
            say(f"frame {index + 1}")
            time.sleep(self._pause_s)


def plain(path: Path, frames: Frames) -> None:
    """tifffile, one call, the shape in the first description."""
    import tifffile

    tifffile.imwrite(path, iter(frames), shape=frames.data.shape, dtype=np.uint16, photometric="minisblack")


def pages(path: Path, frames: Frames) -> None:
    """tifffile, page by page, nothing declared."""
    import tifffile

    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, contiguous=False, **_PIXELS)


def imagej(path: Path, frames: Frames) -> None:
    """tifffile, as ImageJ writes."""
    import tifffile

    notes = {"axes": "ZYX", "spacing": 0.2, "unit": "um"}
    with tifffile.TiffWriter(path, imagej=True) as writer:
        writer.write(iter(frames), shape=frames.data.shape, dtype=np.uint16, resolution=(10, 10), metadata=notes)


def ome(path: Path, frames: Frames) -> None:
    """tifffile, OME-TIFF, compressed, the OME-XML written when it is closed."""
    import tifffile

    with tifffile.TiffWriter(path, ome=True) as writer:
        shape: Any = {"shape": frames.data.shape, "dtype": np.uint16, "metadata": _OME}
        writer.write(iter(frames), compression="zlib", photometric="minisblack", **shape)


def ome_writers_tiff(path: Path, frames: Frames) -> None:
    """ome-writers, OME-TIFF."""
    _ome_writers(path, frames, "ome-tiff")


def ome_writers_zarr(path: Path, frames: Frames) -> None:
    """ome-writers, OME-Zarr 0.5 through tensorstore."""
    _ome_writers(path, frames, {"name": "ome-zarr", "backend": "tensorstore"})


def _ome_writers(path: Path, frames: Frames, kind: object) -> None:
    import ome_writers as ow

    sizes = zip("zyx", frames.data.shape, strict=True)
    dimensions = [
        ow.Dimension(name=name, count=count, type="space", scale=_SCALES[name], unit="micrometer")
        for name, count in sizes
    ]
    words = {"root_path": str(path), "dimensions": dimensions, "dtype": "uint16", "format": kind}
    with ow.create_stream(ow.AcquisitionSettings.model_validate(words)) as stream:
        for frame in frames:
            stream.append(frame)


def ndtiff(path: Path, frames: Frames) -> None:
    """ndstorage, NDTiff v3: a file of 4 GiB from the first frame on."""
    dataset = importlib.import_module("ndstorage").NDTiffDataset
    writer = dataset(str(path), summary_metadata={"PixelSize_um": 0.1, "z-step_um": 0.2}, writable=True)
    for z, frame in frames.numbered():
        writer.put_image({"z": z}, frame, {"ZPosition_um_Intended": 0.2 * z, "PixelSizeUm": 0.1})
    writer.finish()


def zarr2(path: Path, frames: Frames) -> None:
    """zarr, OME-Zarr 0.4, a chunk a plane."""
    _zarr(path, frames, 2, chunks=(1, SIDE, SIDE))


def zarr3(path: Path, frames: Frames) -> None:
    """zarr, OME-Zarr 0.5, two chunks a plane."""
    _zarr(path, frames, 3, chunks=(1, SIDE // 2, SIDE))


def sharded(path: Path, frames: Frames) -> None:
    """zarr, OME-Zarr 0.5, four planes in a shard, which is written anew with each plane."""
    _zarr(path, frames, 3, chunks=(1, SIDE, SIDE), shards=(4, SIDE, SIDE))


def _zarr(path: Path, frames: Frames, version: int, **array: Any) -> None:
    import zarr

    axes: Any = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [_SCALES[name] for name in "zyx"]}]
    scales: dict[str, Any] = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    root = zarr.open_group(path, mode="w", zarr_format=3 if version == 3 else 2)
    if version == 3:
        root.attrs["ome"] = {"version": "0.5", "multiscales": [scales]}
    else:
        root.attrs["multiscales"] = [scales | {"version": "0.4"}]
    level = root.create_array("0", shape=frames.data.shape, dtype="uint16", **array)
    for z, frame in frames.numbered():
        level[z] = frame


def separate(path: Path, frames: Frames) -> None:
    """Separate image files as Micro-Manager names them; metadata.txt grows, and is closed at the end."""
    import tifffile

    path.mkdir()
    summary = {"Frames": 1, "Channels": 1, "Slices": PLANES, "ChNames": ["DAPI"], "PixelSize_um": 0.1, "z-step_um": 0.2}
    with open(path / "metadata.txt", "w", encoding="utf-8") as notes:
        notes.write('{\n"Summary": ' + json.dumps(summary))
        for z, frame in frames.numbered():
            name = f"img_channel000_position000_time000000000_z{z:03d}.tif"
            tifffile.imwrite(path / name, frame, **_PIXELS)
            place = {"channel": 0, "time": 0, "z": z, "position": 0}
            notes.write(f',\n"Coords-Default/{name}": {json.dumps(place)}')
            notes.flush()
        notes.write("\n}\n")


def pymmcore_tiff(path: Path, frames: Frames) -> None:
    """pymmcore-plus with a real MMCore and its DemoCamera, OME-TIFF."""
    _pymmcore(path, frames)


def pymmcore_zarr(path: Path, frames: Frames) -> None:
    """pymmcore-plus with a real MMCore and its DemoCamera, OME-Zarr."""
    _pymmcore(path, frames)


def _pymmcore(path: Path, frames: Frames) -> None:
    os.environ["PYMM_SIGNALS_BACKEND"] = "psygnal"
    from pymmcore_plus import CMMCorePlus
    from useq import MDASequence

    core = CMMCorePlus()
    core.loadSystemConfiguration()
    for name in core.getAvailablePixelSizeConfigs():
        core.setPixelSizeUm(name, 0.1)
    core.setProperty("Camera", "PixelType", "16bit")
    core.setProperty("Camera", "OnCameraCCDXSize", 2 * SIDE)
    core.setProperty("Camera", "OnCameraCCDYSize", 2 * SIDE)
    count = len(frames.order)
    numbered = frames.numbered()
    next(numbered)

    def ready(*_: object) -> None:
        next(numbered, None)

    core.mda.events.frameReady.connect(ready)
    plan = {"range": 0.2 * (count - 1) + 1e-6, "step": 0.2}
    sequence = MDASequence.model_validate({"z_plan": plan, "channels": [{"config": "FITC", "exposure": 1}]})
    core.mda.run(sequence, output=path)


WRITERS: dict[str, tuple[Callable[[Path, Frames], None], str]] = {
    "plain": (plain, ".tif"),
    "pages": (pages, ".tif"),
    "imagej": (imagej, ".tif"),
    "ome": (ome, ".ome.tif"),
    "ome-writers-tiff": (ome_writers_tiff, ".ome.tif"),
    "ome-writers-zarr": (ome_writers_zarr, ".ome.zarr"),
    "ndtiff": (ndtiff, ""),
    "zarr2": (zarr2, ".ome.zarr"),
    "zarr3": (zarr3, ".ome.zarr"),
    "sharded": (sharded, ".ome.zarr"),
    "separate": (separate, ""),
    "pymmcore-tiff": (pymmcore_tiff, ".ome.tif"),
    "pymmcore-zarr": (pymmcore_zarr, ".ome.zarr"),
}
"""By format: what writes it, and how its name ends."""

UNDECLARED = ("pages",)
"""Formats whose file is a whole, shorter stack after every frame: nobody can know that more comes."""


def main() -> None:
    """Write what is asked for."""
    kind, path, seed, pause_s, *order = sys.argv[1:]
    frames = Frames(int(seed), float(pause_s), [int(z) for z in order[0].split(",")] if order else list(range(PLANES)))
    say("start")
    WRITERS[kind][0](Path(path), frames)
    say("closed")


if __name__ == "__main__":
    main()
