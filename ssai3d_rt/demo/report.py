"""What the demo says at the end: figures of each stack, a table for people and one JSON object for machines.

Fidelity (PSNR, SSIM) is measured on the truth's own scale, data range 1: camera counts become truth values through the
offset and the gain that the simulated camera used, which are known, never fitted. The raw stack is first resampled in Z
to isotropic voxels, with the same interpolation that the restoration starts from; all volumes cover the same grid. The
restored volume is the published file, read back. Axial and lateral resolution come from one estimator
(`fourier_resolution_um`), in counts. Nothing here knows how the volumes were made.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.metrics import fourier_resolution_um, psnr, ssim

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.table import Table

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """One stack as it came, as it was restored and, where it is known, as it is; all on one isotropic grid.

    Parameters
    ----------
    name
        Name of the stack.
    voxel_um
        Edge of a voxel in micrometres.
    raw, base, restored
        ``(Z, Y, X)`` float32 on the truth's scale where the truth is known, otherwise counts: the resampled raw stack,
        what the base network makes of it without fine-tuning, and the published result.
    truth
        ``(Z, Y, X)`` float32 in [0, 1], or None.
    """

    name: str
    voxel_um: float
    raw: Float
    base: Float
    restored: Float
    truth: Float | None = None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near a volume comes to the truth."""

    psnr_db: float
    ssim: float


