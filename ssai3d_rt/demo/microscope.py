"""Where the demo's stacks come from: three sources behind one small protocol.

`microscope`
    A real MMCore and its real acquisition engine. The camera and the Z stage are devices written in Python: the camera
    counts the plane of a simulated sample at which the stage stands. So the files are those of a real acquisition, and
    the truth is known.
`demo-camera`
    Micro-Manager's own DemoCamera looking at its fluorescent beads. Nobody knows its truth.
`simulation`
    The same stacks as `microscope` without Micro-Manager.

A source says why it cannot run here (`why_not`) and writes one z-stack as one OME-TIFF (`acquire`). It knows nothing of
what happens to the file afterwards.

>>> source = open_source("simulation")
>>> source.name, source.why_not()
('simulation', None)
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ssai3d_rt.errors import ConfigError, IncompleteError, MissingPackageError
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import write_ome_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from ssai3d_rt.demo.sample import Sample

CORE_TIMEOUT_MS = 10_000
"""How long MMCore may wait for a device."""


class Source(Protocol):
    """Something that acquires one z-stack of a sample into one file."""

    name: str

    def why_not(self) -> str | None:
        """Why this source cannot run on this machine, as a sentence to show; None when it can."""

    def acquire(self, path: Path, sample: Sample) -> npt.NDArray[np.float32] | None:
        """Acquire one z-stack to `path`, an OME-TIFF that is complete when this returns.

        Returns
        -------
        numpy.ndarray or None
            The truth: ``(Z, Y, X)`` float32 in [0, 1] on the isotropic grid of the resampled stack. None where it
            is not known.
        """


class Simulation:
    """Write the sample's planes to a file, without any microscope."""

    name = "simulation"

    def __init__(self, z_step: int = 2) -> None:
        self.z_step = z_step

    def why_not(self) -> str | None:
        """Nothing is needed."""
        return None

    def acquire(self, path: Path, sample: Sample) -> npt.NDArray[np.float32] | None:
        """Write every `z_step`-th plane of the sample."""
        voxel_um = (self.z_step * sample.pixel_um, sample.pixel_um, sample.pixel_um)
        stack = Stack(sample.counts[:: self.z_step], voxel_um, channel="strands")
        write_ome_tiff(path, stack, {"source": self.name, "seed": sample.seed})
        return sample.truth[: covered_planes(sample, self.z_step)]


class Microscope:
    """A real MMCore whose Python-made camera and stage look at the sample.

    Parameters
    ----------
    z_step
        Distance between planes, in pixels of the sample.
    exposure_ms
        How long each plane takes.
    """

    name = "microscope"

    def __init__(self, z_step: int = 2, exposure_ms: float = 20.0) -> None:
        self.z_step = z_step
        self.exposure_ms = exposure_ms

    def why_not(self) -> str | None:
        """Say that pymmcore-plus is missing."""
        return _missing("pymmcore_plus")

    def acquire(self, path: Path, sample: Sample) -> npt.NDArray[np.float32] | None:
        """Run a multi-dimensional acquisition through all of the sample."""
        from useq import MDASequence, ZTopBottom

        planes = covered_planes(sample, self.z_step)
        z_plan = ZTopBottom(bottom=0.0, top=(planes - 1) * sample.pixel_um, step=self.z_step * sample.pixel_um)
        with sample_core(sample, self.exposure_ms) as core:
            _run(core, MDASequence(z_plan=z_plan), path)
        return sample.truth[:planes]


class DemoCamera:
    """Micro-Manager's DemoCamera and its fluorescent beads, which blur the farther the stage is from 0.

    Parameters
    ----------
    frame_px
        Height and width of the image.
    planes
        Planes of the stack, symmetric about the beads.
    """

    name = "demo-camera"

    def __init__(self, frame_px: int = 96, planes: int = 25) -> None:
        self.frame_px = frame_px
        self.planes = planes

    def why_not(self) -> str | None:
        """Say that pymmcore-plus or Micro-Manager's device adapters are missing."""
        if reason := _missing("pymmcore_plus"):
            return reason
        from pymmcore_plus import find_micromanager

        return None if find_micromanager() else _missing("mm_test_adapters")

    def acquire(self, path: Path, sample: Sample) -> npt.NDArray[np.float32] | None:
        """Run a multi-dimensional acquisition through the beads at the place that the sample's seed picks."""
        from useq import Channel, MDASequence, ZRangeAround

        z_step_um = 0.5
        with demo_core(self.frame_px) as core:
            core.setXYPosition(37.0 * sample.seed, 0.0)
            core.waitForSystem()
            z_plan = ZRangeAround(range=(self.planes - 1) * z_step_um, step=z_step_um)
            _run(core, MDASequence(z_plan=z_plan, channels=(Channel(config="FITC", exposure=10.0),)), path)
        return None


SOURCES: dict[str, type[Microscope | DemoCamera | Simulation]] = {
    source.name: source for source in (Microscope, DemoCamera, Simulation)
}
"""All sources by name, the default first."""


