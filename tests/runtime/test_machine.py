"""Whatever happens to a watched folder and to the daemon, nothing is lost, nothing comes twice, nothing is wrong."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.runtime.machine import Machine


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be renamed on Windows")
def test_nothing_is_lost_or_done_twice_or_wrong() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
