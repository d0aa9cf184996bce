"""Bench a bundle: every backend that runs here, in every way it knows, on tiles and on a whole stack.

Each configuration is measured in a process of its own (see `child`). A way that does not give the reference's numbers
is not timed; it is listed as refused, with the reason. Nothing here decides what a rig uses: that is
`ssai3d_rt.runtime.backends`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.bench.child import measured
from ssai3d_rt.bench.plan import Plan, variant_of, variants
from ssai3d_rt.bench.tiles import MOST_WAYS
from ssai3d_rt.compare.figures import fitted_to
from ssai3d_rt.errors import Ssai3dError
from ssai3d_rt.export.bundle import WEIGHTS
from ssai3d_rt.export.parity import BEST_DB
from ssai3d_rt.imaging.metrics import psnr
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.network.cost import Cost, cost_of
from ssai3d_rt.network.nafnet import NAFNetShape
from ssai3d_rt.progress import Progress, silent
from ssai3d_rt.runtime.backends import BACKENDS
from ssai3d_rt.runtime.backends.reference import NAME as TORCH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ssai3d_rt.export.bundle import Bundle

UPSTREAM = "upstream-style"
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True)
class TileRow:
    """One configuration on tiles.

    Parameters
    ----------
    backend, detail, format
        Its name, how it runs, and its number format (``fp32``, ``fp16``, ``bf16``).
    tile, layer_norm, batch
        The configuration.
    ms, ms_p95
        Milliseconds per tile: median and 95th percentile of `rounds` calls.
    voxels_per_s
        Restored voxels per second: the pixels of the tiles, halved, as each voxel lies in an XZ and in a YZ slice.
    psnr_db
        On real golden tiles against the FP32 reference.
    peak_share, memory_share
        Fraction of the measured rate of multiplying large matrices and of copying memory; None where not measured.
    host_bytes, device_bytes
        Peak resident memory of the process, peak memory of the GPU.
    open_s
        From the bundle to the golden tiles passed: loading, compiling, building.
    """

    backend: str
    detail: str
    format: str
    tile: int
    layer_norm: str
    batch: int
    ms: float
    ms_p95: float
    rounds: int
    voxels_per_s: float
    psnr_db: float
    max_error: float
    peak_share: float | None
    memory_share: float | None
    host_bytes: int
    device_bytes: int | None
    open_s: float


@dataclass(frozen=True, slots=True)
class StackRow:
    """One way to restore a whole stack, files and all; `restore_s` starts when the network is loaded."""

    backend: str
    detail: str
    open_s: float
    restore_s: float
    voxels_per_s: float
    host_bytes: int
    device_bytes: int | None
    psnr_db: float | None = None


@dataclass(slots=True)
class Bench:
    """What `bench` returns; `refused` and `absent` say why, by backend."""

    bundle: str
    network: dict[str, Any]
    stack: str
    machine: dict[str, Any] = field(default_factory=dict)
    tiles: list[TileRow] = field(default_factory=list)
    stacks: list[StackRow] = field(default_factory=list)
    same: dict[str, Any] | None = None
    refused: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def bench(
    bundle: Bundle,
    source: Path,
    plan: Plan | None = None,
    *,
    voxel_um: tuple[float | None, float | None] = (None, None),
    progress: Progress = silent,
) -> Bench:
    """Measure.

    Parameters
    ----------
    bundle
        To run.
    source
        The data set to restore; of one stack where `plan.upstream` is set.
    plan
        What to measure.
    voxel_um
        Spacing of planes, lateral pixel, where the file lacks them.
    progress
        Told the configurations done.

    Raises
    ------
    Ssai3dError
        What keeps any backend from being measured: the stack, the bundle, the upstream-style way. A backend that fails
        is listed as refused.
    """
    plan = plan or Plan()
    entry = bundle.manifest.network
    found = Bench(str(bundle.folder), entry.model_dump(mode="json", exclude={"state_sha256"}), str(source))
    able, found.absent = plan.able()
    wanted = list(variants(bundle, plan))
    count = sum(MOST_WAYS.get(backend, 1) for backend in able)
    steps = _Steps(progress, 1 + len(wanted) * count * len(plan.batches) + count + 3 * plan.upstream)
    steps.next("the machine")
    found.machine = measured("machine", threads=plan.threads)
    with tempfile.TemporaryDirectory(prefix="ssai3d-bench-") as name:
        folder = Path(name)
        ways = {backend: list(range(MOST_WAYS.get(backend, 1))) for backend in able}
        for tile, mode in wanted if plan.batches else ():
            try:
                variant = variant_of(bundle, tile, mode, folder)
            except Ssai3dError as error:
                found.refused.append(f"tile {tile}, {mode}: {error}")
                steps.skip(count * len(plan.batches))
                continue
            for backend in able:
                passed = _time_ways(variant, backend, plan, found, steps)
                if variant is bundle:
                    ways[backend] = passed
        _time_stacks(bundle, source, ways, plan, found, steps, folder, voxel_um)
    steps.done()
    return found


def _time_ways(bundle: Bundle, backend: str, plan: Plan, found: Bench, steps: _Steps) -> list[int]:
    """Time every way of a backend on tiles; return the numbers of those that give the reference's numbers."""
    passed: list[int] = []
    for way in range(MOST_WAYS.get(backend, 1)):
        for number, batch in enumerate(plan.batches):
            steps.next(f"{backend}, {batch} tile{'s' if batch > 1 else ''} of {bundle.tile} px")
            arguments = {"bundle": str(bundle.folder), "backend": backend, "way": way, "batch": batch}
            try:
                timed = measured("tiles", **arguments, threads=plan.threads, rounds=plan.rounds, seconds=plan.seconds)
            except Ssai3dError as error:
                timed = {"refused": f"{error}"}
            if "refused" in timed or timed.get("absent"):
                found.refused += [f"{backend}: {timed['refused']}"] if "refused" in timed else []
                steps.skip(len(plan.batches) - number - 1)
                break
            found.tiles.append(_row(bundle, backend, timed, found.machine))
            if number == 0:
                passed.append(way)
    return passed


