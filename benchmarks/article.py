"""The article's benchmark: simulated stacks with known truth, restored by all methods side by side.

python benchmarks/article.py --quick

Takes about half an hour on two processor cores; --full is for a machine with a GPU. Results are kept as they come:
after an interruption the same command goes on where it was. Prints the tables and, as its last line, one JSON object.
A run of everything writes docs/benchmark.md with its pictures; a part of it writes the same beside its results:

python benchmarks/article.py --quick --rows cylinders,beads --methods raw,base,ssai3d
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

# Before numpy and torch are imported, here and in the worker processes: the workers share the cores among them.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from suite.bars import bars
from suite.methods import known
from suite.report import write
from suite.results import Results
from suite.rows import FULL, QUICK, SMOKE, rows
from suite.run import done, jobs_of, missing, read, run

from ssai3d_rt.console import progress_to

ROOT = Path(__file__).resolve().parent.parent
SIZES = {size.name: size for size in (QUICK, FULL, SMOKE)}


def main() -> int:
    """Run what is missing, then report; returns 1 where a job failed."""
    asked = _arguments()
    size = SIZES[asked.size]
    if asked.seeds is not None:
        size = dataclasses.replace(size, seeds=asked.seeds, few=asked.seeds)
    chosen = [row for row in rows(size) if asked.rows is None or row.name in asked.rows or row.group in asked.rows]
    jobs = jobs_of(chosen, size, asked.methods)
    absent = sorted({name for row in chosen for name in row.methods if not known(name)})
    if absent:
        print(f"not among the methods, left out: {', '.join(absent)}", file=sys.stderr)
    if not jobs:
        every = rows(size)
        groups = ", ".join(dict.fromkeys(row.group for row in every))
        print(f"no such rows or methods; rows: {', '.join(r.name for r in every)}; groups: {groups}", file=sys.stderr)
        return 2
    path = asked.out / f"article-{size.name}.jsonl"
    if asked.fresh:
        path.unlink(missing_ok=True)
    todo = missing(jobs, read(path))
    minutes = sum(job.cost_s for job in todo) / 60 / max(asked.workers, 1)
    print(f"{len(todo)} of {len(jobs)} jobs to do, {asked.workers} workers, about {minutes:.0f} min", file=sys.stderr)
    begun = time.monotonic()
    failed = []
    if todo and not asked.report:
        with progress_to(sys.stderr) as progress:
            failed = run(todo, path, workers=asked.workers, progress=progress)
    results = Results(done(jobs, read(path)))
    figures = bars(results)
    whole = asked.rows is None and asked.methods is None and asked.seeds is None and size is not SMOKE
    folder = asked.docs or (ROOT / "docs" if whole and not failed else asked.out)
    print(write(results, chosen, size, figures, folder))
    for result in failed:
        print(f"failed: {result['row']}, {result['method']}, seed {result['seed']}: {result['error']}", file=sys.stderr)
    left = len(missing(jobs, read(path)))
    summary = {"size": size.name, "jobs": len(jobs), "left": left, "seconds": round(time.monotonic() - begun, 1)}
    print(json.dumps(summary | {"page": str(folder / "benchmark.md"), "bars": figures}))
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    for name, explained in (
        ("quick", "half an hour on two cores (the default)"),
        ("full", "larger volumes, more seeds and longer training, for a GPU"),
        ("smoke", "tiny volumes, raw and base alone: does it work?"),
    ):
        sizes.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=explained)
    names = {"type": lambda text: [name.strip() for name in text.split(",")], "metavar": "NAME,NAME"}
    parser.add_argument("--rows", **names, help="names of rows or of groups of rows; all by default")
    parser.add_argument("--methods", **names, help="names of methods; all by default")
    parser.add_argument("--seeds", type=int, help="seeds of every row; of the size by default")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each; 0: in this process")
    parser.add_argument("--out", type=Path, default=Path("benchmark-out"), help="folder of the results [benchmark-out]")
    parser.add_argument("--docs", type=Path, help="folder of the page and its pictures [docs, or --out for a part]")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page from what is there")
    parser.set_defaults(size="quick")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
