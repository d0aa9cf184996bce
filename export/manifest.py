"""`Manifest`: all that a bundle says of itself, as JSON. It knows no files; see `bundle`.

>>> FileEntry(size_bytes=-1, sha256="0" * 64)
Traceback (most recent call last):
pydantic_core._pydantic_core.ValidationError: ...
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ssai3d_rt.export.parity import Limits, ParityReport
from ssai3d_rt.imaging.denoise import DenoiseMode

SCHEMA_VERSION = 1


class _Part(BaseModel):
    """Base of the manifest's parts: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """Size and hash of one file of the bundle."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class NetworkEntry(_Part):
    """Hyperparameters of the network; `pool_window_px` is the pooling window where it is smaller than the tile."""

    width: int
    enc: tuple[int, ...]
    middle: int
    dec: tuple[int, ...]
    channels: int
    pool_window_px: int | None = None
    state_sha256: str


class PrecisionEntry(_Part):
    """Which tensors stay FP32, as calibration decided; all ranges are in the bundle's ``precision.json``.

    Parameters
    ----------
    tensors
        How many the network stores.
    wide, wide_weights
        The tensors that stay FP32, and the convolutions whose weights do.
    headroom
        How many times the largest value that was seen has to fit FP16.
    highest, highest_in
        The largest value, and the tensor that it was seen in.
    """

    tensors: int = Field(ge=0)
    wide: tuple[str, ...] = ()
    wide_weights: tuple[str, ...] = ()
    headroom: float
    highest: float
    highest_in: str


class AdaptationEntry(_Part):
    """What the network was adapted for.

    `record` is the adapted model's own record; `denoise` says how stacks are denoised before they are restored, unless
    one asks otherwise: as they were for fine-tuning.
    """

    base: str = ""
    trained_layers: int | None = None
    fingerprint: str = ""
    anisotropy: float | None = None
    blur_px: tuple[float, float] | None = None
    denoise: DenoiseMode = "auto"
    record: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Part):
    """Everything that a runtime must know of a bundle.

    Parameters
    ----------
    schema_version
        Of this manifest; another one is refused.
    name, created
        The bundle's name and the time of the export (UTC, ISO 8601).
    files
        Every other file of the folder.
    network
        Hyperparameters, and the hash of the weights before typing.
    tile, channels
        The ONNX takes ``(N, channels, tile, tile)`` float32.
    value_range
        The range that the network is made for; values a little outside are fine.
    precision
        ``fp16`` (with FP32 islands) or ``fp32``.
    layer_norm
        How LayerNorm is written: ``island`` (Cast, FP32 arithmetic, Cast), ``native32`` (Cast, the operator
        LayerNormalization in FP32, Cast) or ``native16`` (that operator on FP16).
    calibration
        Which tensors stay FP32; None for ``fp32``, and in bundles made before there was a choice.
    folding
        What each step of folding, and all together, changed in FP32 when measured at the export: largest absolute
        difference as a fraction of the output's range. ``none`` is the network with no step taken, ``pool`` is
        measured against a window.
    limits, backend_limits
        What the export, and what every backend on a rig, was or will be held to on the golden tiles.
    parity
        What the export reached (ONNX Runtime CPU against FP32 torch).
    rehearsal
        What the network reached with every rounding of FP16, which CPUs leave out and GPUs make.
    peak_activation
        Largest absolute value inside the network on the golden tiles, of the tensors that are stored in its precision;
        FP16 ends at 65504.
    adaptation
        Data, base network and layers behind it.
    tools
        Versions of the tools that made it.
    """

    schema_version: Literal[1] = 1
    name: str
    created: str
    files: dict[str, FileEntry]
    network: NetworkEntry
    tile: int = Field(ge=8, le=4096)
    channels: Literal[1] = 1
    value_range: tuple[float, float] = (0.0, 1.0)
    precision: Literal["fp16", "fp32"]
    layer_norm: Literal["island", "native32", "native16"] = "island"
    calibration: PrecisionEntry | None = None
    folding: dict[str, float] = Field(default_factory=dict)
    opset: int
    limits: Limits
    backend_limits: Limits
    parity: ParityReport
    rehearsal: ParityReport
    peak_activation: float
    adaptation: AdaptationEntry
    tools: dict[str, str]
