"""Whether eight bits are enough: the base network quantised by ONNX Runtime, held to the export's gate.

python benchmarks/quantised.py
python benchmarks/quantised.py --stack cells.tif --tile 96

Static quantisation with explicit Q/DQ pairs around every convolution, weights per channel, ranges from tiles that are
not those it is judged on: INT8 with ranges from real and extreme tiles, from real tiles alone, the latter without the
first and last convolution and the depth-wise ones, and FP8 (E4M3, opset 21). Prints PSNR against FP32 on real tiles
(the export asks for 55 dB), the largest error on extreme tiles relative to the largest value, the file's size, and
milliseconds per tile of ONNX Runtime on one core; at the end one JSON line. A way that ONNX Runtime cannot go is said
with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from ssai3d_rt.export.bundle import INPUT
from ssai3d_rt.export.golden import golden_tiles
from ssai3d_rt.export.parity import REAL, SIMULATED, compare
from ssai3d_rt.export.typed import Form, onnx_from_model
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.imaging.simulate import acquire, strands
from ssai3d_rt.network.weights import load_network, network_from

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]


class Tiles(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands tiles to ONNX Runtime's calibration, one at a time."""

    def __init__(self, tiles: Float) -> None:
        self._left = iter(tiles)

    def get_next(self) -> dict[str, Float] | None:
        """Return the next tile, None after the last."""
        tile = next(self._left, None)
        return None if tile is None else {INPUT: tile[None]}


def slices_of(stack: Stack) -> Float:
    """Axial slices of a stack, isotropic, as the network sees them."""
    volume = resample_z(Normalisation.of(stack.data).apply(stack.data), stack.anisotropy)
    return np.ascontiguousarray(volume.transpose(1, 0, 2))


def sessions_answer(onnx: bytes, tiles: Float) -> tuple[Float, float]:
    """Run a file on one core; the answers, and the median milliseconds per tile."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    answers, times = [], []
    for tile in (tiles[0], *tiles):
        start = time.perf_counter()
        answers.append(session.run(None, {INPUT: tile[None]})[0])
        times.append(1e3 * (time.perf_counter() - start))
    return np.concatenate(answers[1:]), float(np.median(times[1:]))


def attempt(fp32: bytes, kind: QuantType, method: CalibrationMethod, learn: Float, leave: list[str]) -> bytes | str:
    """Quantise a file; return the new one, or why that is not possible."""
    try:
        return quantised(fp32, kind, method, learn, leave)
    except Exception as error:
        return first_line(error)


def first_line(error: Exception) -> str:
    """Return the first line of an error."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:220]


def quantised(fp32: bytes, kind: QuantType, method: CalibrationMethod, learn: Float, leave: list[str]) -> bytes:
    """Quantise a file."""
    import onnx

    model = onnx.load_from_string(fp32)
    if kind == QuantType.QFLOAT8E4M3FN:
        model = onnx.version_converter.convert_version(model, 21)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path, out = Path(folder) / "fp32.onnx", Path(folder) / "quantised.onnx"
        onnx.save(model, path)
        quantize_static(
            path,
            out,
            Tiles(learn),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=kind,
            weight_type=kind,
            calibrate_method=method,
            nodes_to_exclude=leave,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
            op_types_to_quantize=["Conv"],
        )
        return out.read_bytes()


def delicate(onnx: bytes) -> list[str]:
    """Name the first and last convolution and the depth-wise ones."""
    import onnx as package

    convolutions = [node for node in package.load_from_string(onnx).graph.node if node.op_type == "Conv"]
    deep = [n for n in convolutions if any(a.name == "group" and a.i > 1 for a in n.attribute)]
    return [node.name for node in (convolutions[0], convolutions[-1], *deep)]


def main() -> None:
    """Quantise the base network in each way, and judge what comes out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="base")
    parser.add_argument("--stack", type=Path, help="a real stack; without one, simulated strands")
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--learn", type=int, default=8, help="tiles that ranges are taken from")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    state = load_network(options.base).state
    stack = read_stack(options.stack) if options.stack else acquire(strands((64, 96, 96), 24, seed=3), 4)
    slices = slices_of(stack)
    learn, _ = golden_tiles(options.tile, slices[1::2], real=options.learn)
    tiles, kinds = golden_tiles(options.tile, slices[::2])
    real = np.array([kind in (REAL, SIMULATED) for kind in kinds])
    with torch.inference_mode():
        reference = np.concatenate([network_from(state)(torch.from_numpy(tile[None])).numpy() for tile in tiles])
    fp32 = onnx_from_model(state, Form("fp32"), tile=options.tile)
    fp16 = onnx_from_model(state, tile=options.tile)
    some = delicate(fp32)
    small, smallest = QuantType.QInt8, QuantType.QFLOAT8E4M3FN
    ways: dict[str, Any] = {
        "INT8": (small, CalibrationMethod.MinMax, learn, []),
        "INT8, ranges of real tiles": (small, CalibrationMethod.MinMax, learn[: options.learn], []),
        "INT8, without delicate ones": (small, CalibrationMethod.MinMax, learn[: options.learn], some),
        "FP8 (E4M3)": (smallest, CalibrationMethod.Distribution, learn[: options.learn], []),
    }
    files: dict[str, bytes | str] = {"FP32": fp32, "FP16 with FP32 islands": fp16}
    files |= {name: attempt(fp32, *way) for name, way in ways.items()}
    rows: list[dict[str, Any]] = []
    print(f"{'file':30} {'PSNR dB':>8} {'extremes':>9} {'MB':>6} {'ms/tile':>8}  gate (55 dB)")
    for name, data in files.items():
        try:
            if isinstance(data, str):
                raise RuntimeError(data)
            answer, ms = sessions_answer(data, tiles)
        except Exception as error:
            rows.append({"file": name, "error": first_line(error)})
            print(f"{name:30} cannot run: {rows[-1]['error']}")
            continue
        psnr = compare(reference[real], answer[real]).psnr_db
        worst = float(np.abs(answer[~real] - reference[~real]).max() / max(1.0, np.abs(reference[~real]).max()))
        rows.append({"file": name, "psnr_db": psnr, "extreme_error": worst, "mb": len(data) / 1e6, "ms": ms})
        passed = "passes" if psnr >= 55 and worst <= 0.02 else "fails"
        print(f"{name:30} {psnr:8.1f} {worst:9.2g} {len(data) / 1e6:6.2f} {ms:8.1f}  {passed}")
    print(json.dumps({"tile": options.tile, "rows": rows}))


if __name__ == "__main__":
    main()
