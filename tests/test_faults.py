"""The fault suite itself: what it may not do is pass where nothing was tried, or where something broke."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import __main__ as suite
from tests.faults import drill as framework
from tests.faults.drill import REGISTRY, ROWS, Drill, Outcome, Record, drill, load, missing, perform
from tests.faults.lab import Lab, percentile
from tests.faults.table import BEGIN, END, Setting, line, updated

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
SETTING = Setting("2031-02-03", "4 cores, Linux 6.1")


def registered(run: Callable[[Lab], Outcome], **options: Any) -> Drill:
    """Register a drill in a registry of its own."""
    registry: dict[str, Drill] = {}
    defaults: dict[str, Any] = {"row": 7, "title": "a fault", "full_s": 1.0, "quick_s": 1.0, "registry": registry}
    drill(**defaults | options)(run)
    return registry.popitem()[1]


def holds(lab: Lab) -> Outcome:
    """Nothing is done."""
    return Outcome(True, {"stacks": 3}, "all three")


def breaks(lab: Lab) -> Outcome:
    """Nothing is done."""
    return Outcome(False, {}, "one | lost")


def crashes(lab: Lab) -> Outcome:
    """Nothing is done."""
    raise ZeroDivisionError("seven by zero")


def test_every_module_can_be_imported_and_every_drill_is_sound() -> None:
    assert load() == {}
    assert len(REGISTRY) >= 15
    for name, known in REGISTRY.items():
        assert known.name == name
        assert set(known.rows) <= set(ROWS)
        assert known.quick_s is None or 0 < known.quick_s <= known.full_s
        assert len(known.injection) > 20, name
    assert not [name for name, known in REGISTRY.items() if len({*known.rows}) != len(known.rows)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 0}, "not in the matrix"),
        ({"row": 49}, "not in the matrix"),
        ({"needs": ("linux", "a-microscope")}, "a-microscope"),
        ({"registry": {"holds": None}}, "there is a drill of this name"),
    ],
    ids=["row 0", "row 49", "need", "name"],
)
def test_a_drill_that_says_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    if "registry" in options:
        options = {"registry": {"holds": registered(holds)}}
    with pytest.raises(ValueError, match=message):
        registered(holds, **options)


def test_a_drill_must_say_how_the_fault_is_injected() -> None:
    def silent(lab: Lab) -> Outcome:
        return Outcome(True)

    with pytest.raises(ValueError, match="docstring"):
        registered(silent)


@pytest.mark.parametrize(
    ("run", "result", "words"),
    [(holds, "passed", "all three"), (breaks, "failed", "one | lost"), (crashes, "failed", "seven by zero")],
    ids=["holds", "breaks", "crashes"],
)
def test_what_comes_of_a_drill(
    run: Callable[[Lab], Outcome], result: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = perform(registered(run), Lab(tmp_path, quick=True))
    assert record.result == result
    assert words in record.summary
    assert ("Traceback" in record.summary) == (run is crashes)
    assert suite.finish([record], None, None) == (0 if result == "passed" else 1)
    suite.report(record, "")
    assert words in capsys.readouterr().out


def test_what_the_machine_lacks_is_said_and_never_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework, "_lacks", lambda need: f"there is no {need}")
    record = perform(registered(crashes, needs=("strace", "gcc")), Lab(tmp_path))
    assert (record.result, record.summary) == ("skipped", "there is no strace; there is no gcc")


def test_needs_are_looked_for() -> None:
    assert missing(()) == ""
    assert (missing(("linux",)) == "") == sys.platform.startswith("linux")
    for need in framework.needs_known():
        if need not in ("mount", "loop"):  # those take a moment; the suite looks
            assert isinstance(missing((need,)), str)


def test_choosing() -> None:
    drills = {
        "a": registered(holds, row=9),
        "b": registered(breaks, row=(3, 5), quick_s=None),
        "c": registered(crashes, row=3),
    }
    assert [known.run for known in suite.choose(drills, [], quick=False)] == [crashes, breaks, holds]
    assert [known.run for known in suite.choose(drills, [], quick=True)] == [crashes, holds]
    assert [known.run for known in suite.choose(drills, ["ho*"], quick=False)] == [holds]
    assert len(suite.choose(drills, ["test_faults"], quick=False)) == 3


def test_the_table_is_the_same_each_time_and_keeps_what_was_not_run() -> None:
    drills = {
        "holds": registered(holds, row=9, bar=2),
        "breaks": registered(breaks, row=(3, 5), title="a | fault"),
        "crashes": registered(crashes, row=4),
    }
    records = [
        Record("holds", "passed", "all three", {"stacks": 3, "p95_s": 0.25}, 12.3, False),
        Record("breaks", "failed", "one | lost\nin /tmp/faults-abc123/incoming/a.tif", {}, 1.0, False),
    ]
    empty = f"# Title\n\n{BEGIN}\n{END}\nafter\n"
    once = updated(empty, records, drills, SETTING)
    assert once == updated(empty, list(reversed(records)), drills, SETTING)
    assert once == updated(once, [], drills, SETTING)
    assert once == updated(once, records, drills, SETTING)
    assert once.startswith("# Title\n")
    assert once.endswith("after\n")
    assert once.index("`breaks`") < once.index("`holds`")
    assert "| 9 | a fault | Nothing is done. | `holds` | passed, bar 2 | all three | stacks 3, p95_s 0.25 |" in once
    assert "| 3, 5 | a / fault | Nothing is done. | `breaks` | failed | one / lost |  |" in once
    later = updated(once, [Record("crashes", "skipped", "no root", {}, 0.0, True)], drills, SETTING)
    assert "| skipped (quick) | no root |" in later
    assert later.count("all three") == 1
    gone = {name: known for name, known in drills.items() if name != "holds"}
    assert "`holds`" not in updated(once, [], gone, SETTING)
    with pytest.raises(ValueError, match="lacks the lines"):
        updated("# Title\n", records, drills, SETTING)


def test_a_line_of_the_table_names_no_folder_of_this_machine() -> None:
    record = Record("holds", "failed", "/some/where/faults-x1y2/incoming/a.tif <b> is gone", {}, 0.0, False)
    assert "LAB/incoming/a.tif &lt;b> is gone" in line(record, registered(holds), SETTING)


def test_the_documentation_has_its_table() -> None:
    document = ROOT / "docs" / "reliability.md"
    text = document.read_text(encoding="utf-8")
    load()
    assert updated(text, [], REGISTRY, SETTING) == text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="drills run on Linux")
def test_a_lab_notices_what_is_wrong(tmp_path: Path) -> None:
    lab = Lab(tmp_path, quick=True)
    first, second = lab.stacks(2)
    with lab.daemon(quiet_s=0.05) as daemon:
        lab.wait_done(2)
        assert daemon.restorer() in daemon.children()
        assert daemon.terminate() == 0
    assert lab.check(done=2) == []
    assert lab.check(done=3) == ["2 are done, 3 should be"]
    good, other = lab.finals()
    other.write_bytes(good.read_bytes())
    (lab.out / ".ssai3d-00000000.tmp").touch()
    (lab.out / "foreign.ome.tif").touch()
    second.write_bytes(first.read_bytes())
    complaints = lab.check()
    assert f"raw changed: {second.name}" in complaints
    assert "left over: .ssai3d-00000000.tmp" in complaints
    assert "nobody's result: foreign.ome.tif" in complaints
    assert f"{other.name} is not what the ledger says" in complaints


def test_percentiles() -> None:
    assert [percentile(range(1, 101), share) for share in (0.5, 0.95, 1.0)] == [50, 95, 100]
    assert percentile([], 0.95) == 0.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="drills run on Linux")
def test_drills_side_by_side_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    load()
    chosen = [REGISTRY["two_daemons"], REGISTRY["sync_audit"]]
    records = suite.run_all(chosen, quick=True, jobs=2)
    assert [record.name for record in records] == ["two_daemons", "sync_audit"]
    assert {record.result for record in records} <= {"passed", "skipped"}, capsys.readouterr().out
    assert records[0].quick


def test_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults"]
    done = subprocess.run([*command, "--list", "--quick"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "random_kills" in done.stdout
    done = subprocess.run([*command, "--only", "no-such-drill"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no drill no-such-drill" in done.stderr


def test_the_figures_as_json(tmp_path: Path) -> None:
    record = Record("holds", "passed", "all", {"stacks": 3}, 1.0, False)
    assert suite.finish([record], tmp_path / "figures.json", None) == 0
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["drills"][0]["figures"] == {"stacks": 3}
    assert "cores" in found["machine"]
