"""Limits of the method that have to be measured: noise, and lateral planes that are blurred themselves.

What the samples and the voxel size say at once is in `ssai3d_rt.imaging.limits`. Both are measured on a block of the
stack, in about a second at most for a stack of any size, with numpy only: a rig checks each stack as it comes.

>>> from ssai3d_rt.imaging.simulate import acquire, strands
>>> measured_limits(acquire(strands((32, 64, 64), 20), 2))
[]
>>> measured_limits(acquire(strands((32, 64, 64), 20), 2, std_px=(6, 5, 5)))
['the lateral planes are blurred themselves (...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssai3d_rt.calibration.character import liveliest_block
from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.calibration.resolution import lateral_cutoffs
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.spots import GAUSSIAN_FWHM
from ssai3d_rt.imaging.stack import Stack

if TYPE_CHECKING:
    from ssai3d_rt.calibration.profile import Noise

NOISY_SNR = 2.0
"""A stack whose brightest parts have a lower signal to noise ratio, voxel by voxel, counts as very noisy, which the
article names as a limit."""

BLURRED_LATERAL_PX = 3.5
"""Lateral planes count as blurred where the finest detail along both axes is that of a Gaussian spot of this standard
deviation in pixels (8 px full width): good microscopes sample at 1 to 2, and what is sampled three times as finely as
it need be still stays below."""

_SMALLEST_PX = 24


def measured_limits(stack: Stack) -> list[str]:
    """Return a sentence for each measured limit of the method that `stack` is outside of; empty where inside all."""
    if stack.data.min() == stack.data.max():
        return []
    block = liveliest_block(stack)
    warnings = []
    noise = measure_noise(block, measure_intensity(stack.data))
    if sentence := noise_warning(noise):
        warnings.append(sentence)
    if sentence := _blur_warning(Stack(block, stack.voxel_um)):
        warnings.append(sentence)
    return warnings


def noise_warning(noise: Noise) -> str | None:
    """Return the sentence for a very noisy stack, else None; also None where the noise could not be measured."""
    if noise.snr >= NOISY_SNR or (noise.gain == 0 and noise.read == 0):
        return None
    return (
        f"very noisy data (signal to noise ratio {noise.snr:.1f}) is outside the method's limits: "
        "expect invented detail, check with --trust"
    )


def _blur_warning(block: Stack) -> str | None:
    if min(block.data.shape[1:]) < _SMALLEST_PX:
        return None
    try:
        cutoffs = lateral_cutoffs(block)
    except InputError:
        return None  # nothing stands out of the noise: that is the noise's warning
    finest_px = min(cutoff.std_um for cutoff in cutoffs) / block.lateral_um
    if finest_px <= BLURRED_LATERAL_PX:
        return None
    return (
        f"the lateral planes are blurred themselves (finest detail about {GAUSSIAN_FWHM * finest_px:.0f} px wide, "
        "sharp planes have 2 to 4): axial planes get no sharper than that; check the focus, "
        "or bin the pixels if they are that much finer than the microscope resolves"
    )
