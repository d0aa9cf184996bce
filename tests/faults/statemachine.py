"""The state machine of `tests.runtime.machine`, for long: more than ten thousand steps against the model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.faults.drill import Outcome, drill
from tests.runtime.machine import Machine

if TYPE_CHECKING:
    from tests.faults.lab import Lab

STEPS = 10_000


@drill(row=23, title="events lost, late and twice, and everything else at random", quick_s=25, full_s=400)
def state_machine(lab: Lab) -> Outcome:
    """Hypothesis adds, grows, renames, replaces, deletes, submits, kills, fills disks and unmounts against a model."""
    wanted = STEPS // 12 if lab.quick else STEPS
    before, kills, rounds = Machine.steps, Machine.kills, 0
    logging.disable(logging.CRITICAL)  # each unmounted folder is a warning
    try:
        while Machine.steps - before < wanted:
            rounds += 1
            run_state_machine_as_test(Machine, settings=_settings(lab))
    except AssertionError as error:
        return Outcome(
            False, {"steps": Machine.steps - before}, "\n".join([str(error), *getattr(error, "__notes__", [])])
        )
    finally:
        logging.disable(logging.NOTSET)
    figures = {"steps": Machine.steps - before, "kills": Machine.kills - kills}
    return Outcome(True, figures, f"{figures['steps']} steps, {figures['kills']} kills, 0 violations")


def _settings(lab: Lab) -> settings:
    return settings(
        max_examples=10 if lab.quick else 60,
        stateful_step_count=50,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
