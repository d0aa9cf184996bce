"""Metrics: what Prometheus' own parser reads from them is what the vital signs say, and no name is in them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.errors import MissingPackageError
from ssai3d_rt.runtime.ledger import Fault, State
from ssai3d_rt.runtime.metrics import exposition
from ssai3d_rt.runtime.vitals import Vitals, WorkerState

if TYPE_CHECKING:
    from collections.abc import Mapping

HOSTILE = 'evil"\n<script>{state="x"} 1'


@pytest.fixture(autouse=True)
def _needs() -> None:
    pytest.importorskip("prometheus_client", reason="the extra status is not installed")


def samples(vitals: Vitals) -> dict[tuple[str, tuple[str, ...]], float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(_values(sample.labels))): sample.value
        for family in text_string_to_metric_families(exposition(vitals).decode())
        for sample in family.samples
    }


def _values(labels: Mapping[str, str]) -> list[str]:
    return [labels[name] for name in sorted(labels)]


def filled() -> Vitals:
    vitals = Vitals(["/raw/a", "/raw/b"], scan_s=5.0)
    vitals.root("/raw/a")
    vitals.root("/raw/b", problem="gone")
    vitals.disk(7_000_000_000, 1_000_000_000)
    vitals.canary(True)
    vitals.worker(WorkerState.BUSY, restarts=2, failures=1)
    vitals.counts({"done": 12, "failed": 1, "ready": 4})
    vitals.failed("input")
    vitals.done(3.0, 40.0)
    vitals.done(4000.0, 4000.0)
    return vitals


def test_they_say_what_the_vital_signs_say() -> None:
    found = samples(filled())
    expected: dict[tuple[str, tuple[str, ...]], float] = {
        ("ssai3d_live", ()): 1,
        ("ssai3d_ready", ()): 0,
        ("ssai3d_stacks", ("done",)): 12,
        ("ssai3d_stacks", ("waiting",)): 0,
        ("ssai3d_queue_depth", ()): 4,
        ("ssai3d_failures_total", ("input",)): 1,
        ("ssai3d_root_ok", ("0",)): 1,
        ("ssai3d_root_ok", ("1",)): 0,
        ("ssai3d_disk_free_bytes", ()): 7_000_000_000,
        ("ssai3d_canary_passed", ()): 1,
        ("ssai3d_worker_state", ("busy",)): 1,
        ("ssai3d_worker_state", ("idle",)): 0,
        ("ssai3d_worker_restarts_total", ()): 2,
        ("ssai3d_worker_failures", ()): 1,
        ("ssai3d_restoring_seconds_bucket", ("2.0",)): 0,
        ("ssai3d_restoring_seconds_bucket", ("5.0",)): 1,
        ("ssai3d_restoring_seconds_bucket", ("+Inf",)): 2,
        ("ssai3d_restoring_seconds_sum", ()): 4003,
        ("ssai3d_latency_seconds_count", ()): 2,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["process_resident_memory_bytes", ()] > 1e6
    assert found["process_open_fds", ()] >= 3
    assert 0 <= found["ssai3d_heartbeat_age_seconds", ()] < 30


def test_what_is_not_known_yet_is_left_out() -> None:
    found = {name for name, _ in samples(Vitals(["/raw"], scan_s=5.0))}
    assert (
        not {"ssai3d_disk_free_bytes", "ssai3d_canary_passed", "ssai3d_root_scan_age_seconds", "ssai3d_ledger_ok"}
        & found
    )


def test_words_from_elsewhere_become_no_label() -> None:
    vitals = filled()
    vitals.counts({HOSTILE: 3, "done": 1})
    vitals.failed(HOSTILE)
    vitals.paused(HOSTILE)
    vitals.root("/raw/a", problem=HOSTILE)
    found = samples(vitals)
    assert b"evil" not in exposition(vitals)
    assert b"/raw" not in exposition(vitals)
    assert (found["ssai3d_stacks", ("other",)], found["ssai3d_failures_total", ("other",)]) == (3, 1)
    known: set[str] = {*(s.value for s in State), *(f.value for f in Fault), *(w.value for w in WorkerState)}
    labels = {label for name, label_values in found for label in label_values if not name.endswith("_bucket")}
    assert labels <= known | {"other", "0", "1"}


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = {"prometheus_client": None}
    for name, value in modules.items():
        monkeypatch.setitem(sys.modules, name, value)
    with pytest.raises(MissingPackageError, match=r'pip install "ssai3d-rt\[status\]"'):
        exposition(filled())