@dataclass(frozen=True, slots=True)
class StackFigures:
    """What was measured about one restored stack.

    Parameters
    ----------
    name
        Name of the stack.
    lateral_um, raw_axial_um, restored_axial_um
        Fourier resolution: lateral of the raw stack (mean of Y and X), axial before and after.
    seconds
        From the end of the acquisition to the published result.
    raw, base, restored
        Nearness to the truth, or None where that is not known.
    """

    name: str
    lateral_um: float
    raw_axial_um: float
    restored_axial_um: float
    seconds: float
    raw: Fidelity | None = None
    base: Fidelity | None = None
    restored: Fidelity | None = None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """All that a demo left behind.

    Parameters
    ----------
    source
        Name of the source that acquired the stacks.
    out
        The folder that holds everything.
    stacks
        Figures of every stack that the running watch restored.
    seconds
        Wall-clock time of the whole job.
    steps
        Seconds of each step, in order.
    picture
        The PNG with the slices.
    bundle
        The exported bundle.
    engine
        The TensorRT-for-RTX engine that was built, or the reason why there is none.
    tuned
        Whether fine-tuning was better than the base network on held-out planes; otherwise the base was kept.
    """

    source: str
    out: Path
    stacks: tuple[StackFigures, ...]
    seconds: float
    steps: dict[str, float]
    picture: Path
    bundle: Path
    engine: str
    tuned: bool

    @property
    def mean(self) -> StackFigures:
        """The mean of every figure over the stacks."""
        return _mean(self.stacks)

    def summary(self) -> dict[str, Any]:
        """Return one JSON-able object; figures are means over the stacks, null where the truth is not known."""
        mean = self.mean
        steps = {"raw": mean.raw, "base": mean.base, "restored": mean.restored}
        return {
            "source": self.source,
            "stacks_restored": len(self.stacks),
            "lateral_um": _json(mean.lateral_um),
            "raw_axial_um": _json(mean.raw_axial_um),
            "restored_axial_um": _json(mean.restored_axial_um),
            **{f"{name}_psnr_db": _json(step.psnr_db) if step else None for name, step in steps.items()},
            **{f"{name}_ssim": _json(step.ssim) if step else None for name, step in steps.items()},
            "seconds": round(self.seconds, 1),
            "steps_s": {name: round(seconds, 1) for name, seconds in self.steps.items()},
            "tuned": self.tuned,
            "engine": self.engine,
            "bundle": str(self.bundle),
            "picture": str(self.picture),
            "out": str(self.out),
        }

    def record(self) -> dict[str, Any]:
        """Return the summary and the figures of every stack."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: plain(each) for name, each in value.items()}
            return _json(value) if isinstance(value, float) else value

        return {**self.summary(), "stacks": [plain(asdict(stack)) for stack in self.stacks]}

    def table(self) -> Table:
        """Return one row per stack and their mean, for a terminal."""
        from rich.table import Table

        table = Table(title=f"Stacks restored while they were acquired (source: {self.source})")
        table.add_column("stack")
        known = any(stack.raw for stack in self.stacks)
        headings = ["axial resolution (um)\nraw -> restored", "lateral\n(um)"]
        if known:
            headings += ["PSNR (dB)\nraw -> base -> restored", "SSIM\nraw -> base -> restored"]
        for heading in [*headings, "published\nafter (s)"]:
            table.add_column(heading, justify="right")
        for stack in self.stacks:
            table.add_row(*self._cells(stack, known=known))
        if len(self.stacks) > 1:
            table.add_section()
            table.add_row(*self._cells(self.mean, known=known), style="bold")
        if known:
            table.caption = (
                "resolution: half-period at which the Fourier spectrum ends; PSNR and SSIM: against the known truth; "
                "base: the network as shipped, not fine-tuned"
            )
        else:
            table.caption = (
                "resolution: half-period at which the Fourier spectrum ends; "
                "the truth of this source is not known, so there is no PSNR or SSIM"
            )
        return table

    @staticmethod
    def _cells(stack: StackFigures, *, known: bool) -> list[str]:
        axial = f"{_text(stack.raw_axial_um)} -> {_text(stack.restored_axial_um)}"
        cells = [stack.name, axial, _text(stack.lateral_um)]
        if known:
            steps = [fidelity for fidelity in (stack.raw, stack.base, stack.restored) if fidelity]
            cells += [
                " -> ".join(f"{step.psnr_db:.1f}" for step in steps),
                " -> ".join(f"{step.ssim:.2f}" for step in steps),
            ]
        return [*cells, f"{stack.seconds:.1f}"]


def measure(views: Views, seconds: float) -> StackFigures:
    """Measure one stack.

    Parameters
    ----------
    views
        The volumes.
    seconds
        From the end of the acquisition to the published result.
    """
    voxel_um = (views.voxel_um,) * 3

    def fidelity(volume: Float) -> Fidelity | None:
        if views.truth is None:
            return None
        return Fidelity(psnr(volume, views.truth, 1.0), ssim(volume, views.truth, 1.0))

    return StackFigures(
        name=views.name,
        lateral_um=(_resolution_um(views.raw, voxel_um, axis=1) + _resolution_um(views.raw, voxel_um, axis=2)) / 2,
        raw_axial_um=_resolution_um(views.raw, voxel_um, axis=0),
        restored_axial_um=_resolution_um(views.restored, voxel_um, axis=0),
        seconds=seconds,
        raw=fidelity(views.raw),
        base=fidelity(views.base),
        restored=fidelity(views.restored),
    )


def _resolution_um(volume: Float, voxel_um: tuple[float, float, float], axis: int) -> float:
    """Fourier resolution; NaN, shown as "n/a", where a volume has no structure to measure."""
    try:
        return fourier_resolution_um(volume, voxel_um, axis)
    except InputError:
        return math.nan


def _mean(stacks: Sequence[StackFigures]) -> StackFigures:
    """Mean of every figure; fidelity only where all stacks have it."""

    def figure(pick: Callable[[StackFigures], float]) -> float:
        return float(np.mean([pick(stack) for stack in stacks]))

    def fidelity(pick: Callable[[StackFigures], Fidelity | None]) -> Fidelity | None:
        picked = [value for stack in stacks if (value := pick(stack))]
        if len(picked) < len(stacks):
            return None
        return Fidelity(
            float(np.mean([value.psnr_db for value in picked])), float(np.mean([value.ssim for value in picked]))
        )

    return StackFigures(
        name="mean",
        lateral_um=figure(lambda stack: stack.lateral_um),
        raw_axial_um=figure(lambda stack: stack.raw_axial_um),
        restored_axial_um=figure(lambda stack: stack.restored_axial_um),
        seconds=figure(lambda stack: stack.seconds),
        raw=fidelity(lambda stack: stack.raw),
        base=fidelity(lambda stack: stack.base),
        restored=fidelity(lambda stack: stack.restored),
    )


def _text(value: float) -> str:
    """Two digits, or "n/a"."""
    return f"{value:.2f}" if math.isfinite(value) else "n/a"


def _json(value: float) -> float | None:
    """Four digits; JSON knows no infinity."""
    return round(value, 4) if math.isfinite(value) else None
