"""How one stack is to be denoised: its noise measured, a denoiser chosen, and why.

What fine-tuning and restoring share. The method is `ssai3d_rt.imaging.denoise`; how a stack's noise is measured is
`noise`.

>>> import numpy as np
>>> smooth = np.tile(1000 + 500 * np.sin(np.arange(64) / 9), (12, 64, 1))
>>> noisy = np.random.default_rng(0).normal(smooth, 150).clip(0).astype(np.uint16)
>>> Denoising.of(noisy).name, Denoising.of(smooth.astype(np.uint16)).name
('dct', 'off')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.imaging.denoise import OFF, NoiseModel, choose_denoiser, denoise
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ssai3d_rt.calibration.profile import Noise


@dataclass(frozen=True, slots=True)
class Denoising:
    """What is to be done to one stack.

    Parameters
    ----------
    name
        A denoiser, or ``off``.
    why
        A sentence for a person.
    noise
        Of the stack; None where nothing had to be measured.
    """

    name: str
    why: str
    noise: NoiseModel | None = None

    @classmethod
    def of(cls, data: npt.NDArray[Any], mode: str = "auto", noise: Noise | None = None) -> Denoising:
        """Choose for one stack.

        Parameters
        ----------
        data
            ``(Z, Y, X)`` counts.
        mode
            ``auto``, ``off`` or a denoiser's name.
        noise
            A rig profile's; measured on `data` where it is None or says no signal to noise ratio.

        Raises
        ------
        ConfigError
            No such mode.
        """
        model = None if mode == OFF else measured_noise(data, noise)
        name, why = choose_denoiser(mode, model)
        return cls(name, why, model)

    @property
    def on(self) -> bool:
        """Whether anything is done."""
        return self.name != OFF

    def apply(self, data: npt.NDArray[Any], *, progress: Progress = silent) -> npt.NDArray[np.float32] | None:
        """Return the stack, or a part of it, denoised (float32 counts), or None where nothing is done."""
        if not self.on or self.noise is None:
            return None
        return denoise(data, self.noise, self.name, progress=progress)

    def record(self) -> dict[str, Any]:
        """Return what a result says of it; plain JSON values."""
        snr = None if self.noise is None else float(f"{self.noise.snr:.3g}")
        return {"denoise": self.name, "snr": snr}


def measured_noise(data: npt.NDArray[Any], noise: Noise | None = None) -> NoiseModel:
    """Turn a rig profile's noise, or what is measured on `data`, into what the denoisers take."""
    if noise is None or noise.snr <= 0:
        noise = measure_noise(data, measure_intensity(data))
    return NoiseModel(gain=noise.gain, read=noise.read, background=noise.background, snr=noise.snr)
