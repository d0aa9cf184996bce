"""Draw a fine-tuning: the PSNR of training and held-out pairs over the iterations, and which layers were chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssai3d_rt.adapt.zeroshot import depth_order
from ssai3d_rt.figure import new_figure

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from ssai3d_rt.adapt.model import ModelRecord


def draw_course(record: ModelRecord, path: Path) -> Path:
    """Write a PNG of the training's course.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    """
    figure = new_figure(figsize=(7, 4), dpi=120, layout="constrained")
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


def draw_layers(
    layers: Sequence[str], mask: Collection[str], scores: Mapping[str, float], path: Path, *, title: str = ""
) -> Path:
    """Write a PNG of the layers over depth: a bar each, as high as its score, those of the mask coloured.

    Parameters
    ----------
    layers
        Names of all convolutions.
    mask
        The chosen ones.
    scores
        Score of each layer; where there are none, the bars say only which were chosen.
    path
        The PNG to write.
    title
        Instead of how many layers train.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    """
    ordered = depth_order(layers)
    heights = [scores[name] if scores else float(name in mask) for name in ordered]
    colours = ["tab:green" if name in mask else "0.75" for name in ordered]
    figure = new_figure(figsize=(9, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(ordered)), heights, width=0.8, color=colours)
    stages = [_stage(name) for name in ordered]
    starts = [i for i, stage in enumerate(stages) if i == 0 or stages[i - 1] != stage]
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="0.85", lw=0.8, zorder=0)
    middles = [(a + b - 1) / 2 for a, b in zip(starts, [*starts[1:], len(stages)], strict=True)]
    axes.set_xticks(middles, [stages[start] for start in starts], rotation=60, ha="right", fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1, len(ordered))
    axes.set(ylabel="score" if scores else "chosen", xlabel="convolutions, from the input to the output")
    axes.set_title(title or f"{len(mask)} of {len(ordered)} convolutions train (green)")
    figure.savefig(path)
    return path


def _stage(layer: str) -> str:
    """Name the stage of the network that a layer belongs to."""
    part, _, rest = layer.partition(".")
    words = {"encoders": "encoder", "decoders": "decoder", "downs": "down", "ups": "up", "middle_blks": "middle"}
    number = "" if part == "middle_blks" or not rest else f" {int(rest.partition('.')[0]) + 1}"
    return words.get(part, part) + number
