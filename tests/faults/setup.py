"""Wrong settings and the service's unit: what must be refused before anything runs, and what a unit may forbid."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.runtime.rigcheck import complaints
from ssai3d_rt.runtime.rigexample import example
from ssai3d_rt.runtime.serviceplan import Plan
from ssai3d_rt.runtime.systemd import unit_of
from tests.faults.drill import Outcome, drill
from tests.faults.lab import ROOT, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GOOD = """\
[watch]
folders = ["incoming"]
out = "isotropic"
bundle = "cells.ssai3d"
reserve_bytes = 0
[log]
file = "rig.log"
"""
WRONG: dict[str, tuple[tuple[str, str], int]] = {
    "unknown key": (("reserve_bytes = 0", "reserve = 0"), 5),
    "key of another table": (('file = "rig.log"', "scan_s = 1"), 7),
    "unknown table": (("[log]", "[lgo]"), 6),
    "text for a number": (("reserve_bytes = 0", 'reserve_bytes = "0"'), 5),
    "number for a text": (('"isotropic"', "1"), 3),
    "out of range": (("reserve_bytes = 0", "attempts = 0"), 5),
    "endless": (("reserve_bytes = 0", "scan_s = inf"), 5),
    "code in YAML": (("[watch]", "watch: !!python/object/apply:os.system ['touch hacked']"), 1),
    "twice": (("reserve_bytes = 0", 'out = "isotropic"'), 5),
    "cut off": (('"rig.log"', '"rig.l'), 7),
    "folder in folder": (('["incoming"]', '["incoming", "incoming/day"]'), 2),
    "output in input": (('"isotropic"', '"incoming/isotropic"'), 2),
    "input in output": (('"isotropic"', '"."'), 2),
    "ledger in raw data": (("reserve_bytes = 0", 'ledger = "incoming/rig.sqlite"'), 5),
    "log in raw data": (('"rig.log"', '"incoming/rig.log"'), 7),
    "no bundle": (('"cells.ssai3d"', '"other.ssai3d"'), 4),
}
_LINE = re.compile(r"\bline (\d+)\b")


@drill(row=46, title="wrong settings", quick_s=40, full_s=90)
def wrong_settings(lab: Lab) -> Outcome:
    """The real command line is started with each kind of wrong file; then files with random changes are judged."""
    lab.stacks(2)
    (lab.incoming / "day").mkdir()
    (lab.folder / "cells.ssai3d").mkdir()
    raw, found = lab.tree_hash(lab.incoming), []
    for what, (edit, line) in WRONG.items():
        status, said = _watch(lab, GOOD.replace(*edit))
        named = _LINE.search(said)
        if status != 1 or "rig.toml" not in said or named is None or int(named[1]) != line:
            found.append(f"{what}: status {status}, {said.strip()[-200:]!r}")
        made = [name for name in ("isotropic", "rig.log", "hacked") if (lab.folder / name).exists()]
        found += [f"{what}: {name} was made" for name in made]
    status, said = _watch(lab, GOOD)  # the control: this one gets as far as opening its bundle
    if "manifest.json" not in said:
        found.append(f"the good file: status {status}, {said.strip()[-200:]!r}")
    if lab.tree_hash(lab.incoming) != raw:
        found.append("raw data changed")
    cases = 200 if lab.quick else 2000
    _mutations(lab, cases, found)
    figures = {"kinds": len(WRONG), "mutations": cases}
    words = f"{len(WRONG)} of {len(WRONG)} kinds refused with their line, nothing made; {cases} mutated files judged"
    return Outcome(not found, figures, "; ".join(found[:5]) or words)


@drill(row=48, title="the service's unit file", quick_s=5, full_s=5, needs=("linux", "systemd-analyze"))
def unit_file(lab: Lab) -> Outcome:
    """systemd-analyze security (offline) and verify, of the unit that is installed; an open unit is the control."""
    found: list[str] = []
    worst = 0.0
    for name, plan in {
        "system": _plan(lab),
        "home": _plan(lab, Path("/home/me")),
        "open": _plan(lab, net=True),
    }.items():
        file = lab.folder / f"{name}.service"
        file.write_text(unit_of(plan, _version()), encoding="utf-8")
        score = _exposure(file)
        worst = max(worst, score)
        found += [f"{name}: {score}"] if score > 2.0 else []
        verified = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
        found += [line for line in verified.stderr.splitlines() if file.name in line]
    control = lab.folder / "control.service"
    control.write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    if (control_score := _exposure(control)) <= 2.0:
        found.append(f"the control, a unit without any protection, scores {control_score}")
    figures = {"exposure": worst, "control_exposure": control_score, "systemd": _version()}
    words = f"exposure {worst}, at most 2.0; the control {control_score}"
    return Outcome(not found, figures, "; ".join(found[:5]) or words)


@drill(row=48, title="life inside the unit", quick_s=None, full_s=90, needs=("linux", "systemd-analyze", "strace"))
def life_inside_the_unit(lab: Lab) -> Outcome:
    """strace of the real daemon with a real bundle: every call, address family and written path against the unit."""
    lab.stacks(2)
    _make_bundle(lab.folder / "cells.ssai3d")
    plan = _plan(lab)
    unit = _keys(unit_of(plan, _version()))
    log = lab.folder / "calls.log"
    with _traced(lab, log):
        lab.wait_done(2, 240.0)
    calls, families, written = _seen(log)
    if os.geteuid() == 0:
        # SQLite gives its files to the ledger's owner where it runs as root, which the service never does.
        calls.discard("fchown")
    state = (lab.folder / "state", lab.folder / "cache")
    found = _beyond(unit, calls, families, written, state)
    control = _beyond(unit, {"chown"}, {"AF_NETLINK"}, {Path("/etc/passwd")}, state)
    if len(control) != 3:
        found.append(f"the control was not seen: {control}")
    figures = {"calls": len(calls), "families": sorted(families), "paths_written": len(written)}
    words = f"all within the unit: {len(calls)} calls, {len(written)} paths written, {', '.join(sorted(families))}"
    return Outcome(not found, figures, "; ".join(found[:8]) or words)


def _watch(lab: Lab, settings: str) -> tuple[int, str]:
    (lab.folder / "rig.toml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "ssai3d_rt.cli", "watch", "--config", "rig.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SSAI3D_RT_HOME": str(lab.folder / "home")}
    done = subprocess.run(
        command, cwd=lab.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def _mutations(lab: Lab, cases: int, found: list[str]) -> None:
    """Judge files with random bytes changed, cut or doubled; anything but a verdict in plain lines is a fault."""
    rng = random.Random(46)
    file = lab.folder / "mutated.toml"
    everything = re.sub(r"(?m)^#(\w+ = )", r"\1", example()).encode()
    for case in range(cases):
        data = bytearray(GOOD.encode() if case % 4 else everything)
        for _ in range(rng.randint(1, 4)):
            at, length = rng.randrange(len(data)), rng.randint(1, 12)
            new = bytes(rng.choice(b"=\"[]{}\n'#,.\\ \t-0123456789aeinf\x00\xff\x80") for _ in range(rng.randint(0, 8)))
            data[at : at + length] = rng.choice([new, bytes(data[at : at + length]) * 2])
            data = data or bytearray(b" ")
        file.write_bytes(data)
        began = time.monotonic()
        try:
            lines = complaints(file)
        except ConfigError as error:
            lines = [str(error)]
        except Exception as error:
            lines = []
            found.append(f"mutation {case}: {type(error).__name__}: {error}")
        found += [f"mutation {case}: a line that is not plain: {line!r}" for line in lines if not line.isprintable()]
        if (seconds := time.monotonic() - began) > 5.0:
            found.append(f"mutation {case}: judged after {seconds:.1f} s")


def _plan(lab: Lab, home: Path | None = None, *, net: bool = False) -> Plan:
    folder = home or lab.folder
    return Plan(
        name="ssai3d-rt",
        config=folder / "rig.toml",
        python=Path(sys.executable),
        reads=(folder / "incoming",),
        writes=(folder / "isotropic",),
        fixed=(folder / "incoming",),
        needs=(folder / "rig.toml",),
        account="microscope",
        open_network=net,
    )


def _exposure(file: Path) -> float:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    score = re.search(r"Overall exposure level for .*: ([\d.]+)", said.stdout)
    if score is None:
        raise RuntimeError(f"systemd-analyze gives no score: {said.stderr}")
    return float(score[1])


@cache
def _version() -> int:
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[1])


def _keys(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"(?m)^(\w+)=(.*)$", unit):
        found.setdefault(key, []).append(value)
    return found


@cache
def _group(name: str) -> frozenset[str]:
    """Return the calls of one of systemd's groups, those of the groups in it too."""
    command = ["systemd-analyze", "syscall-filter", "--no-pager", name]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    names = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return frozenset(call for each in names for call in (_group(each) if each.startswith("@") else {each}))


