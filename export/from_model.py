"""Make a bundle from an adapted model: type it, compare it with the FP32 reference, and write it only when it agrees.

The ranges of all tensors are measured first, and those that FP16 cannot hold stay FP32. The gate then has three parts.
Weights must be finite. A rehearsal with every rounding of FP16 must give the reference's numbers without leaving FP16's
range, because runtimes on CPUs hide what a GPU shows. And the ONNX file itself, run by ONNX Runtime on the CPU, must
give them too, on real and extreme tiles. A refused export leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import math
import platform
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ssai3d_rt.calibration.precision import FP16_MAX, PrecisionPlan
from ssai3d_rt.calibration.precision_picture import draw_precision
from ssai3d_rt.errors import ConfigError, MissingPackageError, ParityError
from ssai3d_rt.export.bundle import (
    GOLDEN,
    INPUT,
    ONNX,
    PICTURE,
    PRECISION,
    WEIGHTS,
    AdaptationEntry,
    Bundle,
    Manifest,
    NetworkEntry,
    PrecisionEntry,
    check_target,
    entries_of,
    golden_file,
    write_bundle,
)
from ssai3d_rt.export.golden import golden_tiles
from ssai3d_rt.export.measure import folding_errors, plan_precision, rehearse
from ssai3d_rt.export.parity import Limits, check_parity
from ssai3d_rt.export.typed import OPSET, Form, LayerNorm, check_weights, onnx_from_model
from ssai3d_rt.network.nafnet import largest_tile
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ssai3d_rt.adapt.model import AdaptedModel, ModelRecord
    from ssai3d_rt.network.nafnet import NAFNetShape

logger = logging.getLogger(__name__)

Float = npt.NDArray[np.float32]

EXPORT_LIMITS = {"fp16": Limits(), "fp32": Limits(real_psnr_db=90.0, extreme_error=1e-4)}
BACKEND_LIMITS = {
    # Below the export's own, so that a CPU may compute in bfloat16: 55 to 65 dB, far above any microscope's noise.
    "fp16": Limits(real_psnr_db=50.0, extreme_error=0.03),
    "fp32": Limits(real_psnr_db=80.0, extreme_error=1e-3),
}
FOLDING_LIMIT = 1e-5
"""Folding that changes more than this fraction of the range in FP32 is warned of; the gate decides."""
_STAGES = 6


def export_bundle(
    model: AdaptedModel,
    out: str | Path,
    *,
    tile: int | Literal["auto"] = "auto",
    precision: Literal["fp16", "fp32"] = "fp16",
    layer_norm: LayerNorm = "island",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Export an adapted model as a bundle.

    Parameters
    ----------
    model
        From `finetune`, or loaded from its folder.
    out
        ``NAME.ssai3d``, a new folder.
    tile
        Side of the tiles in pixels, a multiple of the network's (16 for four levels); ``auto`` takes what `tile_for`
        finds.
    precision
        ``fp16`` (with FP32 islands) or ``fp32``.
    layer_norm
        ``island``, ``native32`` or ``native16``, see `ssai3d_rt.export.typed.Form`; what is fastest differs from GPU to
        GPU.
    overwrite
        Replace a bundle of that name.
    progress
        Told the six stages.

    Raises
    ------
    ParityError
        The export does not give the reference's numbers; nothing is written.
    BundleError
        `out` has no ``.ssai3d`` or exists.
    ConfigError
        A tile that the network cannot take.
    MissingPackageError
        torch, onnx, onnxscript, safetensors or onnxruntime is not installed.
    """
    out = Path(out)
    check_target(out, overwrite=overwrite)
    side = tile_for(model.shape, model.record) if tile == "auto" else tile
    if not 16 <= side <= 4096 or side % model.shape.multiple:
        raise ConfigError(
            f"tile {side} px does not suit this network; give a multiple of {model.shape.multiple} from 16 to 4096"
        )
    window = pool_window_for(model.record, side)
    half = precision == "fp16"

    def stage(label: str, number: int) -> None:
        progress(f"export: {label}", number, _STAGES)

    stage("reference", 0)
    check_weights(model.state)
    tiles, kinds = golden_tiles(side, model.samples)
    state_hash = state_sha256(model.state)
    with _one_thread():
        reference = _reference(model.state, tiles, window)
        stage("precision", 1)
        folding = _folding(model.state, tiles, reference, window)
        plan = plan_precision(model.state, tiles, kinds, pool_window=window) if half else None
        form = Form(precision, layer_norm, plan.wide if plan else frozenset(), window)
        stage("rehearsal", 2)
        rehearsed, peak = rehearse(model.state, tiles, form)
        _check_peak(peak, form)
        limits = EXPORT_LIMITS[precision]
        rehearsal = check_parity(reference, rehearsed, kinds=kinds, limits=limits, what=f"the network in {precision}")
        stage("onnx", 3)
        tools = _tools()
        metadata = {"tile": str(side), "precision": precision, "state_sha256": state_hash, "tools": json.dumps(tools)}
        onnx = onnx_from_model(model.state, form, tile=side, metadata=metadata)
    stage("parity", 4)
    result = _onnxruntime(onnx, tiles)
    report = check_parity(reference, result, kinds=kinds, limits=limits, what=f"the {precision} export")
    stage("write", 5)
    contents = {
        ONNX: onnx,
        GOLDEN: golden_file(tiles, reference, kinds),
        WEIGHTS: _safetensors(model.state, {"adapted_from": model.record.base, "train_px": model.record.train_px}),
        **(_precision_files(plan) if plan else {}),
    }
    shape = model.shape
    manifest = Manifest(
        name=out.stem,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=entries_of(contents),
        network=NetworkEntry(
            width=shape.width,
            enc=shape.enc,
            middle=shape.middle,
            dec=shape.dec,
            channels=shape.channels,
            pool_window_px=window,
            state_sha256=state_hash,
        ),
        tile=side,
        precision=precision,
        layer_norm=layer_norm,
        calibration=_precision_entry(plan) if plan else None,
        folding=folding,
        opset=OPSET,
        limits=limits,
        backend_limits=BACKEND_LIMITS[precision],
        parity=report,
        rehearsal=rehearsal,
        peak_activation=peak,
        adaptation=_adaptation(model.record),
        tools=tools,
    )
    bundle = write_bundle(out, manifest, contents, overwrite=overwrite)
    stage("write", _STAGES)
    return bundle


