"""Attacks by path on a real daemon, every system call of it and its processes audited with strace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.runtime.publish import STATE_FOLDER, result_stem
from ssai3d_rt.runtime.submit import INBOX
from tests.faults.attacks import SECRET, plant, secret_files, taken_names
from tests.faults.drill import Outcome, drill
from tests.faults.lab import ROOT, Lab
from tests.runtime.daemon import stack_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALLS = (
    "open,openat,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,"
    "mknod,mknodat,mkdir,mkdirat,rmdir,chmod,fchmodat,chown,lchown,fchownat,utimensat,setxattr,lsetxattr"
)
SYSTEM = (
    *("/proc", "/sys", "/usr", "/lib", "/lib64", "/bin", "/opt"),
    *("/dev/null", "/dev/urandom", "/dev/shm", "/dev/tty"),
    *("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/ssl"),
    *(
        "/etc/nsswitch.conf",
        "/etc/passwd",
        "/etc/os-release",
        "/etc/debian_version",
        "/etc/machine-id",
        "/etc/locale.alias",
    ),
)
"""What Python, its packages and the C library read for themselves. No attack leads to any of it."""

_LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>)?(.*)$")
_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')
_HERE = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")
_OPENED = re.compile(r"= \d+<([^>]*)>")
_WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND")


@dataclass(frozen=True, slots=True)
class Access:
    """One call: the paths that it names, where the system says so resolved, and whether it changes something."""

    call: str
    paths: tuple[str, ...]
    writes: bool
    succeeded: bool
    line: str


def accesses(log: Path) -> Iterator[Access]:
    """Read strace's log; calls that were interrupted by another process's are put together again."""
    begun: dict[str, str] = {}
    for raw in log.read_text(errors="surrogateescape").splitlines():
        match = _LINE.match(raw)
        if match is None:
            continue
        process, resumed, text = match.groups()
        if text.endswith("<unfinished ...>"):
            begun[process] = text.removesuffix("<unfinished ...>")
            continue
        text = begun.pop(process, "") + text if resumed else text
        call, bracket, rest = text.partition("(")
        if not bracket or call not in CALLS.split(","):
            continue
        yield _access(call, rest, text)


def _access(call: str, rest: str, line: str) -> Access:
    arguments, _, result = rest.rpartition(" = ")
    heres = _HERE.findall(arguments)
    names = [_plain(name) for name in _NAME.findall(arguments)]
    if call.startswith("symlink"):
        names = names[1:]  # the first is only text
    paths = []
    for at, name in enumerate(names):
        here = heres[min(at, len(heres) - 1)] if heres else "/"
        paths.append(os.path.normpath(os.path.join(here, name)))
    if opened := _OPENED.search(f"= {result}"):
        paths = [opened[1]]
    writes = not call.startswith("open") or any(flag in arguments for flag in _WRITES)
    return Access(call, tuple(paths), writes, not result.startswith("-1"), line)


def _plain(text: str) -> str:
    return text.encode("latin-1", "replace").decode("unicode_escape", "replace")


def _below(path: str, *folders: str | Path) -> bool:
    return any(path == str(folder) or path.startswith(f"{folder}/") for folder in folders)


@drill(row=44, title="attacks by path", bar=11, quick_s=40, full_s=60, needs=("linux", "strace", "zarr", "ndstorage"))
def path_attacks(lab: Lab) -> Outcome:
    """Links, pipes, devices, and names in OME-XML, zarr and NDTiff that lead outside; strace sees what is opened."""
    secret, log = lab.folder / "secret", lab.folder / "calls"
    secret_files(secret)
    plant(lab.incoming, secret, devices=os.geteuid() == 0)
    taken = taken_names(lab.incoming, lab.out, secret)
    before = {path: lab.tree_hash(path) for path in (lab.incoming, secret)}
    names_taken = {path: os.lstat(path).st_ino for path in lab.out.iterdir()}
    strace = ["strace", "-f", "-qq", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(log)]
    with lab.daemon(prefix=strace, quiet_s=0.1, scan_s=0.3, incomplete_after_s=1.0, stall_s=60.0) as daemon:
        lab.wait(lambda: {e.path for e in lab.entries() if e.state.value == "done"} >= set(taken), 180.0, poll_s=0.1)
        lab.wait(lambda: set(lab.counts()) <= {"done", "failed", "skipped"}, 180.0, poll_s=0.1)
        good = stack_file(lab.folder / "good.ome.tif", 7)
        os.rename(good, lab.incoming / "zz-good.ome.tif")
        lab.wait(lambda: any(e.path.name == "zz-good.ome.tif" and e.state.value == "done" for e in lab.entries()), 60.0)
        daemon.terminate()
    (lab.incoming / "zz-good.ome.tif").unlink()
    complaints, figures = audit(lab, log, secret)
    for path, was in before.items():
        if path == lab.incoming:
            os.utime(path, ns=(was_time := path.stat().st_atime_ns, was_time))
        complaints += [] if lab.tree_hash(path) == was else [f"{path.name} was changed"]
    complaints += [f"{path.name} was replaced" for path, inode in names_taken.items() if os.lstat(path).st_ino != inode]
    complaints += [
        f"{entry.path.name} shows a secret"
        for entry in lab.entries()
        for result in entry.results
        if _is_secret(result.path)
    ]
    done = [e.path.name for e in lab.entries() if e.state.value == "done"]
    figures |= {"done": len(done), "refused": sum(e.state.value != "done" for e in lab.entries())}
    unexpected = [name for name in done if not name.startswith(("taken-", "zz-"))]
    complaints += [f"done: {name}" for name in unexpected]
    complaints += [f"no result beside the taken name: {path.name}" for path in taken if not _own_result(lab, path)]
    complaints += _blind(lab, secret)
    good_words = f"{figures['calls']} calls audited: 0 files outside the roots, 0 writes below raw"
    return Outcome(not complaints, figures, "; ".join(complaints[:10]) or good_words)


def _blind(lab: Lab, secret: Path) -> list[str]:
    """Complain where the audit does not see a process that reads a secret, writes below raw, and reads elsewhere."""
    log = lab.folder / "control"
    links = (lab.incoming / "link.tif", lab.incoming / "taken-file.ome.tif", "/etc/hostname")
    code = "import sys; open(sys.argv[1]).close(); open(sys.argv[2], 'ab').close(); open(sys.argv[3]).close()"
    strace = ["strace", "-f", "-qq", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(log)]
    subprocess.run([*strace, sys.executable, "-c", code, *links], check=True)
    seen, _ = audit(lab, log, secret)
    wanted = ("opened outside: ", "wrote below raw: ", "not on the list: ")
    return [f"the audit is blind: {what}" for what in wanted if not any(words.startswith(what) for words in seen)]


def audit(lab: Lab, log: Path, secret: Path) -> tuple[list[str], dict[str, int]]:
    """Complain about accesses outside what a daemon may touch, and about writes below the watched folder."""
    mine = (lab.incoming, lab.out, lab.log, lab.log.with_suffix(".pid"), ROOT)
    interpreter = {sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), *map(os.path.realpath, sys.path[1:])}
    complaints, counts = Counter[str](), Counter[str]()
    for access in accesses(log):
        counts["calls"] += 1
        for path in access.paths:
            counts["below_raw"] += _below(path, lab.incoming)
            if access.writes and access.succeeded and _below(path, lab.incoming):
                complaints[f"wrote below raw: {access.line[:160]}"] += 1
            if _below(path, secret) or path in ("/etc/shadow", "/dev/zero", "/dev/full"):
                complaints[f"{'opened' if access.succeeded else 'tried'} outside: {access.line[:160]}"] += 1
            elif access.succeeded and not _below(path, *mine, *interpreter, *SYSTEM) and not _is_temporary(lab, path):
                complaints[f"not on the list: {access.line[:160]}"] += 1
    return list(complaints), dict(counts)


def _is_temporary(lab: Lab, path: str) -> bool:
    """Whether it is a file of the lab beside the roots, such as the restorer's own notes, or a folder above it."""
    parent = str(lab.folder)
    beside = _below(path, parent) and os.path.dirname(path) == parent
    return beside or _below(parent, path) or path.startswith("pipe:")


