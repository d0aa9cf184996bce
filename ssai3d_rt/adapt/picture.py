"""Draw the course of a fine-tuning: PSNR of training and held-out pairs over the iterations, base and kept weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssai3d_rt.errors import MissingPackageError

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.adapt.model import ModelRecord


def draw_course(record: ModelRecord, path: Path) -> Path:
    """Write a PNG of the training's course.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("matplotlib", extra="train") from None
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    at = [check.iteration for check in record.checks]
    held_out = [check.held_out_psnr_db for check in record.checks]
    train = [(c.iteration, c.train_psnr_db) for c in record.checks if c.train_psnr_db is not None]
    if train:
        axes.plot(*zip(*train, strict=True), color="0.65", label="training pairs (mean since the last check)")
    axes.plot(at, held_out, "o-", ms=3, color="tab:blue", label="held-out pairs")
    axes.axhline(
        record.base_psnr_db, color="tab:orange", ls="--", lw=1, label=f"base network {record.base_psnr_db:.2f} dB"
    )
    best = held_out.index(record.best_psnr_db)
    axes.plot(
        at[best], held_out[best], "*", ms=13, color="tab:green", label=f"kept: {record.kept}, {held_out[best]:.2f} dB"
    )
    axes.set(xlabel="iteration", ylabel="PSNR of pairs (dB)", title=_title(record))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
    return path


def _title(record: ModelRecord) -> str:
    share = 100 * record.trained_parameters / record.total_parameters
    return (
        f"{len(record.mask)} layers, {share:.1f} % of the parameters trained on {', '.join(record.source) or 'a stack'}"
    )
