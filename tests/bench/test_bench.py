from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt import cli
from ssai3d_rt.bench import machine
from ssai3d_rt.bench.child import measured
from ssai3d_rt.bench.plan import Plan, variant_of, variants
from ssai3d_rt.bench.run import UPSTREAM, Bench, StackRow, TileRow, bench
from ssai3d_rt.bench.sample import simulated_stack
from ssai3d_rt.bench.table import notes, stack_columns, tile_columns
from ssai3d_rt.bench.upstream import in_colour
from ssai3d_rt.errors import BackendError, BundleError, ConfigError
from ssai3d_rt.export.bundle import Bundle
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.network.cost import cost_of
from ssai3d_rt.network.nafnet import NAFNetShape
from tests.tiny import SHAPE, tiny_state

if TYPE_CHECKING:
    from ssai3d_rt.export.typed import LayerNorm

TILE_ROW = TileRow(
    backend="openvino",
    detail="bf16 on the CPU, 2 streams",
    format="bf16",
    tile=64,
    layer_norm="island",
    batch=4,
    ms=2.0,
    ms_p95=3.0,
    rounds=8,
    voxels_per_s=1e6,
    psnr_db=60.0,
    max_error=0.001,
    peak_share=0.25,
    memory_share=None,
    host_bytes=300 << 20,
    device_bytes=None,
    open_s=1.0,
)
YARDSTICK = StackRow(UPSTREAM, "FP32 on cpu, eager", 0.5, 6.0, 1e5, 400 << 20, None)
STACK_ROW = StackRow("openvino", "bf16 on the CPU, 2 streams", 1.0, 2.0, 3e5, 300 << 20, None, 55.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A stack whose slices fit in one tile of 64 px, but fill none."""
    path = tmp_path / "raw.ome.tif"
    write_ome_tiff(path, simulated_stack((4, 14, 12), 4), {})
    return path


def quick_machine(task: str, **arguments: Any) -> dict[str, Any]:
    """As `measured`, but what the machine can do at best is not measured."""
    if task == "machine":
        return {"flops": {"cpu fp32": 1e12}, "bytes_per_s": {"cpu": 1e10}}
    return measured(task, **arguments)


def test_the_command_measures_compares_and_leaves_a_record(
    tiny_bundle: Bundle,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One run of all that there is, with the quickest backend."""
    monkeypatch.setattr("ssai3d_rt.bench.run.measured", quick_machine)
    arguments = ["--stack", str(source), "--backends", "onnxruntime,tensorrt", "--compare", UPSTREAM]
    quick = ["--batches", "2", "--rounds", "2", "--seconds", "0", "--threads", "1"]
    out = tmp_path / "out"
    assert cli.main(["bench", str(tiny_bundle.folder), "-o", str(out), *arguments, *quick]) == 0
    shown = capsys.readouterr().out
    found = json.loads(shown.splitlines()[-1])
    (row,) = found["tiles"]
    assert (row["backend"], row["tile"], row["batch"], row["format"]) == ("onnxruntime", 64, 2, "fp32")
    assert 0 < row["ms"] <= row["ms_p95"]
    assert row["psnr_db"] > 55
    assert row["voxels_per_s"] == pytest.approx(64 * 64 / 2 / (row["ms"] / 1e3))
    assert row["peak_share"] == pytest.approx(cost_of(SHAPE, 64).flops / (row["ms"] / 1e3) / 1e12)
    assert row["host_bytes"] > 50 << 20
    assert [each["backend"] for each in found["stacks"]] == [UPSTREAM, "onnxruntime"]
    assert all(each["restore_s"] > 0 for each in found["stacks"])
    assert found["same"]["psnr_db"] >= 60  # the same function in FP32, up to the rounding of counts
    assert found["stacks"][1]["psnr_db"] < found["same"]["psnr_db"]  # the published way pads with zeros
    assert set(found["absent"]) == {"tensorrt"}
    assert found["refused"] == []
    assert found["stack"] == str(source)
    assert json.loads((out / "bench.json").read_text()) == {k: v for k, v in found.items() if k != "picture"}
    assert "ms/tile" in shown
    assert "times faster" in shown
    assert "bench 1: the machine: 0/" in shown
    assert Path(found["picture"]).is_file() or found["picture"].startswith("left out")


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIDE", 128)
    monkeypatch.setattr(machine, "COPY_BYTES", 1 << 22)
    found = machine.measure_machine(threads=1)
    assert found["cores"] == 1
    assert found["flops"]["cpu fp32"] > 1e8
    assert found["bytes_per_s"]["cpu"] > 1e7
    assert "openvino fp32" not in found["flops"]


def test_a_way_with_other_numbers_is_refused_not_timed(
    tiny_bundle: Bundle, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = spoilt_copy(tiny_bundle, tmp_path / "spoilt.ssai3d")
    monkeypatch.setattr("ssai3d_rt.bench.run.measured", quick_machine)
    found = bench(Bundle.open(folder), source, Plan(("onnxruntime",), (1, 2), threads=1, rounds=1, seconds=0.0))
    assert found.tiles == []
    assert found.stacks == []
    (reason,) = found.refused
    assert reason.startswith("onnxruntime: onnxruntime (CPU, version")
    assert "is off the FP32 reference" in reason


def spoilt_copy(bundle: Bundle, folder: Path) -> Path:
    """A whole bundle whose golden reference is not its network's."""
    from ssai3d_rt.export.bundle import GOLDEN, entries_of, golden_file, write_bundle

    tiles, reference = bundle.golden
    contents = {name: Path(bundle.folder, name).read_bytes() for name in bundle.manifest.files}
    contents[GOLDEN] = golden_file(tiles, reference + np.float32(0.1) * tiles**2, bundle.golden_kinds)
    write_bundle(folder, bundle.manifest.model_copy(update={"files": entries_of(contents)}), contents)
    return folder


def test_what_fails_in_a_child_fails_here_as_itself(tmp_path: Path) -> None:
    arguments = {"backend": "onnxruntime", "way": 0, "batch": 1, "threads": 1, "rounds": 1, "seconds": 0.0}
    with pytest.raises(BundleError, match=r"nothing.ssai3d does not exist"):
        measured("tiles", bundle=str(tmp_path / "nothing.ssai3d"), **arguments)


def test_a_measured_process_holds_no_more_than_the_product_does() -> None:
    code = (
        "import sys, ssai3d_rt.bench.child, ssai3d_rt.bench.endtoend; "
        "print(sorted({'torch', 'matplotlib', 'rich', 'openvino', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_child_that_dies_says_how() -> None:
    with pytest.raises(BackendError, match=r"died with status 1: .*unexpected keyword argument 'nonsense'"):
        measured("machine", nonsense=1)


def test_a_network_in_colour_is_equal_to_the_gray_one() -> None:
    torch = pytest.importorskip("torch")
    from ssai3d_rt.network.weights import network_from, state_from

    gray = network_from(tiny_state())
    colour = network_from({k: v.numpy() for k, v in in_colour(gray.state_dict()).items()})
    assert colour.shape == replace(SHAPE, channels=3)
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(colour(image.repeat(1, 3, 1, 1)).mean(1, keepdim=True), gray(image), atol=1e-5)
    whole = {k: torch.from_numpy(v) for k, v in state_from(colour).items()}
    assert in_colour(whole)["intro.weight"] is whole["intro.weight"]


def test_variants_are_the_same_weights_exported_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    plan = Plan(tiles=(32, 64), layer_norms=("island", "native32"))
    wanted = list(variants(tiny_bundle, plan))
    assert wanted[0] == (64, "island")
    assert sorted(wanted) == [(32, "island"), (32, "native32"), (64, "island"), (64, "native32")]
    assert list(variants(tiny_bundle, Plan())) == [(64, "island")]
    assert variant_of(tiny_bundle, 64, "island", tmp_path) is tiny_bundle
    made = variant_of(tiny_bundle, 32, "native32", tmp_path)
    assert (made.tile, made.manifest.layer_norm) == (32, "native32")
    assert made.manifest.network.state_sha256 == tiny_bundle.manifest.network.state_sha256
    assert made.golden_kinds == tiny_bundle.golden_kinds


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"backends": ("cuda",)}, "there is no backend 'cuda'"),
        ({"batches": (0, 1)}, "a batch has at least one tile"),
        ({"layer_norms": ("fast",)}, "there is no LayerNorm mode 'fast'"),
    ],
    ids=["backend", "batch", "layer-norm"],
)
def test_a_plan_that_cannot_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises((BackendError, ConfigError), match=said):
        Plan(**values)


