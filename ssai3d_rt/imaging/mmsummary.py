"""Micro-Manager's summary metadata: sizes, channel and position names, and the voxel, in the words of 1.4 and of 2.0.

The same dictionary stands in an image stack file, in an NDTiff data set and in the ``metadata.txt`` of separate image
files. 2.0 wraps values in property maps, 1.4 does not.

>>> plain({"type": "INTEGER", "scalar": 3}), declared({"IntendedDimensions": {"z": 7}}, "Slices", "z")
(3, 7)
"""

from __future__ import annotations

import json
from typing import Any

from ssai3d_rt.imaging.voxel import FoundVoxel, length_um


def plain(value: Any) -> Any:
    """Return a value without the wrapper of Micro-Manager 2.0's property maps."""
    if isinstance(value, dict):
        for key in ("PropVal", "scalar", "array"):
            if key in value:
                return value[key]
    return value


def listed(value: Any) -> list[Any]:
    """Return a list, empty where the value is none."""
    value = plain(value)
    return value if isinstance(value, list) else []


def declared(summary: dict[str, Any], key: str, axis: str) -> int:
    """Return a size that the summary declares, 0 where it does not."""
    value = plain(summary.get(key))
    if not isinstance(value, int) or value < 1:
        intended = plain(summary.get("IntendedDimensions"))
        value = plain(intended.get(axis)) if isinstance(intended, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def channel_names(summary: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels, as many as the summary gives."""
    return tuple(str(name) for name in listed(summary.get("ChNames")))


def position_label(summary: dict[str, Any], number: int) -> str:
    """Return the name of a position in the summary's position list, empty where it has none."""
    for key in ("InitialPositionList", "StagePositions"):
        positions = listed(summary.get(key))
        if number < len(positions) and isinstance(positions[number], dict):
            label = plain(positions[number].get("Label"))
            if isinstance(label, str) and label:
                return label
    return ""


def voxel(summary: dict[str, Any], image: dict[str, Any]) -> FoundVoxel:
    """Return the voxel that the summary and the metadata of one image give together."""
    found = (
        length_um(plain(holder.get(key)), "um")
        for holder, key in ((summary, "PixelSize_um"), (summary, "PixelSizeUm"), (image, "PixelSizeUm"))
    )
    pixel = next((size for size in found if size is not None), None)
    return FoundVoxel(length_um(plain(summary.get("z-step_um")), "um"), pixel, pixel)


def z_um(image: dict[str, Any]) -> float | None:
    """Return where along z an image was taken, in micrometres; None where its metadata do not say."""
    for key in ("ZPosition_um_Intended", "ZPositionUm", "ZPosition_um"):
        value = plain(image.get(key))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None


def parsed(raw: bytes) -> dict[str, Any] | None:
    """Return a JSON object, None where it is none or not whole."""
    try:
        value = json.loads(raw.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
