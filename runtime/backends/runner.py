"""`Runner`: a bundle, loaded and ready, and the test that it has to pass before anyone may use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ssai3d_rt.export.parity import ParityReport, check_parity

if TYPE_CHECKING:
    from ssai3d_rt.export.bundle import Bundle

Float = npt.NDArray[np.float32]


class Runner(Protocol):
    """Runs tiles; use it in one thread at a time and close it after the last.

    Attributes
    ----------
    name
        The backend's name.
    detail
        How it runs: precision, device, engine version.
    bundle_id
        Of the bundle that it loaded.
    tile
        Side of a tile in pixels.
    batch
        Tiles per call at which it is fastest; any number works.
    """

    name: str
    detail: str
    bundle_id: str
    tile: int
    batch: int

    def run(self, tiles: Float, /) -> Float:
        """``(N, 1, T, T)`` float32 about [0, 1] to the same; the answer is the caller's to keep."""

    def close(self) -> None:
        """Free the device and memory; safe to call twice."""


AnyRunner = TypeVar("AnyRunner", bound=Runner)


def at_most(runner: AnyRunner, tiles: int | None) -> AnyRunner:
    """Have a runner compute at most so many tiles at once, and return it; None changes nothing."""
    runner.batch = min(runner.batch, tiles or runner.batch)
    return runner


def self_test(runner: Runner, bundle: Bundle) -> ParityReport:
    """Run the golden tiles and compare with the FP32 reference.

    Raises
    ------
    ParityError
        The runner does not give the reference's numbers; do not use it.
    """
    tiles, reference = bundle.golden
    what = f"{runner.name} ({runner.detail})"
    return check_parity(
        reference, runner.run(tiles), kinds=bundle.golden_kinds, limits=bundle.manifest.backend_limits, what=what
    )
