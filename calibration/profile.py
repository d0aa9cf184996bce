"""`RigProfile`: what was measured about one microscope and sample, in a file that a person can read and edit.

The profile holds numbers only; how they are measured is in `resolution`, `beads` and `noise`. `save` writes TOML with
units and explanations as comments, `load` reads it back and refuses unknown keys.

>>> profile = RigProfile.of({
...     "voxel_um": [0.4, 0.1, 0.1], "planes": 20, "lateral_um": 0.25, "axial_um": 1.0, "blur_px_min": 3.1,
...     "blur_px_max": 5.1, "intensity": {"low": 100, "high": 4000}, "noise": {"gain": 2.0, "read": 4.0},
... })
>>> profile.isotropy
0.25
>>> print(profile.to_toml().splitlines()[6])
axial_um = 1.0                # axial resolution (full width at half maximum), um
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ssai3d_rt.config import Settings, read_toml
from ssai3d_rt.errors import StorageError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Intensity(Settings):
    """Counts of the stack: percentiles 1 and 99.99, and the share of voxels at the highest possible count."""

    low: Finite
    high: Finite
    saturated: Annotated[float, Field(ge=0, le=1)] = 0.0


class Noise(Settings):
    """Poisson-Gaussian noise: variance = gain * (counts - background) + read^2."""

    gain: NotNegative
    read: NotNegative
    background: Finite = 0.0
    snr: NotNegative = 0.0


class RigProfile(Settings):
    """What was measured about one microscope and sample.

    Parameters
    ----------
    voxel_um
        ``(z, y, x)`` voxel size in micrometres.
    planes
        Planes of the stack it was measured on (the smallest where there were several).
    source
        What it was measured on.
    lateral_um, axial_um
        Resolution in micrometres as a full width at half maximum: of isolated spots, or of the Gaussian spot whose
        spectrum ends where the stack's does.
    resolution_from
        Which of the two.
    spots
        Isolated spots that were good enough to measure.
    blur_px_min, blur_px_max
        Standard deviations, in isotropic (lateral) pixels, of the Gaussians along Z that turn a plane as sharp as a
        lateral one into one as blurred as an axial one.
    blur_angle_deg
        Tilt of the blur against Z.
    intensity, noise
        See `Intensity` and `Noise`.
    warnings
        What to know before trusting the figures, one sentence each.
    """

    voxel_um: tuple[Positive, Positive, Positive]
    planes: Annotated[int, Field(ge=1)]
    source: str = ""
    lateral_um: Positive
    axial_um: Positive
    resolution_from: Literal["spots", "spectrum"] = "spectrum"
    spots: Annotated[int, Field(ge=0)] = 0
    blur_px_min: Positive
    blur_px_max: Positive
    blur_angle_deg: Annotated[float, Field(ge=-90, le=90)] = 0.0
    intensity: Intensity
    noise: Noise
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> RigProfile:
        if self.blur_px_min > self.blur_px_max:
            raise ValueError(f"blur_px_min {self.blur_px_min} is above blur_px_max {self.blur_px_max}")
        return self

    @property
    def isotropy(self) -> float:
        """Lateral over axial resolution; 1.0 is isotropic."""
        return self.lateral_um / self.axial_um

    @classmethod
    def load(cls, path: str | Path) -> RigProfile:
        """Read a profile.

        Raises
        ------
        ConfigError
            The file is absent, not TOML, or holds an unknown key or a wrong value; the message names the nearest key.
        """
        return cls.of(read_toml(Path(path)), where=path)

    def save(self, path: str | Path) -> None:
        """Write the profile as TOML with comments; the file appears whole or not at all.

        Raises
        ------
        StorageError
            The file could not be written.
        """
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(self.to_toml(), encoding="utf-8", newline="\n")
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StorageError(f"cannot write the rig profile {path}: {error.strerror or error}") from error

    def to_toml(self) -> str:
        """Return the text that `save` writes."""
        values = self.model_dump(mode="json")
        tables = {name: values.pop(name) for name in ("intensity", "noise")}
        lines = ["# Rig profile of ssai3d-rt: what was measured about one microscope and sample.", ""]
        lines += _entries(values, _COMMENTS)
        for name, table in tables.items():
            lines += ["", f"[{name}]", *_entries(table, _TABLE_COMMENTS)]
        return "\n".join(lines) + "\n"


_COMMENTS = {
    "voxel_um": "voxel size (z, y, x), um",
    "planes": "planes of the stack that was measured",
    "source": "what was measured",
    "lateral_um": "lateral resolution (full width at half maximum), um",
    "axial_um": "axial resolution (full width at half maximum), um",
    "resolution_from": '"spots": widths of isolated spots; "spectrum": where the Fourier spectrum ends',
    "spots": "isolated spots that were good enough to measure",
    "blur_px_min": "Gaussian blur along Z, standard deviation, lateral pixels: least ...",
    "blur_px_max": "... and most; fine-tuning learns to undo this range, so edit it if you know better",
    "blur_angle_deg": "tilt of the blur against Z, degrees",
    "warnings": "what to know before trusting the figures",
}
_TABLE_COMMENTS = {
    "low": "percentile 1, counts",
    "high": "percentile 99.99, counts",
    "saturated": "share of voxels at the highest possible count, 0 to 1",
    "gain": "variance of the noise per count above the background, counts",
    "read": "standard deviation of the noise at the background, counts",
    "background": "mean counts of the darkest parts",
    "snr": "signal to noise ratio of the brightest parts above the background",
}


def _entries(values: dict[str, Any], comments: dict[str, str]) -> list[str]:
    texts = [f"{key} = {_toml(value)}" for key, value in values.items()]
    short = max((len(text) for text in texts if len(text) <= 40), default=0)
    return [f"{text:<{short}}  # {comments[key]}" for text, key in zip(texts, values, strict=True)]


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    # JSON's strings and numbers are TOML's too, once DEL is escaped; Python's repr of a float is exact.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
