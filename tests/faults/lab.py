"""Where a drill works: a scratch folder, real stacks, a real daemon in a process of its own, and what must hold after.

```python
sources = lab.stacks(10)
with lab.daemon(delay_s=0.1) as daemon:
    lab.wait(lambda: lab.counts().get("done", 0) > 3)
    daemon.kill()
with lab.daemon():
    lab.wait_done(10)
complaints = lab.check(done=10)
```
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import Ssai3dError
from ssai3d_rt.runtime.database import connect
from ssai3d_rt.runtime.ledger import Entry, State, counts, select
from ssai3d_rt.runtime.lock import is_held
from ssai3d_rt.runtime.publish import STATE_FOLDER, hash_of
from ssai3d_rt.runtime.status import ledger_of
from tests.faults.mounts import unmount_below
from tests.runtime.daemon import is_right, stack_file
from tests.runtime.quick import PID_FILE, QuickRecipe
from tests.runtime.quick_watch import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from ssai3d_rt.runtime.messages import Recipe

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.02
_LEFT_OVER = re.compile(r"\.ssai3d-.*|.*\.partial|.*\.tmp")


class Daemon:
    """A daemon under test; `pid` is its own process, also behind a command that runs it."""

    def __init__(self, process: subprocess.Popen[bytes], ledger: Path, log: Path, pid_file: Path) -> None:
        self.process, self._ledger, self._log, self._pid_file = process, ledger, log, pid_file
        self._log_from = log.stat().st_size
        self.pid = process.pid
        self.may_end = False
        """Whether its end is wanted; any other is a reason to stop waiting."""

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def running(self) -> bool:
        """Whether it holds its ledger."""
        try:
            return self.alive and is_held(self._ledger.with_name(self._ledger.name + ".lock"))
        except OSError:
            return False

    @property
    def log(self) -> str:
        """What this start of the daemon, and its child, said so far."""
        with open(self._log, "rb") as file:
            file.seek(self._log_from)
            return file.read().decode(errors="replace")

    def children(self) -> list[int]:
        """Ids of the processes that the daemon started: the restoring one and those that look at sources."""
        return _children(self.pid)

    def restorer(self) -> int:
        """Id of the restoring process (of the quick restorer).

        Raises
        ------
        RuntimeError
            There is none at the moment.
        """
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            if pid in self.children() and process_state(pid) != "Z":
                return pid
        raise RuntimeError("there is no restoring process")

    def family(self) -> list[int]:
        """Ids of the daemon and all processes below it."""
        found = [self.pid]
        for pid in found:
            found += _children(pid)
        return found

    def kill(self) -> None:
        """End the daemon with SIGKILL; its child has to notice by itself."""
        self.may_end = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(30)

    def terminate(self, timeout_s: float = 30.0) -> int:
        """Ask it to stop, and return its exit status."""
        self.may_end = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(timeout_s)

    def hold(self) -> list[int]:
        """Stop the daemon and its children at the same moment, and return their ids; `send` SIGCONT lets them go on.

        A process that is just being started holds up its parent, which can then not be stopped: so it is let go and
        tried again.

        Raises
        ------
        TimeoutError
            It cannot be stopped, for a minute.
        """
        for _ in range(200):
            family = self.family()
            self.send(signal.SIGSTOP, whole_family=True)
            for _ in range(100):
                if all(process_state(pid) in ("", "T", "Z") for pid in family) and self.family() == family:
                    return family
                time.sleep(0.003)
            self.send(signal.SIGCONT, whole_family=True)
            time.sleep(0.01)
        raise TimeoutError("the daemon cannot be stopped")

    def send(self, number: int, *, whole_family: bool = False) -> None:
        """Send a signal to the daemon, or to its child too."""
        for pid in self.family() if whole_family else [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Lab:
    """One drill's place of work.

    Parameters
    ----------
    folder
        Empty; everything happens below it.
    quick
        Whether the drill shall use its small numbers.
    """

    def __init__(self, folder: Path, *, quick: bool = False) -> None:
        self.folder, self.quick = Path(os.path.realpath(folder)), quick
        self.incoming, self.out, self.log = (self.folder / name for name in ("incoming", "isotropic", "restored.log"))
        self.incoming.mkdir(parents=True, exist_ok=True)
        self.ledger = ledger_of(self.out)
        self.daemon_log = self.folder / "daemon.log"
        self.daemon_log.touch()
        self._raw: dict[Path, str] = {}
        self._daemon: Daemon | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        unmount_below(self.folder)

    def stacks(self, number: int, *, first: int = 0, folder: Path | None = None, z_um: float = 0.2) -> list[Path]:
        """Write so many different small stacks, under names of their own; they must not change from then on."""
        folder = folder or self.incoming
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for seed in range(first, first + number):
            hidden = stack_file(folder / f".{seed:04d}.tmp.ome.tif", seed, z_um)
            paths.append(folder / f"{seed:04d}.ome.tif")
            os.rename(hidden, paths[-1])
        self.remember(*paths)
        return paths

    def remember(self, *sources: Path) -> None:
        """From now on these sources must not change; see `check`."""
        self._raw |= {path: self.tree_hash(path) for path in sources}

    def forget(self, *sources: Path) -> None:
        """Let these sources change."""
        for path in sources:
            self._raw.pop(path, None)

    @contextlib.contextmanager
    def daemon(
        self,
        *,
        recipe: Recipe | None = None,
        delay_s: float = 0.0,
        folders: Sequence[Path] | None = None,
        out: Path | None = None,
        prefix: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        **settings: Any,
    ) -> Iterator[Daemon]:
        """Run the daemon as a process of its own while inside; afterwards it and its child are gone.

        Parameters
        ----------
        recipe, delay_s
            What it restores with: the quick restorer, which takes `delay_s` per stack.
        folders, out
            Watched folders and output folder, where they are not the lab's.
        prefix, env
            A command to run it under, and more environment.
        wait
            Whether to wait until it holds its ledger.
        **settings
            Of `WatchSettings`; those not given suit quick tests.
        """
        out = out or self.out
        self.ledger = Path(settings["ledger"]) if settings.get("ledger") else ledger_of(out)
        made = recipe or QuickRecipe(self.log, delay_s=delay_s)
        plan = Plan.of(list(folders or [self.incoming]), out, made, **settings)
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(env or {})
        with open(self.daemon_log, "ab") as log:
            process = subprocess.Popen(
                [*map(str, prefix), *plan.command()], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        daemon = Daemon(process, self.ledger, self.daemon_log, self.log.with_name(PID_FILE))
        family: list[int] = []
        try:
            if wait:
                self._wait_started(daemon, prefix=bool(prefix))
                self._daemon = daemon
            yield daemon
        finally:
            self._daemon = None
            family = daemon.family()
            daemon.kill()
            if process.poll() is None:  # the command that it ran under
                process.kill()
                process.wait()
            self._require_ended(family)

    def _wait_started(self, daemon: Daemon, *, prefix: bool) -> None:
        deadline = time.monotonic() + 60.0
        while not daemon.running:
            if not daemon.alive:
                raise RuntimeError(f"the daemon ended with status {daemon.process.returncode}:\n{daemon.log[-3000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the daemon does not start:\n{daemon.log[-3000:]}")
            time.sleep(_POLL_S)
        if prefix:
            text = self.ledger.with_name(self.ledger.name + ".lock").read_bytes()[1:17]
            daemon.pid = int(text.strip(b"\0 \n"))

    def _require_ended(self, family: list[int]) -> None:
        """Wait for the child, which ends by itself when its daemon is gone; a stopped one is let go first."""
        for pid in family[1:]:  # all of them first: one that was held while it began keeps the pipes of others open
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for pid in family[1:]:
            deadline = time.monotonic() + 15.0
            while process_state(pid) not in ("", "Z"):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    raise RuntimeError("the restoring process outlived its daemon by 15 s")
                time.sleep(0.005)

    def wait(self, condition: Callable[[], object], timeout_s: float = 60.0, *, poll_s: float = _POLL_S) -> float:
        """Wait until something holds; return the seconds that it took. Fails with the daemon's last words.

        A daemon that ends by itself meanwhile is a failure too, unless `Daemon.may_end` is set.
        """
        began, daemon = time.monotonic(), self._daemon
        while not condition():
            if daemon is not None and not daemon.alive and not daemon.may_end:
                code = daemon.process.returncode
                raise RuntimeError(f"the daemon ended by itself with status {code}:\n{daemon.log[-3000:]}")
            if time.monotonic() - began > timeout_s:
                words = self.daemon_log.read_text(errors="replace")[-3000:]
                raise TimeoutError(f"waited {timeout_s:g} s for nothing; states: {self.counts()}; the daemon:\n{words}")
            time.sleep(poll_s)
        return time.monotonic() - began

    def wait_done(self, number: int, timeout_s: float = 120.0) -> float:
        """Wait until so many stacks, and nothing else, are in the ledger, all of them done."""
        return self.wait(lambda: self.counts() == {"done": number}, timeout_s, poll_s=0.05)

    def counts(self) -> dict[str, int]:
        """Stacks by state; empty while there is no ledger that can be read."""
        with self._database() as database:
            return counts(database) if database else {}

    def entries(self) -> list[Entry]:
        """Every row of the ledger, as it is now."""
        with self._database() as database:
            return list(select(database, "ORDER BY id")) if database else []

    def paused(self) -> str:
        """Why the daemon says that it waits."""
        with self._database() as database:
            row = database.execute("SELECT value FROM meta WHERE key='paused'").fetchone() if database else None
            return row[0] if row else ""

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection | None]:
        """Open the ledger for a look; one that is absent, or only just being made, is None."""
        database = None
        try:
            if self.ledger.is_file():
                database = connect(self.ledger, read_only=True)
                if not database.execute("SELECT 1 FROM sqlite_master WHERE name='results'").fetchone():
                    database.close()
                    database = None
        except (sqlite3.Error, Ssai3dError):
            if database is not None:
                database.close()
            database = None
        try:
            yield database
        finally:
            if database is not None:
                database.close()

    def finals(self) -> dict[Path, tuple[int, int]]:
        """Every published file with (inode, mtime): unchanged means that it was not published again."""
        found = [path for path in sorted(self.out.rglob("*")) if path.is_file() and not self._is_ours(path)]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

    def leftovers(self) -> list[Path]:
        """Temporary files below the output folder."""
        return [
            path
            for path in sorted(self.out.rglob("*"))
            if _LEFT_OVER.fullmatch(path.name) and STATE_FOLDER not in path.relative_to(self.out).parts
        ]

    def _is_ours(self, path: Path) -> bool:
        parts = path.relative_to(self.out).parts
        return parts[0] in (STATE_FOLDER, "lost+found") or bool(_LEFT_OVER.fullmatch(path.name))

    def tree_hash(self, folder: Path) -> str:
        """SHA-256 of every file's bytes, name and modification time, of a folder or a single file."""
        digest = hashlib.sha256()
        for path in [folder] if not folder.is_dir() else sorted(folder.rglob("*")):
            status = os.lstat(path)
            digest.update(b"\0".join((os.fsencode(path.relative_to(folder)), b"%d" % status.st_mtime_ns)))
            if path.is_file() and not path.is_symlink():
                digest.update(hash_of(path).encode())
        return digest.hexdigest()

    def check(self, done: int | None = None) -> list[str]:
        """Say what does not hold that must hold after every drill; call it while no daemon runs.

        Parameters
        ----------
        done
            How many stacks must be done; absent: the drill looks at that itself.
        """
        entries = self.entries()
        finished = [entry for entry in entries if entry.state is State.DONE]
        named = [result.path for entry in finished for result in entry.results]
        complaints = [f"raw changed: {path.name}" for path, was in self._raw.items() if self.tree_hash(path) != was]
        complaints += [f"written into raw: {path.name}" for path in self.incoming.rglob("*_iso.*")]
        complaints += [f"left over: {path.name}" for path in self.leftovers()]
        complaints += [f"nobody's result: {path.name}" for path in sorted(set(self.finals()) - set(named))]
        complaints += [f"result of two stacks: {path.name}" for path in sorted(set(named)) if named.count(path) > 1]
        complaints += [complaint for entry in finished for complaint in _complaints(entry)]
        complaints += [
            f"still {entry.state.value}: {entry.path.name}"
            for entry in entries
            if entry.state in (State.RUNNING, State.PUBLISHING)
        ]
        if done is not None and len(finished) != done:
            complaints.append(f"{len(finished)} are done, {done} should be")
        with self._database() as database:
            if database is None:
                complaints.append("the ledger cannot be read")
            elif (verdict := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                complaints.append(f"the ledger is damaged: {verdict}")
        return complaints


def _complaints(entry: Entry) -> list[str]:
    if len(entry.results) != 1:
        return [f"{entry.path.name} has {len(entry.results)} results"]
    result = entry.results[0]
    try:
        if hash_of(result.path) != result.sha256:
            return [f"{result.path.name} is not what the ledger says"]
        right = not entry.path.exists() or is_right(result.path, entry.path)
    except (OSError, Ssai3dError) as error:
        return [f"{result.path.name}: {error}"]
    return [] if right else [f"{result.path.name} is not the restoration of {entry.path.name}"]


def built(source: str, folder: Path) -> Path:
    """Compile one of `shims/*.c` to a library for LD_PRELOAD."""
    library = folder / f"{source}.so"
    code = Path(__file__).parent / "shims" / f"{source}.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, code, "-ldl"], check=True)
    return library


def percentile(values: Sequence[float], share: float) -> float:
    """Value below which a share of the others lies, in the nearest-rank sense; 0 of nothing."""
    ordered = sorted(values)
    return round(ordered[max(0, -(-len(ordered) * int(share * 100) // 100) - 1)], 3) if ordered else 0.0


def process_state(pid: int) -> str:
    """Letter of a process's state, such as S, D, T or Z; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ended in between
            found += map(int, tasks.read_text().split())
    return found
