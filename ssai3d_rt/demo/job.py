"""The whole job on this machine: acquire, calibrate, fine-tune, export, watch, restore, report.

Every step is the one that a user runs; the demo only decides where the stacks come from and afterwards, where the truth
is known, how near the result comes to it. The first stack is for calibration and fine-tuning; the following ones are
acquired into a folder that a running ``ssai3d-rt watch`` looks after. All that comes of it lies in one folder.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.demo.daemon import RunningWatch
from ssai3d_rt.demo.microscope import Source, open_source
from ssai3d_rt.demo.report import DemoResult, Views, measure
from ssai3d_rt.demo.sample import Sample
from ssai3d_rt.errors import ConfigError, MissingPackageError, Ssai3dError
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import read_provenance, write_ome_tiff
from ssai3d_rt.progress import Progress, silent
from ssai3d_rt.runtime.publish import result_name
from ssai3d_rt.runtime.restore import restore

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from ssai3d_rt.adapt.model import AdaptedModel
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.imaging.stack import Array
    from ssai3d_rt.runtime.backends import Runner

MARK = "This folder was written by: ssai3d-rt demo"
"""First line of the README in a demo's folder; only a folder that has it is ever replaced."""

README = f"""{MARK}

first/              the stack for calibration and fine-tuning, as acquired
rig.toml, rig.png   what was measured about the microscope
model/              the adapted model
cells.ssai3d/       the portable bundle; engines/ holds what was compiled from it
base.ssai3d/        the base network as a bundle, for comparison (not where it was kept)
incoming/           the following stacks, as acquired while watch was running
isotropic/          what watch published: the restored stacks, isotropic OME-TIFF
truth/              what the sample really is, where that is known
slices.png          raw, base, restored and true XZ slice side by side
report.json         all figures
watch.log           what watch said

The same by hand, in this folder:

    ssai3d-rt calibrate first/stack_00.ome.tif -o rig.toml
    ssai3d-rt finetune first/stack_00.ome.tif -o model --rig rig.toml --minutes 2
    ssai3d-rt export model -o cells.ssai3d
    ssai3d-rt watch incoming -o isotropic --bundle cells.ssai3d

A new demo into the same folder replaces all of this.
"""

OURS = (
    "first",
    "rig.toml",
    "rig.png",
    "model",
    "cells.ssai3d",
    "base.ssai3d",
    "engines",
    "incoming",
    "isotropic",
    "truth",
)
OURS_FILES = ("slices.png", "report.json", "watch.log", "README.txt")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much the demo does.

    Parameters
    ----------
    stacks
        Stacks to restore, after the first one.
    size_px
        Edge of the simulated samples.
    iterations
        Fine-tuning iterations; None tunes for the given minutes.
    engine
        Build a TensorRT-for-RTX engine where the builder is installed.
    patience_s
        How long watch may take for a stack.
    """

    stacks: int = 3
    size_px: int = 96
    iterations: int | None = None
    engine: bool = True
    patience_s: float = 120.0


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One acquired stack: its file, its sample, the truth where it is known, and when it ended (`time.time`)."""

    path: Path
    sample: Sample
    truth: npt.NDArray[np.float32] | None
    ended_s: float


def run_demo(
    out: Path,
    *,
    source: str = "microscope",
    minutes: float = 2.0,
    seed: int = 0,
    plan: Plan | None = None,
    progress: Progress = silent,
) -> DemoResult:
    """Run the whole job and measure what came of it.

    Parameters
    ----------
    out
        Folder for everything; made when absent, replaced when an earlier demo wrote it.
    source
        Where the stacks come from, see `ssai3d_rt.demo.microscope.SOURCES`.
    minutes
        Time for fine-tuning.
    seed
        Seed of samples, noise and fine-tuning.
    plan
        How much to do.
    progress
        Told what is going on.

    Raises
    ------
    ConfigError
        An unknown source, one that cannot run here, or a folder that holds something else.
    """
    plan = plan or Plan()
    camera = open_source(source)
    out = Path(out)
    prepare(out)
    started_s = time.monotonic()
    clock = _Clock()

    with clock.step("acquire"):
        progress("acquire the first stack", 0, 1)
        first = _shoot(camera, out / "first" / "stack_00.ome.tif", Sample.strands(_seed(seed, 0), size_px=plan.size_px))
        stack = read_stack(first.path)
        progress("acquire the first stack", 1, 1)
    with clock.step("calibrate"):
        rig = _calibrate(stack, out, progress)
    with clock.step("finetune"):
        model = _finetune(stack, rig, minutes, seed, plan, out, progress)
    with clock.step("export"):
        from ssai3d_rt.export import export_bundle

        bundle = export_bundle(model, out / "cells.ssai3d", progress=progress)
    engine = "not asked for"
    if plan.engine:
        with clock.step("engine"):
            engine = _build_engine(bundle, out, progress)
    with clock.step("watch"):
        shots = _watch(camera, seed, plan, out, progress)
    with clock.step("report"):
        published = [out / "isotropic" / result_name(shot.path.name) for shot in shots]
        figures = []
        with closing(_base_runner(model, bundle, out, published[0])) as base:
            for number, (shot, result_path) in enumerate(zip(shots, published, strict=True)):
                progress("measure the results", number, len(shots))
                views = _views(shot, result_path, base)
                figures.append(measure(views, max(0.0, result_path.stat().st_mtime - shot.ended_s)))
                if number == 0:
                    from ssai3d_rt.demo.picture import draw

                    draw(views, figures[0], out / "slices.png")
        progress("measure the results", len(shots), len(shots))
    result = DemoResult(
        source=source,
        out=out,
        stacks=tuple(figures),
        seconds=time.monotonic() - started_s,
        steps=dict(clock.seconds),
        picture=out / "slices.png",
        bundle=out / "cells.ssai3d",
        engine=engine,
        tuned=model.record.kept == "tuned",
    )
    (out / "report.json").write_text(json.dumps(result.record(), indent=2) + "\n", "utf-8")
    return result


