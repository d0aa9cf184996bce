"""What FP16 does to networks: plain half precision, the typed export rehearsed, and the exported file itself.

python benchmarks/precision.py
python benchmarks/precision.py --width 16 --deep 4 --tile 64
python benchmarks/precision.py --networks base --table

Networks: ``base`` is the one that ships; ``swollen`` has random weights (by default the published shape, width 64,
blocks 1,1,1,28) and is scaled by powers of two, up in one layer and down in the next, until plain FP16 cannot run it;
in FP32 it computes the same as before.

For each LayerNorm mode: PSNR (dB, range of the reference) on real tiles, the largest error relative to the largest
value on extreme tiles, and values that are not finite, of the rehearsal (every FP16 rounding) and of ONNX Runtime on
the CPU, which computes most of it in FP32. ``plain half`` is PyTorch's ``network.half()``, ``no FP32 tensors`` the
rehearsal without what calibration decided. The export asks for 55 dB. ``peak`` is the largest value stored in FP16;
native16 is refused where it is infinite. ``--table`` prints the range of every tensor. Prints one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ssai3d_rt.export.bundle import INPUT
from ssai3d_rt.export.golden import golden_tiles
from ssai3d_rt.export.measure import folding_errors, plan_precision, rehearse
from ssai3d_rt.export.parity import REAL, SIMULATED, compare
from ssai3d_rt.export.typed import Form, onnx_from_model
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.network.weights import load_network, network_from, state_from

if TYPE_CHECKING:
    from collections.abc import Sequence

Float = npt.NDArray[np.float32]
State = dict[str, Float]
STREAM, GATES, EVERY = 2.0**10, 2.0**16, 4
MODES = ("island", "native32", "native16")


def random_state(shape: NAFNetShape, *, seed: int = 0) -> State:
    """Random weights in every layer."""
    torch.manual_seed(seed)
    network = NAFNet(shape)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".norm" in name or name.endswith(("beta", "gamma")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return state_from(network)


def swollen(state: State, *, stream: float = STREAM, gates: float = GATES, every: int = EVERY) -> State:
    """Scale the activations and leave the function as it is, up to LayerNorm's epsilon.

    Parameters
    ----------
    state
        Weights by published name.
    stream
        The residual stream grows by this: LayerNorm takes it out again, and so does `ending`.
    gates
        In every `every`-th block the gates' products grow by this (their inputs by its root, as a gate multiplies two
        halves of its input), and the weights that follow shrink.
    """
    big = {key: value.copy() for key, value in state.items()}
    for key, value in big.items():
        if key.startswith("intro.") or key.endswith((".beta", ".gamma")) or (key[:6] == "downs." and "bias" in key):
            value *= np.float32(stream)
    big["ending.weight"] /= np.float32(stream)
    blocks = sorted({key.removesuffix(".beta") for key in big if key.endswith(".beta")})
    for block in blocks[::every]:
        for conv, after in (("conv2", ("conv3", "sca.1")), ("conv4", ("conv5",))):
            for part in ("weight", "bias"):
                big[f"{block}.{conv}.{part}"] *= np.float32(gates**0.5)
            for name in after:
                big[f"{block}.{name}.weight"] /= np.float32(gates)
    return big


def plain_half(state: State, tiles: Float) -> Float:
    """Run PyTorch's ``network.half()`` on the CPU."""
    network = network_from(state).half()
    with torch.inference_mode():
        return np.concatenate([network(torch.from_numpy(tile[None]).half()).float().numpy() for tile in tiles])


def full(state: State, tiles: Float) -> Float:
    """Run the FP32 reference."""
    network = network_from(state)
    with torch.inference_mode():
        return np.concatenate([network(torch.from_numpy(tile[None])).numpy() for tile in tiles])


def run_onnx(onnx: bytes, tiles: Float) -> Float:
    """Run a file by ONNX Runtime on one core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {INPUT: tile[None]})[0] for tile in tiles])


def judged(reference: Float, result: Float, kinds: Sequence[str]) -> dict[str, Any]:
    """PSNR on real tiles, relative error on extremes, values that are not finite."""
    real = np.array([kind in (REAL, SIMULATED) for kind in kinds])
    good = np.isfinite(result[~real])
    worst = np.abs(np.where(good, result[~real] - reference[~real], 0)).max() / max(1.0, np.abs(reference[~real]).max())
    found = compare(reference[real], result[real])
    return {
        "psnr_db": round(found.psnr_db, 1),
        "extreme_error": float(f"{worst:.2g}"),
        "non_finite": int(np.size(result) - np.count_nonzero(np.isfinite(result))),
    }


def measure(name: str, state: State, tile: int, modes: Sequence[str], table: bool) -> list[dict[str, Any]]:
    """Measure one network in every way."""
    torch.set_num_threads(1)
    tiles, kinds = golden_tiles(tile)
    reference = full(state, tiles)
    plan = plan_precision(state, tiles, kinds)
    print(f"{name}: {plan.sentence()}")
    if table:
        print(plan.table())
    folding = folding_errors(state, tiles[[0, -1]], reference[[0, -1]])
    print(f"{name}: folding changes, as a fraction of the range: {folding}")
    rows = [{"network": name, "how": "plain half", **judged(reference, plain_half(state, tiles), kinds)}]
    rows.append({"network": name, "how": "no FP32 tensors", **judged(reference, rehearse(state, tiles)[0], kinds)})
    for mode in modes:
        form = Form(layer_norm=mode, wide=plan.wide)  # type: ignore[arg-type]
        rehearsed, peak = rehearse(state, tiles, form)
        peak_text = f"{peak:.3g}"
        rows.append(
            {"network": name, "how": f"{mode}, rehearsed", **judged(reference, rehearsed, kinds), "peak": peak_text}
        )
        onnx = onnx_from_model(state, form, tile=tile)
        ran = judged(reference, run_onnx(onnx, tiles), kinds)
        rows.append({"network": name, "how": f"{mode}, ONNX Runtime", **ran, "mb": round(len(onnx) / 1e6, 1)})
    for row in rows:
        row["fp32_tensors"] = len(plan.wide)
    return rows


def main() -> None:
    """Measure the networks that were asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="base,swollen")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--deep", type=int, default=28, help="blocks at the last encoder level")
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for name in options.networks.split(","):
        shape = NAFNetShape(options.width, (1, 1, 1, options.deep), 1, (1, 1, 1, 1))
        state = load_network("base").state if name == "base" else swollen(random_state(shape))
        rows += measure(name, state, options.tile, options.modes.split(","), options.table)
    print(f"\n{'network':10} {'how':24} {'PSNR dB':>8} {'extremes':>9} {'not finite':>10} {'peak':>9} {'MB':>6}")
    for row in rows:
        print(
            f"{row['network']:10} {row['how']:24} {row['psnr_db']:8} {row['extreme_error']:9} {row['non_finite']:10} "
            f"{row.get('peak', ''):>9} {row.get('mb', ''):>6}"
        )
    print(json.dumps({"seconds": round(time.perf_counter() - start), "rows": rows}))


if __name__ == "__main__":
    main()
