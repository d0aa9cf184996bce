"""The demo's picture: XZ slices of one stack side by side, a line through them, and the spectrum along Z.

All slices share one intensity scale, so what looks brighter is brighter. It draws with matplotlib's file backend,
needs no display, and knows nothing of files, microscopes or networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.figure import new_figure
from ssai3d_rt.imaging.metrics import spectrum

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.demo.report import Fidelity, StackFigures, Views

Float = npt.NDArray[np.float32]

INK = "#1c2530"
COLOURS = {"raw": "#8a97a6", "base": "#3b8fc4", "restored": "#d2502d", "truth": INK}
"""One colour per volume, told apart in grey print and by colour-blind eyes."""

_STYLES: dict[str, dict[str, Any]] = {
    "raw": {"color": COLOURS["raw"], "lw": 1.7},
    "base": {"color": COLOURS["base"], "lw": 1.0},
    "restored": {"color": COLOURS["restored"], "lw": 1.7},
    "truth": {"color": COLOURS["truth"], "lw": 1.2, "ls": (0, (1, 1))},
}


def draw(views: Views, figures: StackFigures, path: Path) -> None:
    """Write the picture of one stack as PNG.

    Parameters
    ----------
    views
        The volumes.
    figures
        Their figures, for the titles.
    path
        The PNG to write.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    """
    panels = _panels(views, figures)
    row, column = best_slice(views)
    low, high = _display_range(views, row)
    depth, _, width = views.raw.shape
    panel_in = 3.3  # inches; all heights follow from the slice's proportions
    heights_in = (max(1.2, min(6.0, panel_in * depth / width)), 2.5)
    above_in, between_in, below_in = 0.95, 0.65, 0.55
    size_in = (panel_in * len(panels), above_in + heights_in[0] + between_in + heights_in[1] + below_in)
    figure = new_figure(figsize=size_in, dpi=150, facecolor="white")
    from matplotlib.transforms import ScaledTranslation  # after `new_figure`, which says what to do where it is absent

    left, right = 0.75 / size_in[0], 1 - 0.15 / size_in[0]
    grid = figure.add_gridspec(
        2,
        1,
        height_ratios=heights_in,
        hspace=between_in / (sum(heights_in) / 2),
        left=left,
        right=right,
        top=1 - above_in / size_in[1],
        bottom=below_in / size_in[1],
    )
    slices = grid[0].subgridspec(1, len(panels), wspace=0.05)
    charts = grid[1].subgridspec(1, 2, wspace=0.2)

    top = 1 - 0.25 / size_in[1]
    figure.text(left, top, "The same XZ slice, before and after", color=INK, fontsize=15, weight="bold", va="center")
    figure.text(right, top, views.name, color="#5b6775", fontsize=10, ha="right", va="center")
    for place, (kind, title, note, volume) in enumerate(panels):
        axes = figure.add_subplot(slices[place])
        axes.imshow(volume[:, row], cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect="equal")
        mark = "white" if kind == "truth" else COLOURS[kind]
        for ends in ((0.0, 0.07), (0.93, 1.0)):  # at the borders only, so that the line hides nothing
            axes.axvline(column, *ends, color=mark, lw=1.6)
        axes.set_title(title, color=INK, fontsize=11, weight="bold", pad=19)
        above = ScaledTranslation(0, 6 / 72, figure.dpi_scale_trans)  # points to inches
        axes.text(0.5, 1.0, note, transform=axes.transAxes + above, color="#5b6775", fontsize=9, ha="center")
        axes.set_xticks([])
        axes.set_yticks([])
        if place == 0:
            axes.set_ylabel("Z (depth)", color=INK, fontsize=9)
            axes.set_xlabel("X", color=INK, fontsize=9, labelpad=2)
            _scale_bar(axes, views)
    _profile(figure.add_subplot(charts[0]), panels, row, column, views.voxel_um)
    _spectrum(figure.add_subplot(charts[1]), panels, views.voxel_um)
    figure.savefig(path, metadata={"Software": "ssai3d-rt"})


def best_slice(views: Views) -> tuple[int, int]:
    """Pick the XZ slice with the most structure, and in it the column of the sharpest Z profile: indices (y, x).

    It is picked in the truth, or in the raw stack where the truth is not known; never in what was restored. The borders
    (a tenth on either side) are left out.
    """
    volume = views.raw if views.truth is None else views.truth
    edge_y, edge_x = (size // 10 for size in volume.shape[1:])
    contrast = volume.std(axis=(0, 2))
    row = edge_y + int(np.argmax(contrast[edge_y : volume.shape[1] - edge_y]))
    change = np.abs(np.diff(volume[:, row], axis=0)).sum(axis=0)
    column = edge_x + int(np.argmax(change[edge_x : volume.shape[2] - edge_x]))
    return row, column


def _panels(views: Views, figures: StackFigures) -> list[tuple[str, str, str, Float]]:
    """Kind, title, note and volume of each panel."""

    def note(fidelity: Fidelity | None, axial_um: float | None) -> str:
        parts = [] if axial_um is None else [f"axial {axial_um:.2f} µm"]
        return ", ".join([*parts, *([f"PSNR {fidelity.psnr_db:.1f} dB"] if fidelity else [])])

    panels = [
        ("raw", "raw", note(figures.raw, figures.raw_axial_um), views.raw),
        ("base", "base, not tuned", note(figures.base, None), views.base),
        ("restored", "restored", note(figures.restored, figures.restored_axial_um), views.restored),
    ]
    if views.truth is not None:
        panels.append(("truth", "truth", "what the sample really is", views.truth))
    return panels


def _display_range(views: Views, row: int) -> tuple[float, float]:
    """One grey scale for all panels: from the raw background to the brightest structures of the slice."""
    brightest = views.restored if views.truth is None else views.truth
    return float(np.percentile(views.raw, 1)), float(np.percentile(brightest[:, row], 99.7))


def _scale_bar(axes: Any, views: Views) -> None:
    """Draw a bar of a round length, about a fifth of the width."""
    depth, _, width = views.raw.shape
    length_um = _round_length(width * views.voxel_um / 5)
    length_px = length_um / views.voxel_um
    x, y = width * 0.05, depth * 0.93
    axes.plot([x, x + length_px], [y, y], color="white", lw=3, solid_capstyle="butt")
    axes.text(x + length_px / 2, y - depth * 0.025, f"{length_um:g} µm", color="white", fontsize=9, ha="center")


def _round_length(length_um: float) -> float:
    """Return the nearest of 1, 2, 5 times a power of ten."""
    choices = [base * 10.0**power for power in range(-3, 5) for base in (1, 2, 5)]
    return min(choices, key=lambda choice: abs(np.log(choice / length_um)))


def _profile(axes: Any, panels: list[tuple[str, str, str, Float]], row: int, column: int, voxel_um: float) -> None:
    """Draw intensity between the marks of the panels."""
    for kind, _, _, volume in panels:
        depth_um = np.arange(volume.shape[0]) * voxel_um
        axes.plot(depth_um, volume[:, row, column], **_STYLES[kind])
    _dress(axes, "Z profile between the marks", "Z [µm]", "intensity")
    axes.set_xlim(0, (panels[0][3].shape[0] - 1) * voxel_um)


def _spectrum(axes: Any, panels: list[tuple[str, str, str, Float]], voxel_um: float) -> None:
    """Draw the amplitude spectrum along Z, averaged over all lines."""
    for kind, title, _, volume in panels:
        of = spectrum(volume, 0, voxel_um)
        amplitude = np.sqrt(of.power)
        shown = of.frequency >= 1 / (volume.shape[0] * voxel_um)  # below lies what the window makes of the mean
        style = {"lw": 1.2, "ls": (0, (1, 1))} if kind == "truth" else {"lw": 1.0 if kind == "base" else 1.7}
        axes.semilogy(
            of.frequency[shown], amplitude[shown] / amplitude.max(), color=COLOURS[kind], label=title, **style
        )
    _dress(axes, "detail along Z: amplitude spectrum of all lines", "spatial frequency [1/µm]", "relative amplitude")
    axes.set_xlim(0, 0.5 / voxel_um)
    axes.set_ylim(1e-3, 1.5)
    axes.legend(frameon=False, fontsize=8.5, loc="lower left", borderaxespad=0.2, labelcolor=INK)


def _dress(axes: Any, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(x_label, color=INK, fontsize=9)
    axes.set_ylabel(y_label, color=INK, fontsize=9)
    axes.tick_params(colors="#5b6775", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3cad2")
