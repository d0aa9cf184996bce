"""The log file: one line per record, escaped, rotated, and never a reason to fail."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt import console
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.runtime.logfile import LogSettings, logs_to_file

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("ssai3d_rt.somewhere")
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warning|error) ssai3d_rt\.somewhere: [ -~]*")


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    package = logging.getLogger("ssai3d_rt")
    before = package.level
    yield
    assert package.level == before
    assert not [handler for handler in package.handlers if isinstance(handler, logging.FileHandler)]


def settings(folder: Path, **changes: object) -> LogSettings:
    return LogSettings.of({"file": folder / "rig.log"} | changes)


def lines(folder: Path) -> list[str]:
    return (folder / "rig.log").read_text(encoding="utf-8").splitlines()


def test_every_record_is_one_escaped_line_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What pytest captures is sent to another process, which half a character would end.
    monkeypatch.setattr(logging.getLogger("ssai3d_rt"), "propagate", False)
    with logs_to_file(settings(tmp_path)):
        logger.info("restored %s", "cells\n1970-01-01T00:00:00.000Z error forged: \x1b[2J\udc80.tif")
        try:
            raise ValueError("wrong\r\nbytes")
        except ValueError:
            logger.exception("failed")
        logger.debug("too fine")
    written = lines(tmp_path)
    assert [bool(LINE.fullmatch(line)) for line in written] == [True, True]
    assert "\\n1970" in written[0]
    assert "\\x1b[2J\\udc80.tif" in written[0]
    assert "Traceback" in written[1]
    assert "ValueError: wrong\\r\\nbytes" in written[1]


def test_json_lines(tmp_path: Path) -> None:
    with logs_to_file(settings(tmp_path, format="json", level="debug")):
        logger.debug("seen %s", "a\nb")
        try:
            raise OSError("gone")
        except OSError:
            logger.exception("failed")
    first, second = map(json.loads, lines(tmp_path))
    assert (first["level"], first["logger"], first["message"]) == ("debug", "ssai3d_rt.somewhere", "seen a\\nb")
    assert set(first) == {"time", "level", "logger", "message"}
    assert "OSError: gone" in second["traceback"]


def test_it_stands_beside_stderr_and_each_keeps_its_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console.logs_to_stderr(logging.WARNING):
        with logs_to_file(settings(tmp_path)):
            logger.info("for the file")
            logger.warning("for both")
        logger.info("for nobody")
    assert capsys.readouterr().err == "warning: for both\n"
    assert [line.split(": ", 1)[1] for line in lines(tmp_path)] == ["for the file", "for both"]


def test_it_rotates_and_keeps_as_many_as_set(tmp_path: Path) -> None:
    with logs_to_file(settings(tmp_path, max_bytes=10_000, backups=2)):
        for number in range(1000):
            logger.info("%05d %s", number, "x" * 80)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rig.log", "rig.log.1", "rig.log.2"]
    assert all(path.stat().st_size <= 10_000 for path in tmp_path.iterdir())
    assert ": 00999 " in lines(tmp_path)[-1]


def test_without_a_file_nothing_changes() -> None:
    with logs_to_file(LogSettings()):
        pass


@pytest.mark.parametrize("place", ["a folder", "no folder", "a pipe"])
def test_a_place_that_cannot_be_written_is_refused(place: str, tmp_path: Path) -> None:
    file = tmp_path / "rig.log"
    if place == "a folder":
        file.mkdir()
    elif place == "a pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no named pipes")
        os.mkfifo(file)
    else:
        file = tmp_path / "missing" / "rig.log"
    with pytest.raises(ConfigError, match=r"rig\.log"), logs_to_file(LogSettings(file=file)):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_told_once_and_logging_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logs_to_file(settings(tmp_path)):
        (handler,) = (h for h in logging.getLogger("ssai3d_rt").handlers if isinstance(h, logging.FileHandler))
        whole = handler.stream
        with open("/dev/full", "w", encoding="utf-8") as full:
            handler.stream = full
            for _ in range(50):
                logger.error("no room")
            handler.stream = whole
            logger.error("room again")
            err = capsys.readouterr().err
            assert err.count("cannot be written") == 1
            assert "No space left" in err
            with pytest.raises(OSError, match="No space left"):
                full.close()
    assert lines(tmp_path)[-1].endswith("room again")


def test_a_record_that_cannot_be_put_in_words_harms_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ssai3d_rt"), "propagate", False)  # pytest's own handler would raise
    with logs_to_file(settings(tmp_path)):
        logger.error("%d", "no number")
        logger.error("after it")
    assert "cannot be written" in capsys.readouterr().err
    assert lines(tmp_path)[-1].endswith("after it")


def test_where_rotating_fails_the_same_file_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("another program holds it open")

    monkeypatch.setattr(os, "rename", refuse)
    with logs_to_file(settings(tmp_path, max_bytes=10_000)):
        for number in range(300):
            logger.info("%05d %s", number, "x" * 80)
    assert capsys.readouterr().err.count("another program holds it open") == 1
    assert len(lines(tmp_path)) == 300


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    with logs_to_file(settings(tmp_path)):

        def write() -> None:
            for _ in range(100):
                logger.info("x" * 200)

        threads = [threading.Thread(target=write, name=f"writer {number}") for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(tmp_path)) == 400
    assert all(LINE.fullmatch(line) for line in lines(tmp_path))
