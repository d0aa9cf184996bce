"""PyTorch: the reference that every other backend is compared with, and its compiler, for development machines.

The only place of the runtime that imports torch. ``torch`` runs the adapted weights in FP32, operation by operation.
``torch-compile`` lets torch compile the folded network of `ssai3d_rt.export.typed`: in FP32 on a CPU, in the bundle's
own precision on a GPU, which makes it the fair rival of an engine. Compiling takes a minute or more when a bundle is
loaded; what was compiled is kept in the private cache.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError, MissingPackageError
from ssai3d_rt.export.cache import cache_folder, private_folder
from ssai3d_rt.runtime.backends.runner import at_most
from ssai3d_rt.runtime.cuda import gpu

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ssai3d_rt.export.bundle import Bundle

NAME, COMPILED = "torch", "torch-compile"
LARGEST_TILE = 256

_COMPILERS = ("c++", "g++", "clang++", "cl")

Float = npt.NDArray[np.float32]


def why_not() -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    for package in ("torch", "safetensors"):
        if find_spec(package) is None:
            return str(MissingPackageError(package, extra="train"))
    return None


def why_not_compiled() -> str | None:
    """Return None where torch can compile, else a sentence that says what to do."""
    if reason := why_not():
        return reason
    named = os.environ.get("CXX")
    if not any(map(shutil.which, [named] if named else _COMPILERS)):
        what = f"$CXX is {named}, which was not found" if named else "none was found"
        windows = "the Visual Studio Build Tools and run from their prompt"
        hint = windows if sys.platform == "win32" else "g++ or clang"
        return f"torch.compile needs a C++ compiler, {what}; install {hint}, or use torch"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "torch.compile needs Python's C headers, Python.h was not found; install python3-dev, or use torch"
    if gpu() is not None and find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        return f"torch.compile needs Triton for a GPU; run: pip install {package}, or use torch"
    return None


def candidates(bundle: Bundle, threads: int | None, most_tiles: int | None = None) -> Iterator[TorchRunner]:
    """Load the bundle's weights."""
    from safetensors.numpy import load

    window = bundle.manifest.network.pool_window_px
    runner = TorchRunner(load(bundle.weights()), bundle.tile, bundle.bundle_id, window=window, threads=threads)
    yield at_most(runner, most_tiles)


def candidates_compiled(bundle: Bundle, threads: int | None, most_tiles: int | None = None) -> Iterator[CompiledRunner]:
    """Compile the bundle's network."""
    yield at_most(CompiledRunner(bundle, threads), most_tiles)


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
            raise BackendError(f"torch failed: {_first_line(error)}") from None
        return np.concatenate(parts) if parts else np.empty_like(tiles)

    def close(self) -> None:
        """See `Runner.close`."""
        self._network = None


class CompiledRunner:
    """torch's compiler; see `Runner`.

    It is compiled for batches of exactly `batch` tiles, fewer are filled up; another `batch` is compiled when it is
    first run.

    Parameters
    ----------
    bundle
        To run.
    threads
        Threads of torch in this process; None leaves them as they are.
    """

    name = COMPILED

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        # Where torch looks for what it compiled before; its own choice is a folder that all users share.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder(cache_folder() / "torch-compile")))
        import torch
        from safetensors.numpy import load

        from ssai3d_rt.export.typed import Form, TypedNAFNet

        if threads is not None:
            torch.set_num_threads(threads)
        self.tile = bundle.tile
        self.bundle_id = bundle.bundle_id
        self._torch: Any = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batch = 16 if self._device == "cuda" else 1
        manifest = bundle.manifest
        window = manifest.network.pool_window_px
        form = Form("fp32", pool_window=window)
        if self._device == "cuda" and manifest.precision == "fp16":
            wide = manifest.calibration.wide if manifest.calibration is not None else ()
            form = Form("fp16", manifest.layer_norm, frozenset(wide), window)
        network = TypedNAFNet(load(bundle.weights()), form).eval().to(self._device)
        with warnings.catch_warnings():
            # Raised inside torch when its compiler is first imported (torch 2.13).
            warnings.filterwarnings("ignore", r"`torch.jit.script_method` is deprecated", DeprecationWarning)
            import torch._inductor.config as compiler

            # Its other processes would outlive the work, and take the cores that an acquisition needs.
            with compiler.patch(compile_threads=1):
                self._network: Any = torch.compile(network, dynamic=False)
                self.run(np.zeros((1, manifest.channels, self.tile, self.tile), np.float32))
        self.detail = f"{form.precision.upper()} on {self._device}, version {torch.__version__}"

    def run(self, tiles: Float) -> Float:
        """See `Runner.run`."""
        torch, batch = self._torch, self.batch
        answers = np.empty(tiles.shape, np.float32)
        filled = np.zeros((batch, *tiles.shape[1:]), np.float32)
        try:
            with torch.inference_mode():
                for at in range(0, len(tiles), batch):
                    part = tiles[at : at + batch]
                    if len(part) < batch:
                        filled[: len(part)] = part
                    given = torch.from_numpy(filled if len(part) < batch else np.ascontiguousarray(part))
                    answers[at : at + batch] = self._network(given.to(self._device))[: len(part)].cpu().numpy()
        except RuntimeError as error:
            raise BackendError(f"torch failed: {_first_line(error)}") from None
        return answers

    def close(self) -> None:
        """See `Runner.close`."""
        self._network = None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
