"""Hints that something happened in a watched folder: they make the daemon quick, never right.

watchdog's events may be lost, late or twice, and its threads may die without a word; a scan finds all that they miss.
So the handler only notes paths for the daemon to look at, and `Hints.supervise` starts an observer anew when it or one
of its emitters died, or when its folder was replaced (unmounted, mounted, renamed away). Network folders are polled,
because the system tells nothing about changes made by other computers.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watchdog.observers.api import BaseObserver

    from ssai3d_rt.runtime.settings import WatchSettings

logger = logging.getLogger(__name__)

NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.rclone"}
)
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]
_MOST_PATHS = 20_000
_JOIN_S = 5.0


class Hints:
    """Observers of some folders.

    Parameters
    ----------
    roots
        The watched folders.
    settings
        Which observer.
    """

    def __init__(self, roots: Sequence[Path], settings: WatchSettings) -> None:
        self._settings = settings
        self._observers: dict[Path, tuple[BaseObserver, tuple[int, int]] | None] = dict.fromkeys(roots)
        self._handler = _Handler()
        self._complained: set[Path] = set()
        self._stopped = self._short = self._said_short = False

    def supervise(self, root: Path) -> None:
        """Start the observer of a folder (again) where it is not running; cheap where it is.

        Each folder from a thread of its own: one that does not answer holds no other up.
        """
        if self._settings.observer == "off" or self._stopped:
            return
        running, place = self._observers[root], _place(root)
        if running is not None:
            observer, began = running
            alive = observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)
            if alive and observer.emitters and place == began:
                return
            logger.warning("the observer of %s %s; it is started again", shown(root), "lost it" if alive else "died")
            _stop(observer)
            self._observers[root] = None
        if place is not None:
            self._start(root, place)

    def note_shortage(self, folders: int) -> None:
        """Say, once, where the system watches fewer folders than there are."""
        watched = _watches()
        short = self._settings.observer != "off" and watched is not None and watched < folders
        if short and self._short and not self._said_short:
            logger.warning(
                "watch limit: the system tells of %d of %d folders only (fs.inotify.max_user_watches); the others are "
                "scanned every %g s",
                *(watched, folders, self._settings.scan_s),
            )
            self._said_short = True
        self._short = short

    def take(self) -> tuple[dict[Path, bool], bool]:
        """Return the paths noted since the last call (True: its writer closed it), and whether to scan at once."""
        return self._handler.take()

    def stop(self) -> None:
        """End all observers."""
        self._stopped = True
        for root, running in self._observers.items():
            if running is not None:
                _stop(running[0])
                self._observers[root] = None

    def _start(self, root: Path, place: tuple[int, int]) -> None:
        polling = self._settings.observer == "polling" or (self._settings.observer == "auto" and is_network(root))
        observer: BaseObserver = PollingObserver(timeout=self._settings.poll_s) if polling else Observer()
        try:
            observer.schedule(self._handler, str(root), recursive=True, event_filter=_EVENTS)
            observer.start()
        except (OSError, RuntimeError) as error:
            _stop(observer)
            if root not in self._complained:
                logger.warning(
                    "no events from %s (%s); it is scanned every %g s", shown(root), error, self._settings.scan_s
                )
            self._complained.add(root)
            return
        self._complained.discard(root)
        self._observers[root] = (observer, place)
        if self._stopped:
            _stop(observer)


class _Handler(FileSystemEventHandler):
    """Notes paths; runs in watchdog's threads, so it does nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[Path, bool] = {}
        self._scan = False

    def on_any_event(self, event: FileSystemEvent) -> None:
        with self._lock:
            if event.is_directory or len(self._paths) >= _MOST_PATHS:
                self._scan = True
                return
            path = Path(os.fsdecode(event.dest_path if event.event_type == "moved" else event.src_path))
            closed = event.event_type in ("closed", "moved")
            self._paths[path] = closed or (self._paths.get(path, False) and event.event_type != "modified")

    def take(self) -> tuple[dict[Path, bool], bool]:
        with self._lock:
            taken = self._paths, self._scan
            self._paths, self._scan = {}, False
            return taken


def is_network(folder: Path) -> bool:
    """Whether a folder lies on a network file system."""
    if sys.platform == "win32":
        import ctypes

        text = str(folder.absolute())
        remote = 4
        return text.startswith("\\\\") or ctypes.windll.kernel32.GetDriveTypeW(f"{text[:2]}\\") == remote
    return file_system_type(folder) in NETWORK_TYPES


def file_system_type(folder: Path, mounts: str = "/proc/self/mounts") -> str:
    """Type of the file system that a folder lies on, as Linux lists it; empty where that is not known."""
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    target = folder.absolute()
    for line in lines:
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        mount = Path(parts[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if len(mount.parts) >= best and target.is_relative_to(mount):
            best, kind = len(mount.parts), parts[2]
    return kind


def _watches() -> int | None:
    """Folders that this process has the system watch; None where the system does not tell, or polls."""
    found = None
    for descriptor in Path("/proc/self/fd").glob("*"):
        try:
            if os.readlink(descriptor) == "anon_inode:inotify":
                lines = (Path("/proc/self/fdinfo") / descriptor.name).read_text(encoding="ascii").splitlines()
                found = (found or 0) + sum(line.startswith("inotify ") for line in lines)
        except OSError:  # noqa: PERF203
            continue  # closed meanwhile
    return found


def _place(root: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(root)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _stop(observer: BaseObserver) -> None:
    observer.unschedule_all()
    observer.stop()
    if observer.ident is not None:
        observer.join(_JOIN_S)
