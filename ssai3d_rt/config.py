r"""Settings that come from a file, a command line or code: frozen, typed, and intolerant of unknown keys.

`Settings` is the base of every settings class here. A wrong key or value becomes one `ConfigError` line that names
the file and the nearest valid key. `Toml` is a file as it was written: it also knows in which line a key stands.

>>> class Camera(Settings):
...     exposure_ms: float = 10.0
>>> Camera.of({"exposure": 5})
Traceback (most recent call last):
ssai3d_rt.errors.ConfigError: settings: unknown key "exposure"; did you mean "exposure_ms"?
>>> Toml("exposure_ms = 5\n\ngain = [\n  1,\n]\n", "rig.toml").line_of(("gain",))
3
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ssai3d_rt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typing_extensions import Self

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with settings.

    Parameters
    ----------
    key
        The key's name, after those of the tables that it stands in; empty where it is about the whole.
    words
        What is wrong and what to do.
    """

    key: tuple[int | str, ...]
    words: str


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, values: Mapping[str, Any], *, where: str | Path = "settings") -> Self:
        """Make settings from a mapping.

        Parameters
        ----------
        values
            Keys and values, as read from a file or a command line.
        where
            What to name in an error: a file, or the place the values came from.

        Raises
        ------
        ConfigError
            An unknown key (the nearest valid one is named) or a value of the wrong type or range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_problems(cls, error)[0].words}") from None

    @classmethod
    def judged(cls, toml: Toml) -> tuple[Self | None, list[Problem]]:
        """Make settings from a TOML file, or say all that is wrong with it.

        Types are taken at their word: ``"5"`` is no number, ``1`` is not yes.

        Returns
        -------
        tuple
            The settings and no problem, or None and the problems in the order of their lines.
        """
        try:
            # Its way over JSON makes pydantic strict about numbers and yet take a text for a path, a list for a tuple.
            return cls.model_validate_json(json.dumps(toml.values, default=_no_json), strict=True), []
        except ValidationError as error:
            problems = _problems(cls, error)
            return None, sorted(problems, key=lambda problem: toml.line_of(problem.key) or 0)


class Toml:
    """A TOML file as it was written.

    Parameters
    ----------
    text
        Its text.
    where
        The file's name, as messages show it.

    Attributes
    ----------
    values
        What it says.

    Raises
    ------
    ConfigError
        It is not TOML; the message gives the line.
    """

    def __init__(self, text: str, where: str | Path) -> None:
        self.where = where
        self._lines = [line + "\n" for line in text.split("\n")]  # TOML knows no other line ends
        try:
            self.values: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{where} is not valid TOML: {error}") from None

    @classmethod
    def read(cls, path: Path, where: str | Path | None = None) -> Toml:
        """Read a file.

        Raises
        ------
        ConfigError
            The file is absent, cannot be read, or is not TOML.
        """
        where = where or path
        try:
            return cls(path.read_text(encoding="utf-8-sig"), where)  # editors on Windows put a mark in front
        except FileNotFoundError:
            raise ConfigError(f"{where} does not exist") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where} is not valid TOML: {error}; save it as UTF-8") from None
        except OSError as error:
            raise ConfigError(f"{where} cannot be read: {error.strerror or error}") from None

    def line_of(self, key: Sequence[int | str]) -> int | None:
        """Return the line, from 1, where a key's statement begins; for an absent key that of the table it belongs in.

        Found by reading the file from its top, a line more each time: the first piece that is TOML and has the key
        ends with its statement. So every way to write a key is understood, at the price of many short readings.
        """
        path = list(key)
        while path and not _holds(self.values, path):
            path.pop()
        if not path:
            return None
        begins = 1
        for end in range(1, len(self._lines) + 1):
            try:
                values = tomllib.loads("".join(self._lines[:end]))
            except tomllib.TOMLDecodeError:
                continue  # in the middle of a statement
            if _holds(values, path):
                return begins
            begins = end + 1
        return None

    def words(self, problem: Problem) -> str:
        """Put a problem in one line, with the file's name and the line where it is known."""
        line = self.line_of(problem.key)
        words = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in problem.words)
        return f"{self.where}: {words}" if line is None else f"{self.where}, line {line}: {words}"


def _problems(model: type[BaseModel], error: ValidationError) -> list[Problem]:
    """Put the problems in words; unknown keys come before the missing ones that they were probably meant to be."""
    found = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    return [_in_words(model, problem["type"], problem["loc"], problem["msg"], problem["input"]) for problem in found]


def _in_words(model: type[BaseModel], kind: str, key: tuple[int | str, ...], message: str, value: object) -> Problem:
    name = ".".join(str(part) for part in key)
    if kind == "extra_forbidden":
        return Problem(key, _unknown(model, key, is_table=isinstance(value, Mapping)))
    if kind == "missing":
        return Problem(key, f'key "{name}" is missing')
    reason = message.removeprefix("Value error, ")
    return Problem(key, f"{name}: {reason} (got {value!r})" if name else reason)


def _unknown(model: type[BaseModel], key: tuple[int | str, ...], *, is_table: bool) -> str:
    """Name an unknown key, and the one that was probably meant: here, else in another table."""
    fields = _model_at(model, key[:-1]).model_fields
    tables = [name for name in fields if _model_at(model, (*key[:-1], name)) is not _model_at(model, key[:-1])]
    last = str(key[-1])
    if is_table and tables:
        near = difflib.get_close_matches(last, tables, n=1, cutoff=0.4)
        hint = f"did you mean [{near[0]}]?" if near else f"known tables: {', '.join(f'[{name}]' for name in tables)}"
        return f"unknown table [{'.'.join(map(str, key))}]; {hint}"
    elsewhere = [name for name in model.model_fields if last in _model_at(model, (name,)).model_fields]
    near = difflib.get_close_matches(last, list(fields), n=1, cutoff=0.4)
    if elsewhere and last not in model.model_fields:
        hint = f"it belongs in the table [{elsewhere[0]}]"
    else:
        hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(fields)}"
    return f'unknown key "{".".join(map(str, key))}"; {hint}'


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """Follow nested settings to the class that owns the last key of a path."""
    for name in path:
        field = model.model_fields.get(str(name))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return model


def _holds(values: object, path: Sequence[int | str]) -> bool:
    """Whether nested tables and lists have something at the end of a path."""
    for part in path:
        listed = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if not listed and not (isinstance(values, dict) and part in values):
            return False
        values = values[part]  # type: ignore[index]
    return True


def _no_json(value: object) -> dict[str, str]:
    """Stand in for what JSON has no word for, dates and times: no setting is of this type."""
    return {"a date or time": str(value)}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file's values.

    Raises
    ------
    ConfigError
        The file is absent or not TOML; the message gives the line.
    """
    return Toml.read(path).values
