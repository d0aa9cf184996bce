"""Whether a rig's settings fit the machine: folders, rights, room, the bundle, the ledger's disk.

Everything is looked at, nothing is changed: a check can run beside the daemon, any number of times. It does not know
how the file is written: see `ssai3d_rt.runtime.rigconfig`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ssai3d_rt.config import Problem
from ssai3d_rt.errors import BackendError, BundleError, MissingPackageError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.guard import is_loopback
from ssai3d_rt.runtime.hints import is_network
from ssai3d_rt.runtime.rigconfig import contradictions, read
from ssai3d_rt.runtime.status import ledger_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssai3d_rt.config import Toml
    from ssai3d_rt.runtime.rigconfig import RigConfig


def complaints(path: str | os.PathLike[str]) -> list[str]:
    """Return all that is wrong with a file of settings on this machine, one line each; nothing where all is well.

    Raises
    ------
    ConfigError
        The file is absent, cannot be read, or is not TOML.
    """
    reading = read(path)
    if reading.config is None:
        return _lines(reading.toml, reading.problems)
    return _lines(reading.toml, [*contradictions(reading.config), *unfit(reading.config)])


def unfit(config: RigConfig) -> list[Problem]:
    """Return what a daemon with these settings would lack on this machine."""
    parts = (_missing, _folders, _results, _bundle, _backend, _ledger, _files, _health)
    return [problem for part in parts for problem in part(config)]


def _missing(config: RigConfig) -> Iterator[Problem]:
    for name, example in (("folders", '["D:/data"]'), ("out", '"D:/isotropic"'), ("bundle", '"cells.ssai3d"')):
        if not getattr(config.watch, name):
            yield Problem(("watch", name), f"{name} is missing; write it into the table [watch]: {name} = {example}")


def _folders(config: RigConfig) -> Iterator[Problem]:
    for index, folder in enumerate(config.watch.folders):
        if not folder.is_file() and (reason := _not_readable(folder)):  # a file is one of the contradictions
            yield Problem(("watch", "folders", index), f"folders: {shown(folder)} cannot be read: {reason}")


def _results(config: RigConfig) -> Iterator[Problem]:
    out, key = config.watch.out, ("watch", "out")
    if out is None or out.is_file():
        return
    if reason := _not_writable(out, config):
        yield Problem(key, f"out: {shown(out)} cannot be written: {reason}")
    elif (free := shutil.disk_usage(_existing(out)).free) < config.watch.reserve_bytes:
        words = f"out: the disk of {shown(out)} has {free:,} bytes free, less than reserve_bytes"
        yield Problem(key, f"{words}; nothing would be restored")


def _bundle(config: RigConfig) -> Iterator[Problem]:
    from ssai3d_rt.export.bundle import Bundle

    if config.watch.bundle is not None and config.watch.bundle.is_dir():
        try:
            Bundle.open(config.watch.bundle)
        except (BundleError, OSError) as error:
            yield Problem(("watch", "bundle"), f"bundle: {shown(str(error))}")


def _backend(config: RigConfig) -> Iterator[Problem]:
    from ssai3d_rt.runtime.backends.registry import ANY_CPU, AUTO, why_not

    if config.watch.backend not in (AUTO, ANY_CPU):
        try:
            reason = why_not(config.watch.backend)
        except BackendError as error:
            reason = str(error)
        if reason:
            yield Problem(("watch", "backend"), f"backend: {reason}")


def _ledger(config: RigConfig) -> Iterator[Problem]:
    watch = config.watch
    ledger = watch.ledger or (ledger_of(watch.out) if watch.out is not None else None)
    if ledger is None:
        return
    if is_network(_existing(ledger.parent)):
        words = f"the ledger {shown(ledger)} is on a network file system; set `ledger` to a file on a local disk"
        yield Problem(("watch", "ledger"), words)
    elif watch.ledger is not None and (reason := _not_writable(ledger.parent, config)):
        yield Problem(("watch", "ledger"), f"ledger: {shown(ledger.parent)} cannot be written: {reason}")


def _files(config: RigConfig) -> Iterator[Problem]:
    log = config.log.file
    if log is not None and not log.parent.is_dir():
        yield Problem(("log", "file"), f"file: the folder {shown(log.parent)} does not exist; make it, or name another")
    elif log is not None and (reason := _not_writable(log.parent, config)):
        yield Problem(("log", "file"), f"file: {shown(log.parent)} cannot be written: {reason}")


def _health(config: RigConfig) -> Iterator[Problem]:
    health, token = config.health, config.health.token_file
    if token is not None and not token.is_file():
        yield Problem(("health", "token_file"), f"token_file: {shown(token)} does not exist")
    if not health.port:
        return
    absent = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if absent:
        yield Problem(("health", "port"), f"port: {MissingPackageError(absent[0], extra='status')}")
    if token is None and (health.hosts or not is_loopback(health.address)):
        key = "hosts" if health.hosts else "address"
        yield Problem(("health", key), f"{key}: other machines could ask; give a token_file, or leave {key} out")


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _not_readable(folder: Path) -> str:
    """Say why a folder cannot be listed; empty where it can."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _not_writable(folder: Path, config: RigConfig) -> str:
    """Say why no file can be made in a folder, or in the nearest one above it that is there; empty where it can."""
    place = _existing(folder)
    if any(place.is_relative_to(raw) for raw in config.watch.folders):
        return ""  # one of the contradictions; nothing is tried in raw data
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _lines(toml: Toml, problems: list[Problem]) -> list[str]:
    ordered = sorted(problems, key=lambda problem: toml.line_of(problem.key) or 0)
    return list(dict.fromkeys(toml.words(problem) for problem in ordered))