def prepare(out: Path) -> None:
    """Make `out` an empty demo folder.

    What an earlier demo wrote there is removed, file by known name; anything else in the folder stays.

    Raises
    ------
    ConfigError
        `out` is a file, or a folder with content that no demo wrote.
    """
    readme = out / "README.txt"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the demo with -o")
    if out.is_dir() and any(out.iterdir()):
        if not (readme.is_file() and readme.read_text("utf-8", errors="replace").startswith(MARK)):
            raise ConfigError(f"{out} holds files that no demo wrote; name another folder with -o")
        for name in (*OURS, *OURS_FILES):
            if name == readme.name:
                continue
            path = out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    readme.write_text(README, "utf-8")
    for name in ("first", "incoming", "isotropic"):
        (out / name).mkdir()


class _Clock:
    """Measures steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started_s = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started_s


def _seed(seed: int, number: int) -> int:
    """Seed of the stack `number`; different for all stacks of neighbouring demos."""
    return 100 * seed + number


def _shoot(camera: Source, path: Path, sample: Sample) -> Shot:
    truth = camera.acquire(path, sample)
    return Shot(path, sample, truth, time.time())


def _calibrate(stack: Stack, out: Path, progress: Progress) -> RigProfile:
    from ssai3d_rt.calibration import calibrate
    from ssai3d_rt.calibration.picture import draw_spectra

    progress("calibrate: measure resolution, blur and noise", 0, 1)
    rig = calibrate(stack)
    rig.save(out / "rig.toml")
    draw_spectra(stack, rig, out / "rig.png")
    progress("calibrate: measure resolution, blur and noise", 1, 1)
    return rig


def _finetune(
    stack: Stack, rig: RigProfile, minutes: float, seed: int, plan: Plan, out: Path, progress: Progress
) -> AdaptedModel:
    from ssai3d_rt.adapt.finetune import finetune
    from ssai3d_rt.adapt.settings import FinetuneSettings

    settings = FinetuneSettings(minutes=minutes, iterations=plan.iterations, seed=seed)
    return finetune(stack, rig, settings=settings, folder=out / "model", progress=progress)


def _build_engine(bundle: Bundle, out: Path, progress: Progress) -> str:
    """Build a TensorRT-for-RTX engine where the builder is installed; otherwise say why there is none."""
    from ssai3d_rt.export.engine import engine_from_bundle

    try:
        engine = engine_from_bundle(bundle, "tensorrt-rtx", out, progress=progress)
    except MissingPackageError as error:
        said = str(error)
    except Ssai3dError as error:
        said = f"failed: {error}"
    else:
        said = str(engine)
    return said


def _watch(camera: Source, seed: int, plan: Plan, out: Path, progress: Progress) -> list[Shot]:
    """Acquire the following stacks while watch is running, until it has published them all."""
    from ssai3d_rt.runtime.backends import gpu_out_of_reach

    incoming, isotropic = out / "incoming", out / "isotropic"
    samples = [Sample.strands(_seed(seed, number), size_px=plan.size_px) for number in range(1, plan.stacks + 1)]
    shots: list[Shot] = []
    options = ("--backend", "cpu") if gpu_out_of_reach() else ()
    with RunningWatch(incoming, isotropic, out / "cells.ssai3d", out / "watch.log", options) as watch:
        progress("watch restores the next stacks", 0, plan.stacks)
        watch.wait_until_watching(plan.patience_s)
        for number, sample in enumerate(samples, start=1):
            shots.append(_shoot(camera, incoming / f"stack_{number:02d}.ome.tif", sample))
            progress("acquire the next stacks", len(shots), plan.stacks)
        for done, shot in enumerate(shots, start=1):
            watch.wait_for(isotropic / result_name(shot.path.name), plan.patience_s)
            progress("watch restores the next stacks", done, plan.stacks)
    return shots


def _base_runner(model: AdaptedModel, bundle: Bundle, out: Path, published: Path) -> Runner:
    """Open the network that fine-tuning started from, exported and run as the adapted one was: only weights differ."""
    from ssai3d_rt.export import export_bundle
    from ssai3d_rt.network.weights import load_network
    from ssai3d_rt.runtime.backends import open_runner

    if model.record.kept == "tuned":
        untuned = replace(model, state=load_network(model.record.base).state)
        bundle = export_bundle(untuned, out / "base.ssai3d", tile=bundle.manifest.tile)
    return open_runner(bundle, str(read_provenance(published)["backend"]).split()[0])


def _views(shot: Shot, published: Path, base: Runner) -> Views:
    """Bring the volumes of one stack onto one grid and one scale."""
    raw, restored = read_stack(shot.path), read_stack(published)

    def scale(counts: Array) -> npt.NDArray[np.float32]:
        return counts.astype(np.float32) if shot.truth is None else shot.sample.on_truth_scale(counts)

    zero_shot = restore(raw, base).stack
    if shot.truth is not None:
        folder = published.parents[0].parent / "truth"
        folder.mkdir(exist_ok=True)
        voxel_um = (raw.lateral_um,) * 3
        write_ome_tiff(
            folder / shot.path.name, Stack(shot.truth, voxel_um, channel="truth"), {"seed": shot.sample.seed}
        )
    return Views(
        name=shot.path.name.split(".")[0],
        voxel_um=raw.lateral_um,
        raw=resample_z(scale(raw.data), raw.anisotropy),
        base=scale(zero_shot.data),
        restored=scale(restored.data),
        truth=shot.truth,
    )
