"""Results that lie there when the ledger is new: taken over where they are whole, and only then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.runtime.book import Book
from ssai3d_rt.runtime.ledger import Job, Ledger, State
from ssai3d_rt.runtime.results import Results
from ssai3d_rt.runtime.source import identity
from tests.runtime.daemon import stack_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssai3d_rt.runtime.messages import Restorer

MINE, OTHER = "c" * 64, "d" * 64


@dataclass
class Known:
    """A recipe that knows its results by name: content, and of how many files the result is."""

    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    bundle_id: str = "b"
    parameters: str = "{}"

    def open(self, most_tiles: int | None = None, /) -> Restorer:
        raise NotImplementedError

    def made(self, result: Path, content: str, /) -> int:
        found, files = self.files.get(result.name, ("", 0))
        return files if found == content else 0


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    with Ledger(tmp_path / "ledger.sqlite", Job("b", "{}")) as ledger:
        yield Book(ledger)


CASES: dict[str, tuple[str, dict[str, tuple[str, int]], list[str]]] = {
    "one file": ("a.ome.tif", {"a_iso.ome.tif": (MINE, 1)}, ["a_iso.ome.tif"]),
    "of another content": ("a.ome.tif", {"a_iso.ome.tif": (OTHER, 1)}, []),
    "with its trust map": (
        "a.tif",
        {"a_iso.ome.tif": (MINE, 2), "a_trust.ome.tif": (MINE, 2)},
        ["a_iso.ome.tif", "a_trust.ome.tif"],
    ),
    "without its trust map": ("a.tif", {"a_iso.ome.tif": (MINE, 2)}, []),
    "both positions": (
        "run.ome.tif",
        {"run_p000_iso.ome.tif": (MINE, 2), "run_p001_iso.ome.tif": (MINE, 2)},
        ["run_p000_iso.ome.tif", "run_p001_iso.ome.tif"],
    ),
    "one position of two": ("run.ome.tif", {"run_p000_iso.ome.tif": (MINE, 2)}, []),
    "a copy under a longer name": ("a.tif", {"a_b_iso.ome.tif": (MINE, 1)}, []),
    "a zarr's": ("a.ome.zarr", {"a_iso.ome.tif": (MINE, 1)}, ["a_iso.ome.tif"]),
}


@pytest.mark.parametrize(("name", "files", "adopted"), CASES.values(), ids=CASES)
def test_what_is_taken_over(
    book: Book, tmp_path: Path, name: str, files: dict[str, tuple[str, int]], adopted: list[str]
) -> None:
    source = stack_file(tmp_path / name)
    out = tmp_path / "out"
    out.mkdir()
    for file in files:
        (out / file).write_bytes(b"a result")
    entry = book.move(book.see(source, identity(source)), State.READY)
    assert Results(book, Known(files)).exists_already(entry, MINE, out) is bool(adopted)
    assert [result.path.name for result in book[source].results] == adopted
    assert book[source].state is (State.DONE if adopted else State.READY)


def test_what_another_row_claims_is_not_taken_over(book: Book, tmp_path: Path) -> None:
    first, second = stack_file(tmp_path / "a.tif"), stack_file(tmp_path / "a.tiff")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_iso.ome.tif").write_bytes(b"a result")
    results = Results(book, Known({"a_iso.ome.tif": (MINE, 1)}))
    rows = [book.move(book.see(path, identity(path)), State.READY) for path in (first, second)]
    assert [results.exists_already(row, MINE, out) for row in rows] == [True, False]