def _row(bundle: Bundle, backend: str, timed: Mapping[str, Any], machine: Mapping[str, Any]) -> TileRow:
    kind = number_format(backend, timed["detail"], bundle)
    cost = cost_of_bundle(bundle)
    where = "gpu" if BACKENDS[backend].gpu or "cuda" in timed["detail"] else "cpu"
    seconds, batch = timed["ms"] / 1e3, timed["batch"]
    flops, rate = machine["flops"].get(f"{where} {kind}"), machine["bytes_per_s"].get(where)
    return TileRow(
        backend=backend,
        detail=timed["detail"],
        format=kind,
        tile=bundle.tile,
        layer_norm=bundle.manifest.layer_norm,
        batch=batch,
        ms=timed["ms"],
        ms_p95=timed["ms_p95"],
        rounds=timed["rounds"],
        voxels_per_s=bundle.tile**2 / 2 / seconds,
        psnr_db=timed["psnr_db"],
        max_error=timed["max_error"],
        peak_share=cost.flops / seconds / flops if flops else None,
        memory_share=cost.moved_bytes(_BYTES[kind], batch) / (seconds * batch) / rate if rate else None,
        host_bytes=timed["peak_bytes"],
        device_bytes=timed["device_bytes"],
        open_s=timed["open_s"],
    )


def cost_of_bundle(bundle: Bundle) -> Cost:
    """Count what one tile of a bundle costs."""
    entry = bundle.manifest.network
    shape = NAFNetShape(entry.width, tuple(entry.enc), entry.middle, tuple(entry.dec), entry.channels)
    return cost_of(shape, bundle.tile)


def number_format(backend: str, detail: str, bundle: Bundle) -> str:
    """Say in which format most of the arithmetic is done: CPUs compute FP16 graphs in FP32."""
    said = {"bf16": "bf16", "f32": "fp32", "fp32": "fp32", "fp16": "fp16"}.get(detail.partition(" ")[0].lower())
    return said or (bundle.manifest.precision if BACKENDS[backend].gpu else "fp32")


