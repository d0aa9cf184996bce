"""The order of work on the device: in numpy, where a missing wait gives wrong numbers, and on a real GPU."""

from __future__ import annotations

import importlib
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.errors import BackendError
from ssai3d_rt.runtime import cuda
from ssai3d_rt.runtime.pipeline import Pipeline
from tests.runtime.numpycuda import NumpyCuda, NumpyStream, squared_plus_one

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssai3d_rt.runtime.cuda import Stream

SHAPE = (3, 1, 4, 5)


@pytest.fixture
def device() -> Iterator[NumpyCuda]:
    device = NumpyCuda()
    yield device
    device.close()


def pipeline_on(device: NumpyCuda, **options: Any) -> Pipeline:
    with device.current():
        return Pipeline(device, SHAPE, squared_plus_one(device), **options)


def tiles_of(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((count, *SHAPE[1:]), dtype=np.float32)


@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "graphs"])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_any_number_of_tiles_comes_back_in_order(device: NumpyCuda, slots: int, graphs: bool) -> None:
    pipeline = pipeline_on(device, slots=slots)
    with device.current():
        pipeline.warm_up(graphs=graphs)
        for count in (1, 3, 4, 30, 0, 2):
            tiles = tiles_of(count, seed=count)
            before = tiles.copy()
            answers = pipeline.run(tiles)
            assert np.array_equal(answers, before**2 + 1)
            assert np.array_equal(tiles, before)
            kept = answers.copy()
            pipeline.run(tiles_of(7))
            assert np.array_equal(answers, kept)  # the answer is the caller's


class Careless(NumpyStream):
    """A stream whose waits, or whose events, do nothing."""

    left_out = ""

    def wait(self, event: Any) -> None:
        if self.left_out != "wait":
            super().wait(event)

    def record(self, event: Any = None) -> Any:
        event = super().record(event)
        if self.left_out == "record":
            event.reached.set()
        return event


@pytest.mark.parametrize("left_out", ["wait", "record"])
def test_a_missing_wait_gives_wrong_numbers(device: NumpyCuda, left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.runtime.numpycuda.NumpyStream", Careless)
    monkeypatch.setattr(Careless, "left_out", left_out)
    pipeline = pipeline_on(device)
    tiles = tiles_of(60)
    with device.current():
        assert not np.array_equal(pipeline.run(tiles), tiles**2 + 1)


def test_copying_and_computing_overlap(device: NumpyCuda) -> None:
    """While a batch is computed, the next one is already copied in."""
    gate, arrived = threading.Event(), []

    def compute(source: int, target: int, stream: Stream) -> None:
        assert isinstance(stream, NumpyStream)
        stream.put(lambda: gate.wait(10))
        squared_plus_one(device)(source, target, stream)

    with device.current():
        pipeline = Pipeline(device, SHAPE, compute)
        copied_in = device.streams[0]
        upload = copied_in.upload

        def counted(target: int, source: Any) -> None:
            upload(target, source)

            def mark() -> None:
                arrived.append(target)
                if len(arrived) == 2:
                    gate.set()  # the first batch is computed only after the second one is on the device

            copied_in.put(mark)

        copied_in.upload = counted  # type: ignore[method-assign]
        tiles = tiles_of(12)
        assert np.array_equal(pipeline.run(tiles), tiles**2 + 1)
    assert len(arrived) == 4
    assert len(set(arrived)) == 2


def test_any_thread_may_run_it_if_its_context_is_current(device: NumpyCuda) -> None:
    pipeline = pipeline_on(device)
    tiles = tiles_of(10)
    answers = []

    def elsewhere() -> None:
        with device.current():
            answers.append(pipeline.run(tiles))

    for _ in range(3):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(answers) == 3
    assert all(np.array_equal(answer, tiles**2 + 1) for answer in answers)
    assert {depth for _, depth in device.pushes} == {0}
    with pytest.raises(BackendError, match="invalid device context"):
        pipeline.run(tiles)


@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_after_a_failure_nothing_is_in_use_and_the_next_run_is_right(device: NumpyCuda, fails_at: int) -> None:
    calls = iter(range(100))

    def compute(source: int, target: int, stream: Stream) -> None:
        if next(calls) == fails_at:
            raise BackendError("out of memory")
        squared_plus_one(device)(source, target, stream)

    with device.current():
        pipeline = Pipeline(device, SHAPE, compute)
        with pytest.raises(BackendError, match="out of memory"):
            pipeline.run(tiles_of(30))
        assert all(stream.queue.empty() for stream in device.streams)
        tiles = tiles_of(20, seed=1)
        assert np.array_equal(pipeline.run(tiles), tiles**2 + 1)


def test_tiles_of_another_size_are_refused(device: NumpyCuda) -> None:
    pipeline = pipeline_on(device)
    with device.current(), pytest.raises(BackendError, match=r"tiles of shape \(1, 8, 8\) were given to an engine"):
        pipeline.run(np.zeros((2, 1, 8, 8), np.float32))


def test_a_machine_without_a_gpu_says_so() -> None:
    if cuda.gpu() is not None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"neither cuda-python nor PyCUDA|no NVIDIA GPU or driver was found"):
        cuda.open_cuda()


