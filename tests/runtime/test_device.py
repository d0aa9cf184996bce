"""A device that goes wrong: nothing of it is published, and its process is replaced."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from ssai3d_rt.errors import BackendError, DeviceError
from ssai3d_rt.imaging.read import open_acquisition
from ssai3d_rt.imaging.write import verify_ome_tiff, write_ome_tiff
from ssai3d_rt.runtime.ledger import State
from ssai3d_rt.runtime.messages import Part, Progressed, Ready, Restore
from ssai3d_rt.runtime.onestack import restore
from ssai3d_rt.runtime.publish import temporary_name
from ssai3d_rt.runtime.worker import Worker, _Rhythm
from tests.runtime.daemon import QUICK, Rig, is_right, stack_file

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.progress import Progress
    from ssai3d_rt.runtime.backends.runner import Float

DONE, FAILED = State.DONE, State.FAILED


class Device:
    """A runner that changes nothing, until it goes wrong."""

    name, detail, bundle_id, tile = "device", "for tests", "device", 64

    def __init__(self, fault: str, flag: Path, most_tiles: int | None) -> None:
        self.batch = most_tiles or 16
        self._fault, self._flag = fault, flag
        self.wrong = False

    def run(self, tiles: Float) -> Float:
        if self._fault == "memory" and len(tiles) > 2:
            raise BackendError("CUDA failed: out of memory")
        if not self._flag.exists() and self._fault not in ("memory", ""):
            self._flag.touch()
            self.wrong = True
        if not self.wrong:
            return tiles
        if self._fault == "error":
            raise BackendError("CUDA failed: an illegal memory access was encountered")
        return {"zeros": np.zeros_like(tiles), "nan": tiles * np.float32("nan"), "noise": tiles[::-1, :, ::-1] * 0.3}[
            self._fault
        ]

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class DeviceRecipe:
    """Restores with a device that goes wrong at its first stack, until its process is replaced."""

    fault: str
    log: Path
    tells: bool = True
    bundle_id: str = "device"
    parameters: str = "{}"

    def open(self, most_tiles: int | None = None) -> DeviceRestorer:
        return DeviceRestorer(self, Device(self.fault, self.log.with_name("went-wrong"), most_tiles))

    def made(self, result: Path, content: str) -> int:
        return 0


class DeviceRestorer:
    name = "device"

    def __init__(self, recipe: DeviceRecipe, device: Device) -> None:
        self._recipe, self._device = recipe, device

    def restore(self, order: Restore, progress: Progress) -> list[Part]:
        with open_acquisition(order.source) as acquisition:
            (key,) = acquisition.keys
            raw = acquisition.read(key)
        with open(self._recipe.log, "a") as log:
            log.write(f"{order.source.name}:{os.getpid()}:{self._device.batch}\n")
        done = restore(raw, self._device, denoise="off", progress=progress)
        temporary = temporary_name(order.folder)
        written = write_ome_tiff(temporary, [done.stack], {})
        return [Part(temporary, partial(verify_ome_tiff, expected=written))]

    def check(self) -> None:
        if self._recipe.tells and self._device.wrong:
            raise DeviceError("the device no longer computes what it did")

    def close(self) -> None:
        pass


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    return Rig(incoming, tmp_path / "isotropic", tmp_path / "restored.log")


@pytest.mark.parametrize("tells", [True, False], ids=["golden tiles differ", "golden tiles agree"])
@pytest.mark.parametrize("fault", ["error", "zeros", "nan", "noise"])
def test_nothing_of_a_device_that_went_wrong_is_published(rig: Rig, fault: str, tells: bool) -> None:
    if fault == "noise" and not tells:
        pytest.skip("what still looks like the sample, only the golden tiles can tell")
    sources = [structured(rig.incoming / f"{name}.ome.tif", number) for number, name in enumerate("abc")]
    with rig.running_with(DeviceRecipe(fault, rig.log, tells)):
        rig.wait_for(a=DONE, b=DONE, c=DONE)
    assert rig.results() == ["a_iso.ome.tif", "b_iso.ome.tif", "c_iso.ome.tif"]
    for source in sources:
        assert is_right(rig.out / source.name.replace(".ome.tif", "_iso.ome.tif"), source)
    (_, process, _), *others = [line.split(":") for line in rig.restored()]
    assert len(others) == 3
    assert process not in {other for _, other, _ in others}, "the process that went wrong went on"


def test_too_little_memory_is_met_with_fewer_tiles_at_once(rig: Rig) -> None:
    source = stack_file(rig.incoming / "a.ome.tif")
    other = stack_file(rig.incoming / "b.ome.tif", 1)
    with rig.running_with(DeviceRecipe("memory", rig.log)):
        rig.wait_for(a=DONE, b=DONE)
    assert [line.split(":")[2] for line in rig.restored()] == ["16", "8", "4", "2", "2"]
    for path in (source, other):
        assert is_right(rig.out / path.name.replace(".ome.tif", "_iso.ome.tif"), path)


def structured(path: Path, seed: int) -> Path:
    """A stack that is bright in one corner: noise alone says nothing about the device."""
    from ssai3d_rt.imaging.stack import Stack

    data = np.random.default_rng(seed).integers(0, 400, (5, 24, 24), dtype=np.uint16)
    data[1:4, 2:14, 4:12] += 3000
    write_ome_tiff(path, Stack(data, (0.2, 0.1, 0.1)), {})
    return path


def test_a_hang_between_two_batches_is_noticed_from_its_rhythm() -> None:
    rhythm = _Rhythm()
    rhythm.begin()
    for done in range(1, 101):
        rhythm.heard(Progressed("restore", done, 200), 4.0)
    assert rhythm.patience_s(600.0) == 40.0
    assert rhythm.patience_s(20.0) == 20.0
    rhythm.heard(Progressed("restore", 200, 200), 4.0)
    assert rhythm.patience_s(600.0) == 600.0, "writing the result may take its time"
    rhythm.begin()
    assert rhythm.patience_s(600.0) == 600.0, "so may opening a stack"


def test_it_steps_back_for_others(tmp_path: Path) -> None:
    worker = Worker(DeviceRecipe("", tmp_path / "log"), QUICK.model_copy(update={"nice": 5}))
    try:
        deadline = time.monotonic() + 15
        while not any(isinstance(message, Ready) for message in worker.poll()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process = psutil.Process(worker.process_id)
        if psutil.LINUX:
            assert process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
            assert process.nice() == psutil.Process().nice() + 5
            assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        elif psutil.WINDOWS:
            assert process.nice() == psutil.BELOW_NORMAL_PRIORITY_CLASS
    finally:
        worker.close()
