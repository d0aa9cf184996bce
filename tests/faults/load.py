"""Load: too little memory, an acquisition that must not be disturbed, descriptors over many stacks."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from tests.faults.drill import Outcome, drill
from tests.faults.lab import ROOT, Lab
from tests.faults.process import words
from tests.faults.trace import ready_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from tests.faults.lab import Daemon

    _Latencies = npt.NDArray[np.float64]

_PERIOD_S, _SIDE, _FRAMES = 0.02, 512, 20
"""One image of 0.5 MiB every 20 ms (26 MB/s), a stack every 0.4 s."""
_BUFFERS = 16
"""Images that a camera keeps; one that waits longer is lost."""
_BLOCK_S, _SETTLE_S = 1.0, 0.3
"""Short blocks, because a busy machine changes by the second; what the last block left behind is not counted."""
_KINDS = ("with", "without", "hog")
_MOST, _DECIDED = 1.05, 1.1
"""Ratio of the 99th percentiles that is allowed; the machine's own may vary so far, else nothing is decided."""
_CHANGES = (
    "open,openat,openat2,creat,truncate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,"
    "mkdirat,rmdir,mknod,mknodat,chmod,fchmodat,chown,lchown,fchownat,utimensat,setxattr,lsetxattr,removexattr"
)


@drill(row=32, title="too little memory", full_s=120, needs=("linux", "root"))
def memory_pressure(lab: Lab) -> Outcome:
    """A stack of 600 MB (1 MB on the disk): under `examine_bytes` of 256 MiB; then all of it in a cgroup of 350 MB."""
    complaints, figures = list[str](), dict[str, Any]()
    lab.stacks(4)
    bomb = _bomb(lab)
    with lab.daemon(examine_bytes=1 << 28) as daemon:
        lab.wait(lambda: lab.counts() == {"done": 4, "failed": 1}, 90.0)
        reason = next(entry.reason for entry in lab.entries() if entry.path == bomb)
        complaints += [] if "memory" in reason else [f"with examine_bytes: {reason}"]
        figures["peak_mb_by_limit"] = _peak_mb(daemon)
    group = _memory_group(350 << 20)
    if group is None:
        figures["cgroup"] = "there is no memory controller here"
        return Outcome(not complaints, figures, words(complaints, "the reader is refused, the daemon goes on"))
    try:
        os.utime(bomb)
        lab.forget(bomb)
        prefix = ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]
        with lab.daemon(prefix=prefix, attempts=2) as daemon:
            lab.wait(lambda: "restoring with" in daemon.log)
            lab.stacks(4, first=4)
            lab.wait(lambda: lab.counts() == {"done": 8, "failed": 1}, 120.0)
            lab.wait(lambda: "failed 2 times" in next(e.reason for e in lab.entries() if e.path == bomb), 120.0)
            figures["said"] = next(entry.reason for entry in lab.entries() if entry.path == bomb)
    finally:
        _remove_group(group)
    complaints += lab.check(done=8)
    good = f"the daemon lives, the others are done; it says: {figures['said'][:120]}"
    return Outcome(not complaints, figures, words(complaints, good))


def _bomb(lab: Lab) -> Path:
    hidden = lab.folder / "large.tif"
    with tifffile.TiffWriter(hidden, ome=True) as writer:
        planes = (np.full((2048, 2048), z + 1, np.uint16) for z in range(72))
        notes = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.2}
        shape: dict[str, Any] = {"shape": (72, 2048, 2048), "dtype": np.uint16, "metadata": notes}
        writer.write(planes, compression="zlib", photometric="minisblack", **shape)
    return hidden.rename(lab.incoming / "large.ome.tif")


def _peak_mb(daemon: Daemon) -> int:
    """Largest memory that any of a daemon's processes had, MB."""
    found = [0]
    for pid in daemon.family():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/status").read_text()
            found += [int(size) // 1024 for size in re.findall(r"VmHWM:\s+(\d+)", text)]
    return max(found)


def _memory_group(limit_bytes: int) -> Path | None:
    """Make a cgroup with a memory limit; None where the machine has no memory controller to give."""
    name = f"faults-{os.getpid()}"
    for parent, file in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = parent / name
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / file).exists():
                (group / file).write_text(str(limit_bytes))
                with contextlib.suppress(OSError):
                    (group / "memory.swap.max").write_text("0")
                return group
            group.rmdir()
    return None


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # its processes are still ending
            group.rmdir()
            return
        time.sleep(0.1)


