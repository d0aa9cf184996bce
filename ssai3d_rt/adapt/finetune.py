"""Fine-tune the base network on one stack: semi-synthetic pairs, a sparse layer mask, the best weights kept.

Targets are the stack's lateral planes, as in the article (``raw``), or come from the stack restored once by the base
network, as raw planes hold the haze of their out-of-focus neighbours and a network tuned on them learns to keep it:
its lateral planes (``bootstrapped``), or its axial slices, turned (``turned``, see `targets`). Blurred again, the
restored stack also tells how wide the blur is. The base itself is a candidate: tuning that does not raise the PSNR of
held-out pairs is not used.

It knows what to learn from and where the weights come from; the loop itself is `train`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.mask import Layers, open_layers, select_layers
from ssai3d_rt.adapt.model import AdaptedModel, Fingerprint, ModelRecord
from ssai3d_rt.adapt.pairs import Mixed, Noise, Pairs, PairSource
from ssai3d_rt.adapt.psf import ARTICLE_STD_PX, psf_bank
from ssai3d_rt.adapt.rehearsal import rehearsal_planes
from ssai3d_rt.adapt.settings import FinetuneSettings, Targets
from ssai3d_rt.adapt.targets import like_z, turned_slices
from ssai3d_rt.adapt.train import CHECKPOINT, Course, train
from ssai3d_rt.calibration.character import measure_character
from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.axial import deblur_axial, resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.reblur import fitted_blur_px
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.network.nafnet import largest_tile
from ssai3d_rt.network.weights import LoadedNetwork, load_network, network_from, torch_network
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ssai3d_rt.adapt.mask import Selection
    from ssai3d_rt.adapt.psf import Psf
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.network.nafnet import NAFNet

logger = logging.getLogger(__name__)

Float = npt.NDArray[np.float32]
MIN_PLANES = 5
REHEARSAL_IMAGES = 160
BLUR_SPREAD = 0.15
"""Half the width of the bank around a fitted blur, as a share of it."""
_GROUP = 10
LATERAL_BLUR_PX = 0.8
"""Lateral blur, as a std in px, that base networks learn to take away; see `ssai3d_rt.network.pretrain`."""


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
    course = train(network, lesson.pairs, settings, identity=identity, folder=folder, progress=progress)
    seconds = time.monotonic() - started
    model = adapted(lesson, settings, base, course, chosen=chosen, trained=trained, seconds=seconds)
    if folder is not None:
        keep(model, folder)
    return model


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What training takes from stacks and rig: the pairs, and what the record says about them."""

    stacks: list[Stack]
    rig: RigProfile | None
    parts: list[_Part]
    pairs: PairSource
    targets: Targets
    bank_px: tuple[float, float]
    angles_deg: tuple[float, ...]
    denoisings: tuple[Denoising, ...]


