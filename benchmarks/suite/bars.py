"""What the benchmark must show, as figures and as yes or no; None where a method has no results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from suite.results import Spread, mean_of
from suite.rows import DISSIMILAR, KINDS, MISMATCH_PX, PHOTONS

if TYPE_CHECKING:
    from suite.results import Results

Figure = float | None
BEST_GAIN_DB, MOST_LOSS_DB = 1.5, 0.1
CARE_GAIN_DB = 1.0
WIDTH_WITHIN, WIDTH_SPREAD = 0.10, 0.05
NOISE_LOSS_DB = 0.1
MISMATCH = "mismatch"


def bars(results: Results) -> dict[str, Any]:
    """Compute all bars."""
    return {
        "shipped": shipped(results),
        "sparse": sparse(results),
        "beads": beads(results),
        "mismatch": mismatch(results),
        "noise": noise(results),
    }


def shipped(results: Results) -> dict[str, Any]:
    """Compare fine-tuning as shipped with the base and with the article's plain recipe, kind by kind."""
    over_base = {kind: results.gain(kind, "ssai3d", "base") for kind in KINDS}
    over_article = {kind: results.gain(kind, "ssai3d", "article") for kind in KINDS}
    mean = mean_of(over_base.values())
    worst = min((s.mean for s in over_base.values()), default=math.nan)
    behind = min((s.mean for s in over_article.values()), default=math.nan)
    return {
        "ssai3d_minus_base_db": {kind: _figure(s.mean) for kind, s in over_base.items()},
        "ssai3d_minus_article_db": {kind: _figure(s.mean) for kind, s in over_article.items()},
        "mean_gain_over_base_db": _figure(mean),
        "never_below_base": _holds(worst >= -MOST_LOSS_DB, *over_base.values()),
        "better_than_article": _holds(behind > 0, *over_article.values()),
        "mean_gain_reached": _holds(mean >= BEST_GAIN_DB, *over_base.values()),
    }


def sparse(results: Results) -> dict[str, Any]:
    """Compare few layers with all layers, and both with training from scratch, where the axes differ."""
    modes = [m for m in results.methods("kinds") if m == "article" or m.startswith("sparse:")]
    best = max(modes, key=lambda m: mean_of(results.spread("psnr_db", k, m) for k in DISSIMILAR), default="article")
    over_full = {m: {kind: results.gain(kind, m, "full") for kind in DISSIMILAR} for m in modes}
    over_care = {m: {kind: results.gain(kind, m, "care") for kind in DISSIMILAR} for m in (*modes, "full")}
    named = {"article": "article"} | ({best: best} if best != "article" else {})
    return {
        "sparse_minus_full_db": _by_kind(over_full),
        "minus_care_db": _by_kind(over_care),
        "best_mode": best if modes else None,
        "at_least_full": {m: _all_at_least(over_full.get(m, {}), 0.0) for m in named},
        "above_care": {m: _all_at_least(over_care.get(m, {}), CARE_GAIN_DB) for m in (*named, "full")},
    }


def beads(results: Results) -> dict[str, Any]:
    """Compare the axial width of restored beads with the truth's lateral width."""
    found: dict[str, Any] = {}
    for row, _ in results.tests("beads"):
        for method in results.methods("beads"):
            axial = results.spread("axial_nm", row, method)
            if axial.count == 0:
                continue
            ratio = axial.mean / results.spread("true_lateral_nm", row, method).mean
            spread = results.spread("axial_sd_nm", row, method).mean / axial.mean
            found.setdefault(row, {})[method] = {
                "axial_nm": _figure(axial.mean),
                "axial_over_true_lateral": _figure(ratio),
                "axial_over_own_lateral": _figure(axial.mean / results.spread("lateral_nm", row, method).mean),
                "spread": _figure(spread),
                "measured": round(results.spread("beads", row, method).mean),
                "ok": abs(ratio - 1) <= WIDTH_WITHIN and spread <= WIDTH_SPREAD,
            }
    return found


def mismatch(results: Results) -> dict[str, Any]:
    """Say how much PSNR changes over the levels of blur, each method fitted once.

    ``fall_db`` is the best level less the worst; ``loss_to_own_db`` the most that a method loses against itself when it
    is fitted to each stack (and CARE told each stack's blur).
    """
    levels = [f"flat strands: std {px} px" for px in MISMATCH_PX]
    falls: dict[str, Any] = {}
    for method in results.methods("mismatch"):
        means = [results.spread("psnr_db", MISMATCH, method, level).mean for level in levels]
        if not any(math.isnan(m) for m in means):
            falls[method] = {
                "fall_db": _figure(max(means) - min(means)),
                "first_minus_last_db": _figure(means[0] - means[-1]),
                "loss_to_own_db": _figure(max(_loss(results, method, level) for level in levels)),
            }
    care = falls.get("care", {}).get("fall_db")
    own = {m: falls[m]["fall_db"] for m in ("article", "ssai3d") if m in falls}
    return falls | {"below_half_of_care": {m: None if care is None else fall < care / 2 for m, fall in own.items()}}


def _loss(results: Results, method: str, level: str) -> float:
    own, once = results.values("psnr_db", level, method), results.values("psnr_db", MISMATCH, method, level)
    return Spread.of(own[seed] - once[seed] for seed in own.keys() & once.keys()).mean


def noise(results: Results) -> dict[str, Any]:
    """Compare restoration with the denoiser chosen by itself and with none."""
    auto, off = "ssai3d[denoise=auto]", "ssai3d[denoise=off]"
    rows = [row for row, _ in results.tests("noise")]
    gains = {row: results.gain(row, auto, off) for row in rows}
    by_level: dict[str, float] = {}
    for level in ("clean", *(f"{photons} photons" for photons in PHOTONS)):
        by_level[level] = mean_of(gain for row, gain in gains.items() if row.endswith(level))
    low = [by_level[f"{photons} photons"] for photons in PHOTONS[1:]]
    complete = not any(math.isnan(v) for v in by_level.values())
    return {
        "auto_minus_off_db": {row: _figure(gain.mean) for row, gain in gains.items()},
        "better_at_the_two_lower_levels": min(low) > 0 if complete else None,
        "loses_on_clean_db": _figure(-by_level["clean"]),
        "loses_at_most_a_tenth_on_clean": by_level["clean"] >= -NOISE_LOSS_DB if complete else None,
    }


def _figure(value: float) -> Figure:
    return None if math.isnan(value) else round(value, 3)


def _holds(condition: bool, *of: Spread) -> bool | None:
    return None if any(s.count == 0 for s in of) else condition


def _by_kind(gains: dict[str, dict[str, Spread]]) -> dict[str, dict[str, Figure]]:
    return {method: {kind: _figure(s.mean) for kind, s in by.items()} for method, by in gains.items()}


def _all_at_least(gains: dict[str, Spread], least: float) -> bool | None:
    if not gains or any(s.count == 0 for s in gains.values()):
        return None
    return all(s.mean >= least for s in gains.values())