def _beyond(
    unit: Mapping[str, list[str]], calls: set[str], families: set[str], written: set[Path], state: tuple[Path, ...]
) -> list[str]:
    """Say what a unit would not have let through."""
    allowed, denied = unit["SystemCallFilter"]
    permitted = {call for name in (*allowed.split(), "@default") for call in _group(name)}
    permitted -= {call for name in denied.removeprefix("~").split() for call in _group(name)} - _group("@default")
    places = [*(Path(path) for path in unit["ReadWritePaths"]), *state, Path("/dev"), Path("/proc")]
    found = [f"call {call}" for call in sorted(calls - permitted)]
    found += [f"family {family}" for family in sorted(families - set(unit["RestrictAddressFamilies"][0].split()))]
    found += [f"writes {path}" for path in sorted(written) if not any(path.is_relative_to(place) for place in places)]
    return found


def _make_bundle(folder: Path) -> None:
    """Export a tiny network; in a process of its own, so that torch is not in this one."""
    program = (
        "import sys; from tests.tiny import tiny_model; from ssai3d_rt.export import export_bundle;"
        " export_bundle(tiny_model(), sys.argv[1], tile=64)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, check=True, capture_output=True)


@contextlib.contextmanager
def _traced(lab: Lab, log: Path) -> Iterator[None]:
    """Run the real daemon under strace, with the unit's environment, and end it politely."""
    settings = GOOD.replace('[log]\nfile = "rig.log"\n', 'nice = 5\nquiet_s = 0.2\nbackend = "cpu"\n')
    (lab.folder / "rig.toml").write_text(settings, encoding="utf-8")
    (lab.folder / "cache").mkdir()
    command = [sys.executable, "-m", "ssai3d_rt.cli", "watch", "--config", str(lab.folder / "rig.toml")]
    environment = os.environ | {
        "SSAI3D_RT_HOME": str(lab.folder / "state"),
        "SSAI3D_RT_CACHE": str(lab.folder / "cache" / "own"),
        "XDG_CACHE_HOME": str(lab.folder / "cache" / "other"),
        "TMPDIR": str(lab.folder / "cache"),
        "HOME": "/nonexistent",
        "PYTHONPATH": str(ROOT),
    }
    with open(lab.daemon_log, "ab") as said:
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-y", "-s", "0", "-o", log, *command],
            cwd="/",
            env=environment,
            stdout=said,
            stderr=said,
        )
    try:
        yield
        lock = lab.ledger.with_name(lab.ledger.name + ".lock").read_bytes()[1:17]
        os.kill(int(lock.strip(b"\0 \n")), signal.SIGTERM)
        tracer.wait(60)
    finally:
        tracer.kill()
        tracer.wait()


_BEGUN = re.compile(r"^(\d+) +(\w+)\((.*?)(?: <unfinished \.\.\.>)?$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_OPENED = re.compile(r" = \d+<([^>]*)>")


def _seen(log: Path) -> tuple[set[str], set[str], set[Path]]:
    """Return the calls of a trace, the address families of its sockets, and the files that it opened for writing."""
    calls: set[str] = set()
    families: set[str] = set()
    written: set[Path] = set()
    begun: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        if match := _BEGUN.match(line):
            thread, call, rest = match.groups()
            calls.add(call)
            if line.endswith("<unfinished ...>"):
                begun[thread] = rest
                continue
        elif match := _RESUMED.match(line):
            thread, call, rest = match.groups()
            rest = begun.pop(thread, "") + rest
        else:
            continue
        if call == "socket":
            families.add(rest.split(",")[0])
        if (
            call in ("open", "openat", "creat")
            and re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest)
            and (opened := _OPENED.search(rest))
        ):
            written.add(Path(opened[1]))
    return calls, families, written
