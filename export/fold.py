"""Fold what is linear, in steps that can be taken one by one: the network computes the same with less work.

=======  ==================================================================================================
step     what it does
=======  ==================================================================================================
GRAY     three equal colour channels become one (`ssai3d_rt.network.weights.folded`; published weights only)
NORM     LayerNorm's scale and shift go into the 1 x 1 convolution that follows
SCALE    the residual factors `beta` and `gamma` go into the convolution before them
POOL     the pooling window: a plain mean where it holds the whole tile, else one direction after the other
=======  ==================================================================================================

Dropout and identities are nothing to fold: `NAFNet` is written without them. GRAY, NORM and SCALE are arithmetic on
the weights (in float64, rounded once) and done here; POOL is another way to write the network, see `typed`. Whether
the results are equal is measured by `ssai3d_rt.export.measure`.

>>> import numpy as np
>>> from ssai3d_rt.export.fold import folded_blocks
>>> sorted(folded_blocks({"intro.weight": np.ones((8, 1, 3, 3), np.float32)}))
['intro.weight']
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.network.weights import folded

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = npt.NDArray[np.float32]
State = dict[str, Array]


class Step(str, Enum):
    """A step of folding, see the table above."""

    GRAY = "gray"
    NORM = "norm"
    SCALE = "scale"
    POOL = "pool"


ALL_STEPS = frozenset(Step)

_BLOCK = re.compile(r"(?P<block>.*)\.conv(?P<number>[1345])\.(?P<part>weight|bias)$")
_NORM = {"1": "norm1", "4": "norm2"}
_SCALE = {"3": "beta", "5": "gamma"}
_NORMS = re.compile(r"\.norm[12]\.(weight|bias)$")
_SCALES = re.compile(r"\.(beta|gamma)$")


def folded_blocks(state: Mapping[str, Array], steps: frozenset[Step] = ALL_STEPS) -> State:
    """Fold every block of a NAFNet's state; other weights are passed on.

    With ``n`` the normalised pixel, ``W (w n + b) + c = (W w) n + (W b + c)`` for `conv1` and `conv4`, and
    ``s (W x + c) = (s W) x + s c`` for `conv3` and `conv5`. The state must be a complete NAFNet's, as `network.weights`
    loads it.

    Parameters
    ----------
    state
        Weights by published name.
    steps
        Which to take; what a step left out would have folded stays in the state.
    """
    if Step.GRAY in steps and state["intro.weight"].shape[1] == 3:
        state = folded(state)
    gone = [pattern for step, pattern in ((Step.NORM, _NORMS), (Step.SCALE, _SCALES)) if step in steps]
    return {key: _folded(state, key, steps) for key in state if not any(pattern.search(key) for pattern in gone)}


def _folded(state: Mapping[str, Array], key: str, steps: frozenset[Step]) -> Array:
    match = _BLOCK.match(key)
    if match is None:
        return state[key]
    block, number, part = match["block"], match["number"], match["part"]
    if (Step.NORM if number in _NORM else Step.SCALE) not in steps:
        return state[key]
    value = state[key].astype(np.float64)
    if number in _NORM:
        norm = f"{block}.{_NORM[number]}"
        if part == "weight":
            value = value * state[f"{norm}.weight"].astype(np.float64)[None, :, None, None]
        else:
            weight = state[f"{block}.conv{number}.weight"][:, :, 0, 0].astype(np.float64)
            value = value + weight @ state[f"{norm}.bias"].astype(np.float64)
    else:
        scale = state[f"{block}.{_SCALE[number]}"].astype(np.float64).reshape(-1)
        value = value * (scale[:, None, None, None] if part == "weight" else scale)
    return value.astype(np.float32)