def prepare(
    stacks: list[Stack],
    rig: RigProfile | None,
    settings: FinetuneSettings,
    base: LoadedNetwork,
    network: NAFNet,
    *,
    progress: Progress = silent,
    held_out: Sequence[int] | None = None,
    synthetic: Float | None = None,
) -> Lesson:
    """Make the pairs of usable stacks: their liveliest parts, targets, PSF bank, noise and rehearsal.

    Parameters
    ----------
    stacks, rig, settings, progress
        As for `finetune`.
    base, network
        The base network as loaded, and as a torch module with the base's weights: it restores the targets.
    held_out
        Planes of a single stack that training never sees; chosen by `Pairs` where not given.
    synthetic
        Images to rehearse on that were drawn before; drawn here where not given.
    """
    measured = rig.noise if rig is not None else None
    denoisings = tuple(Denoising.of(stack.data, settings.denoise, measured) for stack in stacks)
    for stack, denoising in zip(stacks, denoisings, strict=True):
        logger.info("%s: %s", stack.source or "the stack", denoising.why)
    most = settings.max_voxels // len(stacks)
    parts = [_Part.of(stack, most, denoising) for stack, denoising in zip(stacks, denoisings, strict=True)]
    tile = largest_tile(base.info.get("train_px"))
    bank_px, angles_deg = blur_of(rig, settings)
    restored = [_restored(part, network, settings, tile, progress) for part in parts]
    targets = settings.targets
    if targets is not Targets.RAW:
        blur_px = fitted_blur_px(parts[0].raw, restored[0], parts[0].anisotropy, finely=True)
        bank_px = round(blur_px * (1 - BLUR_SPREAD), 2), round(blur_px * (1 + BLUR_SPREAD), 2)
        targets = _targets(parts[0], settings, blur_px)
    planes = [turned_slices(volume) if targets is Targets.TURNED else volume for volume in restored]
    bank = psf_bank(*bank_px, angles_deg=angles_deg)
    noise = _pair_noise(stacks, rig, settings, parts[0].raw if denoisings[0].on else None)
    kept = None
    if held_out is not None and targets is Targets.TURNED:
        kept = [i for i in range(len(planes[0])) if i % _GROUP == _GROUP // 2]
    elif held_out is not None:
        spacing = 1.0 if targets is Targets.RAW else parts[0].anisotropy
        kept = [i for i in range(len(planes[0])) if round(i / spacing) in held_out]
    pairs = _pairs(planes, parts[0], settings, targets, bank, noise, progress, kept, synthetic)
    return Lesson(stacks, rig, parts, pairs, targets, bank_px, angles_deg, denoisings)


def blur_of(rig: RigProfile | None, settings: FinetuneSettings) -> tuple[tuple[float, float], tuple[float, ...]]:
    """Return the PSF bank's least and most std in px, and its orientations in degrees."""
    bank_px = (rig.blur_px_min, rig.blur_px_max) if rig is not None else ARTICLE_STD_PX
    tilt_deg = rig.blur_angle_deg if rig is not None else 0.0
    return bank_px, tuple(angle + tilt_deg for angle in settings.angles_deg)


def open_chosen(network: NAFNet, lesson: Lesson, settings: FinetuneSettings) -> tuple[Selection, int]:
    """Open the layers of the base network that the settings choose; returns them and how many parameters train."""
    sample = lesson.pairs.batch(0, 16)
    chosen = select_layers(
        network, settings.layers, sample, share=settings.share, surgeon=settings.surgeon, seed=settings.seed
    )
    return chosen, open_layers(network, chosen.mask, everything=settings.layers is Layers.ALL)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The part of a stack that training looks at: `raw` ``(Z, Y, X)`` normalised float32, and its geometry.

    Where the stack is noisy `raw` is denoised, on the normalisation of the stack as acquired.
    """

    raw: Float
    anisotropy: float

    @classmethod
    def of(cls, stack: Stack, max_voxels: int, denoising: Denoising) -> _Part:
        scale = Normalisation.of(stack.data)
        side = math.isqrt(max(max_voxels // stack.isotropic_planes, 96 * 96))
        y, x = _liveliest(stack.data, side)
        counts = stack.data[:, y : y + side, x : x + side]
        shown = denoising.apply(counts)
        return cls(scale.apply(counts if shown is None else shown), stack.anisotropy)


def _liveliest(data: npt.NDArray[Any], side: int) -> tuple[int, int]:
    """Corner of the window of `side` px in Y and X where the maximum projection varies most."""
    top = data.max(0).astype(np.float64)
    corners = [
        sorted({*range(0, max(size - side, 0) + 1, max(side // 2, 1)), max(size - side, 0)}) for size in top.shape
    ]
    return max(
        ((y, x) for y in corners[0] for x in corners[1]),
        key=lambda corner: float(top[corner[0] : corner[0] + side, corner[1] : corner[1] + side].std()),
    )


def _restored(part: _Part, network: NAFNet, settings: FinetuneSettings, most_px: int, progress: Progress) -> Float:
    """Volume to take targets from: raw planes, or ``(Zi, Y, X)`` float32 restored by the base network."""
    if settings.targets is Targets.RAW:
        return part.raw
    volume = resample_z(part.raw, part.anisotropy)
    longest = max(volume.shape)
    multiple = network.shape.multiple
    tile = min(most_px // multiple, -(-longest // multiple)) * multiple

    def told(label: str, done: int, total: int, /) -> None:
        progress("restore the targets once", done, total)

    return deblur_axial(volume, torch_network(network), tile=tile, progress=told).volume


def _targets(part: _Part, settings: FinetuneSettings, blur_px: float) -> Targets:
    """Which targets to take, where that is left to the stack."""
    if settings.targets is not Targets.AUTO:
        return settings.targets
    return Targets.TURNED if like_z(resample_z(part.raw, part.anisotropy), blur_px) else Targets.BOOTSTRAPPED


def _pair_noise(
    stacks: list[Stack], rig: RigProfile | None, settings: FinetuneSettings, denoised: Float | None
) -> Noise:
    """Noise of the stack on its normalised scale; none for raw targets, which hold noise of their own.

    Of a `denoised` stack (its part, normalised) that is what denoising left, as it is in stacks to be restored.
    """
    if settings.targets is Targets.RAW:
        return Noise()
    scale = Normalisation.of(stacks[0].data)
    if rig is not None and denoised is None:
        measured = rig.noise
    else:
        counts = stacks[0].data if denoised is None else scale.undo(denoised, np.float32)
        measured = measure_noise(counts, measure_intensity(counts))
    dark = measured.read**2 + measured.gain * max(scale.offset - measured.background, 0.0)
    photons = scale.scale / measured.gain if measured.gain > 0 else math.inf
    return Noise(photons, math.sqrt(dark) / scale.scale)


def _pairs(
    planes: list[Float],
    part: _Part,
    settings: FinetuneSettings,
    targets: Targets,
    bank: list[Psf],
    noise: Noise,
    progress: Progress,
    held_out: Sequence[int] | None,
    synthetic: Float | None,
) -> PairSource:
    """Join the stacks' planes (cropped to a common size), and images to rehearse on, into one source of pairs."""
    rows, columns = (min(p.shape[axis] for p in planes) for axis in (1, 2))
    joined = np.concatenate([p[:, :rows, :columns] for p in planes])
    across_px = 0.0 if targets is Targets.RAW else LATERAL_BLUR_PX
    own = Pairs(
        joined,
        bank,
        step=part.anisotropy,
        crop=settings.crop,
        seed=settings.seed,
        noise=noise,
        across_px=across_px,
        any_direction=targets is not Targets.TURNED,
        held_out=held_out,
    )
    if not settings.rehearsal:
        return own
    if synthetic is None:
        synthetic = draw_rehearsal(bank, own.crop, settings.seed, progress)
    second = Pairs(
        synthetic,
        bank,
        step=part.anisotropy,
        crop=own.crop,
        seed=settings.seed + 1,
        noise=noise,
        across_px=LATERAL_BLUR_PX,
    )
    return Mixed(own, second, settings.rehearsal)


def draw_rehearsal(bank: list[Psf], crop: int, seed: int, progress: Progress = silent) -> Float:
    """Draw the images to rehearse on, ``(N, Y, X)`` float32, for pairs of `crop` px blurred by `bank`."""
    blur_px = float(np.mean([psf.std_px for psf in bank]))
    return rehearsal_planes(REHEARSAL_IMAGES, side=crop + 64, blur_px=blur_px, seed=seed, progress=progress)


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


def _samples(parts: list[_Part], count: int = 4, side: int = 512) -> Float:
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
