"""Fine-tune the base network on one stack: semi-synthetic pairs, a sparse layer mask, the best weights kept.

What is learnt from is a `lesson`, the loop is `train`; this joins them and keeps the record. The base itself is a
candidate: tuning that does not raise the PSNR of held-out pairs is not used.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.lesson import prepare
from ssai3d_rt.adapt.mask import Layers, open_layers, select_layers
from ssai3d_rt.adapt.model import AdaptedModel, Fingerprint, ModelRecord
from ssai3d_rt.adapt.settings import FinetuneSettings, Targets
from ssai3d_rt.adapt.train import CHECKPOINT, Course, train
from ssai3d_rt.calibration.character import measure_character
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.network.weights import LoadedNetwork, load_network, network_from
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ssai3d_rt.adapt.lesson import Lesson, Part
    from ssai3d_rt.adapt.mask import Selection
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.network.nafnet import NAFNet

Float = npt.NDArray[np.float32]
MIN_PLANES = 5


def finetune(
    stacks: Stack | Sequence[Stack],
    rig: RigProfile | None = None,
    *,
    settings: FinetuneSettings | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> AdaptedModel:
    """Adapt the base network to one stack, or to several of one kind.

    Parameters
    ----------
    stacks
        At least `MIN_PLANES` planes each; all with the same voxel size.
    rig
        Gives the PSF bank its sizes and tilt, and the noise; without it the article's 3..7 px are taken.
    settings
        See `FinetuneSettings`.
    folder
        Where to keep a checkpoint, go on from one that is there, and save the model with ``loss.png``. Without it the
        model is only returned.
    progress
        Called after each step with the loss.

    Returns
    -------
    The adapted model; ``record.kept`` says whether tuning was better than the base.

    Raises
    ------
    InputError
        Too few planes, a constant stack, or stacks of different voxel sizes.
    WeightsError
        The base network cannot be loaded.
    ConfigError
        The checkpoint in `folder` belongs to other settings or stacks.
    MissingPackageError
        torch is not installed.
    """
    settings = settings or FinetuneSettings()
    given = [stacks] if isinstance(stacks, Stack) else list(stacks)
    require_usable(given)
    base = load_network(settings.base)
    network = network_from(base.state)
    started = time.monotonic()
    lesson = prepare(given, rig, settings, base, network, progress=progress)
    chosen, trained = open_chosen(network, lesson, settings)
    identity = _identity(settings, base, tuple(_fingerprint(stack) for stack in given), rig)
    judged = judged_by(lesson, settings)
    course = train(network, lesson.pairs, judged, identity=identity, folder=folder, progress=progress)
    seconds = time.monotonic() - started
    model = adapted(lesson, settings, base, course, chosen=chosen, trained=trained, seconds=seconds)
    if folder is not None:
        keep(model, folder)
    return model


def open_chosen(network: NAFNet, lesson: Lesson, settings: FinetuneSettings) -> tuple[Selection, int]:
    """Open the layers of the base network that the settings choose; returns them and how many parameters train."""
    sample = lesson.pairs.batch(0, 16)
    chosen = select_layers(
        network, settings.layers, sample, share=settings.share, surgeon=settings.surgeon, seed=settings.seed
    )
    return chosen, open_layers(network, chosen.mask, everything=settings.layers is Layers.ALL)


def judged_by(lesson: Lesson, settings: FinetuneSettings) -> FinetuneSettings:
    """Return the settings with the gain that a lesson's held-out pairs must show.

    Synthetic images alone must show twice as much: they say how well the blur is undone, not what that does to the
    sample.
    """
    if lesson.targets is not Targets.SYNTHETIC:
        return settings
    return settings.model_copy(update={"min_gain_db": 2 * settings.min_gain_db})


def adapted(
    lesson: Lesson,
    settings: FinetuneSettings,
    base: LoadedNetwork,
    course: Course,
    *,
    chosen: Selection,
    trained: int,
    seconds: float,
) -> AdaptedModel:
    """Make the model of a finished training, with its record."""
    given, rig = lesson.stacks, lesson.rig
    record = ModelRecord(
        base=base.name,
        base_sha256=base.sha256,
        train_px=base.info.get("train_px"),
        kept="tuned" if course.tuned else "base",
        mask=chosen.mask,
        layer_scores=chosen.scores,
        trained_parameters=trained,
        total_parameters=sum(v.size for v in base.state.values()),
        settings=settings.model_dump(mode="json"),
        rig=rig.model_dump(mode="json") if rig is not None else None,
        targets=lesson.targets.value,
        blur_px=lesson.bank_px,
        angles_deg=lesson.angles_deg,
        anisotropy=given[0].anisotropy,
        slice_px=_slice_px(given),
        channel=given[0].channel,
        source=tuple(str(stack.source.name) if stack.source else "" for stack in given),
        stacks=tuple(_fingerprint(stack) for stack in given),
        denoise=tuple(denoising.why for denoising in lesson.denoisings),
        checks=course.checks,
        iterations=course.iterations,
        seconds=round(seconds, 1),
        versions=_versions(),
    )
    return AdaptedModel(course.state, base.shape, record, _samples(lesson.parts))


def keep(model: AdaptedModel, folder: Path) -> None:
    """Save a model with the pictures of its course and layers, and remove the checkpoint that is no longer needed."""
    from ssai3d_rt.adapt.picture import draw_course, draw_layers
    from ssai3d_rt.adapt.zeroshot import layers_of

    model.save(folder)
    draw_course(model.record, folder / "loss.png")
    draw_layers(
        layers_of(network_from(model.state)), model.record.mask, model.record.layer_scores, folder / "layers.png"
    )
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _identity(
    settings: FinetuneSettings, base: LoadedNetwork, stacks: tuple[Fingerprint, ...], rig: RigProfile | None
) -> str:
    profile = rig.model_dump(mode="json") if rig is not None else None
    values = [settings.model_dump(mode="json"), base.sha256, [s.sha256 for s in stacks], profile]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def require_usable(stacks: list[Stack]) -> None:
    """Raise `InputError` for stacks that nothing can be learnt from."""
    if not stacks:
        raise InputError("fine-tuning needs at least one stack")
    for stack in stacks:
        where = stack.source or "the stack"
        if stack.data.shape[0] < MIN_PLANES:
            raise InputError(f"{where} has {stack.data.shape[0]} planes; fine-tuning needs at least {MIN_PLANES}")
        if min(stack.data.shape[1:]) < 16:
            raise InputError(f"{where} has planes of {stack.data.shape[1:]} px; fine-tuning needs at least 16 x 16")
        if stack.data.min() == stack.data.max():
            raise InputError(f"{where} is constant; fine-tune on a stack that shows the sample")
        if not np.allclose(stack.voxel_um, stacks[0].voxel_um, rtol=0.01):
            raise InputError(f"{where} has voxels of {stack.voxel_um} um, the first stack {stacks[0].voxel_um} um")


def _fingerprint(stack: Stack) -> Fingerprint:
    scale = Normalisation.of(stack.data)
    return Fingerprint(
        sha256=hashlib.sha256(stack.data.tobytes()).hexdigest(),
        shape=(stack.data.shape[0], stack.data.shape[1], stack.data.shape[2]),
        dtype=stack.data.dtype.name,
        voxel_um=stack.voxel_um,
        mean=float(stack.data.mean(dtype=np.float64)),
        std=float(stack.data.std(dtype=np.float64)),
        offset=scale.offset,
        scale=scale.scale,
        character=measure_character(stack),
    )


def _slice_px(stacks: list[Stack]) -> tuple[int, int]:
    return max(s.isotropic_planes for s in stacks), max(max(s.data.shape[1:]) for s in stacks)


def _samples(parts: list[Part], count: int = 4, side: int = 512) -> Float:
    """Axial slices through the middle of each part, XZ and YZ in turn, cropped to the smallest common size."""
    slices: list[Float] = []
    for part in parts:
        volume = resample_z(part.raw, part.anisotropy)[:side]
        for share in np.linspace(0.3, 0.7, max(1, count // (2 * len(parts)))):
            slices.append(volume[:, int(share * volume.shape[1]), :side])
            slices.append(volume[:, :side, int(share * volume.shape[2])])
    rows, columns = min(s.shape[0] for s in slices), min(s.shape[1] for s in slices)
    return np.stack([s[:rows, :columns] for s in slices])


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("ssai3d-rt", "torch", "numpy")}
