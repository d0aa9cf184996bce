"""Small disks for drills: mounted below a drill's own folder, and always unmounted again (Linux, root)."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def command(*words: str | Path) -> str:
    """Run a command and return what it printed; fails with what it said."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@contextlib.contextmanager
def tmpfs(folder: Path, **options: str | int) -> Iterator[Path]:
    """Mount a tmpfs (`size="200k"`, `nr_inodes=20`) on a folder while inside."""
    folder.mkdir(parents=True, exist_ok=True)
    command("mount", "-t", "tmpfs", "-o", _words(options), "tmpfs", folder)
    try:
        yield folder
    finally:
        unmount(folder)


@contextlib.contextmanager
def mounted(*arguments: str | Path, at: Path) -> Iterator[Path]:
    """Mount anything on a folder while inside: `mounted("-o", "loop,commit=600", image, at=folder)`."""
    at.mkdir(parents=True, exist_ok=True)
    command("mount", *arguments, at)
    try:
        yield at
    finally:
        unmount(at)


def remount(folder: Path, **options: str | int) -> None:
    """Change a mount's options: `remount(folder, size="64m")`, `remount(folder, ro="")`."""
    command("mount", "-o", f"remount,{_words(options)}", folder)


def unmount(folder: Path) -> None:
    """Unmount a folder, lazily where something still uses it."""
    if subprocess.run(["umount", folder], capture_output=True, check=False).returncode:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def unmount_below(folder: Path) -> list[Path]:
    """Unmount whatever is still mounted below a folder, the innermost first; return what that was."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    places = [Path(line.split(" ")[1].replace("\\040", " ")) for line in lines]
    found = [place for place in reversed(places) if place.is_relative_to(folder)]
    for place in found:
        unmount(place)
    return found


def _words(options: dict[str, str | int]) -> str:
    return ",".join(f"{name}={value}" if value != "" else name for name, value in options.items())
