"""The picture of `trust`: an XZ slice as raw, restored, truth, error and trust map, and the sparsification curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.imaging.axial import resample_z

if TYPE_CHECKING:
    import numpy.typing as npt
    from trust import Case

INK, GREY = "#1c2530", "#5b6775"


def draw(case: Case, curves: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], title: str, path: str) -> None:
    """Write the PNG.

    Parameters
    ----------
    case
        A restored stack.
    curves
        Sparsification by the map and by the true error, for shares 0, 1/n, ... of voxels left out.
    title
        What the stack is.
    path
        The PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    row = int(np.argmax(case.truth.std(axis=(0, 2))))
    raw = resample_z(case.scale.apply(case.stack.data), case.stack.anisotropy)
    trust = case.trust()
    most = float(np.quantile(case.error[:, row], 0.995))
    panels = [
        ("raw", raw, "gray", 1.0),
        ("restored", case.volume, "gray", 1.0),
        ("truth", case.truth, "gray", 1.0),
        ("true error", case.error, "magma", most),
        ("trust map: likely error", trust, "magma", most),
    ]
    figure = Figure(figsize=(13.5, 6.4), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 5, height_ratios=(1.15, 1), left=0.055, right=0.985, top=0.88, bottom=0.09, hspace=0.3
    )
    figure.text(0.055, 0.95, f"An XZ slice: {title}", color=INK, fontsize=13, weight="bold")
    for place, (name, volume, colours, top) in enumerate(panels):
        axes = figure.add_subplot(grid[0, place])
        image = axes.imshow(volume[:, row], cmap=colours, vmin=0, vmax=top, interpolation="nearest")
        axes.set_title(name, color=INK, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        if colours != "gray":
            below = axes.inset_axes((0, -0.1, 1, 0.05))
            bar = figure.colorbar(image, cax=below, orientation="horizontal")
            bar.ax.tick_params(labelsize=8, colors=GREY)
            bar.set_label("fraction of the range", fontsize=8, color=GREY)
    bottom = grid[1, :].subgridspec(1, 2, width_ratios=(1.6, 1), wspace=0.2)
    chart = figure.add_subplot(bottom[0])
    share = np.arange(len(curves[0])) / len(curves[0])
    chart.plot(share, curves[0], color="#d2502d", lw=2, label="least trusted first")
    chart.plot(share, curves[1], color=INK, lw=1.2, ls=(0, (2, 1)), label="if the true error were known")
    chart.axhline(1, color="#8a97a6", lw=1.2, label="in any order")
    chart.set_xlabel("share of voxels left out", color=INK, fontsize=9)
    chart.set_ylabel("mean error of the rest,\nrelative to all", color=INK, fontsize=9)
    chart.set_xlim(0, 1)
    chart.set_ylim(0, 1.1)
    chart.legend(frameon=False, fontsize=9, loc="center right")
    calibration = figure.add_subplot(bottom[1])
    edges = np.quantile(trust, np.linspace(0.5, 1, 26))
    place_of = np.digitize(trust.ravel(), edges)
    bins = [place_of == number for number in range(len(edges))]
    known = [(float(trust.ravel()[b].mean()), float(case.error.ravel()[b].mean())) for b in bins if b.any()]
    calibration.plot(*zip(*known, strict=True), "o-", color="#d2502d", ms=3.5, lw=1)
    top = max(max(pair) for pair in known)
    calibration.plot([0, top], [0, top], color="#8a97a6", lw=1.2, ls=(0, (2, 1)))
    calibration.set_xlabel("error that the map expects", color=INK, fontsize=9)
    calibration.set_ylabel("mean true error", color=INK, fontsize=9)
    for axes in (chart, calibration):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY, labelsize=8)
    figure.savefig(path, metadata={"Software": "ssai3d-rt"})