def _time_stacks(
    bundle: Bundle,
    source: Path,
    ways: Mapping[str, list[int]],
    plan: Plan,
    found: Bench,
    steps: _Steps,
    folder: Path,
    voxel_um: tuple[float | None, float | None],
) -> None:
    """Restore the stack with every way that passed, and in the published way where asked."""
    arguments = {"threads": plan.threads, "source": str(source), "voxel_um": voxel_um}
    yardstick = folder / "upstream.ome.tif"
    if plan.upstream:
        steps.next("the stack, upstream-style")
        done = measured("upstream", out=str(yardstick), **arguments, **_weights(bundle))
        found.stacks.append(_stack_row(UPSTREAM, done, None))
    fp32 = None
    for backend, numbers in ways.items():
        steps.skip(MOST_WAYS.get(backend, 1) - len(numbers))
        for way in numbers:
            out = folder / f"{backend}-{way}.ome.tif"
            steps.next(f"the stack, {backend}")
            try:
                done = measured(
                    "restore", bundle=str(bundle.folder), backend=backend, way=way, out=str(out), **arguments
                )
            except Ssai3dError as error:
                found.refused.append(f"{backend}, on the stack: {error}")
                continue
            if done.get("absent"):
                continue
            fp32 = out if backend == TORCH else fp32
            found.stacks.append(_stack_row(backend, done, likeness_db(out, yardstick) if plan.upstream else None))
    if plan.upstream:
        found.same = _same_function(bundle, arguments, fp32, yardstick, steps)


def _weights(bundle: Bundle) -> dict[str, Any]:
    """Say where the published way finds the weights, without all else that a bundle holds."""
    train_px = bundle.manifest.adaptation.record.get("train_px")
    return {"weights": str(bundle.folder / WEIGHTS), "train_px": train_px if isinstance(train_px, int) else None}


def _stack_row(backend: str, done: Mapping[str, Any], psnr_db: float | None) -> StackRow:
    return StackRow(
        backend=backend,
        detail=done["detail"],
        open_s=done["open_s"],
        restore_s=done["restore_s"],
        voxels_per_s=done["voxels"] / done["restore_s"],
        host_bytes=done["peak_bytes"],
        device_bytes=done["device_bytes"],
        psnr_db=psnr_db,
    )


def _same_function(
    bundle: Bundle, arguments: dict[str, Any], ours: Path | None, yardstick: Path, steps: _Steps
) -> dict[str, Any]:
    """Compare the FP32 forms of both where they compute the same function, that is with the same padding."""
    if ours is None:
        steps.next("the stack in FP32")
        ours = yardstick.with_name("fp32.ome.tif")
        measured("restore", bundle=str(bundle.folder), backend=TORCH, way=0, out=str(ours), **arguments)
    else:
        steps.skip(1)
    sides, tile = set(read_stack(ours).data.shape), bundle.tile
    if max(sides) > tile:
        steps.skip(1)
        return {"psnr_db": None, "why": f"slices of up to {max(sides)} px do not fit in a tile of {tile} px"}
    if sides == {tile}:
        steps.skip(1)
        return {"psnr_db": likeness_db(ours, yardstick), "why": f"slices as large as a tile, {tile} px: no padding"}
    steps.next("the stack, upstream-style, padded as here")
    theirs = yardstick.with_name("upstream-tile.ome.tif")
    measured("upstream", out=str(theirs), padded_to=tile, **arguments, **_weights(bundle))
    return {"psnr_db": likeness_db(ours, theirs), "why": f"slices reflected to a tile of {tile} px in both"}


def likeness_db(ours: Path, theirs: Path) -> float:
    """PSNR of two restored stacks, over the range of the second; brightness and offset are fitted.

    Ours keeps the raw stack's mean, which the published way does not.
    """
    a, b = (read_stack(path).data.astype(np.float32) for path in (ours, theirs))
    spread = float(b.max() - b.min())
    return min(psnr(fitted_to(a, b), b, spread if spread > 0 else 1.0), BEST_DB)


class _Steps:
    """Counts configurations for a `Progress`; how many there are shows only on the way."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._begun = progress, total, 0

    def next(self, label: str) -> None:
        self._begun += 1
        self._progress(f"bench {self._begun}: {label}", self._begun - 1, max(self._total, self._begun))

    def skip(self, count: int) -> None:
        self._total -= count

    def done(self) -> None:
        self._progress(f"bench {self._begun}: done", self._begun, self._begun)


def save(found: Bench, path: Path) -> None:
    """Write the record as JSON."""
    path.write_text(json.dumps(found.record(), indent=1) + "\n", encoding="utf-8")
