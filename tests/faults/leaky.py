"""The daemon of the drills, with a listener that keeps memory: what the soak must notice. A prefix for `Lab.daemon`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.runtime import quick_watch

if TYPE_CHECKING:
    from ssai3d_rt.runtime.watch import WatchEvent

KEPT_BYTES = 8 << 10
_kept: list[bytes] = []


def _keep(event: WatchEvent) -> None:
    _kept.append(bytes([len(_kept) % 256]) * KEPT_BYTES)
    _TELL(event)


if __name__ == "__main__":
    _TELL = quick_watch._tell
    quick_watch._tell = _keep
    sys.argv = ["quick_watch", sys.argv[-1]]
    quick_watch.main()
