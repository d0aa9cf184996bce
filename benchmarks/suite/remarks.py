"""What the bars say, in sentences, generated from the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from suite.rows import DISSIMILAR, KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

MISMATCH_METHODS = ("care", "article", "ssai3d")
BEAD_METHODS = ("care", "base", "article", "ssai3d")


def remarks(figures: dict[str, Any]) -> list[str]:
    """Say what `suite.bars.bars` found, one sentence or two each; nothing about what has no results."""
    return [
        *_shipped(figures["shipped"]),
        *_sparse(figures["sparse"]),
        *_beads(figures["beads"]),
        *_mismatch(figures["mismatch"]),
        *_noise(figures["noise"]),
    ] or ["There are too few results to say anything."]


def _shipped(shipped: dict[str, Any]) -> list[str]:
    lines = []
    if shipped["mean_gain_reached"] is not None:
        lines.append(
            f"Fine-tuning as shipped, less the base network [dB]: {_gains(shipped['ssai3d_minus_base_db'], KINDS)}; "
            f"mean {shipped['mean_gain_over_base_db']:+.2f}. Never more than 0.1 dB below the base: "
            f"{_yes(shipped['never_below_base'])}. At least 1.5 dB in the mean: {_yes(shipped['mean_gain_reached'])}."
        )
    if shipped["better_than_article"] is not None:
        lines.append(
            f"Less the article's plain recipe [dB]: {_gains(shipped['ssai3d_minus_article_db'], KINDS)}. "
            f"Better on each: {_yes(shipped['better_than_article'])}."
        )
    return lines


def _sparse(sparse: dict[str, Any]) -> list[str]:
    lines = [
        f"Few layers (`{mode}`{', the best here' if mode != 'article' else ''}) at least as good as all layers where "
        f"lateral and axial structure differ: {_yes(holds)} "
        f"({_gains(sparse['sparse_minus_full_db'][mode], DISSIMILAR)} dB)."
        for mode, holds in sparse["at_least_full"].items()
        if holds is not None
    ]
    lines += [
        f"`{mode}` at least 1 dB better than CARE there: {_yes(holds)} "
        f"({_gains(sparse['minus_care_db'][mode], DISSIMILAR)} dB)."
        for mode, holds in sparse["above_care"].items()
        if holds is not None
    ]
    return lines


def _beads(rows: dict[str, Any]) -> list[str]:
    lines = []
    for row, by_method in rows.items():
        for method in (m for m in BEAD_METHODS if m in by_method):
            found = by_method[method]
            lines.append(
                f"{row[0].upper()}{row[1:]}, `{method}`: the z-FWHM is {found['axial_over_true_lateral']:.3f} of the "
                f"true lateral FWHM, its spread {100 * found['spread']:.1f} %. Within 10 %, and at most 5 %: "
                f"{_yes(found['ok'])}."
            )
    return lines


def _mismatch(mismatch: dict[str, Any]) -> list[str]:
    return [
        f"From 3 to 7 px of blur, fitted at 5 px, PSNR varies by {mismatch[method]['fall_db']:.2f} dB with `{method}` "
        f"and by {mismatch['care']['fall_db']:.2f} dB with CARE. Less than half: {_yes(holds)}."
        for method, holds in mismatch["below_half_of_care"].items()
        if holds is not None
    ] + [
        f"`{method}`, fitted at 5 px and not to each stack, loses at most {found['loss_to_own_db']:.2f} dB."
        for method, found in mismatch.items()
        if method in MISMATCH_METHODS and found["loss_to_own_db"] is not None
    ]


def _noise(noise: dict[str, Any]) -> list[str]:
    if noise["better_at_the_two_lower_levels"] is None:
        return []
    gains = {row: gain for row, gain in noise["auto_minus_off_db"].items() if gain is not None}
    return [
        f"Denoising chosen by itself, less none [dB]: {_gains(gains, gains)}. Better at the two lower levels of light: "
        f"{_yes(noise['better_at_the_two_lower_levels'])}. At most 0.1 dB lost on clean stacks: "
        f"{_yes(noise['loses_at_most_a_tenth_on_clean'])}."
    ]


def _gains(gains: dict[str, float], order: Iterable[str]) -> str:
    return ", ".join(f"{name} {gains[name]:+.2f}" for name in order)


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"
