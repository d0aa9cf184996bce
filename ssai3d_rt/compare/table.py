"""The comparison as a table, for a terminal and as markdown.

>>> in_short(1969009), in_short(240), in_short(0)
('1.97 M', '240', '-')
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ssai3d_rt.compare.run import Row

ABSENT = "-"


def columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the table by its headings; columns that no row fills are left out."""
    figures = [row.figures for row in rows]
    lateral = [row.notes.get("lateral_psnr_db") for row in rows]
    table = {
        "method": [row.method for row in rows],
        "PSNR dB": [_number(f.psnr_db, 2) for f in figures],
        "SSIM": [_number(f.ssim, 3) for f in figures],
        "NCC": [_number(f.ncc, 3) for f in figures],
        "axial um": [_number(f.axial_um, 3) for f in figures],
        "lateral um": [_number(f.lateral_um, 3) for f in figures],
        "isotropy": [_number(f.isotropy, 2) for f in figures],
        "residual %": [_number(100 * f.residual, 1) for f in figures],
        "held-out pairs dB": [_number(value, 2) for value in lateral],
        "trained": [in_short(row.trained_parameters) for row in rows],
        "fit s": [_number(row.fit_s, 0) if row.fit_s else ABSENT for row in rows],
        "restore s": [_number(row.restore_s, 1) for row in rows],
    }
    return {head: cells for head, cells in table.items() if set(cells) != {ABSENT}}


def terminal(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal."""
    from rich.table import Table

    table = Table(title="Methods compared", title_justify="left")
    by_head = columns(rows)
    for head in by_head:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=head == "method")
    for cells in zip(*by_head.values(), strict=True):
        table.add_row(*cells)
    return table


def markdown(rows: Sequence[Row], source: str) -> str:
    """Return the table as markdown, with what the methods are and what the columns mean."""
    by_head = columns(rows)
    lines = [f"# Methods compared on {source}", "", f"| {' | '.join(by_head)} |"]
    lines.append("|" + "|".join("---" if head == "method" else "--:" for head in by_head) + "|")
    lines += [f"| {' | '.join(cells)} |" for cells in zip(*by_head.values(), strict=True)]
    lines += ["", *(f"- `{row.method}`: {row.summary}" for row in rows), ""]
    lines += [f"{head}: {text}" for head, text in MEANINGS.items() if head in by_head]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


MEANINGS = {
    "PSNR dB": "against the truth, brightness and offset fitted; so is SSIM.\n",
    "axial um": "half-period at which the Fourier spectrum along Z ends; lateral: the same across.\n",
    "isotropy": "lateral over axial; 1 is isotropic.\n",
    "residual %": (
        "what the result, blurred and sampled again, leaves unexplained of the raw stack, relative to its contrast.\n"
    ),
    "held-out pairs dB": "PSNR on lateral planes that training did not see; each method makes its own pairs.\n",
    "trained": "numbers that training changed.",
}
"""What the headings mean."""


def in_short(count: int) -> str:
    """Write a number of parameters with at most three digits."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count) if count else ABSENT


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"
