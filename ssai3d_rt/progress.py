"""How long work reports that it goes on, without knowing who listens.

A `Progress` is any callable ``progress(label, done, total)``. Stages call it often (it must be cheap); the command line
turns it into a bar on a terminal and into plain lines elsewhere; `silent` ignores it.

>>> seen = []
>>> def report(label: str, done: int, total: int) -> None:
...     seen.append((label, done, total))
>>> report("restore", 3, 10)
>>> seen
[('restore', 3, 10)]
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as ``progress(label, done, total)``; `label` may carry a figure such as the current loss."""

    def __call__(self, label: str, done: int, total: int, /) -> None:
        """Report `done` of `total` steps of the work that `label` names."""


def silent(label: str, done: int, total: int, /) -> None:
    """Ignore progress."""
