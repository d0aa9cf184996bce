"""Write data sets that are folders, with the programs that write them on a rig, and separate images as documented."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import tifffile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    Volume = npt.NDArray[np.unsignedinteger[Any]]

SUMMARY = {"PixelSize_um": 0.1, "z-step_um": 0.4}


def volume(*shape: int) -> Volume:
    """Numbers that are all different from zero."""
    return np.random.default_rng(0).integers(1, 4000, shape, dtype="uint16")


def ndtiff_of(folder: Path, images: Iterable[tuple[dict[str, Any], Volume]], summary: dict[str, Any]) -> Any:
    """Put images, each with its axes, into an NDTiff data set that is left open; returns the writer."""
    ndtiff_file: Any = importlib.import_module("ndstorage.ndtiff_file")  # it has no types
    writer_class: Any = importlib.import_module("ndstorage").NDTiffDataset
    readers: list[Any] = []

    class Remembered(ndtiff_file.SingleNDTiffReader):  # type: ignore[misc]
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            readers.append(self)

    with patch.object(ndtiff_file, "SingleNDTiffReader", Remembered):
        writer = writer_class(str(folder), summary_metadata=summary, writable=True)
        for axes, image in images:
            writer.put_image(axes, image, {"ZPosition_um_Intended": 0.3 * axes.get("z", 0), "PixelSizeUm": 0.1})
    writer.readers = readers  # it closes its own files only
    return writer


def ndtiff(
    folder: Path, data: Volume, *, names: tuple[str, ...] = (), summary: dict[str, Any] | None = None, skip: Any = ()
) -> Any:
    """Put `data`, ``(T, C, Z, Y, X)``, into an NDTiff data set that is left open; returns the writer."""
    images = (
        ({"time": t, "channel": names[c] if names else c, "z": z}, data[t, c, z])
        for t, c, z in np.ndindex(data.shape[:3])
        if (t, c, z) not in skip
    )
    return ndtiff_of(folder, images, SUMMARY if summary is None else summary)


def close(writer: Any) -> None:
    """Finish an NDTiff data set and let go of its files."""
    writer.finish()
    let_go(writer)


def let_go(writer: Any) -> None:
    """Close the files that a writer of NDTiff reads."""
    for reader in writer.readers:
        reader.close()
    writer.close()


@contextmanager
def zarr_threads() -> Iterator[None]:
    """End the threads that zarr keeps for itself."""
    import zarr.core.sync

    try:
        yield
    finally:
        zarr.core.sync.cleanup_resources()


def ome_zarr(
    folder: Path,
    data: Volume,
    axes: str = "tczyx",
    *,
    version: int = 3,
    inside: str = "",
    image: dict[str, Any] | None = None,
    **array: Any,
) -> None:
    """Write one OME-Zarr image with the zarr package; `array` as for `zarr.create_array`."""
    import zarr

    kinds = {"t": "time", "c": "channel"}
    scales = [
        {
            "axes": [
                {"name": a, "type": kinds.get(a, "space")} | ({"unit": "micrometer"} if a in "zyx" else {})
                for a in axes
            ],
            "datasets": [
                {
                    "path": "0",
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [{"z": 0.4, "y": 0.1, "x": 0.1}.get(a, 1.0) for a in axes]}
                    ],
                }
            ],
        }
        | (image or {})
    ]
    omero = (
        {"channels": [{"label": name} for name in ("DAPI", "GFP")[: data.shape[axes.index("c")]]]}
        if "c" in axes
        else {}
    )
    ome: dict[str, Any] = {"multiscales": scales, "omero": omero}
    with zarr_threads():
        root = zarr.open_group(folder, mode="a", zarr_format=3 if version == 3 else 2)
        if inside:
            root.attrs.update(
                {"ome": {"version": "0.5", "bioformats2raw.layout": 3}}
                if version == 3
                else {"bioformats2raw.layout": 3}
            )
            root = root.require_group(inside)
        root.attrs.update({"ome": {"version": "0.5"} | ome} if version == 3 else ome)
        array.setdefault("chunks", (1,) * (data.ndim - 2) + data.shape[-2:])
        root.create_array("0", shape=data.shape, dtype=data.dtype, **array)[...] = data


def separate(folder: Path, data: Volume, *, old: bool = False, finished: bool = True, skip: Any = ()) -> None:
    """Write separate images as Micro-Manager 2.0 or 1.4 names and describes them, ``(T, C, Z, Y, X)``."""
    folder.mkdir(parents=True, exist_ok=True)
    times, channels, planes = data.shape[:3]
    summary = {"Frames": times, "Channels": channels, "Slices": planes, "ChNames": ["DAPI", "GFP"][:channels]} | SUMMARY
    entries: dict[str, Any] = {"Summary": summary}
    for t, c, z in np.ndindex(data.shape[:3]):
        name = (
            f"img_{t:09d}_{summary['ChNames'][c]}_{z:03d}.tif"
            if old
            else f"img_channel{c:03d}_position000_time{t:09d}_z{z:03d}.tif"
        )
        if (t, c, z) not in skip:
            tifffile.imwrite(folder / name, data[t, c, z], metadata=None, photometric="minisblack")
        if old:
            entries[f"FrameKey-{t}-{c}-{z}"] = {"FileName": name, "ChannelIndex": c, "PixelSizeUm": 0.1}
        else:
            entries[f"Coords-Default/{name}"] = {"channel": c, "time": t, "z": z, "position": 0}
            entries[f"Metadata-Default/{name}"] = {"PixelSizeUm": 0.1, "ZPositionUm": 0.4 * z}
    text = json.dumps(entries, indent=2)
    (folder / "metadata.txt").write_text(text if finished else text[:-3])


def in_a_process(code: str, *args: object) -> subprocess.Popen[bytes]:
    """Run code in a process of its own, which says a line when it got where it was to get; then it waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == b"there":
            return process
    raise AssertionError(f"it ended before it was there: {process.wait()}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it as a power switch would."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
