"""What the command line shows: results, progress, warnings, failures.

Results go to stdout: lines for people, or with ``--json`` one object as the last line. Progress is a bar on a terminal
and plain lines elsewhere; with ``--json`` it leaves stdout alone. Warnings and the line of a failure go to stderr. It
knows no command and no stage.

>>> with progress_to(io.StringIO()) as progress:
...     progress("restore", 1, 4)
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.table import Table

    from ssai3d_rt.progress import Progress

PLAIN_INTERVAL_S = 5.0
"""Without a terminal, a line of progress appears at most this often per label, and at its end."""


def show(*lines: str) -> None:
    """Print lines to stdout."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def show_table(table: Table) -> None:
    """Print a table to stdout, as wide as it needs to be where stdout is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(file=sys.stdout, width=width).print(table)


def warn(message: str) -> None:
    """Print one warning to stderr."""
    sys.stderr.write(f"warning: {one_line(message)}\n")
    sys.stderr.flush()


def fail(message: str) -> None:
    """Print the one line of a failure to stderr."""
    sys.stderr.write(f"ssai3d-rt: {one_line(message)}\n")
    sys.stderr.flush()


def one_line(message: str) -> str:
    """Join the lines of a message that comes from elsewhere."""
    return " ".join(str(message).split())


def emit(record: Mapping[str, Any], *, as_json: bool, lines: Iterable[str] = ()) -> None:
    """Print a result: `lines` for people, or `record` as one JSON object on one line."""
    if as_json:
        show(json.dumps(record, default=_jsonable, allow_nan=False))
    else:
        show(*lines)


def _jsonable(value: object) -> object:
    """Turn paths, numpy scalars and pydantic models into what JSON knows."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for method in ("model_dump", "tolist"):
        convert = getattr(value, method, None)
        if convert is not None:
            return convert(mode="json") if method == "model_dump" else convert()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@contextlib.contextmanager
def progress_bar(*, as_json: bool = False) -> Iterator[Progress]:
    """Give a `Progress` for the time of one command.

    Stdout carries it; with `as_json` stdout is kept for the result, and a bar appears only where stderr is a terminal.
    """
    if as_json and not sys.stderr.isatty():
        with progress_to(io.StringIO()) as quiet:
            yield quiet
        return
    with progress_to(sys.stderr if as_json else sys.stdout) as progress:
        yield progress


@contextlib.contextmanager
def progress_to(stream: TextIO) -> Iterator[Progress]:
    """Give a `Progress` that writes to `stream`: a bar when it is a terminal, plain lines otherwise."""
    if not stream.isatty():
        yield PlainProgress(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=stream)) as bars:
        tasks: dict[str, Any] = {}

        def report(label: str, done: int, total: int, /) -> None:
            name = _stage(label)
            if name not in tasks:
                tasks[name] = bars.add_task(label, total=total)
            bars.update(tasks[name], description=label, completed=done, total=total)

        yield report


class PlainProgress:
    """Progress as lines, for logs and pipes: the first report, then every few seconds, then the end."""

    def __init__(self, stream: TextIO, interval_s: float = PLAIN_INTERVAL_S) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._last: dict[str, tuple[float, int]] = {}

    def __call__(self, label: str, done: int, total: int, /) -> None:
        """Write a line when it is due."""
        name = _stage(label)
        now_s = time.monotonic()
        last_s, last_done = self._last.get(name, (-1e9, -1))
        finished = done >= total and last_done < total
        if finished or now_s - last_s >= self._interval_s:
            self._last[name] = (now_s, done)
            self._stream.write(f"{label}: {done}/{total}\n")
            self._stream.flush()


def _stage(label: str) -> str:
    """Name the stage of a label: the words before its first figure, so that a changing loss stays one bar."""
    words = []
    for word in label.split():
        if any(c.isdigit() for c in word) or word in {"nan", "inf"}:
            break
        words.append(word)
    return " ".join(words) or label


@contextlib.contextmanager
def logs_to_stderr(level: int, *, timed: bool = False) -> Iterator[None]:
    """Send the package's log records to stderr, one line each, for the time of one command.

    Only the command line calls this. `timed` is for what runs for long; used inside another one it takes its place.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter("%(asctime)s %(message)s" if timed else "%(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("ssai3d_rt")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:], level, logger.propagate = before
        logger.setLevel(level)


class _OneLineFormatter(logging.Formatter):
    """A record as one line, its level in front unless it is plain information; tracebacks stay whole."""

    def format(self, record: logging.LogRecord) -> str:
        """Join the message's lines."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        record = logging.makeLogRecord(vars(record) | {"msg": level + one_line(record.getMessage()), "args": None})
        return super().format(record)


def state_dir() -> Path:
    """Return the private folder for logs: ``$SSAI3D_RT_HOME``, else per user; never beside the data."""
    if home := os.environ.get("SSAI3D_RT_HOME"):
        return Path(home)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "ssai3d-rt"


def save_traceback(error: BaseException, argv: list[str]) -> Path | None:
    """Write the traceback of an unexpected failure to a file and return its path, or None when that fails too."""
    import ssai3d_rt

    text = (
        f"ssai3d-rt {ssai3d_rt.__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"arguments: {argv}\n\n" + "".join(traceback.format_exception(error))
    )
    path = state_dir() / "logs" / f"failure-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError:
        return None
    return path
