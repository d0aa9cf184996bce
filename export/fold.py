"""Fold what is linear into convolutions: LayerNorm's scale and shift, and the residual factors `beta` and `gamma`.

The folded network computes the same with fewer operations and fewer roundings. Pure arithmetic on the state dict (in
float64, rounded once); it does not know how the result is typed or exported.

>>> import numpy as np
>>> from ssai3d_rt.export.fold import folded_blocks
>>> sorted(folded_blocks({"intro.weight": np.ones((8, 1, 3, 3), np.float32)}))
['intro.weight']
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = npt.NDArray[np.float32]
State = dict[str, Array]

_BLOCK = re.compile(r"(?P<block>.*)\.conv(?P<number>[1345])\.(?P<part>weight|bias)$")
_NORM = {"1": "norm1", "4": "norm2"}
_SCALE = {"3": "beta", "5": "gamma"}
_GONE = re.compile(r"\.(norm[12]\.(weight|bias)|beta|gamma)$")


def folded_blocks(state: Mapping[str, Array]) -> State:
    """Fold every block of a NAFNet's state; other weights are passed on.

    With ``n`` the normalised pixel, ``W (w n + b) + c = (W w) n + (W b + c)`` for `conv1` and `conv4`, and
    ``s (W x + c) = (s W) x + s c`` for `conv3` and `conv5`. The state must be a complete NAFNet's, as `network.weights`
    loads it.
    """
    return {key: _folded(state, key) for key in state if not _GONE.search(key)}


def _folded(state: Mapping[str, Array], key: str) -> Array:
    match = _BLOCK.match(key)
    if match is None:
        return state[key]
    block, number, part = match["block"], match["number"], match["part"]
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