def tile_for(shape: NAFNetShape, record: ModelRecord) -> int:
    """Choose the tile: the axial slices in one piece where they fit, else as large as the network's training allows."""
    most = largest_tile(record.train_px)
    multiple = shape.multiple
    needed = math.ceil(max(record.slice_px) / multiple) * multiple
    return max(multiple, 16, min(needed, most // multiple * multiple))


def pool_window_for(record: ModelRecord, tile: int) -> int | None:
    """Return the side of TLC's pooling window where it is smaller than the tile, else None: the mean of the tile."""
    if record.train_px is None or record.train_px * 3 // 2 >= tile:
        return None
    return record.train_px * 3 // 2


def state_sha256(state: Mapping[str, Float]) -> str:
    """Hash a state's names, shapes and float32 values, in order of name."""
    digest = sha256()
    for key in sorted(state):
        digest.update(f"{key} {state[key].shape}\n".encode())
        digest.update(np.ascontiguousarray(state[key], dtype="<f4").tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: on a machine that is busy acquiring, its threads would mostly wait for each other."""
    try:
        import torch
    except ImportError:
        raise MissingPackageError("torch", extra="train") from None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _reference(state: Mapping[str, Float], tiles: Float, window: int | None) -> Float:
    import torch

    from ssai3d_rt.network.weights import network_from

    network = network_from(state, window)
    with torch.inference_mode():
        answers = [network(torch.from_numpy(tile[None])).numpy() for tile in tiles]
    reference = np.concatenate(answers)
    if not np.isfinite(reference).all():
        raise ParityError("the FP32 network itself gives values that are not finite; train again from an earlier state")
    return reference


def _folding(state: Mapping[str, Float], tiles: Float, reference: Float, window: int | None) -> dict[str, float]:
    """Measure the steps of folding on two tiles, one of each sort: what is linear does not depend on the tile."""
    ends = [0, -1]
    errors = folding_errors(state, tiles[ends], reference[ends], pool_window=window)
    for step, error in errors.items():
        if not error < FOLDING_LIMIT:
            logger.warning("folding (%s) changes the FP32 network by %.2g of its range", step, error)
    return errors


def _precision_entry(plan: PrecisionPlan) -> PrecisionEntry:
    return PrecisionEntry(
        tensors=len(plan.ranges),
        wide=tuple(item.name for item in plan.ranges if item.name in plan.wide),
        wide_weights=plan.wide_weights,
        headroom=plan.headroom,
        highest=plan.highest.peak,
        highest_in=plan.highest.name,
    )


def _precision_files(plan: PrecisionPlan) -> dict[str, bytes]:
    """Return the ranges, and their picture where there is something to draw with; what is shown says which."""
    files = {PRECISION: plan.to_json().encode()}
    with contextlib.suppress(MissingPackageError):
        files[PICTURE] = draw_precision(plan)
    return files


def _check_peak(peak: float, form: Form) -> None:
    if form.precision == "fp16" and not peak <= FP16_MAX:
        what = "squares in LayerNorm" if form.layer_norm == "native16" else "activations"
        instead = "--layer-norm island" if form.layer_norm == "native16" else "--precision fp32"
        raise ParityError(
            f"{what} reach {peak:.3g} on the golden tiles, FP16 ends at {FP16_MAX:.0f}; export with {instead}"
        )


def _onnxruntime(onnx: bytes, tiles: Float) -> Float:
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError("onnxruntime", extra="cpu") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    # Batches of three and the rest: the batch is dynamic.
    parts = [session.run(None, {INPUT: tiles[at : at + 3]})[0] for at in range(0, len(tiles), 3)]
    return np.concatenate(parts)


def _safetensors(state: Mapping[str, Float], info: Mapping[str, object]) -> bytes:
    try:
        from safetensors.numpy import save
    except ImportError:
        raise MissingPackageError("safetensors", extra="train") from None
    arrays = {key: np.ascontiguousarray(value, np.float32) for key, value in state.items()}
    return bytes(save(arrays, metadata={"ssai3d_rt": json.dumps(dict(info))}))


def _adaptation(record: ModelRecord) -> AdaptationEntry:
    return AdaptationEntry(
        base=record.base,
        trained_layers=len(record.mask),
        fingerprint=" ".join(stack.sha256 for stack in record.stacks),
        anisotropy=record.anisotropy,
        blur_px=record.blur_px,
        denoise=record.settings.get("denoise", "auto"),
        record=record.model_dump(mode="json", exclude={"checks"}),
    )


def _tools() -> dict[str, str]:
    modules = [importlib.import_module(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")]
    ours = {"python": platform.python_version(), "ssai3d-rt": importlib.metadata.version("ssai3d-rt")}
    return ours | {module.__name__: str(module.__version__) for module in modules}
