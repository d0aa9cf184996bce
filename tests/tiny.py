"""A tiny adapted model with random weights, and its bundle, exported once for all tests that run one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.adapt.model import AdaptedModel, ModelRecord
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.simulate import acquire, strands
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.network.weights import State, state_from

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.imaging.stack import Stack

SHAPE = NAFNetShape(width=8, enc=(1,), middle=1, dec=(1,))
TILE = 64
ANISOTROPY = 4


def tiny_state(*, strength: float = 0.05, seed: int = 0, shape: NAFNetShape = SHAPE) -> State:
    """Random weights in every layer; `strength` is how much the network changes its input."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    network = NAFNet(shape)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".norm" in name or name.endswith(("beta", "gamma")):
                parameter.add_(0.3 * torch.randn_like(parameter))
        network.ending.weight.mul_(strength)
        network.get_parameter("ending.bias").zero_()
    return state_from(network)


def tiny_stack(seed: int = 1) -> Stack:
    """(10, 36, 32) uint16: strands, blurred along z, every fourth plane."""
    return acquire(strands((40, 36, 32), 10, seed=seed), ANISOTROPY, seed=seed)


def with_onnx(bundle: Bundle, onnx: bytes, folder: Path) -> Bundle:
    """The bundle with another network, as if it had been opened in `folder`."""
    from ssai3d_rt.export.bundle import ONNX, entries_of

    (folder / ONNX).write_bytes(onnx)
    files = bundle.manifest.files | entries_of({ONNX: onnx})
    return replace(bundle, folder=folder, manifest=bundle.manifest.model_copy(update={"files": files}))


def tiny_model(state: State | None = None, shape: NAFNetShape = SHAPE, **record: Any) -> AdaptedModel:
    """An adapted model as fine-tuning would leave it, but with random weights."""
    stack = tiny_stack()
    slices = resample_z(Normalisation.of(stack.data).apply(stack.data), stack.anisotropy).transpose(1, 0, 2)
    values: dict[str, Any] = {
        "base": "tiny",
        "base_sha256": "0" * 64,
        "train_px": TILE,
        "kept": "tuned",
        "mask": ("intro", "ending"),
        "trained_parameters": 2,
        "total_parameters": 10,
        "settings": {"seed": 0},
        "rig": None,
        "blur_px": (1.0, 4.0),
        "angles_deg": (0.0,),
        "anisotropy": stack.anisotropy,
        "slice_px": slices.shape[1:],
        "source": ("tiny.tif",),
        "stacks": (),
        "checks": (),
        "iterations": 1,
        "seconds": 1.0,
        "versions": {},
    }
    record_of = ModelRecord.model_validate(values | record)
    return AdaptedModel(tiny_state() if state is None else state, shape, record_of, np.ascontiguousarray(slices[::7]))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The FP16 bundle of `tiny_model`, 64 px tiles; do not change its files."""
    for package in ("torch", "onnxscript", "onnxruntime", "safetensors"):
        pytest.importorskip(package)
    from ssai3d_rt.export import export_bundle

    return export_bundle(tiny_model(), tmp_path_factory.mktemp("bundles") / "tiny.ssai3d", tile=TILE)


@pytest.fixture
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cache of this test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SSAI3D_RT_CACHE", str(folder))
    return folder
