"""Settings that come from a file, a command line or code: frozen, typed, and intolerant of unknown keys.

`Settings` is the base of every settings class here. A wrong key or value becomes one `ConfigError` line that names
the file and the nearest valid key.

>>> class Camera(Settings):
...     exposure_ms: float = 10.0
>>> Camera.of({"exposure": 5})
Traceback (most recent call last):
ssai3d_rt.errors.ConfigError: settings: unknown key "exposure"; did you mean "exposure_ms"?
"""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ssai3d_rt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
            raise ConfigError(f"{where}: {_explain(cls, error)}") from None


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """Put the first problem in words; an unknown key comes before the missing one that it was probably meant to be."""
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(_model_at(model, first["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(known)}"
        return f'unknown key "{key}"; {hint}'
    if first["type"] == "missing":
        return f'key "{key}" is missing'
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key}: {reason} (got {first['input']!r})" if key else reason


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """Follow nested settings to the class that owns the last key of a path."""
    for name in path:
        field = model.model_fields.get(str(name))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return model


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        The file is absent or not TOML; the message gives the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