def open_source(name: str) -> Source:
    """Return the source `name`.

    Raises
    ------
    ConfigError
        An unknown name, or a source that cannot run on this machine.
    """
    if name not in SOURCES:
        raise ConfigError(f"unknown source {name!r}; choose one of {', '.join(SOURCES)}")
    source: Source = SOURCES[name]()
    if reason := source.why_not():
        raise ConfigError(f"source {name!r} cannot run here: {reason}; or use --source simulation, which needs nothing")
    return source


def covered_planes(sample: Sample, z_step: int) -> int:
    """Planes of the sample from its first plane to the last one that steps of `z_step` reach, both included."""
    planes: int = sample.counts.shape[0]
    return (planes - 1) // z_step * z_step + 1


@contextmanager
def sample_core(sample: Sample, exposure_ms: float = 0.0) -> Iterator[Any]:
    """Give a `UniMMCore` whose camera counts the plane of `sample` at the height of its Z stage.

    The stage moves in micrometres from the first plane of the sample; a height between two planes shows the nearer one.
    """
    os.environ.setdefault("PYMM_SIGNALS_BACKEND", "psygnal")
    from pymmcore_plus.experimental.unicore import SimpleCameraDevice, StageDevice, UniMMCore

    class ZStage(StageDevice):
        """A stage that is where it was told to be."""

        def __init__(self) -> None:
            super().__init__()
            self._z_um = 0.0

        def set_position_um(self, val: float) -> None:
            self._z_um = val

        def get_position_um(self) -> float:
            return self._z_um

        def home(self) -> None:
            self._z_um = 0.0

        def stop(self) -> None:
            """Nothing moves."""

        def set_origin(self) -> None:
            """Heights count from the first plane of the sample, always."""

    class Camera(SimpleCameraDevice):
        """A camera that sees what is at the stage's height."""

        def __init__(self, stage: ZStage) -> None:
            super().__init__()
            self._stage = stage
            self._exposure_ms = exposure_ms

        def sensor_shape(self) -> tuple[int, int]:
            return sample.counts.shape[1], sample.counts.shape[2]

        def dtype(self) -> npt.DTypeLike:
            return np.uint16

        def get_exposure(self) -> float:
            return self._exposure_ms

        def set_exposure(self, exposure: float) -> None:
            self._exposure_ms = exposure

        def snap(self, buffer: npt.NDArray[np.uint16]) -> Mapping[str, Any]:
            time.sleep(self._exposure_ms / 1000)
            plane = round(self._stage.get_position_um() / sample.pixel_um)
            buffer[:] = sample.counts[min(max(plane, 0), sample.counts.shape[0] - 1)]
            return {}

    core = UniMMCore()
    with _unloading(core):
        stage = ZStage()
        for label, device in (("Z", stage), ("Camera", Camera(stage))):
            core.loadPyDevice(label, device)
            core.initializeDevice(label)
        core.setFocusDevice("Z")
        core.setCameraDevice("Camera")
        core.setAutoShutter(False)  # there is no shutter to open
        core.definePixelSizeConfig("sample")  # without one the writer refuses a physical size of 0
        core.setPixelSizeUm("sample", sample.pixel_um)
        core.setPixelSizeConfig("sample")
        yield core


@contextmanager
def demo_core(frame_px: int) -> Iterator[Any]:
    """Give a core with Micro-Manager's demo configuration, its camera looking at fluorescent beads through 40x."""
    os.environ.setdefault("PYMM_SIGNALS_BACKEND", "psygnal")
    from pymmcore_plus import CMMCorePlus

    core = CMMCorePlus()
    with _unloading(core):
        core.loadSystemConfiguration()
        core.setConfig("Objective", "40X")
        settings: dict[str, str | float] = {
            "Mode": "Fluorescent Beads",
            "PixelType": "16bit",
            "OnCameraCCDXSize": frame_px,
            "OnCameraCCDYSize": frame_px,
            "BeadDensity": 200,
            "BeadBlurRate": 1.0,
            "BeadBrightness": 8.0,
        }
        for name, value in settings.items():
            core.setProperty("Camera", name, value)
        core.waitForSystem()
        yield core


@contextmanager
def _unloading(core: Any) -> Iterator[None]:
    """Take `core` down in an order that survives the end of the process.

    MMCore reports events from a thread of its own. If that thread still calls into Python while the interpreter shuts
    down, the process aborts ("FATAL: exception not rethrown"). pymmcore-plus detaches it in `__del__`, which comes too
    late when the interpreter ends first, so it is done here, with the method of the class above.
    """
    from pymmcore import CMMCore

    core.setTimeoutMs(CORE_TIMEOUT_MS)
    try:
        yield
    finally:
        core.unloadAllDevices()
        CMMCore.registerCallback(core, None)


def _run(core: Any, sequence: Any, path: Path) -> None:
    """Run one acquisition into `path` in this thread.

    Raises
    ------
    IncompleteError
        The acquisition was cancelled, or ended early.
    """
    core.mda.run(sequence, output=path)
    reason = core.mda.status.finish_reason
    if reason is None or reason.value != "completed":
        ended = "never started" if reason is None else f"was {reason.value}"
        raise IncompleteError(f"the acquisition of {path.name} {ended}; run it again")


def _missing(package: str) -> str | None:
    """Say how to install `package` where it is absent."""
    return None if find_spec(package) else str(MissingPackageError(package, extra="micromanager"))
