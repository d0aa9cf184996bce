"""PyTorch, FP32: the reference that every other backend is compared with, for development machines.

The only place of the runtime that imports torch. It runs the adapted weights, not the typed ONNX.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle

NAME = "torch"
LARGEST_TILE = 256

Float = npt.NDArray[np.float32]


def why_not() -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    for package in ("torch", "safetensors"):
        if find_spec(package) is None:
            return str(MissingPackageError(package, extra="train"))
    return None


def candidates(bundle: Bundle, threads: int | None) -> Iterator[TorchRunner]:
    """Load the bundle's weights."""
    from safetensors.numpy import load

    window = bundle.manifest.network.pool_window_px
    yield TorchRunner(load(bundle.weights()), bundle.tile, bundle.bundle_id, window=window, threads=threads)


def open_base(name: str | Path = "base") -> TorchRunner:
    """Load a base network as it is, without a bundle; nothing can be compared with, as it is the reference itself.

    Raises
    ------
    WeightsError
        No such base network or weights file.
    MissingPackageError
        torch or safetensors is not installed.
    """
    from ssai3d_rt.network.weights import load_network

    base = load_network(name)
    train_px = base.info.get("train_px")
    most = min(LARGEST_TILE, train_px * 3 // 2) if isinstance(train_px, int) else LARGEST_TILE
    tile = max(1, most // base.shape.multiple) * base.shape.multiple
    return TorchRunner(base.state, tile, f"base:{base.name}:{base.sha256}")


class TorchRunner:
    """See `Runner`.

    Parameters
    ----------
    state
        Weights by name.
    tile
        Side of a tile in pixels.
    bundle_id
        Of the bundle that holds the weights.
    window
        Side of the pooling window, see `NAFNet`.
    threads
        Threads of torch in this process; None leaves them as they are.
    """

    name = NAME

    def __init__(
        self,
        state: Mapping[str, Float],
        tile: int,
        bundle_id: str,
        *,
        window: int | None = None,
        threads: int | None = None,
    ) -> None:
        import torch

        from ssai3d_rt.network.weights import network_from

        if threads is not None:
            torch.set_num_threads(threads)
        self.tile = tile
        self.bundle_id = bundle_id
        self._torch: Any = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batch = 16 if self._device == "cuda" else 1
        self._network: Any = network_from(state, window).to(self._device)
        self.detail = f"FP32 on {self._device}, version {torch.__version__}"

    def run(self, tiles: Float) -> Float:
        """See `Runner.run`."""
        parts = []
        try:
            with self._torch.inference_mode():
                for at in range(0, len(tiles), self.batch):
                    part = self._torch.from_numpy(np.ascontiguousarray(tiles[at : at + self.batch]))
                    parts.append(self._network(part.to(self._device)).cpu().numpy())
        except RuntimeError as error:
            raise BackendError(f"torch failed: {str(error).splitlines()[0]}") from None
        return np.concatenate(parts) if parts else np.empty_like(tiles)

    def close(self) -> None:
        """See `Runner.close`."""
        self._network = None
