"""Restore: a raw stack in, an isotropic stack out, and a report of what was done to it.

`restore` is one stack in memory, see `onestack`. `restore_position` streams all stacks of one position into one new
OME-TIFF; three stacks are in memory at most (see `overlap`). `restore_file` does so for every position of a data set
and publishes each result whole or not at all. The geometry and the intensity scale are `imaging.axial`'s; how a network
runs is the backend's.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.errors import InputError, StorageError
from ssai3d_rt.export.bundle import Bundle
from ssai3d_rt.imaging.limits import require_restorable
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.read import Acquisition, StackKey, open_acquisition
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import Written, verify_ome_tiff, write_ome_tiff
from ssai3d_rt.progress import Progress, silent
from ssai3d_rt.runtime.backends import open_runner
from ssai3d_rt.runtime.backends.reference import open_base
from ssai3d_rt.runtime.caution import summed_up, warnings_of
from ssai3d_rt.runtime.onestack import OVERLAP_PX, Restored, mode_of, restore
from ssai3d_rt.runtime.overlap import ahead, behind
from ssai3d_rt.runtime.publish import (
    RESULT_SUFFIX,
    TRUST_SUFFIX,
    discard,
    make_folder,
    place,
    result_name,
    seal,
    temporary_name,
)
from ssai3d_rt.runtime.trust import doubt_warning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ssai3d_rt.export.bundle import AdaptationEntry
    from ssai3d_rt.runtime.backends import Runner

__all__ = ["Restored", "RestoredPosition", "restore", "restore_file", "restore_position"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class RestoredPosition:
    """What `restore_position` returns: what was written (for `verify_ome_tiff`) and one report per stack."""

    written: Written
    reports: list[dict[str, Any]]
    trust: Written | None = None


def restore_position(
    acquisition: Acquisition,
    position: int,
    path: Path,
    runner: Runner,
    *,
    trust_path: Path | None = None,
    denoise: str | None = None,
    adaptation: AdaptationEntry | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> RestoredPosition:
    """Restore every whole stack of one position into one new OME-TIFF.

    Time points of which a plane is missing (an acquisition that was stopped early) are left out, with a warning. Where
    there are several stacks each is read twice: first to find out what is wrong with any of them before the long work
    begins, and to write every normalisation into the file's provenance. While one stack is restored the next is read
    and the last written.

    Parameters
    ----------
    acquisition
        Opened.
    position
        Its number, as in `StackKey`.
    path
        A file that does not exist.
    runner
        Stays open.
    trust_path
        A second new file, for the trust maps.
    denoise
        ``auto``, ``off`` or a denoiser's name; None does as `adaptation` says, and is ``auto`` without one.
    adaptation
        What the runner's bundle was adapted to: stacks of another kind are restored with a warning.
    notes
        More provenance; goes before what is noted anyway under the same name.
    progress
        Told the tiles done, with the stack's number in the label.

    Raises
    ------
    InputError, IncompleteError, StorageError, BackendError
        See `restore`, `Acquisition.read` and `write_ome_tiff`.
    """
    keys = _whole_keys(acquisition, position)
    times = len({key.time for key in keys})
    channels = [key.channel_name for key in keys if key.time == keys[0].time]
    kept = acquisition.read(keys[0]) if len(keys) == 1 else None
    plans: list[Denoising] = []
    examined: list[dict[str, Any]] = []
    for key in keys:
        raw = kept or acquisition.read(key)
        examined.append(_examined(raw, key, adaptation))
        plans.append(Denoising.of(raw.data, mode_of(denoise, adaptation)))
        examined[-1] |= plans[-1].record()
        logger.info("%s: %s", shown(acquisition.path), plans[-1].why)
        del raw
    _warn(acquisition, [note.get("warnings", []) for note in examined])
    provenance = _provenance(acquisition, runner, examined) | dict(notes or {})
    reports: list[dict[str, Any]] = []

    with tempfile.TemporaryDirectory(prefix=".ssai3d-trust-", dir=path.parent) as spool:

        def stacks() -> Iterator[Stack]:
            for number, raw in enumerate(ahead(kept or acquisition.read(key) for key in keys)):
                done = restore(
                    raw,
                    runner,
                    trust=trust_path is not None,
                    denoise=plans[number],
                    warnings=examined[number].get("warnings", []),
                    progress=_labelled(progress, number, len(keys)),
                )
                del raw
                reports.append(done.report)
                if done.trust is not None:
                    np.save(Path(spool, f"{number}.npy"), done.trust.data)
                yield done.stack
                del done

        def doubts(like: Written) -> Iterator[Stack]:
            for number, key in enumerate(keys):
                data = np.load(Path(spool, f"{number}.npy"))
                yield Stack(data, like.voxel_um, key.channel_name, key.time, key.position_name)

        def write(restored: Iterator[Stack]) -> Written:
            return write_ome_tiff(path, restored, provenance, times=times, channels=channels)

        written = behind(stacks(), write)
        if trust_path is None:
            return RestoredPosition(written, reports)
        sentences = [doubt_warning(report["doubtful"]) for report in reports]
        _warn(acquisition, [[sentence] if sentence else [] for sentence in sentences])
        meaning = {"trust": "likely absolute error of a voxel, as a fraction of the intensity range"}
        doubt = write_ome_tiff(trust_path, doubts(written), provenance | meaning, times=times, channels=channels)
        return RestoredPosition(written, reports, doubt)


def restore_file(
    path: str | Path,
    out: str | Path,
    bundle: str | Path | Bundle | Runner | None = None,
    *,
    backend: str = "auto",
    trust: bool = False,
    denoise: str | None = None,
    voxel_z: float | None = None,
    voxel_xy: float | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Restore every stack of a data set, one isotropic OME-TIFF per position.

    A result has its name only when it is whole: it is written under a temporary name in the same folder, synced to the
    disk, read back, compared, renamed. A file of that name that holds something else is never replaced.

    Parameters
    ----------
    path
        A file, or the folder of one acquisition.
    out
        The OME-TIFF to write (``.tif``; with several positions their names are added), or a folder.
    bundle
        A bundle or its folder; an open runner; None takes the base network as it ships, with torch.
    backend
        See `open_runner`; plays no part where `bundle` is a runner or None.
    trust
        Also write ``NAME_trust.ome.tif``.
    denoise
        ``auto``, ``off`` or a denoiser's name; None does as the bundle says, and is ``auto`` without one.
    voxel_z, voxel_xy
        See `open_acquisition`.
    progress
        Told the tiles done.

    Returns
    -------
    One report per stack, with the result's path under ``result`` (and ``trust``).
    """
    with open_acquisition(path, voxel_z, voxel_xy) as acquisition, _opened(bundle, backend) as opened:
        positions = list(dict.fromkeys(key.position for key in acquisition.keys))
        names = _result_paths(Path(out), acquisition, positions)
        for result in names.values():
            if result.exists():
                raise StorageError(f"{shown(result)} exists already; give another name or move it away")
        reports = []
        for position in positions:
            reports += _published(acquisition, position, names[position], opened, trust, denoise, progress)
        return reports