def test_tables_show_what_there_is() -> None:
    columns = tile_columns([TILE_ROW])
    assert columns["% of matmul"] == ["25"]
    assert columns["ms/tile"] == ["2.00"]
    assert not {"% of memory", "GPU MiB"} & set(columns)
    assert tile_columns([]) == stack_columns([]) == {}
    compared = stack_columns([YARDSTICK, STACK_ROW])
    assert compared["times faster"] == ["1.00", "3.00"]
    assert compared["likeness dB"] == ["-", "55.0"]
    assert "times faster" not in stack_columns([replace(STACK_ROW, psnr_db=None)])
    found = Bench("b", {}, "s", refused=["torch: too slow"], absent={"tensorrt": "not installed"})
    assert notes(found) == ["refused: torch: too slow", "not here: tensorrt: not installed"]


def test_the_picture_has_a_bar_for_every_row(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib.image

    from ssai3d_rt.bench.picture import draw

    heights = []
    for count in (2, 12):
        rows = [replace(TILE_ROW, backend=f"backend{n}", ms=1.0 + n) for n in range(count)]
        found = Bench("b", asdict(NAFNetShape(8, (1,), 1, (1,))), "s", tiles=rows, stacks=[YARDSTICK, STACK_ROW])
        draw(found, tmp_path / f"{count}.png")
        heights.append(matplotlib.image.imread(tmp_path / f"{count}.png").shape[0])
    assert heights[1] > heights[0] + 200
    draw(Bench("b", {}, "s"), tmp_path / "empty.png")


def test_the_command_says_what_is_wrong_before_it_measures(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tiny_bundle.folder)
    for arguments, said in (
        (["--batches", "one"], "--batches 'one' is not a list of numbers"),
        (["--shape", "24,128"], "is not Z,Y,X with at least three planes"),
        (["--backends", "openvino,cuda"], "there is no backend 'cuda'"),
        (["--layer-norm", "fast"], "there is no LayerNorm mode 'fast'"),
    ):
        assert cli.main(["bench", folder, "-o", str(tmp_path / "out"), *arguments]) == 1
        assert said in capsys.readouterr().err
    assert cli.main(["bench", str(tmp_path), "--compare", "torch"]) == 2
    assert not (tmp_path / "out").exists()


def test_layer_norm_modes_are_those_of_the_export() -> None:
    from ssai3d_rt.bench.plan import LAYER_NORMS
    from ssai3d_rt.export.bundle import Manifest

    known: tuple[LayerNorm, ...] = Manifest.model_fields["layer_norm"].annotation.__args__  # type: ignore[union-attr]
    assert known == LAYER_NORMS
