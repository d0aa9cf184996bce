"""Load, import and list base networks.

A network on disk is a safetensors file (weights, and a JSON record of how they were made in its metadata) or a
published PyTorch checkpoint (`.pth`, read with ``weights_only=True``; never a pickle). Three-channel networks are
folded into one channel at load: gray replicated to RGB at the input and averaged at the output is linear at both
ends, so `intro` is summed over its input channels and `ending` averaged over its output channels, which changes
nothing but rounding.

>>> [base.name for base in list_bases()][:1]
['base']
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import MissingPackageError, WeightsError
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape, shape_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ssai3d_rt.imaging.axial import Network

State = dict[str, npt.NDArray[np.float32]]
"""A network's weights by published name, float32."""

SHIPPED = Path(__file__).parent / "bases"
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network's weights and where they came from.

    Parameters
    ----------
    name
        Name of a base network, or the file's stem.
    state, shape
        Weights (one image channel) and the hyperparameters read off them.
    sha256
        Of the file.
    info
        The record stored with the weights; ``train_px`` is the side of the training images in px where it is known.
    path
        The file.
    """

    name: str
    state: State
    shape: NAFNetShape
    sha256: str
    info: dict[str, Any]
    path: Path


@dataclass(frozen=True, slots=True)
class BaseEntry:
    """A base network that can be named: `shipped` with the package, or imported by the user."""

    name: str
    path: Path
    shipped: bool


def user_folder() -> Path:
    """Folder of imported base networks: ``$SSAI3D_RT_HOME/weights``, else the user's data folder."""
    if home := os.environ.get("SSAI3D_RT_HOME"):
        return Path(home) / "weights"
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        root = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return root / "ssai3d-rt" / "weights"


def list_bases() -> list[BaseEntry]:
    """List the base networks that `load_network` knows by name, shipped ones first."""
    entries: dict[str, BaseEntry] = {}
    for folder, shipped in ((SHIPPED, True), (user_folder(), False)):
        for path in sorted(folder.glob("*.safetensors")):
            entries.setdefault(path.stem, BaseEntry(path.stem, path, shipped))
    return list(entries.values())


def load_network(name: str | Path = "base") -> LoadedNetwork:
    """Load a network by the name of a base, or from a file.

    Parameters
    ----------
    name
        A name that `list_bases` gives, or the path of a ``.safetensors``, ``.pth`` or ``.pt`` file.

    Raises
    ------
    WeightsError
        No such base or file, or not the weights of a NAFNet.
    MissingPackageError
        safetensors (or, for a checkpoint, torch) is not installed.
    """
    known = {entry.name: entry.path for entry in list_bases()}
    path = known.get(str(name), Path(name))
    if path.suffix not in SUFFIXES or not path.is_file():
        names = ", ".join(known) or "none"
        raise WeightsError(f"no base network or weights file {str(name)!r}; known base networks: {names}")
    state, info = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    for key, value in state.items():
        if not np.isfinite(value).all():
            raise WeightsError(f"{path}: {key} holds values that are not finite")
    try:
        shape = shape_of(state)
        state = folded(state) if shape.channels == 3 else state
        shape = shape_of(state)
        _check(state, shape)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return LoadedNetwork(path.stem, state, shape, _sha256(path), info, path)


def folded(state: Mapping[str, npt.NDArray[np.float32]]) -> State:
    """Fold a network for RGB into the equal network for gray (replicated at the input, averaged at the output)."""
    gray = dict(state)
    gray["intro.weight"] = state["intro.weight"].sum(1, keepdims=True)
    gray["ending.weight"] = state["ending.weight"].mean(0, keepdims=True)
    gray["ending.bias"] = state["ending.bias"].mean(0, keepdims=True)
    return gray


def network_from(state: Mapping[str, npt.NDArray[np.float32]], pool_window: int | None = None) -> NAFNet:
    """Make the torch network of a state, in evaluation mode.

    Raises
    ------
    MissingPackageError
        torch is not installed.
    """
    torch = _torch()
    network = NAFNet(shape_of(state), pool_window)
    network.load_state_dict({k: torch.from_numpy(np.array(v, np.float32)) for k, v in state.items()})
    return network.eval()


def torch_network(network: NAFNet) -> Network:
    """Wrap a torch network as the array callable that `ssai3d_rt.imaging.axial.deblur_axial` takes."""
    torch = _torch()

    def run(tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            restored: npt.NDArray[np.float32] = network(torch.from_numpy(tiles)).numpy()
        return restored

    return run


def state_from(network: torch.nn.Module) -> State:
    """Copy a torch network's weights to float32 arrays."""
    return {k: v.detach().float().cpu().numpy().copy() for k, v in network.state_dict().items()}


def save_state(state: Mapping[str, npt.NDArray[np.float32]], path: Path, info: Mapping[str, Any]) -> Path:
    """Write weights as one safetensors file with their record `info` in its metadata.

    Weights that are whole in half precision are stored so. The file appears under its name only when whole.
    """
    numpy_io = _safetensors()
    halves = {k: v.astype(np.float16) for k, v in state.items()}
    exact = all(np.array_equal(halves[k].astype(np.float32), v) for k, v in state.items())
    arrays = {k: np.ascontiguousarray(v) for k, v in (halves if exact else state).items()}
    record = json.dumps(dict(info), indent=1)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(numpy_io.save(arrays, metadata={"ssai3d_rt": record}))
    os.replace(partial, path)
    return path


def import_weights(source: Path, name: str | None = None) -> BaseEntry:
    """Convert a weights file to safetensors and keep it under a name for `load_network`.

    Raises
    ------
    WeightsError
        The file does not hold a NAFNet, or the name is taken.
    """
    loaded = load_network(source)
    name = name or source.stem
    if name in {entry.name for entry in list_bases()}:
        raise WeightsError(f"a base network named {name!r} exists already; choose another name with --name")
    folder = user_folder()
    folder.mkdir(parents=True, exist_ok=True)
    info = loaded.info | {"imported_from": source.name, "imported_sha256": loaded.sha256}
    return BaseEntry(name, save_state(loaded.state, folder / f"{name}.safetensors", info), shipped=False)


def _check(state: State, shape: NAFNetShape) -> None:
    """Refuse a state whose keys or shapes differ from those of the network that its hyperparameters describe."""
    torch = _torch()
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in NAFNet(shape).state_dict().items()}
    for key, size in wanted.items():
        if key not in state:
            raise WeightsError(f"NAFNet weights without {key}")
        if tuple(state[key].shape) != size:
            raise WeightsError(f"{key} has shape {tuple(state[key].shape)}, expected {size}")
    if extra := sorted(set(state) - set(wanted)):
        raise WeightsError(f"weights that NAFNet does not have: {', '.join(extra[:3])}")


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    numpy_io = _safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        arrays = numpy_io.load_file(str(path))
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from None
    info = json.loads(metadata.get("ssai3d_rt", "{}"))
    return {k: v.astype(np.float32) for k, v in arrays.items()}, info


def _read_checkpoint(path: Path) -> tuple[State, dict[str, Any]]:
    torch = _torch()
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} is not a checkpoint of weights alone: {reason}") from None
    for key in ("params_ema", "params", "state_dict"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
            break
    if not isinstance(saved, dict) or not all(isinstance(v, torch.Tensor) for v in saved.values()):
        raise WeightsError(f"{path} does not hold a state dict (a mapping from names to tensors)")
    return {k.removeprefix("module."): v.float().numpy() for k, v in saved.items()}, {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingPackageError("torch", extra="train") from None
    return torch


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise MissingPackageError("safetensors", extra="train") from None
    return safetensors.numpy
