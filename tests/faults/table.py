"""The table in the documentation, written from what was measured.

One line per drill, between two markers. A run of some drills replaces their lines and leaves the others, so a line
always tells of the last time that its fault was tried; a drill that no longer exists loses its line.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.faults.drill import Drill, Record

BEGIN, END = "<!-- faults: begin, written by python -m tests.faults -->", "<!-- faults: end -->"
_HEAD = """\
| row | fault | how it is injected | drill | result | what was seen | figures | when, where |
|---|---|---|---|---|---|---|---|
"""
_LINE = re.compile(r"^\| [\d, ]+ \|(?:[^|\n]*\|){2} `(\w+)` \|.*$", re.MULTILINE)
_LONG = 400


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and when it was measured."""

    date: str
    machine: str


def this_machine() -> str:
    """Cores and kernel; nothing that tells one machine of a kind from another."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"


def updated(text: str, records: Sequence[Record], drills: Mapping[str, Drill], setting: Setting) -> str:
    """Return a document with the lines of these records in its table.

    Raises
    ------
    ValueError
        The document has no markers.
    """
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks the lines {BEGIN!r} and {END!r}")
    lines = {match[1]: match[0] for match in _LINE.finditer(table) if match[1] in drills}
    lines |= {record.name: line(record, drills[record.name], setting) for record in records if record.name in drills}
    ordered = sorted(lines, key=lambda name: (drills[name].rows, name))
    return f"{before}{begin}\n{_HEAD}" + "".join(f"{lines[name]}\n" for name in ordered) + f"{end}{after}"


def line(record: Record, drill: Drill, setting: Setting) -> str:
    """One line of the table."""
    result = record.result if not record.quick else f"{record.result} (quick)"
    if drill.bar is not None:
        result += f", bar {drill.bar}"
    cells = (
        ", ".join(map(str, drill.rows)),
        _cell(drill.title),
        _cell(drill.injection),
        f"`{record.name}`",
        result,
        _cell(record.summary.partition("\n")[0]),
        _cell(", ".join(f"{key} {_plain(value)}" for key, value in record.figures.items())),
        f"{setting.date}, {setting.machine}, {record.seconds:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def write(document: Path, records: Sequence[Record], drills: Mapping[str, Drill], setting: Setting) -> None:
    """Put the records into the table of a document."""
    text = document.read_text(encoding="utf-8")
    document.write_text(updated(text, records, drills, setting), encoding="utf-8", newline="\n")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _cell(text: str) -> str:
    """Text that cannot break a table; the folder of the run is of no interest."""
    plain = re.sub(r"(/[\w.~-]+)*/faults-\w+", "LAB", " ".join(text.split()))
    plain = plain.replace("|", "/").replace("<", "&lt;").replace("\\", "/")
    return plain if len(plain) <= _LONG else f"{plain[:_LONG]}..."
