from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.errors import BackendError, BundleError, ParityError
from ssai3d_rt.export.engine import RTX_CAPABILITIES
from ssai3d_rt.export.gpu import driver_fault
from ssai3d_rt.export.parity import Limits
from ssai3d_rt.runtime import cuda
from ssai3d_rt.runtime.backends import BACKENDS, open_runner, ov, registry, self_test, why_not
from ssai3d_rt.runtime.backends.reference import open_base
from ssai3d_rt.runtime.backends.trt import RTX
from ssai3d_rt.runtime.cuda import Gpu

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.runtime.backends import Runner

CPU = [name for name, backend in BACKENDS.items() if not backend.gpu]
QUICK = [name for name in CPU if name != "torch-compile"]
GPU = [name for name, backend in BACKENDS.items() if backend.gpu]


def opened(bundle: Bundle, name: str) -> contextlib.closing[Runner]:
    return contextlib.closing(open_runner(bundle, name))


def spoilt(bundle: Bundle) -> Bundle:
    """The same ONNX with a golden reference that is not its own."""
    tiles, reference = bundle.golden
    return replace(bundle, golden=(tiles, reference + np.float32(0.1) * tiles**2))


def limited(bundle: Bundle, real_psnr_db: float) -> Bundle:
    """The same bundle with another limit for backends."""
    limits = Limits(real_psnr_db=real_psnr_db, extreme_error=0.1)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"backend_limits": limits}))


