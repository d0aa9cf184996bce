"""Do three things at once with a row of stacks: read the next, restore one, write the last.

Each happens in a thread of its own, one stack ahead of the other at most, so that memory stays bounded. What they do is
not known here.

>>> behind(ahead(iter("abc")), "".join)
'abc'
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
R = TypeVar("R")

_END = object()
_POLL_S = 0.01


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; the next one is made in another thread while the last one is used.

    An error of `items` is raised where its item would have come.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        following = thread.submit(next, items, _END)
        while (item := following.result()) is not _END:
            following = thread.submit(next, items, _END)
            yield cast("T", item)
            del item


def behind(items: Iterator[T], consume: Callable[[Iterator[T]], R]) -> R:
    """Let `consume` use the items in another thread while the next one is made in this thread.

    Not before it asks for the next item does making the one after that begin. An error of either is raised here; the
    other then stops: `consume` sees no more items, or nothing more is made.
    """
    handed: Queue[object] = Queue()

    def taken() -> Iterator[T]:
        while (item := handed.get()) is not _END:
            handed.task_done()
            yield cast("T", item)
            del item

    with ThreadPoolExecutor(1, "behind") as thread:
        result = thread.submit(consume, taken())
        try:
            for item in items:
                handed.put(item)
                del item
                while handed.unfinished_tasks and not result.done():
                    time.sleep(_POLL_S)
                if result.done():
                    break
        finally:
            handed.put(_END)
        return result.result()