def _published(
    acquisition: Acquisition,
    position: int,
    result: Path,
    opened: tuple[Runner, AdaptationEntry | None],
    trust: bool,
    denoise: str | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    make_folder(result.parent)
    temporary, temporary_trust = temporary_name(result.parent), temporary_name(result.parent)
    beside = result.with_name(_stem(result.name) + TRUST_SUFFIX)
    try:
        done = restore_position(
            acquisition,
            position,
            temporary,
            opened[0],
            trust_path=temporary_trust if trust else None,
            denoise=denoise,
            adaptation=opened[1],
            progress=progress,
        )
        if done.trust is not None:
            doubt = done.trust
            place(seal(temporary_trust, lambda file: verify_ome_tiff(file, doubt)), beside)
        place(seal(temporary, lambda file: verify_ome_tiff(file, done.written)), result)
    finally:
        discard(temporary)
        discard(temporary_trust)
    where = {"result": str(result)} | ({"trust": str(beside)} if trust else {})
    return [report | where for report in done.reports]


@contextlib.contextmanager
def _opened(
    bundle: str | Path | Bundle | Runner | None, backend: str
) -> Iterator[tuple[Runner, AdaptationEntry | None]]:
    """Give a runner, and what its bundle was adapted to where there is one."""
    if bundle is not None and not isinstance(bundle, str | os.PathLike | Bundle):
        yield bundle, None
        return
    if bundle is None:
        runner: Runner = open_base()
        adaptation = None
    else:
        of = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        runner, adaptation = open_runner(of, backend), of.manifest.adaptation
    with contextlib.closing(runner):
        yield runner, adaptation


def _whole_keys(acquisition: Acquisition, position: int) -> list[StackKey]:
    """Stacks of the time points at which every channel is whole."""
    keys = [key for key in acquisition.keys if key.position == position]
    broken = {key.time for key in keys if not acquisition.is_whole(key)}
    whole = [key for key in keys if key.time not in broken]
    if not whole:
        acquisition.read(next(key for key in keys if not acquisition.is_whole(key)))  # says what is missing
        raise InputError(f"{shown(acquisition.path)}: position {position} holds no whole time point")
    if broken:
        logger.warning(
            "%s: position %s: %s of %s time points lack planes and are left out",
            shown(acquisition.path),
            position,
            len(broken),
            len({key.time for key in keys}),
        )
    return whole


def _examined(stack: Stack, key: StackKey, adaptation: AdaptationEntry | None) -> dict[str, Any]:
    """Refuse what cannot be restored; note the normalisation that the restoration will use, and warnings."""
    require_restorable(stack)
    scale = Normalisation.of(stack.data)
    note: dict[str, Any] = {"time": key.time, "channel": key.channel, "offset": scale.offset, "scale": scale.scale}
    warnings = warnings_of(stack, adaptation)
    return note | ({"warnings": warnings} if warnings else {})


def _warn(acquisition: Acquisition, warnings: list[list[str]]) -> None:
    for sentence in summed_up(warnings):
        logger.warning("%s: %s", shown(acquisition.path), sentence)


def _provenance(acquisition: Acquisition, runner: Runner, notes: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the result depends on; the same input gives the same provenance, so no time of day."""
    return {
        "software": f"ssai3d-rt {importlib.metadata.version('ssai3d-rt')}",
        "source": shown(acquisition.path.name),
        "source_voxel_um": list(acquisition.voxel_um),
        "source_shape": list(acquisition.shape),
        "bundle_id": runner.bundle_id,
        "backend": f"{runner.name} ({runner.detail})",
        "tile": runner.tile,
        "overlap": OVERLAP_PX,
        "normalisation": notes,
    }


def _result_paths(out: Path, acquisition: Acquisition, positions: list[int]) -> dict[int, Path]:
    one_file = out.suffix.lower() in (".tif", ".tiff")
    names = {key.position: key.position_name for key in acquisition.keys}
    if one_file:
        base, suffix = _stem(out.name), out.name[len(_stem(out.name)) :]
    else:
        base, suffix = _stem(result_name(acquisition.path.name)), RESULT_SUFFIX
    folder = out.parent if one_file else out
    if len(positions) == 1:
        return {positions[0]: folder / f"{base}{suffix}"}
    return {
        position: folder / f"{base}_{re.sub(r'[^A-Za-z0-9.-]+', '-', names[position]) or f'p{position:03d}'}{suffix}"
        for position in positions
    }


def _stem(name: str) -> str:
    return re.sub(rf"({re.escape(RESULT_SUFFIX)}|(\.ome)?\.tiff?)$", "", name, flags=re.IGNORECASE)


def _labelled(progress: Progress, number: int, count: int) -> Progress:
    if count == 1:
        return progress

    def labelled(label: str, done: int, total: int, /) -> None:
        progress(f"{label} (stack {number + 1} of {count})", done, total)

    return labelled
