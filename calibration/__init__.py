"""The rig profile: what is measured about one microscope and sample before fine-tuning."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from ssai3d_rt.calibration.limits import noise_warning
from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.calibration.profile import Intensity, Noise, RigProfile
from ssai3d_rt.calibration.resolution import Resolution, measure_resolution
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Intensity", "Noise", "RigProfile", "calibrate"]


def calibrate(stacks: Stack | Iterable[Stack]) -> RigProfile:
    """Measure a rig profile on one stack, or on several of the same microscope and voxel size.

    Of several stacks the medians are taken, and the blur range that covers the middle of their ranges.

    Parameters
    ----------
    stacks
        Raw stacks, at least 4 planes each; they are looked at one at a time.

    Raises
    ------
    InputError
        No stack, stacks of different voxel size, or a stack on which nothing can be measured.
    """
    found: list[tuple[Resolution, Intensity, Noise]] = []
    sources: list[str] = []
    voxel_um: tuple[float, float, float] | None = None
    planes = 0
    for stack in [stacks] if isinstance(stacks, Stack) else stacks:
        if voxel_um is None:
            voxel_um, planes = stack.voxel_um, stack.data.shape[0]
        _same_voxel(voxel_um, stack)
        planes = min(planes, stack.data.shape[0])
        intensity = measure_intensity(stack.data)
        found.append((measure_resolution(stack), intensity, measure_noise(stack.data, intensity)))
        if stack.source is not None and stack.source.name not in sources:
            sources.append(stack.source.name)
    if voxel_um is None:
        raise InputError("there is no stack to calibrate on")
    resolutions, intensities, noises = zip(*found, strict=True)
    # Spots tell more than spectra: where some stacks have them, those decide.
    decisive = [r for r in resolutions if r.source == "spots"] or list(resolutions)
    noise = Noise(
        gain=_short(median(n.gain for n in noises)),
        read=_short(median(n.read for n in noises)),
        background=_short(median(n.background for n in noises)),
        snr=_short(median(n.snr for n in noises)),
    )
    warnings = dict.fromkeys(warning for r in decisive for warning in r.warnings)
    if sentence := noise_warning(noise):
        warnings[sentence] = None
    return RigProfile(
        voxel_um=voxel_um,
        planes=planes,
        source=", ".join(sources),
        lateral_um=_short(median(r.lateral_um for r in decisive)),
        axial_um=_short(median(r.axial_um for r in decisive)),
        resolution_from=decisive[0].source,
        spots=sum(r.spots for r in decisive),
        blur_px_min=_short(median(r.blur_px[0] for r in decisive)),
        blur_px_max=_short(median(r.blur_px[1] for r in decisive)),
        intensity=Intensity(
            low=_short(min(i.low for i in intensities)),
            high=_short(max(i.high for i in intensities)),
            saturated=_short(max(i.saturated for i in intensities)),
        ),
        noise=noise,
        warnings=tuple(warnings),
    )


def _same_voxel(voxel_um: tuple[float, float, float], stack: Stack) -> None:
    if any(abs(a - b) > 0.01 * a for a, b in zip(voxel_um, stack.voxel_um, strict=True)):
        where = f" ({stack.source})" if stack.source else ""
        raise InputError(f"voxel sizes differ: {voxel_um} um and {stack.voxel_um} um{where}; calibrate them apart")


def _short(value: float) -> float:
    """Keep five digits: the file is read by people."""
    return float(f"{value:.5g}")
