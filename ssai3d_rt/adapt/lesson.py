"""What fine-tuning learns from: the pairs of a stack, with targets, bank of PSFs and noise that suit it.

Targets are the stack's lateral planes, as in the article (``raw``), or come from the stack restored once by the base
network, as raw planes hold the haze of their out-of-focus neighbours and a network tuned on them learns to keep it:
its lateral planes (``bootstrapped``), or its axial slices, turned (``turned``, see `targets`). Blurred again, the
restored stack also tells how wide the blur is. Synthetic images (see `rehearsal`) join every batch, or make it up alone
where the sample's own planes would mislead (``synthetic``). It does not know how training goes.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.pairs import Mixed, Noise, Pairs, PairSource
from ssai3d_rt.adapt.psf import ARTICLE_STD_PX, psf_bank
from ssai3d_rt.adapt.rehearsal import rehearsal_planes
from ssai3d_rt.adapt.settings import FinetuneSettings, Targets
from ssai3d_rt.adapt.targets import like_z, turned_slices
from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.imaging.axial import deblur_axial, resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.reblur import fitted_blur_px
from ssai3d_rt.network.nafnet import largest_tile
from ssai3d_rt.network.weights import LoadedNetwork, torch_network
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssai3d_rt.adapt.psf import Psf
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack
    from ssai3d_rt.network.nafnet import NAFNet

logger = logging.getLogger(__name__)

Float = npt.NDArray[np.float32]
REHEARSAL_IMAGES = 160
BLUR_SPREAD = 0.15
"""Half the width of the bank around a fitted blur, as a share of it."""
LATERAL_BLUR_PX = 0.8
"""Lateral blur, as a std in px, that base networks learn to take away; see `ssai3d_rt.network.pretrain`."""
_GROUP = 10


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What training takes from stacks and rig: the pairs, and what the record says about them."""

    stacks: list[Stack]
    rig: RigProfile | None
    parts: list[Part]
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
    parts = [Part.of(stack, most, denoising) for stack, denoising in zip(stacks, denoisings, strict=True)]
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


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The part of a stack that training looks at: `raw` ``(Z, Y, X)`` normalised float32, and its geometry.

    Where the stack is noisy `raw` is denoised, on the normalisation of the stack as acquired.
    """

    raw: Float
    anisotropy: float

    @classmethod
    def of(cls, stack: Stack, max_voxels: int, denoising: Denoising) -> Part:
        """Take the liveliest window of a stack, of at most so many isotropic voxels."""
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


def _restored(part: Part, network: NAFNet, settings: FinetuneSettings, most_px: int, progress: Progress) -> Float:
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


def _targets(part: Part, settings: FinetuneSettings, blur_px: float) -> Targets:
    """Which targets to take, where that is left to the stack."""
    if settings.targets is not Targets.AUTO:
        return settings.targets
    return Targets.TURNED if like_z(resample_z(part.raw, part.anisotropy), blur_px) else Targets.SYNTHETIC


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
    part: Part,
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
    if not settings.rehearsal and targets is not Targets.SYNTHETIC:
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
    return second if targets is Targets.SYNTHETIC else Mixed(own, second, settings.rehearsal)


def draw_rehearsal(bank: list[Psf], crop: int, seed: int, progress: Progress = silent) -> Float:
    """Draw the images to rehearse on, ``(N, Y, X)`` float32, for pairs of `crop` px blurred by `bank`."""
    blur_px = float(np.mean([psf.std_px for psf in bank]))
    return rehearsal_planes(REHEARSAL_IMAGES, side=crop + 64, blur_px=blur_px, seed=seed, progress=progress)
