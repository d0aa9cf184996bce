"""Is an adapted model still the right one? What a stack is like, against what its model was adapted to.

A bundle holds a `Character` of each stack it was adapted to. A later stack that has left all of them, in how it was
taken or in what it shows, gets one warning that names what changed, with figures. Bundles from before the figures were
kept know only voxel size, intensity range and contrast; then only those are compared.

>>> from ssai3d_rt.calibration.character import Character
>>> then = Character(pixel_um=0.1, anisotropy=4.0, range_counts=3000, contrast=0.1, snr=14, lateral_grain_px=2.3)
>>> changes(then.model_copy(update={"range_counts": 9500.0}), then)
['the intensity range is 9500 counts, it was 3000']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssai3d_rt.calibration.character import Character, measure_character

if TYPE_CHECKING:
    from ssai3d_rt.export.bundle import AdaptationEntry
    from ssai3d_rt.imaging.stack import Stack

PIXEL_RATIO = 1.15
"""Ratios, either way, that a stack may differ by. Blur and structures are learnt in pixels."""
ANISOTROPY_RATIO = 1.25
RANGE_RATIO = 2.5
CONTRAST_RATIO = 1.75
GRAIN_RATIO = 1.4
SNR_RATIO = 2.5
"""How much lower the signal to noise ratio may be; better is never worse."""
GOOD_SNR = 20.0
"""Above, differences of the signal to noise ratio say nothing."""


def stale_warning(stack: Stack, adaptation: AdaptationEntry | None) -> str | None:
    """Compare a stack with what a bundle was adapted to.

    Parameters
    ----------
    stack
        As acquired.
    adaptation
        The bundle's, None for a base network as it ships.

    Returns
    -------
    One sentence, or None where the stack is like one that the model knows, or where the bundle does not say.
    """
    known = known_characters(adaptation)
    if not known or stack.data.min() == stack.data.max():
        return None
    now = measure_character(stack)
    found = min((changes(now, then) for then in known), key=len)
    if not found:
        return None
    return f"the model was adapted to another kind of stack: {'; '.join(found)}; fine-tune again on a stack like this"


def known_characters(adaptation: AdaptationEntry | None) -> list[Character]:
    """Return what is known of the stacks that a bundle was adapted to; empty where it says nothing."""
    record = adaptation.record if adaptation is not None else {}
    return [character for entry in record.get("stacks", ()) if (character := _character(entry)) is not None]


def changes(now: Character, then: Character) -> list[str]:
    """Return a clause for each figure that has left the other's neighbourhood."""
    found = []

    def compare(what: str, unit: str, new: float | None, old: float | None, most: float) -> None:
        if new and old and max(new / old, old / new) > most:
            found.append(f"{what} {_figure(new)}{unit}, it was {_figure(old)}")

    compare("the pixel is", " um", now.pixel_um, then.pixel_um, PIXEL_RATIO)
    compare("the anisotropy is", "", now.anisotropy, then.anisotropy, ANISOTROPY_RATIO)
    compare("the intensity range is", " counts", now.range_counts, then.range_counts, RANGE_RATIO)
    compare("the contrast (standard deviation over range) is", "", now.contrast, then.contrast, CONTRAST_RATIO)
    compare("the width of structures is", " px", now.lateral_grain_px, then.lateral_grain_px, GRAIN_RATIO)
    compare("the length of structures along z is", " px", now.axial_grain_px, then.axial_grain_px, GRAIN_RATIO)
    if now.snr and min(then.snr, GOOD_SNR) > SNR_RATIO * now.snr:
        found.append(f"the signal to noise ratio is {_figure(now.snr)}, it was {_figure(then.snr)}")
    return found


def _character(entry: Any) -> Character | None:
    """Read one fingerprint of the model's record; older ones hold no character, but some of its figures."""
    if not isinstance(entry, dict):
        return None
    try:
        if kept := entry.get("character"):
            return Character.model_validate({name: kept[name] for name in Character.model_fields if name in kept})
        z_um, _, x_um = (float(size) for size in entry["voxel_um"])
        scale = float(entry["scale"])
        return Character(
            pixel_um=x_um, anisotropy=z_um / x_um, range_counts=scale, contrast=float(entry["std"]) / scale
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _figure(value: float) -> str:
    """Three digits, never with an exponent where a person expects counts."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
