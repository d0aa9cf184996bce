"""The daemon's vital signs as Prometheus metrics: numbers and fixed words, never the name of a file.

Labels come from fixed sets (states, kinds of faults) or are the number of a watched folder, so that there are never
more series than the daemon has states and folders; a word from elsewhere is counted as ``other``. Nothing is kept here:
each call writes what the vital signs say at that moment.

>>> from ssai3d_rt.runtime.vitals import Vitals
>>> [line for line in exposition(Vitals(["/raw"], scan_s=5.0)).decode().splitlines() if line.startswith("ssai3d_ready")]
['ssai3d_ready 0.0']
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import MissingPackageError
from ssai3d_rt.runtime.ledger import Fault, State
from ssai3d_rt.runtime.vitals import BUCKETS_S, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from ssai3d_rt.runtime.vitals import Vitals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"

_NUMBERS: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None]], ...] = (
    ("ssai3d_live", "1 while the daemon's loop goes round", lambda v: v["live"]),
    ("ssai3d_ready", "1 while new stacks will be restored", lambda v: v["ready"]),
    ("ssai3d_up_seconds", "Time since the daemon began", lambda v: v["up_s"]),
    ("ssai3d_heartbeat_age_seconds", "Time since the loop last went round", lambda v: v["beat_age_s"]),
    ("ssai3d_queue_depth", "Stacks that are complete and not published yet", lambda v: v["queue"]),
    ("ssai3d_paused", "1 while no stack is begun", lambda v: v["paused"]),
    ("ssai3d_ledger_ok", "1 while the ledger can be written", lambda v: v["ledger_ok"]),
    ("ssai3d_disk_free_bytes", "Free on the results' disk", lambda v: v["disk"] and v["disk"]["free_bytes"]),
    ("ssai3d_disk_reserve_bytes", "Of that, never used", lambda v: v["disk"] and v["disk"]["reserve_bytes"]),
    (
        "ssai3d_canary_passed",
        "1 while the golden tiles were reproduced",
        lambda v: v["canary"] and v["canary"]["passed"],
    ),
    (
        "ssai3d_canary_age_seconds",
        "Time since the golden tiles were tried",
        lambda v: v["canary"] and v["canary"]["age_s"],
    ),
    ("ssai3d_worker_failures", "Failures of the restoring process in a row", lambda v: v["worker"]["failures"]),
)
"""Name, help and value of each plain number; one whose value is not known yet is left out."""


def exposition(vitals: Vitals) -> bytes:
    """Write the vital signs in Prometheus' text format, version 0.0.4.

    Raises
    ------
    MissingPackageError
        `prometheus_client` is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        raise MissingPackageError("prometheus_client", extra="status") from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(vitals.snapshot()))
    return generate_latest(registry)


class _Collector:
    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        found = self._found
        for name, text, value_of in _NUMBERS:
            if (value := value_of(found)) is not None:
                yield GaugeMetricFamily(name, text, value=float(value))
        for name, value in _process():
            yield GaugeMetricFamily(name, "Of the daemon's process, without the restoring one", value=value)

        family = GaugeMetricFamily("ssai3d_stacks", "Stacks by state", labels=["state"])
        for state, number in _in_set(found["counts"], State).items():
            family.add_metric([state], number)
        yield family
        family = GaugeMetricFamily("ssai3d_worker_state", "1 at what the restoring process is at", labels=["state"])
        for worker in WorkerState:
            family.add_metric([worker.value], float(worker.value == found["worker"]["state"]))
        yield family
        good = GaugeMetricFamily("ssai3d_root_ok", "1 while a watched folder is read and scanned", labels=["root"])
        age = GaugeMetricFamily("ssai3d_root_scan_age_seconds", "Time since its last whole scan", labels=["root"])
        for number, root in enumerate(found["roots"]):
            good.add_metric([str(number)], float(root["ok"]))
            if root["scan_age_s"] is not None:
                age.add_metric([str(number)], root["scan_age_s"])
        yield good
        yield age

        counter = CounterMetricFamily("ssai3d_failures", "Stacks listed as failed, by fault", labels=["fault"])
        for fault, number in _in_set(found["faults"], Fault).items():
            counter.add_metric([fault], number)
        yield counter
        restarts = found["worker"]["restarts"]
        yield CounterMetricFamily("ssai3d_worker_restarts", "Times that the restoring process was replaced", restarts)
        for name, text, kept in (
            ("ssai3d_restoring_seconds", "Work on a published stack", found["seconds"]),
            ("ssai3d_latency_seconds", "From complete to published", found["latency"]),
        ):
            sums = itertools.accumulate(kept["buckets"])
            limits = [*(str(float(limit)) for limit in BUCKETS_S), "+Inf"]
            yield HistogramMetricFamily(name, text, list(zip(limits, sums, strict=True)), kept["sum_s"])


def _in_set(numbers: Mapping[str, int], known: type[State] | type[Fault]) -> dict[str, int]:
    """Return a number for each word of a fixed set; those of other words together as ``other``."""
    found = {word.value: numbers.get(word.value, 0) for word in known if word.value}
    if other := sum(number for word, number in numbers.items() if word not in found):
        found[OTHER] = other
    return found


def _process() -> Iterator[tuple[str, float]]:
    import psutil

    process = psutil.Process()
    yield "process_resident_memory_bytes", process.memory_info().rss
    yield "process_open_fds", process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
