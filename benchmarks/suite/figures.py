"""The benchmark's pictures, after the article's Fig. 2g-j and 3b, e: PSNR over blur, lateral against axial error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from suite.bars import MISMATCH
from suite.rows import BLUR_PX, MISMATCH_PX, TOLD_PX

if TYPE_CHECKING:
    from pathlib import Path

    from suite.results import Results

LOOKS: dict[str, tuple[str, str]] = {
    "raw": ("0.6", "x"),
    "richardson-lucy": ("tab:brown", "v"),
    "self-net": ("tab:olive", "<"),
    "care": ("tab:red", "s"),
    "base": ("black", "o"),
    "full": ("tab:purple", "D"),
    "article": ("tab:orange", "^"),
    "ssai3d": ("tab:blue", "o"),
}
"""Colour and marker of each method that is drawn."""
SIMILARITY = ("spheres", "cylinders")
LEARNT = ("self-net", "care", "full", "article", "ssai3d")


def blur_figure(results: Results, path: Path) -> bool:
    """Draw PSNR over blur, each method fitted to each stack, and fitted once; returns whether there was anything."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4), sharey=True, layout="constrained")
    drawn = {}
    for method, (colour, marker) in LOOKS.items():
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.3}
        own = {px: results.spread("psnr_db", f"flat strands: std {px} px", method) for px in BLUR_PX}
        once = {px: results.spread("psnr_db", MISMATCH, method, f"flat strands: std {px} px") for px in MISMATCH_PX}
        for axis, points in zip(axes, (own, once), strict=True):
            there = {px: s.mean for px, s in points.items() if s.count}
            if there:
                (drawn[method],) = axis.plot(list(there), list(there.values()), label=method, **style)
    axes[0].set(title="fitted to each stack", xlabel="axial blur, std [px]", ylabel="PSNR [dB]")
    axes[1].set(title=f"fitted once, at {TOLD_PX} px", xlabel="axial blur, std [px]")
    axes[1].axvline(TOLD_PX, color="0.85", zorder=0)
    for axis in axes:
        axis.grid(alpha=0.25)
    if drawn:
        figure.legend(drawn.values(), drawn.keys(), loc="outside right center", frameon=False)
        figure.savefig(path, dpi=110)
    plt.close(figure)
    return bool(drawn)


def similarity_figure(results: Results, path: Path) -> bool:
    """Draw the axial error over that of held-out lateral pairs, a point a seed; returns whether there was anything."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.7), sharex=True, sharey=True, layout="constrained")
    drawn, all_errors = {}, []
    for axis, kind, likeness in zip(axes, SIMILARITY, ("high", "low"), strict=True):
        for method in LEARNT:
            colour, marker = LOOKS[method]
            lateral, axial = (results.values(field, kind, method) for field in ("lateral_mse", "mse"))
            seeds = sorted(lateral.keys() & axial.keys())
            if seeds:
                points = [lateral[s] for s in seeds], [axial[s] for s in seeds]
                drawn[method] = axis.scatter(*points, c=colour, marker=marker, s=26, label=method)
                all_errors += points[0] + points[1]
        axis.set(
            title=f"{kind}: {likeness} similarity", xlabel="error of lateral pairs (MSE)", xscale="log", yscale="log"
        )
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
            scale.set_major_formatter(lambda value, _: f"{value:g}")
            scale.set_minor_formatter(lambda *_: "")
        axis.grid(alpha=0.25, which="both")
    if drawn:
        line = (min(all_errors) * 0.8, max(all_errors) * 1.25)
        for axis in axes:
            axis.plot(line, line, color="0.6", linewidth=1, zorder=0)
        axes[0].set_ylabel("error of the restored volume (MSE)")
        figure.legend(drawn.values(), drawn.keys(), loc="outside right center", frameon=False)
        figure.savefig(path, dpi=110)
    plt.close(figure)
    return bool(drawn)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
