"""Bench: how fast, how exact and how large each way of running a bundle is on this machine, measured side by side."""

from __future__ import annotations

from ssai3d_rt.bench.plan import Plan
from ssai3d_rt.bench.run import Bench, bench

__all__ = ["Bench", "Plan", "bench"]
