"""A matplotlib figure that draws into files: no display, no state shared with other figures.

It does not know what is drawn.

>>> float(new_figure(figsize=(2, 1)).get_figwidth())
2.0
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """Make a figure; the options are matplotlib's.

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
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure
