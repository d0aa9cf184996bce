"""The benchmark's tables, in Markdown."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from suite.bars import beads
from suite.results import Spread, mean_of
from suite.rows import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from suite.results import Results

GROUPS: dict[str, str] = {
    "kinds": "Kinds of sample",
    "beads": "Beads",
    "blur": "Levels of blur",
    "mismatch": "Trained once, on other blur",
    "optics": "Optics that no method was told",
    "noise": "Noise",
}
"""Groups of rows and their headings."""


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    """Write a table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def kinds_table(results: Results, field: str, digits: int, factor: float = 1.0) -> str:
    """One line a method, one column a kind of sample, the mean over the kinds last."""
    lines = []
    kinds = [kind for kind in KINDS if (kind, kind) in results.tests("kinds")]
    for method in results.methods("kinds"):
        by_kind = [Spread.of(factor * v for v in results.values(field, kind, method).values()) for kind in kinds]
        mean = mean_of(by_kind)
        lines.append([method, *(s.text(digits) for s in by_kind), "" if mean != mean else f"{mean:.{digits}f}"])
    return markdown(["method", *kinds, "mean"], lines)


def cost_table(results: Results) -> str:
    """Say what training costs in the main rows: seconds of one core, numbers that change, seconds to restore."""
    lines = []
    for method in results.methods("kinds"):
        mine = [r for r in results.found if r["group"] == "kinds" and r["method"] == method]
        trained = statistics.fmean(r["trained_parameters"] for r in mine)
        lines.append(
            [
                method,
                f"{statistics.fmean(r['seconds'] for r in mine):.1f}",
                f"{statistics.fmean(r['restore_s'] for r in mine):.1f}",
                f"{trained:,.0f}",
            ]
        )
    return markdown(["method", "training [s]", "restoring [s]", "trained parameters"], lines)


def cases_table(results: Results, group: str, field: str = "psnr_db", digits: int = 2) -> str:
    """One line a stack that was restored, one column a method; the best in bold."""
    methods = results.methods(group)
    lines = []
    for row, test in results.tests(group):
        spreads = [results.spread(field, row, method, test) for method in methods]
        best = max((s.mean for s in spreads if s.count), default=0.0)
        lines.append(
            [test, *(f"**{s.text(digits)}**" if s.count and s.mean == best else s.text(digits) for s in spreads)]
        )
    return markdown(["stack", *methods], lines)


def beads_table(results: Results) -> str:
    """Widths of restored beads."""
    lines = []
    figures = beads(results)
    for row in figures:
        for method, values in figures[row].items():
            axial = results.spread("axial_nm", row, method).mean
            sd = results.spread("axial_sd_nm", row, method).mean
            lines.append(
                [
                    row,
                    method,
                    f"{axial:.0f} ± {sd:.0f}",
                    results.spread("lateral_nm", row, method).text(0),
                    f"{values['axial_over_true_lateral']:.3f}",
                    f"{values['axial_over_own_lateral']:.3f}",
                    f"{100 * values['spread']:.1f} %",
                    str(values["measured"]),
                    results.spread("psnr_db", row, method).text(),
                ]
            )
    header = [
        "stack",
        "method",
        "z-FWHM [nm]",
        "lateral FWHM [nm]",
        "z / true lateral",
        "z / own lateral",
        "spread",
        "n",
    ]
    return markdown([*header, "PSNR [dB]"], lines)
