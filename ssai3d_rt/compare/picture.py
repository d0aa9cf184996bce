"""The comparison's picture: one row per method, an XZ and a YZ slice of each, and where it differs from the truth.

All rows show the same place on the same grey scale, which the truth sets, or where it is not known the row whose XZ
slice is the brightest. It draws with matplotlib's file backend and knows nothing of files or networks.

>>> import numpy as np
>>> volume = np.zeros((4, 20, 30), np.float32)
>>> volume[1, 12] = 1.0
>>> liveliest_place(volume).y
12
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.figure import new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Float = npt.NDArray[np.float32]

INK, SOFT = "#1c2530", "#5b6775"
WIDEST = 3.0
"""A slice is shown at most this many times wider than it is deep, or `LEAST_PX` wide."""
LEAST_PX = 96
ROW_IN = (0.9, 1.9)
"""Least and greatest height of a row in inches; the names need the least."""
WIDTH_IN = 10.0
"""Width of the slices together."""
NAMES_IN = 1.65
BRIGHT = 99.5
"""Percentile of a slice that is shown white."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where all volumes are looked at: the XZ slice at `y`, the YZ slice at `x`, and what is shown of them."""

    y: int
    x: int
    rows: slice
    columns: slice

    def xz(self, volume: Float) -> Float:
        """Cut the XZ slice."""
        return volume[:, self.y, self.columns].copy()

    def yz(self, volume: Float) -> Float:
        """Cut the YZ slice."""
        return volume[:, self.rows, self.x].copy()


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One row: a name, lines with figures, the slices ``(Zi, W)``, and the XZ slice's error where it is known."""

    name: str
    lines: tuple[str, ...]
    xz: Float
    yz: Float
    error: Float | None = None


def liveliest_place(volume: Float) -> Place:
    """Pick the slices with most contrast, a tenth at each border left out, and their liveliest parts where wide."""
    most = max(int(WIDEST * volume.shape[0]), LEAST_PX)
    y = _liveliest(volume.std(axis=(0, 2)))
    x = _liveliest(volume.std(axis=(0, 1)))
    return Place(y, x, _window(volume[:, :, x].std(axis=0), most), _window(volume[:, y].std(axis=0), most))


def draw(panels: Sequence[Panel], path: Path, *, title: str, voxel_um: float) -> None:
    """Write the picture as PNG.

    Parameters
    ----------
    panels
        The rows from the top; one named ``truth`` sets the grey scale, else the brightest.
    path
        The PNG to write.
    title
        What was restored.
    voxel_um
        Voxel size.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    """
    brightest = max(panels, key=lambda p: float(np.percentile(p.xz, BRIGHT)))
    ruling = next((p for p in panels if p.name == "truth"), brightest)
    shown = np.concatenate([ruling.xz.ravel(), ruling.yz.ravel()])
    low, high = (float(v) for v in np.percentile(shown, (1, BRIGHT)))
    errors = [p.error for p in panels if p.error is not None]
    widths = [ruling.xz.shape[1], ruling.yz.shape[1], *([ruling.xz.shape[1]] if errors else [])]
    row_in = min(max(WIDTH_IN * ruling.xz.shape[0] / sum(widths), ROW_IN[0]), ROW_IN[1])
    slices_in = min(WIDTH_IN, row_in * sum(widths) / ruling.xz.shape[0])
    above_in, below_in, gap_in = 0.65, 0.45, 0.07
    size_in = (NAMES_IN + slices_in + 0.15, above_in + len(panels) * (row_in + gap_in) + below_in)
    figure = new_figure(figsize=size_in, dpi=150, facecolor="white")
    grid = figure.add_gridspec(
        len(panels),
        len(widths),
        width_ratios=widths,
        wspace=0.02,
        hspace=gap_in / row_in,
        left=NAMES_IN / size_in[0],
        right=1 - 0.15 / size_in[0],
        top=1 - above_in / size_in[1],
        bottom=below_in / size_in[1],
    )
    top = 1 - 0.25 / size_in[1]
    figure.text(0.12 / size_in[0], top, title, color=INK, fontsize=12, weight="bold", va="center")
    reach = max((float(np.percentile(np.abs(e), 99.5)) for e in errors), default=1.0) or 1.0
    for row, panel in enumerate(panels):
        axes = [figure.add_subplot(grid[row, column]) for column in range(len(widths))]
        for each, values in zip(axes, (panel.xz, panel.yz), strict=False):
            each.imshow(values, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect="auto")
        if panel.error is not None:
            axes[2].imshow(panel.error, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest", aspect="auto")
        for column, each in enumerate(axes):
            each.set_xticks([])
            each.set_yticks([])
            for side in each.spines.values():
                side.set_visible(False)
            if errors and column == 2 and panel.error is None:
                each.set_visible(False)
        _name(axes[0], panel, row_in)
        if row == 0:
            heads = ("XZ slice", "YZ slice", "XZ slice less truth")
            for each, head in zip(axes, heads, strict=False):
                each.set_title(head, color=SOFT, fontsize=9, loc="left", pad=4)
    _scale_bar(figure.axes[(len(panels) - 1) * len(widths)], ruling.xz.shape, voxel_um)
    notes = ["Z runs downwards; one place, one grey scale."]
    if errors:
        notes.append("Brightness is fitted to the truth. Red: brighter than it, blue: darker.")
    figure.text(0.12 / size_in[0], below_in / 2 / size_in[1], "\n".join(notes), color=SOFT, fontsize=8, va="center")
    figure.savefig(path, metadata={"Software": "ssai3d-rt"})


def _name(axes: Any, panel: Panel, row_in: float) -> None:
    """Write the name and as many lines as there is room for, left of the row."""
    line_in = 0.155
    room = max(1, int((row_in - 0.2) / line_in))
    size = 10 * min(1.0, 17 / len(panel.name))  # so that long names fit
    axes.text(
        -0.015, 1.0, panel.name, transform=axes.transAxes, color=INK, fontsize=size, weight="bold", ha="right", va="top"
    )
    text = "\n".join(panel.lines[:room])
    below = 1.0 - 0.2 / row_in
    axes.text(
        -0.015, below, text, transform=axes.transAxes, color=SOFT, fontsize=8.5, ha="right", va="top", linespacing=1.3
    )


def _scale_bar(axes: Any, shape: tuple[int, ...], voxel_um: float) -> None:
    """Draw a bar of a round length, about a fifth of the width."""
    depth, width = shape
    choices = [base * 10.0**power for power in range(-3, 5) for base in (1, 2, 5)]
    length_um = min(choices, key=lambda choice: abs(np.log(choice / (width * voxel_um / 5))))
    x, y = width * 0.03, depth * 0.92
    axes.plot([x, x + length_um / voxel_um], [y, y], color="white", lw=2.5, solid_capstyle="butt")
    axes.text(
        x + length_um / voxel_um / 2, y - 0.05 * depth, f"{length_um:g} µm", color="white", fontsize=8, ha="center"
    )


def _liveliest(contrast: Float) -> int:
    edge = len(contrast) // 10
    return edge + int(np.argmax(contrast[edge : len(contrast) - edge]))


def _window(contrast: Float, most: int) -> slice:
    """Return the run of at most `most` places with the highest sum."""
    if len(contrast) <= most:
        return slice(0, len(contrast))
    sums = np.convolve(contrast, np.ones(most), "valid")
    first = int(np.argmax(sums))
    return slice(first, first + most)