@pytest.mark.parametrize("name", CPU)
def test_a_cpu_backend_gives_the_references_numbers(tiny_bundle: Bundle, name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    tiles, reference = tiny_bundle.golden
    with opened(tiny_bundle, name) as runner:
        assert (runner.name, runner.tile, runner.bundle_id) == (name, 64, tiny_bundle.bundle_id)
        assert runner.detail
        for count in (1, runner.batch, runner.batch + 3):
            some = np.resize(tiles, (count, 1, 64, 64))
            before = some.copy()
            answers = runner.run(some)
            assert answers.shape == some.shape
            assert answers.dtype == np.float32
            assert np.array_equal(some, before)
            kept = answers.copy()
            runner.run(some[:1] + 1)
            assert np.array_equal(answers, kept)  # the answer is the caller's
            assert np.abs(answers - np.resize(reference, some.shape)).max() < 0.5
        assert self_test(runner, tiny_bundle).real.psnr_db >= 50
        runner.close()  # twice is fine


@pytest.mark.parametrize("name", QUICK)
def test_a_named_backend_with_other_numbers_is_refused(tiny_bundle: Bundle, name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    with pytest.raises(ParityError, match=rf"{name} \(.*\) is off the FP32 reference"):
        open_runner(spoilt(tiny_bundle), name)


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_goes_on_in_fp32_where_bfloat16_is_too_coarse(
    tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    lax = limited(tiny_bundle, 0.0)
    reached = {}
    for runner in ov.candidates(tiny_bundle, None):
        with contextlib.closing(runner):
            reached[runner.detail.split()[0]] = self_test(runner, lax).real.psnr_db
    if "bf16" not in reached:
        pytest.skip("this CPU does not compute in bfloat16")
    assert reached["f32"] > reached["bf16"] + 5
    between = limited(tiny_bundle, (reached["f32"] + reached["bf16"]) / 2)
    with caplog.at_level(logging.WARNING), opened(between, "openvino") as fp32:
        assert fp32.detail.startswith("f32")
    assert "openvino (bf16" in caplog.text
    with opened(tiny_bundle, "openvino") as bf16:
        assert bf16.detail.startswith("bf16")


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_does_not_report_to_its_vendor(tiny_bundle: Bundle) -> None:
    code = (
        "import sys, threading\n"
        "from ssai3d_rt import Bundle\n"
        "from ssai3d_rt.runtime.backends import open_runner\n"
        "open_runner(Bundle.open(sys.argv[1]), 'openvino').close()\n"
        "assert 'openvino' in sys.modules\n"
        "print('openvino_telemetry' in sys.modules, [t.name for t in threading.enumerate()])\n"
    )
    command = [sys.executable, "-c", code, str(tiny_bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False ['MainThread']", done.stderr


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_threads_are_the_callers_choice(tiny_bundle: Bundle, name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    with contextlib.closing(open_runner(tiny_bundle, name, threads=1)) as runner:
        self_test(runner, tiny_bundle)
        if name == "openvino":
            assert runner.detail.endswith("1 stream")


def test_auto_measures_once_and_takes_the_faster(
    tiny_bundle: Bundle, private_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if any(why_not(name) for name in ("openvino", "onnxruntime")) or any(why_not(name) is None for name in GPU):
        pytest.skip("needs openvino and onnxruntime, and no GPU")
    with caplog.at_level(logging.INFO), opened(tiny_bundle, "auto") as runner:
        first = runner.name
    assert "is the fastest here" in caplog.text
    (kept,) = private_cache.glob("speeds/*.json")
    speeds = json.loads(kept.read_text())
    assert set(speeds) == {"openvino", "onnxruntime"}
    assert first == min(speeds, key=speeds.__getitem__)

    slower = max(speeds, key=speeds.__getitem__)
    kept.write_text(json.dumps({first: 9.0, slower: 1.0}))
    caplog.clear()
    with caplog.at_level(logging.INFO), opened(tiny_bundle, "auto") as runner:
        assert runner.name == slower
    assert "is the fastest here" not in caplog.text

    kept.write_text("damaged")
    with opened(tiny_bundle, "auto") as runner:
        assert runner.name in speeds
    assert set(json.loads(kept.read_text())) == set(speeds)


def test_auto_passes_over_a_backend_loudly(
    tiny_bundle: Bundle, private_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if any(why_not(name) for name in ("openvino", "onnxruntime")):
        pytest.skip("needs openvino and onnxruntime")

    def broken(bundle: Bundle, threads: int | None, most_tiles: int | None) -> Any:
        raise BackendError("out of memory")

    monkeypatch.setitem(BACKENDS, "openvino", replace(BACKENDS["openvino"], candidates=broken))
    with caplog.at_level(logging.WARNING), opened(tiny_bundle, "auto") as runner:
        assert runner.name != "openvino"
    assert "openvino is passed over: out of memory" in caplog.text
    assert not list(private_cache.glob("speeds/*.json"))


def test_auto_with_no_backend_that_agrees_says_so(tiny_bundle: Bundle, private_cache: Path) -> None:
    if why_not("openvino") or why_not("onnxruntime"):
        pytest.skip("needs openvino and onnxruntime")
    with pytest.raises(BackendError, match=r"no backend can run .*tiny.ssai3d here \(.*openvino: failed, see the log"):
        open_runner(spoilt(tiny_bundle), "cpu")


def test_a_machine_with_a_gpu_does_not_use_its_cpu_unasked(
    tiny_bundle: Bundle, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why_not("onnxruntime") or any(why_not(name) is None for name in GPU):
        pytest.skip("needs onnxruntime, and no GPU backend that runs")
    monkeypatch.setattr(registry, "gpu", lambda: Gpu("NVIDIA RTX A4000", (8, 6)))
    with pytest.raises(BackendError, match=r"this machine's NVIDIA RTX A4000 .*\(tensorrt: .*--backend cpu"):
        open_runner(tiny_bundle)
    with opened(tiny_bundle, "cpu") as runner:
        assert not BACKENDS[runner.name].gpu


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_backend_that_is_asked_for_never_becomes_another(tiny_bundle: Bundle, name: str) -> None:
    reason = why_not(name)
    if reason is None:
        pytest.skip("this machine can run it")
    with pytest.raises(BackendError, match=f"^{name} cannot run here: "):
        open_runner(tiny_bundle, name)
    assert "\n" not in reason
    assert "; " in reason  # what is missing; what to do


def test_cuda_that_onnxruntime_drops_is_an_error(tiny_bundle: Bundle) -> None:
    if why_not("onnxruntime") or why_not("onnxruntime-cuda") is None:
        pytest.skip("needs an onnxruntime without CUDA")
    from ssai3d_rt.runtime.backends.ort import CUDA, open_session

    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(BackendError, match="came up on CPU"):
        open_session(tiny_bundle, CUDA)


def test_a_broken_package_is_passed_over_in_one_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    if why_not("openvino"):
        pytest.skip("needs openvino")
    broken = tmp_path / "onnxruntime"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libcudart.so.13: no such file')\n")
    code = (
        "import logging, sys\n"
        "from ssai3d_rt import Bundle\n"
        "from ssai3d_rt.runtime.backends import open_runner\n"
        "logging.basicConfig(format='%(message)s')\n"
        "runner = open_runner(Bundle.open(sys.argv[1]), 'cpu')\n"
        "print(runner.name)\n"
        "runner.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SSAI3D_RT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tiny_bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "openvino", done.stderr
    assert done.stderr.splitlines() == [
        "onnxruntime is passed over: onnxruntime cannot be loaded (OSError: libcudart.so.13: no such file); "
        "ssai3d-rt doctor says what to do"
    ]


class FindsNothing:
    """An import finder on a machine without the optional packages."""

    @staticmethod
    def find_spec(*_: object) -> None: ...


@pytest.mark.parametrize(
    ("name", "extra"), [("tensorrt", "tensorrt"), ("openvino", "cpu"), ("onnxruntime", "cpu"), ("torch", "train")]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setattr(sys, "meta_path", [FindsNothing])
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert why_not(name) == f'{name} is not installed; run: pip install "ssai3d-rt[{extra}]"'


def test_what_torchs_compiler_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if reason := why_not("torch"):
        pytest.skip(reason)
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = why_not("torch-compile")
    assert reason is not None
    assert reason.startswith("torch.compile needs a C++ compiler, $CXX is no-such-compiler, which was not found; ")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = why_not("torch-compile")
    assert reason is not None
    assert reason.startswith("torch.compile needs a C++ compiler, none was found; install")


def test_an_unknown_backend_is_answered_with_the_names(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="there is no backend 'cuda'; choose from auto, cpu, tensorrt, tensorrt-rtx"):
        open_runner(tiny_bundle, "cuda")


def test_cards_that_tensorrt_for_rtx_does_not_know_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed")
    from ssai3d_rt.runtime.backends import trt

    assert (9, 0) not in RTX_CAPABILITIES
    monkeypatch.setattr(trt, "why_no_cuda", lambda: None)
    monkeypatch.setattr(trt, "gpu", lambda: cuda.Gpu("NVIDIA H200", (9, 0)))
    assert trt.why_not(RTX) == (
        "TensorRT for RTX does not support NVIDIA H200 (compute capability 9.0); use tensorrt or onnxruntime-cuda"
    )
    monkeypatch.setattr(trt, "gpu", lambda: cuda.Gpu("NVIDIA GeForce RTX 4070", (8, 9)))
    assert trt.why_not(RTX) is None


def test_weights_that_were_changed_after_opening_are_not_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    if reason := why_not("torch"):
        pytest.skip(reason)
    (tmp_path / "adapted.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"adapted.safetensors has 1 of \d+ bytes"):
        open_runner(replace(tiny_bundle, folder=tmp_path), "torch")


def test_the_base_network_runs_without_a_bundle() -> None:
    from ssai3d_rt.network.weights import list_bases

    if why_not("torch") or "base" not in {base.name for base in list_bases()}:
        pytest.skip("needs torch and the base network")
    with contextlib.closing(open_base()) as runner:
        tiles = np.zeros((1, 1, runner.tile, runner.tile), np.float32)
        assert runner.run(tiles).shape == tiles.shape
        assert runner.bundle_id.startswith("base:base:")


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU)
def test_a_gpu_backend_gives_the_references_numbers(tiny_bundle: Bundle, private_cache: Path, name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    tiles, _ = tiny_bundle.golden
    with opened(tiny_bundle, name) as runner:
        assert self_test(runner, tiny_bundle).real.psnr_db >= 50
        for count in (1, 5, 40):
            assert runner.run(np.resize(tiles, (count, 1, 64, 64))).shape == (count, 1, 64, 64)
        runner.close()


def test_a_driver_that_does_not_answer_is_not_taken_for_none(
    tiny_bundle: Bundle, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Driver:
        code = 803

        def cuInit(self, _flags: int) -> int:  # noqa: N802
            return self.code

    driver = Driver()
    monkeypatch.setattr("ssai3d_rt.export.gpu._driver", lambda: driver)
    with pytest.raises(BackendError, match=r"the NVIDIA driver does not answer \(its parts do not match.*restart"):
        open_runner(tiny_bundle)
    driver.code = 100  # no GPU
    assert driver_fault() is None
    driver.code = 999
    assert "CUDA error 999" in str(driver_fault())
