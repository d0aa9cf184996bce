"""Results gathered over seeds: means and spreads, and differences between methods, seed by seed."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over seeds, and how many; the deviation is NaN for one."""

    mean: float
    sd: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Gather values; NaN for none."""
        listed = list(values)
        if not listed:
            return cls(math.nan, math.nan, 0)
        sd = statistics.stdev(listed) if len(listed) > 1 else math.nan
        return cls(statistics.fmean(listed), sd, len(listed))

    def text(self, digits: int = 2, *, sign: bool = False) -> str:
        """Write it for a table: ``26.98 ± 0.31``, without the deviation where there is one seed; empty for none."""
        if self.count == 0 or math.isnan(self.mean):
            return ""
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return mean if math.isnan(self.sd) else f"{mean} ± {self.sd:.{digits}f}"


class Results:
    """All results of a run.

    Parameters
    ----------
    found
        As `suite.job.run` gives them, without errors.
    """

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self.found = found

    def values(self, field: str, row: str, method: str, test: str | None = None) -> dict[int, float]:
        """Return one value by seed; seeds that have none are absent."""
        return {
            r["seed"]: float(r[field])
            for r in self.found
            if r["row"] == row and r["method"] == method and r["test"] == (test or row) and r.get(field) is not None
        }

    def spread(self, field: str, row: str, method: str, test: str | None = None) -> Spread:
        """Gather one value over the seeds."""
        return Spread.of(self.values(field, row, method, test).values())

    def gain(self, row: str, method: str, over: str, field: str = "psnr_db") -> Spread:
        """Gather the difference of two methods over the seeds that both have."""
        a, b = self.values(field, row, method), self.values(field, row, over)
        return Spread.of(a[seed] - b[seed] for seed in sorted(a.keys() & b.keys()))

    def methods(self, group: str) -> list[str]:
        """Return the methods of a group, in the order in which they are first seen."""
        return list(dict.fromkeys(r["method"] for r in self.found if r["group"] == group))

    def tests(self, group: str) -> list[tuple[str, str]]:
        """Return ``(row, test)`` of a group, in the order in which they are first seen."""
        return list(dict.fromkeys((r["row"], r["test"]) for r in self.found if r["group"] == group))


def mean_of(spreads: Iterable[Spread]) -> float:
    """Return the mean of means; NaN if there are none, or one is absent."""
    means = [s.mean for s in spreads]
    return statistics.fmean(means) if means else math.nan
