"""How often is a model called stale: for stacks of its own kind (false alarms), and for others.

python benchmarks/stale.py

Each kind of sample is simulated with several seeds (96^3, every second plane, axial blur std 4 px, 500 photons). Rows
are what a model was adapted to, columns what it is given; a cell is the share of pairs of seeds with a warning. The
last columns are the row's own kind of sample, taken otherwise. Prints the table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from trust import SAMPLES

from ssai3d_rt.calibration.character import Character, measure_character
from ssai3d_rt.imaging.simulate import Camera, acquire
from ssai3d_rt.runtime.stale import changes

WAYS: dict[str, dict[str, Any]] = {
    "3x bright": {"camera": Camera(full_scale=12000)},
    "pixel x2": {"pixel_um": 0.2},
    "z step x2": {"step": 4},
    "blur x1.5": {"std_px": (6.0, 0.5, 0.5)},
    "blur x2": {"std_px": (8.0, 0.5, 0.5)},
    "photons/10": {"camera": Camera(photons=50, offset=600)},
}
"""Other ways to take a stack."""


def character(sample: str, seed: int, **way: Any) -> Character:
    """Simulate one stack and measure it."""
    return measure_character(acquire(SAMPLES[sample](seed), way.pop("step", 2), seed=seed, **way))


def share(now: list[Character], then: list[Character]) -> float:
    """Share of pairs of different seeds that differ."""
    pairs = [(a, b) for i, a in enumerate(now) for j, b in enumerate(then) if i != j]
    return sum(bool(changes(a, b)) for a, b in pairs) / len(pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    seeds = range(1, asked.seeds + 1)
    known = {sample: [character(sample, seed) for seed in seeds] for sample in SAMPLES}
    others = {s: {way: [character(s, seed, **how) for seed in seeds] for way, how in WAYS.items()} for s in known}
    names = [*known, *WAYS]
    print(f"{'':13}" + "".join(f"{name:>13}" for name in names))
    rows = {}
    for sample, then in known.items():
        given = known | others[sample]
        rows[sample] = {name: round(share(given[name], then), 2) for name in names}
        print(f"{sample:13}" + "".join(f"{rows[sample][name]:13.2f}" for name in names), flush=True)
    print(json.dumps({"seeds": asked.seeds, "rows": rows}))


if __name__ == "__main__":
    main()
