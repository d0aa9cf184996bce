"""Run jobs in worker processes, one thread each; every result is appended to a file at once: a run can be taken up."""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from suite import job as one
from suite.job import Job
from suite.methods import known

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ssai3d_rt.progress import Progress
    from suite.rows import Row, Size

FIRST_SEED = 1


def jobs_of(rows: Iterable[Row], size: Size, methods: Iterable[str] | None = None) -> list[Job]:
    """List the jobs of some rows, of all methods that exist or of those named."""
    wanted = None if methods is None else set(methods)
    return [
        Job(row, name, seed, size.crop)
        for row in rows
        for seed in range(FIRST_SEED, FIRST_SEED + row.seeds)
        for name in row.methods
        if seed == FIRST_SEED or name not in size.once
        if known(name) and (wanted is None or name in wanted)
    ]


def read(path: Path) -> list[dict[str, Any]]:
    """Read results; a last line that was cut off when a run was interrupted is left out."""
    if not path.is_file():
        return []
    parsed = [_parsed(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [result for result in parsed if result is not None]


def done(jobs: Iterable[Job], results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results that belong to these jobs, as they are defined now, the latest of each, in the jobs' order."""
    jobs = list(jobs)
    digests = {(j.row.name, j.method, j.seed): j.digest for j in jobs}
    latest: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for result in results:
        key = (result["row"], result["method"], result["seed"])
        if digests.get(key) == result["digest"] and "error" not in result:
            latest[(*key, result["test"])] = result
    keys = [(j.row.name, j.method, j.seed, name) for j in jobs for name, _ in j.row.restored]
    return [latest[key] for key in keys if key in latest]


def missing(jobs: Iterable[Job], results: Iterable[dict[str, Any]]) -> list[Job]:
    """Return the jobs that have no result yet."""
    jobs = list(jobs)
    there = {(r["row"], r["method"], r["seed"], r["test"]) for r in done(jobs, results)}
    return [j for j in jobs if any((j.row.name, j.method, j.seed, name) not in there for name, _ in j.row.restored)]


def run(jobs: list[Job], path: Path, *, workers: int, progress: Progress) -> list[dict[str, Any]]:
    """Do jobs and append their results to a file; returns the results that are errors.

    Parameters
    ----------
    jobs
        The costly ones of a group should not stand last: workers take them in this order.
    path
        JSON lines.
    workers
        Processes; 0 does the jobs in this one.
    progress
        Told the jobs done, and the minutes left as the times so far suggest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")  # a line that an interruption cut off must not swallow the next one
    failed: list[dict[str, Any]] = []
    begun = time.monotonic()
    whole = sum(job.cost_s for job in jobs)
    spent = 0.0

    def finish(number: int, job: Job, results: list[dict[str, Any]]) -> None:
        nonlocal spent
        spent += job.cost_s
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(result) + "\n" for result in results)
        failed.extend(r for r in results if "error" in r)
        left_s = (time.monotonic() - begun) * (whole - spent) / spent
        progress(f"jobs, about {left_s / 60:.0f} min left", number, len(jobs))

    if workers == 0:
        _one_thread()
        for number, job in enumerate(jobs, 1):
            finish(number, job, one.run(job))
        return failed
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        waiting = {pool.submit(one.run, job): job for job in jobs}
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                finish(number, waiting[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        result = json.loads(line)
    except json.JSONDecodeError:
        return None
    return result if isinstance(result, dict) else None


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
