"""Time a whole restoration: a file in, a published file out, everything between as the product does it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ssai3d_rt.bench.tiles import open_way
from ssai3d_rt.export.bundle import Bundle
from ssai3d_rt.runtime.backends import self_test
from ssai3d_rt.runtime.restore import restore_file


def time_restore(
    *,
    bundle: str,
    backend: str,
    way: int,
    threads: int | None,
    source: str,
    out: str,
    voxel_um: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """Open, test and restore; a task for `ssai3d_rt.bench.child`.

    Parameters
    ----------
    bundle
        Folder.
    backend, way, threads
        See `open_way`.
    source, out
        Data set, and the OME-TIFF that does not exist yet. Nothing is denoised: it has nothing to do with the backend.
    voxel_um
        Spacing of planes, lateral pixel, where the file lacks them.

    Returns
    -------
    ``open_s`` (until the golden tiles passed), ``restore_s`` (read, restore, write, sync, read back), ``stack_s`` (of
    that the stack in memory), ``voxels`` of the result, ``results``.
    """
    opened = Bundle.open(bundle)
    start = time.perf_counter()
    runner = open_way(opened, backend, way, threads)
    if runner is None:
        return {"absent": True}
    with contextlib.closing(runner):
        self_test(runner, opened)
        open_s = time.perf_counter() - start
        start = time.perf_counter()
        reports = restore_file(source, out, runner, denoise="off", voxel_z=voxel_um[0], voxel_xy=voxel_um[1])
        restore_s = time.perf_counter() - start
    voxels = sum(z * y * x for z, y, x in (report["restored_shape"] for report in reports))
    return {
        "detail": runner.detail,
        "open_s": open_s,
        "restore_s": restore_s,
        "stack_s": sum(report["seconds"] for report in reports),
        "voxels": voxels,
        "results": list(dict.fromkeys(report["result"] for report in reports)),
    }