def _is_secret(result: Path) -> bool:
    """Whether a result shows what nobody may read, even a plane of it."""
    found: float = np.mean(read_stack(result).data == SECRET)
    return found > 0.05


def _own_result(lab: Lab, source: Path) -> bool:
    """Whether a stack whose result's name was taken has its result under another."""
    stem = result_stem(source.name)
    return any(
        result.path.name.startswith(f"{stem}_") and result.path.is_file() and not result.path.is_symlink()
        for entry in lab.entries()
        if entry.path == source
        for result in entry.results
    )


@drill(row=44, title="the output folder leads into the raw data", bar=11, quick_s=15, full_s=20, needs=("linux",))
def output_is_a_link(lab: Lab) -> Outcome:
    """A folder below the output folder is a link to the watched folder, or to a folder outside."""
    outside = lab.folder / "outside"
    outside.mkdir()
    lab.out.mkdir()
    for what, target in {"a": lab.incoming, "b": outside}.items():
        (lab.incoming / what).mkdir()
        os.symlink(target, lab.out / what)
        os.rename(stack_file(lab.folder / "s.ome.tif"), lab.incoming / what / f"{what}.ome.tif")
    lab.stacks(1)
    with lab.daemon(quiet_s=0.05, incomplete_after_s=0.5):
        lab.wait(lambda: lab.counts().get("done", 0) >= 1, 60.0)
        lab.wait(lambda: not set(lab.counts()) & {"seen", "waiting", "running", "publishing"}, 60.0)
        lab.wait(lambda: lab.paused() or set(lab.counts()) <= {"done", "failed", "skipped"}, 30.0)
        said = lab.paused()
    into_raw = [path.name for path in lab.incoming.rglob("*") if "_iso" in path.name or path.name.startswith(".ssai3d")]
    complaints = [f"written into the raw data: {name}" for name in into_raw]
    complaints += [f"written outside: {path.name}" for path in outside.iterdir()]
    return Outcome(not complaints, {"paused": said}, "; ".join(complaints) or "nothing was written through a link")


