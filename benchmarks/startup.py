"""How long the command line takes to answer, and which imports that time goes to.

python benchmarks/startup.py

Prints a table and one JSON line. Each figure is the median of several fresh processes.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time

LINES = (["--help"], ["version"], ["restore", "--help"], ["doctor"])
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)")


def seconds(arguments: list[str]) -> float:
    """Time one fresh process."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ssai3d_rt.cli", *arguments], capture_output=True, check=False)
    return time.perf_counter() - begin


def slowest_imports(count: int) -> list[tuple[str, float]]:
    """Return the modules that take longest of their own for ``--help``, in milliseconds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ssai3d_rt.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [(match[3], int(match[1]) / 1000) for match in IMPORT.finditer(done.stderr)]
    return sorted(found, key=lambda entry: -entry[1])[:count]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    result = {}
    print(f"{'command line':24} median of {repeats} [s]")
    for arguments in LINES:
        name = " ".join(["ssai3d-rt", *arguments])
        result[name] = round(statistics.median(seconds(arguments) for _ in range(repeats)), 3)
        print(f"{name:24} {result[name]:.3f}")
    print("\nslowest imports of --help [ms]")
    for name, own_ms in slowest_imports(8):
        print(f"{name:40} {own_ms:.1f}")
    print(json.dumps({"seconds": result, "help_below_1_s": result["ssai3d-rt --help"] < 1.0}))


if __name__ == "__main__":
    main()
