"""Backends: the ways to run a bundle. See `registry` for how one is chosen, `runner` for what it must do."""

from __future__ import annotations

from ssai3d_rt.runtime.backends.registry import BACKENDS, gpu_out_of_reach, open_runner, why_not
from ssai3d_rt.runtime.backends.runner import Runner, self_test

__all__ = ["BACKENDS", "Runner", "gpu_out_of_reach", "open_runner", "self_test", "why_not"]
