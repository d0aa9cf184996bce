"""The daemon as a process of its own, with the quick restorer: IN OUT LOG DELAY_S INCOMPLETE_AFTER_S."""

from __future__ import annotations

import sys
from pathlib import Path

from ssai3d_rt.runtime.watch import watch
from tests.runtime.daemon import QUICK
from tests.runtime.quick import QuickRecipe

if __name__ == "__main__":
    incoming, out, log, delay_s, incomplete_after_s = sys.argv[1:]
    settings = QUICK.model_copy(update={"incomplete_after_s": float(incomplete_after_s)})
    watch(incoming, QuickRecipe(Path(log), delay_s=float(delay_s)), out, settings=settings)
