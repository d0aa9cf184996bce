"""A bench as a picture: milliseconds per tile for every configuration, and seconds for the whole stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssai3d_rt.figure import new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ssai3d_rt.bench.run import Bench, StackRow, TileRow

INK, SOFT, YARDSTICK = "#1c2530", "#5b6775", "#b9c0c8"
COLOURS = ("#2a6fb0", "#d1782b", "#3c8f5a", "#8a5aa8", "#b0493f", "#6d7a2c", "#3a9aa0")
"""One per backend, in order of appearance."""
BAR_IN, WIDTH_IN = 0.27, 10.0
HOW_CHARACTERS = 34


def draw(found: Bench, path: Path) -> None:
    """Write the picture as PNG.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    """
    names = dict.fromkeys([row.backend for row in found.tiles] + [row.backend for row in found.stacks])
    ours = [name for name in names if "-style" not in name]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(ours)}
    panels = [panel for panel in (_tile_bars(found.tiles), _stack_bars(found.stacks)) if panel[1]]
    heights = [len(bars) * BAR_IN + 0.75 for _, bars in panels] or [1.0]
    figure = new_figure(figsize=(WIDTH_IN, sum(heights) + 0.35), dpi=120, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for place, (title, bars) in enumerate(panels):
        _panel(figure.add_subplot(grid[place]), title, bars, colours)
    figure.savefig(path)


Bar = tuple[str, str, float, float, str]
"""Backend, label, length, end of the thin line, text behind it."""


def _tile_bars(rows: Sequence[TileRow]) -> tuple[str, list[Bar]]:
    varied = len({(row.tile, row.layer_norm) for row in rows}) > 1
    bars = []
    for row in rows:
        variant = f", {row.tile} px, {row.layer_norm}" if varied else ""
        label = f"{_way(row.backend, row.detail)}{variant}, batch {row.batch}"
        bars.append((row.backend, label, row.ms, row.ms_p95, f"{row.ms:.1f} ms"))
    tiles = " and ".join(f"{side} px" for side in sorted({row.tile for row in rows}))
    return f"Milliseconds per tile of {tiles}: median, thin line to the 95th percentile", bars


def _stack_bars(rows: Sequence[StackRow]) -> tuple[str, list[Bar]]:
    bars = [(r.backend, _way(r.backend, r.detail), r.restore_s, r.restore_s, f"{r.restore_s:.1f} s") for r in rows]
    return "Seconds for the whole stack, files and all", bars


def _way(backend: str, detail: str) -> str:
    """Name a way in a few words: what tells a backend's ways apart stands first in its detail."""
    if "-style" in backend:
        return backend
    return f"{backend} {detail.partition(',')[0]}"[:HOW_CHARACTERS]


def _panel(axes: Any, title: str, bars: Sequence[Bar], colours: dict[str, str]) -> None:
    places = range(len(bars))
    for place, (backend, _, length, end, text) in zip(places, bars, strict=True):
        axes.barh(place, length, height=0.72, color=colours.get(backend, YARDSTICK))
        if end > length:
            axes.plot([length, end], [place, place], color=INK, linewidth=0.8)
        axes.text(end, place, f" {text}", va="center", ha="left", fontsize=8, color=INK)
    axes.set_yticks(list(places), [label for _, label, *_ in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, max(end for *_, end, _ in bars) * 1.13)
    axes.tick_params(axis="x", labelsize=8, colors=SOFT)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