KERNEL = """
.version 7.0
.target sm_75
.address_size 64
.visible .entry squared_plus_one(.param .u64 source, .param .u64 target, .param .u32 count)
{
    .reg .pred %outside;
    .reg .f32 %value;
    .reg .b32 %at, %size, %block, %width, %thread;
    .reg .b64 %from, %to, %offset;
    ld.param.u64 %from, [source];
    ld.param.u64 %to, [target];
    ld.param.u32 %size, [count];
    mov.u32 %block, %ctaid.x;
    mov.u32 %width, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.s32 %at, %block, %width, %thread;
    setp.ge.s32 %outside, %at, %size;
    @%outside bra done;
    mul.wide.s32 %offset, %at, 4;
    cvta.to.global.u64 %from, %from;
    cvta.to.global.u64 %to, %to;
    add.s64 %from, %from, %offset;
    add.s64 %to, %to, %offset;
    ld.global.f32 %value, [%from];
    fma.rn.f32 %value, %value, %value, 0f3F800000;
    st.global.f32 [%to], %value;
done:
    ret;
}
"""
"""Squares and adds one. PTX: the driver compiles it for any card from Turing on, nothing else is needed."""


def adapters() -> list[str]:
    return [name for name, package in (("with_cuda_python", "cuda"), ("with_pycuda", "pycuda")) if find_spec(package)]


@pytest.mark.gpu
@pytest.mark.skipif(cuda.gpu() is None, reason="no NVIDIA GPU or driver")
@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "graphs"])
@pytest.mark.parametrize("adapter", adapters())
def test_a_real_kernel_on_a_real_gpu(adapter: str, graphs: bool) -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="the test's kernel is launched with cuda-python")
    module = importlib.import_module(f"ssai3d_rt.runtime.{adapter}")
    device = module.CudaPython() if adapter == "with_cuda_python" else module.PyCuda()
    shape = (4, 1, 64, 64)
    count = int(np.prod(shape))

    def checked(answer: tuple[Any, ...]) -> Any:
        assert int(answer[0]) == 0, answer[0]
        return answer[1] if len(answer) > 1 else None

    def work() -> None:
        with device.current():
            loaded = checked(driver.cuModuleLoadData(KERNEL.encode() + b"\0"))
            kernel = checked(driver.cuModuleGetFunction(loaded, b"squared_plus_one"))

            def compute(source: int, target: int, stream: Stream) -> None:
                arguments = [
                    np.array([value], kind) for value, kind in zip((source, target, count), "QQi", strict=True)
                ]
                packed = np.array([argument.ctypes.data for argument in arguments], np.uint64)
                grid = (count + 255) // 256
                checked(driver.cuLaunchKernel(kernel, grid, 1, 1, 256, 1, 1, 0, stream.handle, packed.ctypes.data, 0))

            pipeline = Pipeline(device, shape, compute)
            pipeline.warm_up(graphs=graphs)
            for number in (1, 4, 41, 7):
                tiles = np.random.default_rng(number).random((number, *shape[1:]), dtype=np.float32)
                assert np.allclose(pipeline.run(tiles), tiles**2 + 1, atol=1e-6)
            checked(driver.cuModuleUnload(loaded))
        done.append(True)

    done: list[bool] = []
    try:
        thread = threading.Thread(target=work)  # another thread than the one that closes
        thread.start()
        thread.join()
        with device.current(), pytest.raises(BackendError, match=r"CUDA: .*memory"):
            device.memory(1 << 50)
    finally:
        device.close()
        device.close()
    assert done
    with pytest.raises(BackendError, match="closed"), device.current():
        pass
