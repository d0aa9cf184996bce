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
    from collections.abc import Iterator

    from ssai3d_rt.export.bundle import Bundle

NAME = "torch"

Float = npt.NDArray[np.float32]


def why_not() -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    for package in ("torch", "safetensors"):
        if find_spec(package) is None:
            return str(MissingPackageError(package, extra="train"))
    return None


def candidates(bundle: Bundle, threads: int | None) -> Iterator[TorchRunner]:
    """Load the bundle's weights."""
    yield TorchRunner(bundle, threads)


class TorchRunner:
    """See `Runner`.

    Parameters
    ----------
    bundle
        To run.
    threads
        Threads of torch in this process; None leaves them as they are.
    """

    name = NAME

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        import torch
        from safetensors.numpy import load

        from ssai3d_rt.network.weights import network_from

        if threads is not None:
            torch.set_num_threads(threads)
        self.tile = bundle.tile
        self.bundle_id = bundle.bundle_id
        self._torch: Any = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batch = 16 if self._device == "cuda" else 1
        window = bundle.manifest.network.pool_window_px
        self._network: Any = network_from(load(bundle.weights()), window).to(self._device)
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
