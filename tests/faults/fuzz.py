"""Fuzzing of the formats: thousands of damaged files through the process that judges and examines sources.

A case that is accepted is read once more here, and must be what its bytes hold: of the shape and type of the intact
file, or, where the format declares no number of planes, of what an independent reader finds.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import random
import shutil
import time
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.read import open_acquisition
from ssai3d_rt.runtime.complete import Judgement
from ssai3d_rt.runtime.datasets import files_of
from ssai3d_rt.runtime.messages import Ended, Examine, Examined, Failed, Judge, Judged
from ssai3d_rt.runtime.worker import Worker
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, percentile
from tests.faults.mutate import mutate, tiff_spots
from tests.imaging.folders import close, ndtiff, ome_zarr
from tests.imaging.mmfile import write_mmstack
from tests.runtime.daemon import QUICK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

DATA = np.random.default_rng(0).integers(1, 4000, (6, 24, 32), dtype=np.uint16)
HANG_S = 5.0
SUMMARY = {"Slices": 6, "Channels": 1, "Frames": 1, "Positions": 1, "PixelSize_um": 0.1, "z-step_um": 0.4}


@dataclass(frozen=True, slots=True)
class Seed:
    """An intact source, and which file of it is damaged (`inside` its folder; empty: itself)."""

    name: str
    write: Callable[[Path], object]
    file: str
    inside: str = ""
    declares: bool = True
    weight: int = 1


def _tiff(**options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, DATA, resolution=(10, 10), **options)


def _pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for plane in DATA:
            writer.write(plane, contiguous=False, metadata=None, photometric="minisblack", resolution=(10, 10))


def _mmstack(path: Path) -> None:
    write_mmstack(path, {(0, 0, 0, z): plane for z, plane in enumerate(DATA)}, SUMMARY)


def _zarr(**options: Any) -> Callable[[Path], object]:
    return lambda path: ome_zarr(path, DATA, "zyx", **options)


OME: dict[str, Any] = {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeZ": 0.4}}
IMAGEJ: dict[str, Any] = {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 0.4, "unit": "um"}}
SEEDS = (
    Seed("plain", _tiff(photometric="minisblack"), "a.tif", declares=True),
    Seed("pages", _pages, "a.tif", declares=False),
    Seed("imagej", _tiff(**IMAGEJ), "a.tif", weight=2),
    Seed("ome", _tiff(**OME), "a.ome.tif", weight=3),
    Seed("ome zlib tiles", _tiff(**OME, compression="zlib", tile=(16, 16)), "a.ome.tif"),
    Seed("bigtiff", _tiff(photometric="minisblack", bigtiff=True), "a.tif"),
    Seed("big-endian", _tiff(photometric="minisblack", byteorder=">", rowsperstrip=5), "a.tif"),
    Seed("micro-manager", _mmstack, "a_MMStack_Pos0.ome.tif", weight=2),
    Seed("ndtiff index", lambda path: close(ndtiff(path, DATA[None, None])), "run", "NDTiff.index", weight=3),
    Seed("ndtiff pixels", lambda path: close(ndtiff(path, DATA[None, None])), "run", "*NDTiffStack.tif"),
    Seed("zarr 3 array", _zarr(), "a.zarr", "0/zarr.json", weight=3),
    Seed("zarr 3 group", _zarr(), "a.zarr", "zarr.json", weight=2),
    Seed("zarr 2 array", _zarr(version=2), "b.zarr", "0/.zarray", weight=2),
    Seed("zarr 2 attributes", _zarr(version=2), "b.zarr", ".zattrs"),
    Seed("zarr chunk", _zarr(), "a.zarr", "0/c/2/0/0"),
)


@dataclass
class Tally:
    """What was seen."""

    counts: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@drill(row=43, title="fuzzed files", bar=10, quick_s=20, full_s=420, needs=("linux", "zarr", "ndstorage"))
def fuzzed_files(lab: Lab) -> Outcome:
    """Bits, numbers and words changed, pieces cut, moved, doubled and zeroed where a format keeps its structure."""
    cases = 500 if lab.quick else 10_000
    tally = Tally()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    seeds = [seed for seed in SEEDS for _ in range(seed.weight)]
    with contextlib.closing(_Reader()) as reader:
        for number, seed in enumerate(seeds):
            source = lab.folder / f"seed{number}" / seed.file
            source.parent.mkdir()
            seed.write(source)
            for case in range(cases // len(seeds) + 1):
                _one(seed, source, random.Random(f"{number} {case}"), reader, tally)
            shutil.rmtree(source.parent)
    figures = {
        "cases": sum(tally.counts.values()),
        **dict(sorted(tally.counts.items())),
        "accepted_by_format": dict(sorted(tally.accepted.items())),
        "processes_replaced": reader.worker.restarts,
        "p99_s": percentile(tally.seconds, 0.99),
        "longest_s": round(max(tally.seconds), 3),
    }
    good = f"{figures['cases']} cases: {tally.counts['accepted']} right, the others refused; 0 hangs, 0 wrong shapes"
    return Outcome(not tally.complaints, figures, "\n".join(tally.complaints[:8]) or good)


class _Reader:
    """The real process that looks at sources."""

    def __init__(self) -> None:
        self.worker = Worker(None, QUICK.model_copy(update={"examine_bytes": 1 << 30, "back_off_s": (0.01,)}))

    def look(self, path: Path) -> tuple[str, str]:
        """Judge and examine; return ``accepted``, ``refused``, ``hung`` or ``died``, and the reason."""
        judged = self.worker.ask(Judge(path), HANG_S)
        if not isinstance(judged, Judged):
            return _ending(judged)
        if judged.found.state is not Judgement.COMPLETE:
            return "refused", judged.found.reason
        files = tuple(files_of(path)) + tuple(path.with_name(name) for name in judged.found.also)
        answer = self.worker.ask(Examine(path, files, 0.4, 0.1), HANG_S)
        return ("accepted", "") if isinstance(answer, Examined) else _ending(answer)

    def close(self) -> None:
        """End it."""
        self.worker.close()


def _ending(answer: object) -> tuple[str, str]:
    if isinstance(answer, Ended):
        return ("hung" if "longer" in answer.reason else "died"), answer.reason
    return "refused", answer.reason if isinstance(answer, Failed) else str(answer)


def _one(seed: Seed, source: Path, rng: random.Random, reader: _Reader, tally: Tally) -> None:
    """Damage a source, have it looked at, and mend it."""
    path = next(source.glob(seed.inside)) if seed.inside else source
    intact = path.read_bytes()
    spots = tiff_spots(intact) if path.suffix == ".tif" else [(0, len(intact.rstrip(b"\0")))]
    damaged = mutate(intact, spots, rng)
    path.write_bytes(damaged)
    began = time.monotonic()
    what, reason = reader.look(source)
    tally.seconds.append(time.monotonic() - began)
    tally.counts[what] += 1
    if what == "accepted":
        tally.accepted[seed.name] += 1
        reason = _wrong(seed, source)
    if reason and what != "refused":
        packed = base64.b64encode(zlib.compress(_difference(intact, damaged))).decode()
        tally.counts["wrong"] += what == "accepted"
        tally.complaints.append(f"{seed.name}: {what}: {reason}; damage: {packed[:300]}")
    if not reason.isprintable():
        tally.complaints.append(f"{seed.name}: the reason holds control characters: {reason!r}")
    path.write_bytes(intact)


def _difference(intact: bytes, damaged: bytes) -> bytes:
    """Where two files differ, as text: what is needed to see a case again."""
    if len(intact) != len(damaged):
        shared = next((at for at, (a, b) in enumerate(zip(intact, damaged, strict=False)) if a != b), None)
        at = min(len(intact), len(damaged)) if shared is None else shared
        return b"from %d: %d bytes, were %d: %r" % (at, len(damaged), len(intact), damaged[at : at + 60])
    places = [at for at, (a, b) in enumerate(zip(intact, damaged, strict=True)) if a != b][:40]
    return repr([(at, intact[at], damaged[at]) for at in places]).encode()


def _wrong(seed: Seed, source: Path) -> str:
    """Say what is wrong with what is made of an accepted source; empty where nothing is."""
    try:
        with open_acquisition(source, 0.4, 0.1) as acquisition:
            stacks = [acquisition.read(key).data for key in acquisition.keys if acquisition.is_whole(key)]
    except InputError as error:
        return f"accepted, but it cannot be read: {error}"
    if len(stacks) != 1:
        return f"{len(stacks)} stacks in place of one"
    (found,) = stacks
    independent = _independent(source)
    if (found.shape, found.dtype) != (DATA.shape, DATA.dtype):
        agreed = independent is not None and np.array_equal(found, independent)
        may_differ = not seed.declares or _is_within(found, source)
        words = f"shape {found.shape} {found.dtype} in place of {DATA.shape} {DATA.dtype}"
        return "" if agreed and may_differ else words
    if independent is not None and not np.array_equal(found, independent):
        return "its planes are not those that another reader finds"
    return ""


def _is_within(found: npt.NDArray[Any], source: Path) -> bool:
    """Whether an OME-Zarr says consistently that its planes are smaller: the chunks that are there, and no others."""
    planes, height, width = found.shape
    smaller = height <= DATA.shape[1] and width <= DATA.shape[2] and planes == DATA.shape[0]
    return source.suffix == ".zarr" and found.dtype == DATA.dtype and smaller


def _independent(source: Path) -> npt.NDArray[Any] | None:
    """Read a TIFF page by page, or an OME-Zarr by its own package; None where that cannot be done."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if source.suffix == ".zarr":
                import zarr

                found: Any = zarr.open_array(source / "0", mode="r")[...]
                return np.asarray(found)
            if source.is_dir():
                return None
            with tifffile.TiffFile(source) as file:
                planes = [page.asarray() for page in file.pages]
                if len(planes) == 1 and file.series[0].size != planes[0].size:
                    return np.asarray(file.series[0].asarray())  # ImageJ and others describe one page only
                return np.stack(planes)
    except Exception:
        return None
