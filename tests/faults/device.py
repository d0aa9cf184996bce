"""A device that goes wrong under the restorer: too little memory, sticky errors, hangs, silent garbage.

A right result is known for every stack, so that one published wrong is seen. The stacks show a few bright blobs, as a
sample does; on pure noise a last look at a result can tell nothing, see `nothing_to_see`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.runtime.ledger import State
from tests.faults.badrestorer import GARBAGE, BadRecipe, Fault, plan_of
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ssai3d_rt.runtime.ledger import Entry

STALL_S = 2.0
"""The drills' patience with a restorer that says nothing."""

CALLS = 6
"""Of the network for one stack, with as many tiles at once as the restorer likes."""

FEINT = ("tiles mixed", "half zeros", "five percent off")
"""Garbage that keeps bright places bright: only the golden tiles tell, not the look of the result."""


def blobs(path: Path, seed: int) -> Path:
    """Write a stack of four blobs, ``(10, 48, 48)`` uint16."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:10, :48, :48].astype(np.float32)
    light = np.full(z.shape, 100, np.float32)
    for _ in range(4):
        cz, cy, cx = rng.uniform((1, 6, 6), (8, 42, 42))
        reach = rng.uniform(3, 7)
        bright = rng.uniform(600, 3000)
        light += bright * np.exp(-(((z - cz) / 2) ** 2) / 2 - ((y - cy) ** 2 + (x - cx) ** 2) / (2 * reach**2))
    write_ome_tiff(path, Stack(rng.poisson(light).astype(np.uint16), (0.2, 0.1, 0.1)))
    return path


def blob_stacks(lab: Lab, number: int, prefix: str = "") -> list[Path]:
    """Write so many of them, each under its name at once."""
    paths = []
    for seed in range(number):
        hidden = blobs(lab.folder / "hidden.ome.tif", seed)
        paths.append(lab.incoming / f"{prefix}{seed:04d}.ome.tif")
        os.rename(hidden, paths[-1])
    lab.remember(*paths)
    return paths


@dataclass(frozen=True)
class Seen:
    """What came of a plan of faults."""

    complaints: list[str]
    figures: dict[str, Any]
    failed: list[Entry]


def suffer(
    lab: Lab, sources: Sequence[Path], faults: dict[str, Fault], *, failing: Sequence[str] = (), **settings: Any
) -> Seen:
    """Have a daemon restore the sources while all that is planned happens; `failing` are those that cannot be done."""
    recipe = BadRecipe(lab.log, faults=faults)
    done = len(sources) - len(failing)
    wanted = {"done": done} | ({"failed": len(failing)} if failing else {})
    settings = {"stall_s": STALL_S, "quiet_s": 0.05, "attempts": 4} | settings
    with lab.daemon(recipe=recipe, **settings) as daemon:
        lab.wait(lambda: lab.counts() == wanted, 60 + 8 * len(faults) + len(sources), poll_s=0.05)
        log = daemon.log
    happened = recipe.events()
    struck = [event for event in happened if event["event"] == "fault"]
    complaints = lab.check(done=done)
    complaints += [f"{name} was planned and did not happen" for name in set(faults) - {e["name"] for e in struck}]
    complaints += [
        f"{event['name']} restored by a process after its fault ({fault['kind']})"
        for fault in struck
        for event in happened
        if fault["kind"] in ("memory", "memory-words", "sticky", "bug", "hang")
        and (event["event"], event["pid"]) == ("restored", fault["pid"])
        and event["at"] > fault["at"]
    ]
    failed = [entry for entry in lab.entries() if entry.state is State.FAILED]
    complaints += [f"{entry.path.name} failed: {entry.reason}" for entry in failed if entry.path.name not in failing]
    ends = [float(line.split()[0]) for line in log.splitlines() if " event done " in line]
    waits = [min((end - fault["at"] for end in ends if end > fault["at"]), default=0.0) for fault in struck]
    figures = {
        "stacks": len(sources),
        "faults": len(struck),
        "kinds": dict(sorted(Counter(event["kind"] for event in struck).items())),
        "recovery_p50_s": percentile(waits, 0.5),
        "recovery_p95_s": percentile(waits, 0.95),
        "wrong_published": sum("is not the restoration of" in complaint for complaint in complaints),
    }
    return Seen(complaints, figures, failed)


def told(seen: Seen, good: str) -> Outcome:
    """Outcome of a plan of faults."""
    recovery = f"next stack done {seen.figures['recovery_p95_s']} s after a fault (p95)"
    return Outcome(not seen.complaints, seen.figures, "; ".join(seen.complaints[:6]) or f"{good}; {recovery}")


@drill(row=35, title="the device runs out of memory at the Nth call", bar=9, quick_s=15, full_s=60, needs=("linux",))
def too_little_memory(lab: Lab) -> Outcome:
    """MemoryError, or an error that speaks of memory, at a call of the network, until so few tiles at once fit."""
    number = 10 if lab.quick else 40
    sources = blob_stacks(lab, number)
    rng = random.Random(35)
    kinds = ("memory", "memory-words")
    fits = [*(8 if at < number // 3 else 4 if at < number // 2 else rng.choice((2, 4)) for at in range(number - 1)), 0]
    faults: list[Fault | None] = [Fault(rng.choice(kinds), rng.randint(1, CALLS), fit, times=99) for fit in fits[:-1]]
    faults = [fault if at % 2 == 0 else None for at, fault in enumerate(faults)]
    never = sources[-1].name  # it cannot be done with a single tile at once either
    plan = plan_of(list(sources), [*faults, Fault("memory-words", times=99)])
    kept = {name: fault for name, fault in plan.items() if name == never or fault.fits < 16}
    recipe = BadRecipe(lab.log, faults=kept)
    with lab.daemon(recipe=recipe, stall_s=STALL_S, quiet_s=0.05, attempts=3):
        lab.wait(lambda: lab.counts() == {"done": number - 1, "failed": 1}, 120, poll_s=0.05)
    complaints = lab.check(done=number - 1)
    (failed,) = [entry for entry in lab.entries() if entry.state is State.FAILED]
    complaints += [] if "memory" in failed.reason else [f"the reason says nothing of memory: {failed.reason}"]
    complaints += [] if failed.path.name == never else [f"{failed.path.name} failed: {failed.reason}"]
    struck = [event for event in recipe.events() if event["event"] == "fault"]
    sick = [
        event["name"]
        for fault in struck
        for event in recipe.events()
        if (event["event"], event["pid"]) == ("restored", fault["pid"]) and event["at"] > fault["at"]
    ]
    complaints += [f"{name} restored by a process that had run out of memory" for name in sick]
    figures = {"stacks": number, "faults": len(struck), "fits": sorted({fault.fits for fault in kept.values()})}
    good = f"{number - 1} done with fewer tiles at once after {len(struck)} faults; one that never fits is listed"
    return Outcome(not complaints, figures, "; ".join(complaints[:6]) or good)


@drill(row=36, title="a sticky error of the device", bar=9, full_s=90, needs=("linux",))
def sticky_errors(lab: Lab) -> Outcome:
    """A call fails, and from then on everything that this process computes is subtly wrong, and its check blind."""
    number = 8 if lab.quick else 50
    sources, rng = blob_stacks(lab, number), random.Random(36)
    kinds = ("sticky", "bug", "check")
    faults = [
        Fault(kinds[at // 2 % 3], rng.randint(1, CALLS), times=1 + at % 3) if at % 2 else None for at in range(number)
    ]
    seen = suffer(lab, sources, plan_of(sources, faults))
    return told(seen, f"{number} of {number} right after {seen.figures['faults']} errors")


@drill(row=37, title="the device hangs", bar=9, full_s=120, needs=("linux",))
def hangs(lab: Lab) -> Outcome:
    """A call of the network never returns."""
    number, faulty = (4, 3) if lab.quick else (20, 15)
    sources = blob_stacks(lab, number)
    plan = plan_of(sources, [Fault("hang", 1 + at % CALLS) if at < faulty else None for at in range(number)])
    seen = suffer(lab, sources, plan)
    return told(seen, f"{number} of {number} right after {faulty} hangs, each ended after {STALL_S:g} s")


@drill(row=38, title="the device answers with garbage", bar=9, quick_s=30, full_s=120, needs=("linux",))
def silent_garbage(lab: Lab) -> Outcome:
    """Zeros, NaN, a constant, noise, the stack before, shifted or mixed tiles and more; noticed or not."""
    kinds = (*GARBAGE, "previous")
    cases = [(kind, False) for kind in kinds if kind not in FEINT]
    cases += [(kind, True) for kind in (FEINT if lab.quick else kinds)]
    cases *= 1 if lab.quick else 4
    faults: list[Fault | None] = [None]
    for kind, noticed in cases:  # there must be a stack before, in the same process, for its result to come again
        faults += [None] * (kind == "previous") + [Fault(kind, noticed=noticed)]
    sources = blob_stacks(lab, len(faults))
    seen = suffer(lab, sources, plan_of(sources, faults))
    seen.figures["noticed_by_golden_tiles"] = sum(noticed for _, noticed in cases)
    seen.figures["noticed_by_the_look_alone"] = sum(not noticed for _, noticed in cases)
    return told(seen, f"0 wrong results of {len(cases)} cases published, {len(sources)} of {len(sources)} right")


@drill(row=38, title="garbage made of a stack without structure", bar=9, quick_s=15, full_s=30, needs=("linux",))
def nothing_to_see(lab: Lab) -> Outcome:
    """Zeros, a constant and the stack before, for stacks of pure noise, on which a look cannot tell."""
    sources = lab.stacks(8)
    faults = [None, Fault("zeros"), None, Fault("constant"), None, Fault("zeros", noticed=True), None, Fault("nan")]
    seen = suffer(lab, sources, plan_of(sources, faults))
    return told(seen, "a constant made of noise is not published")


@drill(row=(35, 36, 37, 38), title="everything at random", bar=9, quick_s=40, full_s=240, needs=("linux",))
def sick_device(lab: Lab) -> Outcome:
    """The restoring process dies, hangs, errs or answers with garbage at random calls, in three of four stacks."""
    number, rng = (16 if lab.quick else 160), random.Random(9)
    sources = blob_stacks(lab, number)
    kinds = ("kill", "kill", "kill", "exit", "sticky", "bug", "check", *GARBAGE)
    faults: list[Fault | None] = []
    for at in range(number):
        kind = "hang" if at % 40 == 7 else "kill" if at % 8 == 3 else rng.choice(kinds)
        noticed = kind in FEINT or rng.random() < 0.5
        call = 1 if kind in GARBAGE and not noticed else rng.randint(1, CALLS)
        faults.append(Fault(kind, call, noticed=noticed) if at % 4 else None)
    seen = suffer(lab, sources, plan_of(sources, faults))
    return told(seen, f"{number} of {number} right after {seen.figures['faults']} faults")


@drill(row=38, title="golden check: negative control", quick_s=12, full_s=12, needs=("linux",))
def garbage_control(lab: Lab) -> Outcome:
    """Garbage that looks like the sample, with the check after each stack blind: wrong results must be seen here."""
    sources = blob_stacks(lab, 4)
    faults = [None, Fault("half zeros"), None, Fault("five percent off")]
    seen = suffer(lab, sources, plan_of(sources, faults))
    wrong = seen.figures["wrong_published"]
    good = f"{wrong} wrong results were published, and seen by this suite: without golden tiles nobody would know"
    return Outcome(wrong == 2, seen.figures, good if wrong == 2 else "; ".join(seen.complaints[:4]))