NONSENSE: dict[str, bytes] = {
    "not JSON": b"{",
    "deep": b"[" * 60_000,
    "a number": b'{"path": 5}',
    "zero byte": b'{"path": "/tmp/a\\u0000b/c.tif"}',
    "lone surrogate": b'{"path": "/tmp/\\ud800/c.tif"}',
    "not UTF-8": b"\xff\xfe",
    "a digit too many": b'{"path": ' + b"9" * 5000 + b"}",
    "very long": b'{"path": "/' + b"n/" * 20_000 + b'"}',
    "outside": b'{"path": "/etc/shadow"}',
    "the root": b'{"path": "/"}',
    "upwards": b'{"path": "../../secret/other.tif"}',
    "empty": b"",
}


@drill(row=44, title="nonsense in the inbox", bar=11, quick_s=10, full_s=60, needs=("linux",))
def inbox_attacks(lab: Lab) -> Outcome:
    """Words in the inbox that are no JSON, name files outside, are hostile text, a folder, a link, a pipe."""
    words: dict[str, bytes | None] = {**NONSENSE, "a link": None, "a folder": None, "a pipe": None}
    groups = [words] if lab.quick else [{what: word} for what, word in words.items()]
    complaints = [
        complaint
        for number, group in enumerate(groups)
        for complaint in _inbox(Lab(lab.folder / f"{number}", quick=lab.quick), group)
    ]
    return Outcome(
        not complaints, {"words": len(words)}, "; ".join(complaints) or f"{len(words)} words, none held the daemon up"
    )


def _inbox(lab: Lab, words: dict[str, bytes | None]) -> list[str]:
    """Leave words, then a good one, before a daemon starts; it must take up the good one."""
    inbox = lab.out / STATE_FOLDER / INBOX
    inbox.mkdir(parents=True)
    for number, (what, word) in enumerate(words.items()):
        made = inbox / f"{number:02d}.json"
        if word is not None:
            made.write_bytes(word)
        elif what == "a link":
            os.symlink("/dev/zero", made)
        elif what == "a folder":
            made.mkdir()
        else:
            os.mkfifo(made)
    lab.stacks(1)
    (inbox / "99.json").write_text(json.dumps({"path": str(lab.incoming / "0000.ome.tif")}))
    what = " or ".join(words)
    try:
        with lab.daemon(quiet_s=0.05):
            lab.wait_done(1, 8.0)
            lab.wait(lambda: not (inbox / "99.json").exists(), 8.0)
    except (RuntimeError, TimeoutError) as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1]
        return [f"{what}: {'held up' if isinstance(error, TimeoutError) else 'the daemon ended'}: {last}"]
    return [f"{what}: {complaint}" for complaint in lab.check(done=1)]
