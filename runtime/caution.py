"""What a user must be told about a stack before believing its restoration: one sentence for each limit it passes.

The sentences come from the stack alone (`ssai3d_rt.imaging.limits`, `ssai3d_rt.calibration.limits`), from the stack
against what the model was adapted to (`stale`), and after a restoration from the trust map (`trust`). They go into the
report, the log, the result's provenance and the daemon's ledger.

>>> summed_up([["7.5x anisotropy is outside"], [], ["7.6x anisotropy is outside"]])
['7.5x anisotropy is outside (2 of 3 stacks)']
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ssai3d_rt.calibration.limits import measured_limits
from ssai3d_rt.imaging.limits import limits
from ssai3d_rt.runtime.stale import stale_warning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssai3d_rt.export.bundle import AdaptationEntry
    from ssai3d_rt.imaging.stack import Stack

_FIGURE = re.compile(r"\d+(\.\d+)?")


def warnings_of(stack: Stack, adaptation: AdaptationEntry | None = None) -> list[str]:
    """Return all that can be said before a restoration; about a second for a stack of any size.

    Parameters
    ----------
    stack
        As acquired.
    adaptation
        What the bundle was adapted to; None for a base network as it ships.
    """
    stale = stale_warning(stack, adaptation)
    return limits(stack) + measured_limits(stack) + ([stale] if stale else [])


def summed_up(warnings: Sequence[Sequence[str]]) -> list[str]:
    """Return each kind of warning once, with how many of several stacks have it; figures are those of the first.

    Parameters
    ----------
    warnings
        The sentences of each stack.
    """
    first: dict[str, str] = {}
    count: dict[str, int] = {}
    for sentences in warnings:
        for sentence in sentences:
            kind = _FIGURE.sub("#", sentence)
            first.setdefault(kind, sentence)
            count[kind] = count.get(kind, 0) + 1
    if len(warnings) == 1:
        return list(first.values())
    return [f"{sentence} ({count[kind]} of {len(warnings)} stacks)" for kind, sentence in first.items()]
