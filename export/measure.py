"""Measured on the network itself, in PyTorch: its ranges, its rehearsal in FP16, and what each step of folding changes.

Runs the typed twin (see `typed`) on tiles; what follows from the numbers is decided elsewhere
(`ssai3d_rt.calibration.precision`, `parity`).

>>> import numpy as np
>>> from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
>>> from ssai3d_rt.network.weights import state_from
>>> state = state_from(NAFNet(NAFNetShape(width=8, enc=(1,), middle=1, dec=(1,))))
>>> tiles = np.ones((2, 1, 16, 16), np.float32)
>>> plan = plan_precision(state, tiles, ["real", "ones"])
>>> restored, peak = rehearse(state, tiles, Form(wide=plan.wide))
>>> restored.shape, peak < 65504
((2, 1, 16, 16), True)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.calibration.precision import PrecisionPlan, TensorRange, decide, tensor_names
from ssai3d_rt.export.fold import ALL_STEPS, Step, folded_blocks
from ssai3d_rt.export.parity import REAL, SIMULATED
from ssai3d_rt.export.typed import Form, TypedNAFNet, wide_weights
from ssai3d_rt.network.nafnet import shape_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

Array = npt.NDArray[np.float32]

_SAMPLES = 1 << 16
"""Values of a tensor that its percentile is taken from."""
NO_STEPS: frozenset[Step] = frozenset()


@dataclass
class _Seen:
    """What was seen of one tensor so far."""

    peak: float = 0.0
    peak_on: str = ""
    high: float = 0.0
    squares: float = 0.0
    count: int = 0


def plan_precision(
    state: Mapping[str, Array], tiles: Array, kinds: Sequence[str], *, pool_window: int | None = None
) -> PrecisionPlan:
    """Measure every tensor's range in FP32, and decide which of them FP16 cannot hold.

    Parameters
    ----------
    state
        The network's weights by published name.
    tiles
        ``(N, 1, T, T)`` float32: real tiles and extremes.
    kinds
        N names of kinds; percentile and root mean square are taken on `REAL` and `SIMULATED` tiles.
    pool_window
        As in `NAFNet`.
    """
    import torch

    found: dict[str, _Seen] = {}
    kind = ""

    def observe(name: str, x: Tensor) -> None:
        seen = found.setdefault(name, _Seen())
        values = x.abs().flatten()
        peak = float(values.amax())
        if not peak <= seen.peak or not seen.peak_on:  # NaN too
            seen.peak, seen.peak_on = peak, kind
        if kind in (REAL, SIMULATED):
            some = values[:: max(1, len(values) // _SAMPLES)]
            seen.high = max(seen.high, float(some.kthvalue(max(1, round(0.999 * len(some)))).values))
            seen.squares += float((values.double() ** 2).sum())
            seen.count += len(values)

    network = TypedNAFNet(state, Form("fp32", pool_window=pool_window), observe=observe).eval()
    with torch.inference_mode():
        for kind, tile in zip(kinds, tiles, strict=True):  # noqa: B007  # `observe` reads it
            network(torch.from_numpy(tile[None]))
    ranges = [
        TensorRange(name, seen.peak, seen.peak_on, seen.high, (seen.squares / max(1, seen.count)) ** 0.5)
        for name, seen in ((name, found[name]) for name in tensor_names(shape_of(state)))
    ]
    return decide(ranges, wide_weights=wide_weights(folded_blocks(state)))


def rehearse(state: Mapping[str, Array], tiles: Array, form: Form | None = None) -> tuple[Array, float]:
    """Run tiles with the roundings of the export's precision, without the export.

    Runtimes on CPUs drop casts and compute FP16 graphs in FP32; they hide overflows and roundings that a GPU shows.
    This does not.

    Returns
    -------
    ``(N, 1, T, T)`` float32, infinite or NaN where FP16 overflows, and the largest absolute value of the tensors that
    are stored in the form's precision, which is infinite once something overflowed.
    """
    import torch

    form = form or Form()
    peak = 0.0

    def observe(name: str, x: Tensor) -> None:
        nonlocal peak
        if name not in form.wide:
            peak = max(peak, float(x.abs().nan_to_num(torch.inf, torch.inf).amax()))

    answers = _run(TypedNAFNet(state, form, rehearsal=form.precision == "fp16", observe=observe), tiles)
    return answers, peak


def folding_errors(
    state: Mapping[str, Array], tiles: Array, reference: Array, *, pool_window: int | None = None
) -> dict[str, float]:
    """Measure what each step of folding changes in FP32, alone and all together.

    Parameters
    ----------
    state
        The network's weights by published name.
    tiles, reference
        ``(N, 1, T, T)`` float32, and what the network as published makes of them.
    pool_window
        As in `NAFNet`.

    Returns
    -------
    Largest absolute difference as a fraction of the reference's range, by step, for ``none`` and for ``all``. A step
    that has nothing to fold in this network is left out.
    """
    spread = float(np.ptp(reference)) or 1.0
    forms = {"none": NO_STEPS, **{step.value: frozenset({step}) for step in Step}, "all": ALL_STEPS}
    if state["intro.weight"].shape[1] == 1:
        del forms[Step.GRAY.value]
    base = Form("fp32", pool_window=pool_window)
    return {
        name: float(
            f"{np.abs(_run(TypedNAFNet(state, replace(base, steps=steps)), tiles) - reference).max() / spread:.3g}"
        )
        for name, steps in forms.items()
    }


def _run(network: TypedNAFNet, tiles: Array) -> Array:
    import torch

    with torch.inference_mode():
        return np.concatenate([network.eval()(torch.from_numpy(tile[None])).numpy() for tile in tiles])
