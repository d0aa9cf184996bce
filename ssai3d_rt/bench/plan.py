"""What to measure, and the bundle's variants: the same weights exported with another tile or another LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.adapt.model import AdaptedModel, ModelRecord
from ssai3d_rt.errors import BackendError, ConfigError, MissingPackageError
from ssai3d_rt.export.parity import REAL
from ssai3d_rt.network.nafnet import shape_of
from ssai3d_rt.runtime.backends import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.export.typed import LayerNorm

LAYER_NORMS: tuple[LayerNorm, ...] = ("island", "native32", "native16")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Parameters
    ----------
    backends
        Names; empty takes all that can run here.
    batches
        Tiles at once; empty leaves the tiles out and restores the stack only.
    tiles, layer_norms
        Sides in px and modes to export again; empty takes the bundle as it is.
    threads
        Threads of CPU backends; None takes all cores.
    rounds, seconds
        Least calls and least time per configuration.
    upstream
        Also restore in the published way.
    """

    backends: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 2, 4, 8)
    tiles: tuple[int, ...] = ()
    layer_norms: tuple[LayerNorm, ...] = ()
    threads: int | None = None
    rounds: int = 8
    seconds: float = 1.0
    upstream: bool = False

    def __post_init__(self) -> None:
        for name in self.backends:
            if name not in BACKENDS:
                raise BackendError(f"there is no backend {name!r}; choose from {', '.join(BACKENDS)}")
        if min(self.batches, default=1) < 1:
            raise ConfigError(f"a batch has at least one tile, got {list(self.batches)}")
        for mode in self.layer_norms:
            if mode not in LAYER_NORMS:
                raise ConfigError(f"there is no LayerNorm mode {mode!r}; choose from {', '.join(LAYER_NORMS)}")

    def able(self) -> tuple[list[str], dict[str, str]]:
        """Return the backends to measure, and for each of the others a sentence: why not."""
        asked = self.backends or tuple(BACKENDS)
        reasons = {name: BACKENDS[name].why_not() for name in asked}
        return [n for n in asked if reasons[n] is None], {n: reason for n, reason in reasons.items() if reason}


def variants(bundle: Bundle, plan: Plan) -> Iterator[tuple[int, LayerNorm]]:
    """Yield the tiles and LayerNorm modes to measure; the bundle's own first where it is among them."""
    own = (bundle.tile, bundle.manifest.layer_norm)
    wanted = [(t, m) for t in plan.tiles or own[:1] for m in plan.layer_norms or own[1:]]
    yield from sorted(wanted, key=lambda variant: variant != own)


def variant_of(bundle: Bundle, tile: int, layer_norm: LayerNorm, folder: Path) -> Bundle:
    """Export a bundle's weights again; the bundle itself where nothing would change.

    Raises
    ------
    ParityError, ConfigError, MissingPackageError
        As `export_bundle`.
    """
    if (tile, layer_norm) == (bundle.tile, bundle.manifest.layer_norm):
        return bundle
    try:
        from safetensors.numpy import load
    except ImportError:
        raise MissingPackageError("safetensors", extra="train") from None
    from ssai3d_rt.export.from_model import export_bundle

    state = load(bundle.weights())
    record = ModelRecord.of(bundle.manifest.adaptation.record | {"checks": ()}, where=bundle.folder)
    real = np.array([kind == REAL for kind in bundle.golden_kinds], bool)
    model = AdaptedModel(state, shape_of(state), record, np.ascontiguousarray(bundle.golden[0][real][:, 0]))
    out = folder / f"tile{tile}-{layer_norm}.ssai3d"
    return export_bundle(model, out, tile=tile, precision=bundle.manifest.precision, layer_norm=layer_norm)