@drill(row=33, title="an acquisition is not disturbed", bar=12, full_s=460, needs=("linux",))
def acquisition_undisturbed(lab: Lab) -> Outcome:
    """26 MB/s in images of 0.5 MiB; daemon at work or held (SIGSTOP) for a second each, in random order; a hog."""
    pairs, rng, complaints = 150, random.Random(33), list[str]()
    spans: list[tuple[str, float, float]] = []
    with _acquisition(lab) as times, lab.daemon(**_as_on_a_rig()) as daemon:
        ready_pid(lab, daemon, "daemon")
        lab.wait(lambda: lab.counts().get("done", 0) >= 1)
        for _ in range(pairs):
            for kind in rng.sample(("with", "without"), 2):
                daemon.send(signal.SIGCONT if kind == "with" else signal.SIGSTOP, whole_family=True)
                spans.append(_block(kind, _BLOCK_S))
        daemon.send(signal.SIGSTOP, whole_family=True)
        with _hogs():
            spans.append(_block("hog", 4 * _BLOCK_S))
        daemon.send(signal.SIGCONT, whole_family=True)
        restored = lab.counts().get("done", 0)
        measured = _latencies(times)
    blocks = {kind: [_of_block(measured, *span) for name, *span in spans if name == kind] for kind in _KINDS}
    pooled = {kind: np.concatenate(parts) for kind, parts in blocks.items()}
    ratio, hog = _p99(pooled["with"]) / _p99(pooled["without"]), _p99(pooled["hog"]) / _p99(pooled["without"])
    low, high = _interval(lambda: _p99(_drawn(blocks["with"], rng)) / _p99(_drawn(blocks["without"], rng)))
    noise = _interval(lambda: _p99(_drawn(blocks["without"], rng)) / _p99(_drawn(blocks["without"], rng)))
    lost = {kind: int((pooled[kind] > _BUFFERS * _PERIOD_S).sum()) for kind in ("with", "without")}
    undecided = "; this machine is too busy to say: by itself it varies from {:+.0f} to {:+.0f} %".format(
        *(100 * (bound - 1) for bound in noise)
    )
    decided = noise[1] <= _DECIDED
    if ratio > _MOST:
        complaints.append(
            f"the writer's p99 is {100 * (ratio - 1):+.1f} % with the daemon{'' if decided else undecided}"
        )
    elif not decided:
        complaints.append(f"the writer's p99 is {100 * (ratio - 1):+.1f} % with the daemon{undecided}")
    complaints += [f"{lost['with']} images were lost with the daemon"] if lost["with"] else []
    complaints += [] if hog > _MOST else ["a hog was not seen: the drill cannot see anything"]
    complaints += [] if restored > pairs // 15 else [f"the daemon did too little: {restored} stacks"]
    figures: dict[str, Any] = {"pairs": pairs, "block_s": _BLOCK_S, "stacks_restored": restored, "images_lost": lost}
    for kind, latencies in pooled.items():
        figures[f"ms_{kind}"] = {f"p{part}": round(1e3 * float(np.percentile(latencies, part)), 3) for part in (50, 99)}
    figures |= {"p99_ratio": round(ratio, 3), "interval_90": [round(low, 3), round(high, 3)]}
    figures |= {"noise_interval_90": [round(bound, 3) for bound in noise], "p99_ratio_hog": round(hog, 2)}
    good = f"p99 {100 * (ratio - 1):+.1f} % (90 % interval {100 * (low - 1):+.0f} to {100 * (high - 1):+.0f} %), 0 lost"
    return Outcome(not complaints, figures, words(complaints, good))


def _as_on_a_rig() -> dict[str, Any]:
    """Settings that a rig has, where those of quick tests are not polite."""
    return {"nice": 10, "idle_disk": True, "while_acquiring": "slow", "acquiring_s": 10.0, "scan_s": 5.0, "threads": 1}


@contextlib.contextmanager
def _acquisition(lab: Lab) -> Iterator[Path]:
    """Acquire into the watched folder while inside; yields the file of times."""
    times = lab.folder / "times"
    line = [sys.executable, "-m", "tests.faults.writer_steady", str(lab.incoming), str(_PERIOD_S), str(_FRAMES)]
    process = subprocess.Popen([*line, str(_SIDE), str(times)], cwd=ROOT)
    try:
        lab.wait(lambda: times.exists() and times.stat().st_size > 0, 30.0)
        yield times
        if process.poll() is not None:
            raise RuntimeError("the acquisition ended by itself")
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _hogs() -> Iterator[None]:
    """Two processes a core that compute, with the priority of the acquisition."""
    code = "import os\nos.setpriority(os.PRIO_PROCESS, 0, 0)\nwhile True: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def _block(kind: str, seconds: float) -> tuple[str, float, float]:
    """Let time go by; return what it was, and from when to when it counts."""
    time.sleep(_SETTLE_S)
    begin = time.monotonic()
    time.sleep(seconds)
    return kind, begin, time.monotonic()


def _latencies(times: Path) -> _Latencies:
    """Return (when due, seconds until written) of every image."""
    whole = times.stat().st_size // 24 * 3
    table = np.fromfile(times, "<f8", whole).reshape(-1, 3)
    return np.stack([table[:, 0], table[:, 2] - table[:, 0]], axis=1)


def _of_block(measured: _Latencies, begin: float, end: float) -> _Latencies:
    chosen: _Latencies = measured[(measured[:, 0] >= begin) & (measured[:, 0] < end), 1]
    return chosen


