"""Whatever happens to a watched folder and to the daemon, nothing is lost, nothing comes twice, nothing is wrong."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.runtime.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be renamed on Windows")
def test_nothing_is_lost_or_done_twice_or_wrong() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def away_when_due(machine: Machine) -> None:
    machine.replace(name="a.tif", seed=0, told=0)
    machine._step(2.1)  # seen by a scan
    machine.unmount(empty=False)
    machine._step(1.1)  # it would be judged now
    machine.unmount(empty=False)


def away_for_long(machine: Machine) -> None:
    away_when_due(machine)
    machine.unmount(empty=True)
    for _ in range(4):
        machine._step(2.1)
    machine.unmount(empty=True)


def away_when_ready(machine: Machine) -> None:
    machine.replace(name="a.tif", seed=0, told=0)
    machine._step(2.1)
    machine.now += 1.1
    machine.intake.step(machine.now)
    machine.unmount(empty=False)
    machine.line.step(machine.now)
    machine.unmount(empty=False)


@pytest.mark.parametrize("what", [away_when_due, away_for_long, away_when_ready])
def test_a_file_whose_folder_was_away_for_a_moment_is_not_forgotten(what: Callable[[Machine], None]) -> None:
    machine = Machine()
    machine.begin()
    try:
        what(machine)
    finally:
        machine.teardown()
