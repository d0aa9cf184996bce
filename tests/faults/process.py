"""Death and arrest of the daemon's processes: kills, polite ends, stops, a second daemon, a crash loop."""

from __future__ import annotations

import random
import time

from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, percentile


@drill(row=3, title="SIGTERM while busy", quick_s=20, full_s=150, needs=("linux",))
def polite_stops(lab: Lab) -> Outcome:
    """SIGTERM at random moments while stacks are restored; then the next start."""
    stops, rng = (6 if lab.quick else 50), random.Random(3)
    sources = lab.stacks(stops)
    statuses, seconds = [], []
    for _ in range(stops):
        with lab.daemon(delay_s=0.1, quiet_s=0.05, stop_s=2.0) as daemon:
            time.sleep(rng.uniform(0.0, 1.2))
            began = time.monotonic()
            statuses.append(daemon.terminate())
            seconds.append(time.monotonic() - began)
    before = lab.finals()
    with lab.daemon(quiet_s=0.05):
        lab.wait_done(len(sources))
    again = [path.name for path, mark in before.items() if lab.finals().get(path) != mark]
    complaints = [*lab.check(done=len(sources)), *(f"published again: {name}" for name in again)]
    complaints += [f"a stop ended with status {status}" for status in statuses if status]
    figures = {"stops": stops, "done_before_last": len(before), "stop_p95_s": percentile(seconds, 0.95)}
    return Outcome(not complaints, figures, _words(complaints, f"{stops} of {stops} ended with status 0, none twice"))


@drill(row=6, title="two daemons on one ledger", quick_s=6, full_s=10, needs=("linux",))
def two_daemons(lab: Lab) -> Outcome:
    """The same command line is started a second time while the first one works."""
    lab.stacks(5)
    with lab.daemon(delay_s=0.1) as first:
        with lab.daemon(delay_s=0.1, wait=False) as second:
            status = second.process.wait(30)
            words = second.log
        lab.wait_done(5)
        assert first.alive
    refused = status != 0 and "another watch (process " in words
    complaints = [*lab.check(done=5), *([] if refused else [f"the second ended with {status}: {words[-300:]}"])]
    restored = lab.log.read_text().split()
    complaints += [] if len(restored) == len(set(restored)) else ["a stack was restored twice"]
    return Outcome(not complaints, {"status": status}, _words(complaints, "the second one ends with a clear message"))


def _words(complaints: list[str], good: str) -> str:
    """Return what to say: the first complaints, or what is good."""
    return "; ".join(complaints[:5]) + (f" and {len(complaints) - 5} more" if complaints[5:] else "") or good