def _p99(latencies: _Latencies) -> float:
    return float(np.percentile(latencies, 99))


def _drawn(blocks: Sequence[_Latencies], rng: random.Random) -> _Latencies:
    """Return as many blocks, drawn with replacement: what happens in a block concerns all its images."""
    return np.concatenate(rng.choices(blocks, k=len(blocks)))


def _interval(draw: Callable[[], float]) -> tuple[float, float]:
    """90 % interval of something drawn 1000 times."""
    drawn = sorted(draw() for _ in range(1000))
    return drawn[50], drawn[950]


@drill(row=33, title="raw data are only read", bar=12, quick_s=15, full_s=60, needs=("linux", "strace"))
def raw_only_read(lab: Lab) -> Outcome:
    """strace of the daemon and all its processes: calls below the watched folder that could change something."""
    control = lab.folder / "control"
    shell = f": >> {lab.incoming}/touched; rm {lab.incoming}/touched"
    subprocess.run(
        ["strace", "-f", "-y", "-qq", "-o", control, "-e", f"trace={_CHANGES}", "sh", "-c", shell], check=True
    )
    seen = _changing(control, lab.incoming)
    number = 5 if lab.quick else 25
    lab.stacks(number)
    broken = lab.incoming / "broken.tif"
    broken.write_bytes(b"no image")
    log = lab.folder / "calls"
    prefix = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", f"trace={_CHANGES}", "-e", "signal=none"]
    with lab.daemon(prefix=prefix) as daemon:
        lab.wait(lambda: lab.counts() == {"done": number, "failed": 1}, 120.0)
        daemon.terminate()
    opened = sum(str(lab.incoming) in line for line in log.read_text(errors="replace").splitlines())
    found = _changing(log, lab.incoming)
    complaints = [f"it changes raw data: {line}" for line in found[:3]]
    complaints += [] if len(seen) >= 2 else ["the control was not seen"]
    complaints += [] if opened > number else [f"only {opened} calls below the watched folder were seen"]
    complaints += lab.check(done=number)
    figures = {"stacks": number, "calls_below_raw": opened, "changing_calls": len(found), "control_seen": len(seen)}
    good = f"0 of {opened} calls below the watched folder could change anything"
    return Outcome(not complaints, figures, words(complaints, good))


def _changing(log: Path, folder: Path) -> list[str]:
    """Lines of a trace that could change something below a folder."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if f'"{folder}' not in line and f"<{folder}" not in line:
            continue
        name = re.sub(r"^\d+ +", "", line).partition("(")[0]
        reads = name.startswith("open") and not re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)", line)
        if not reads and "resumed>" not in name:
            found.append(line)
    return found


@drill(row=34, title="descriptors over many stacks", full_s=900, needs=("linux",))
def descriptors(lab: Lab) -> Outcome:
    """3,000 stacks, one in ten of them damaged; open descriptors and memory of every process on the way."""
    number, batch = 3_000, 100
    samples: list[dict[str, int]] = []
    done = failed = 0
    with lab.daemon(quiet_s=0.1) as daemon:
        ready_pid(lab, daemon, "child")
        for first in range(0, number, batch):
            lab.stacks(batch - batch // 10, first=first)
            for index in range(batch // 10):
                (lab.incoming / f"damaged{first + index}.tif").write_bytes(b"II*\0 and no more %d" % index)
            done, failed = done + batch - batch // 10, failed + batch // 10
            lab.wait(lambda: lab.counts() == {"done": done, "failed": failed}, 300.0, poll_s=0.1)  # noqa: B023
            samples.append(_open_files(daemon))
        restarted = daemon.log.count("restoring with ") - 1
    complaints = lab.check(done=done)
    first_, last = samples[1], samples[-1]
    grown = {name: last[name] - first_[name] for name in first_}
    complaints += [f"{name} has {more} more open files" for name, more in grown.items() if more > 5 and "fds" in name]
    complaints += [f"the restoring process was replaced {restarted} times"] if restarted else []
    figures = {"stacks": number, "first": first_, "last": last, "grown": grown}
    good = f"open files after {batch * 2} stacks and after {number}: {first_['fds_daemon']} and {last['fds_daemon']}"
    return Outcome(not complaints, figures, words(complaints, good))


def _open_files(daemon: Daemon) -> dict[str, int]:
    """Open descriptors and memory (KB) of the daemon, and of all its children together."""
    found = {"fds_daemon": 0, "fds_children": 0, "kb_daemon": 0, "kb_children": 0}
    for pid in daemon.family():
        who = "daemon" if pid == daemon.pid else "children"
        with contextlib.suppress(OSError):
            found[f"fds_{who}"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
            text = Path(f"/proc/{pid}/status").read_text()
            found[f"kb_{who}"] += sum(map(int, re.findall(r"VmRSS:\s+(\d+)", text)))
    return found
