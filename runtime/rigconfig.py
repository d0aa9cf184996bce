"""A rig's daemon in one file: what is watched, where results go, what restores, how it is looked after.

```toml
[watch]
folders = ["D:/data/today"]
out = "D:/isotropic"
bundle = "cells.ssai3d"
```

Every key of `WatchSettings` stands in ``[watch]`` too. Relative paths count from the file's own folder. What is wrong
is said with the file, the line and what was probably meant. It knows the file alone: whether folders can be read and a
bundle opens is for `ssai3d_rt.runtime.rigcheck`.

>>> RigConfig.of({"wach": {}})
Traceback (most recent call last):
ssai3d_rt.errors.ConfigError: settings: unknown table [wach]; did you mean [watch]?
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from ssai3d_rt.config import Problem, Settings, Toml
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.logfile import LogSettings
from ssai3d_rt.runtime.roots import Roots
from ssai3d_rt.runtime.settings import WatchSettings
from ssai3d_rt.runtime.web import HealthSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Key = tuple[int | str, ...]


class WatchTable(WatchSettings):
    """What is watched, and all of `WatchSettings`.

    Parameters
    ----------
    folders
        Folders that a microscope writes to, each with all folders below.
    out
        Folder for results and the ledger; not in a watched folder, nor around one.
    bundle
        What to restore with, as `ssai3d-rt export` made it.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    folders: tuple[Path, ...] = ()
    out: Path | None = None
    bundle: Path | None = None

    def settings(self) -> WatchSettings:
        """Return what `ssai3d_rt.runtime.watch.watch` takes as its settings."""
        known = set(WatchSettings.model_fields)
        return WatchSettings(**{name: getattr(self, name) for name in self.model_fields_set & known})


class RigConfig(Settings):
    """The whole file: one table each for the watch, its health page and its log."""

    watch: WatchTable = WatchTable()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()


@dataclass(frozen=True, slots=True)
class Reading:
    """A file that was read.

    Parameters
    ----------
    toml
        The file as it was written.
    config
        What it says, paths made absolute; None where it says something impossible.
    problems
        All that is wrong with it, in the order of its lines.
    """

    toml: Toml
    config: RigConfig | None
    problems: list[Problem]


def read(path: str | os.PathLike[str]) -> Reading:
    """Read a file and judge every key.

    Raises
    ------
    ConfigError
        The file is absent, cannot be read, or is not TOML.
    """
    toml = Toml.read(Path(path), shown(path))
    config, problems = RigConfig.judged(toml)
    if config is None:
        return Reading(toml, None, problems)
    problems = [
        Problem(key, f"{_dotted(key)}: ~ is not expanded, write the path in full (got {shown(value)!r})")
        for key, value in paths_in(config)
        if value.parts[:1] and value.parts[0].startswith("~")
    ]
    base = Path(os.path.abspath(path)).parent
    return Reading(toml, None if problems else _below(config, base), problems)


def load(path: str | os.PathLike[str] | None = None, asked: Mapping[str, Any] | None = None) -> RigConfig:
    """Read a file, with what a command line asks for in front of its table ``[watch]``.

    Parameters
    ----------
    path
        The file; without one all is as by default.
    asked
        Keys of ``[watch]``; those that are None are not asked for. Their paths count from the current folder.

    Raises
    ------
    ConfigError
        Something is wrong with the file, or what results contradicts itself, see `contradictions`. The message tells
        the first problem, and how many more there are.
    """
    given = {key: value for key, value in (asked or {}).items() if value is not None}
    if path is None:
        unwritten = RigConfig.of({"watch": given}, where="watch")
        for problem in contradictions(unwritten):
            raise ConfigError(problem.words)
        return unwritten
    reading = read(path)
    config, problems = reading.config, reading.problems
    if config is not None:
        written = {name: getattr(config.watch, name) for name in config.watch.model_fields_set}
        config = config.model_copy(update={"watch": WatchTable.of(written | given, where="watch")})
        problems = contradictions(config)
    if config is None or problems:
        first = problems[0]
        words = first.words if set(first.key[1:2]) & given.keys() else reading.toml.words(first)
        more = f" (and {len(problems) - 1} more; see them all with: ssai3d-rt config check)" if problems[1:] else ""
        raise ConfigError(words + more)
    return config


def contradictions(config: RigConfig) -> list[Problem]:
    """Return what cannot be, whatever the machine: folders in each other, files in raw data, no bundle where it says.

    What is not set is not judged.
    """
    watch = config.watch
    folders, problems = watch.folders, []
    if folders and watch.out is not None:
        alone = [_clash((folder,), watch.out, index) for index, folder in enumerate(folders)]
        problems = [problem for found in alone for problem in found] or _clash(folders, watch.out, None)
    for key, file in ((("watch", "ledger"), watch.ledger), (("log", "file"), config.log.file)):
        inside = [folder for folder in folders if file is not None and _real(file).is_relative_to(_real(folder))]
        if inside:
            words = f"{_dotted(key)}: {shown(str(file))} lies in the watched folder {shown(inside[0])}"
            problems.append(Problem(key, f"{words}, which is only read; choose a place beside it"))
    if watch.bundle is not None and not watch.bundle.is_dir():
        words = f"bundle: {shown(watch.bundle)} is not the folder of a bundle; `ssai3d-rt export` makes one"
        problems.append(Problem(("watch", "bundle"), words))
    return problems


def paths_in(settings: BaseModel, key: Key = ()) -> Iterator[tuple[Key, Path]]:
    """Yield every path that is set, with its key."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from paths_in(value, (*key, name))
        elif isinstance(value, Path):
            yield (*key, name), value
        elif isinstance(value, tuple):
            yield from (((*key, name, index), item) for index, item in enumerate(value) if isinstance(item, Path))


def _below(settings: Any, base: Path) -> Any:
    """Make relative paths absolute; what was not set stays unset."""
    changed: dict[str, Any] = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            changed[name] = _below(value, base)
        elif isinstance(value, Path):
            changed[name] = Path(os.path.normpath(base / value))
        elif isinstance(value, tuple):
            changed[name] = tuple(Path(os.path.normpath(base / v)) if isinstance(v, Path) else v for v in value)
    return settings.model_copy(update=changed)


def _clash(folders: tuple[Path, ...], out: Path, index: int | None) -> list[Problem]:
    try:
        Roots(folders, out)
    except ConfigError as error:
        return [Problem(("watch", "folders") if index is None else ("watch", "folders", index), str(error))]
    return []


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))
