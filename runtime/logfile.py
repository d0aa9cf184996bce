r"""The daemon's log as a file: one line per record, rotated by size, beside what goes to stderr.

File names and other people's error texts end up in a log, so control characters are escaped: nobody can forge a line
or send commands to a terminal. Times are UTC. Logging never fails the daemon: a full disk is told once on stderr, and
writing goes on when there is room again. It does not know what is logged.

```toml
[log]
file = "ssai3d-rt.log"
level = "info"
```

>>> record = logging.LogRecord("ssai3d_rt", logging.ERROR, "", 0, "cells\n1.tif\x1b[2J", None, None)
>>> record.created = 0.0
>>> LineFormatter().format(record)
'1970-01-01T00:00:00.000Z error ssai3d_rt: cells\\n1.tif\\x1b[2J'
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import logging.handlers
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ssai3d_rt.config import Settings
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "ssai3d_rt"


class LogSettings(Settings):
    """Where the log goes.

    Parameters
    ----------
    file
        The log file; older ones stand beside it as ``.1``, ``.2`` and so on. Absent: warnings on stderr only.
    level
        The least that is written.
    format
        ``text``, or ``json``: one object per line with ``time``, ``level``, ``logger``, ``message``, ``traceback``.
    max_bytes
        A file that would grow beyond is put aside and a new one begun.
    backups
        How many older files are kept.
    """

    file: Path | None = None
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    max_bytes: int = Field(default=10_000_000, ge=10_000)
    backups: int = Field(default=5, ge=1, le=1000)


@contextlib.contextmanager
def logs_to_file(settings: LogSettings) -> Iterator[None]:
    """Also write the package's log records to a file while inside; nothing where no file is set.

    Handlers that are there already keep what they show.

    Raises
    ------
    ConfigError
        The file cannot be opened for writing, or is not a regular file.
    """
    if settings.file is None:
        yield
        return
    handler = _opened(settings.file, settings)
    logger = logging.getLogger(PACKAGE)
    before, levels = logger.level, [(other, other.level) for other in logger.handlers]
    for other, level in levels:
        other.setLevel(max(level, logger.getEffectiveLevel()))
    logger.setLevel(min(logger.getEffectiveLevel(), handler.level))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        for other, level in levels:
            other.setLevel(level)
        handler.close()


class LineFormatter(logging.Formatter):
    """A record as one line: UTC time, level, logger and message; a traceback follows in the same line, escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Escape what could end the line or control a terminal."""
        trace = _traceback(record)
        text = f"{record.getMessage()} | {trace}" if trace else record.getMessage()
        return f"{_time(record)} {record.levelname.lower()} {record.name}: {shown(text)}"


class JsonFormatter(logging.Formatter):
    """A record as one JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record's fields, escaped as in `LineFormatter`."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shown(record.getMessage()),
        }
        trace = _traceback(record)
        return json.dumps(fields | ({"traceback": trace} if trace else {}))


class _File(logging.handlers.RotatingFileHandler):
    """A rotating file whose failures are told once, on stderr, and not again before a record got through."""

    _complained = False
    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or say once why not."""
        self._failed = False
        super().emit(record)
        self._complained = self._failed and self._complained

    def doRollover(self) -> None:  # noqa: N802
        """Begin a new file; where that fails (another program holds it open), go on in the old one."""
        try:
            super().doRollover()
        except OSError as error:
            self._complain(error)
            self.stream = self.stream or self._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Never raise."""
        self._complain(sys.exc_info()[1])

    def close(self) -> None:
        """Close it, also where what is left in memory finds no room on the disk."""
        with contextlib.suppress(OSError):
            super().close()

    def _complain(self, error: BaseException | None) -> None:
        self._failed = True
        if self._complained:
            return
        self._complained = True
        with contextlib.suppress(Exception):
            sys.stderr.write(f"warning: the log file {shown(self.baseFilename)} cannot be written: {error}\n")
            sys.stderr.flush()


def _opened(path: Path, settings: LogSettings) -> _File:
    if path.exists() and not path.is_file():
        raise ConfigError(f"the log file {shown(path)} is not a regular file; give another name in [log]")
    try:
        handler = _File(path, maxBytes=settings.max_bytes, backupCount=settings.backups, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"the log file {shown(path)} cannot be written: {reason}; see `file` in [log]") from None
    handler.setFormatter(JsonFormatter() if settings.format == "json" else LineFormatter())
    handler.setLevel(settings.level.upper())
    return handler


def _time(record: logging.LogRecord) -> str:
    """Return the record's time as ISO 8601, UTC, milliseconds."""
    moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(*record.exc_info)).strip() if record.exc_info else ""
