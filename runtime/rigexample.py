r"""A rig's file of settings written out: the complete example with every key, and what is in force.

Both come from the settings classes themselves: meanings from their docstrings, defaults, ranges and choices from their
fields, units from the keys' names. So neither can say something that the daemon does not do. It does not read files:
see `ssai3d_rt.runtime.rigconfig`.

>>> print("\n".join(example().splitlines()[-3:]))
# How many older files are kept.
# Whole number, 1 to 1000.
#backups = 5
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from ssai3d_rt.runtime.rigconfig import RigConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

UNITS = {"_s": "seconds", "_ms": "milliseconds", "_um": "micrometres", "_bytes": "bytes"}

NEEDED = {"folders": '["D:/data/today"]', "out": '"D:/isotropic"', "bundle": '"cells.ssai3d"'}
"""Keys that every rig sets, with a value to be changed."""

_WIDTH = 110
_HEAD = """\
# Settings of a watch: ssai3d-rt watch --config THIS-FILE
# Set the first three, take the # away from what you want otherwise, then run: ssai3d-rt config check THIS-FILE
# Paths may count from the folder of this file. On Windows write D:/data, or 'D:\\data' in single quotes.
"""


def example() -> str:
    """Return a complete file: every key with its meaning, unit, range and default; what has a default is a comment."""
    return _HEAD + "".join(
        f"\n[{table}]\n" + "".join(f"\n{_entry(settings, name)}" for name in keys_of(settings))
        for table, settings in tables()
    )


def in_force(config: RigConfig) -> str:
    """Return a complete file that says what is in force; what nobody set is marked as the default."""
    lines = []
    for table, settings in tables():
        given = getattr(config, table)
        lines.append(f"[{table}]")
        for name in keys_of(settings):
            mark = "" if name in given.model_fields_set else "  # default"
            value = getattr(given, name)
            absent = value is None or (name in NEEDED and not value)
            lines.append(f"# {name} is not set" if absent else f"{name} = {toml_of(value)}{mark}")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def tables() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the tables of the file, with the class of each."""
    for name, field in RigConfig.model_fields.items():
        assert isinstance(field.annotation, type)
        yield name, field.annotation


def keys_of(settings: type[BaseModel]) -> list[str]:
    """Return a table's keys, those first that every rig sets."""
    return sorted(settings.model_fields, key=lambda name: name not in NEEDED)


def meaning_of(settings: type[BaseModel], key: str) -> str:
    """Return what a key means: its field's description, else what a docstring's ``Parameters`` say.

    Raises
    ------
    LookupError
        Nothing is said about it.
    """
    described = settings.model_fields[key].description
    if described:
        return described
    for cls in settings.__mro__:
        text = inspect.cleandoc(cls.__doc__ or "")
        for names, meaning in re.findall(r"^(\w+(?:, \w+)*)\n((?:    .+\n?)+)", text, re.MULTILINE):
            if key in names.split(", "):
                return re.sub(r"`+([^`]*)`+", r"\1", " ".join(meaning.split()))
    raise LookupError(f"{settings.__name__}.{key} has no meaning: describe it in the docstring's Parameters")


def toml_of(value: object) -> str:
    """Write a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_of, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _entry(settings: type[BaseModel], key: str) -> str:
    field = settings.model_fields[key]
    lines = [*_wrapped(meaning_of(settings, key)), *_wrapped(_kind(key, field))]
    if key in NEEDED:
        statement = f"{key} = {NEEDED[key]}"
    elif field.default is None:
        lines.append("Not set by default.")
        statement = f"#{key} = {toml_of(_instance(field))}"
    else:
        statement = f"#{key} = {toml_of(field.default)}"
    return "".join(f"# {line}\n" for line in lines) + statement + "\n"


def _kind(key: str, field: FieldInfo) -> str:
    """Say in words what a key takes: "Seconds, more than 0."."""
    unit = next((unit for ending, unit in UNITS.items() if key.endswith(ending)), "")
    one = _one(field.annotation)
    choices = get_args(one) if get_origin(one) is Literal else ()
    if choices:
        return f"One of {', '.join(toml_of(choice) for choice in choices)}."
    word = unit or {bool: "true or false", int: "whole number", float: "number", Path: "path", str: "text"}.get(one, "")
    several = get_origin(_some(field.annotation)) is tuple
    limits = "" if several else _range(field)
    return f"{'A list, each: ' if several else ''}{word}{limits}.".capitalize()


def _range(field: FieldInfo) -> str:
    names = ("gt", "ge", "lt", "le")
    bounds = {name: getattr(part, name) for part in field.metadata for name in names if hasattr(part, name)}
    if {"ge", "le"} <= bounds.keys():
        return f", {bounds['ge']} to {bounds['le']}"
    words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    return "".join(f", {words[name]} {limit}" for name, limit in bounds.items())


def _some(annotation: Any) -> Any:
    """Take ``None`` out of an optional type."""
    parts = get_args(annotation)
    return next(part for part in parts if part is not type(None)) if type(None) in parts else annotation


def _one(annotation: Any) -> Any:
    """Return the type of a value, or of each of a list's values."""
    annotation = _some(annotation)
    while get_origin(annotation) not in (None, Literal):
        annotation = get_args(annotation)[0]
    return annotation


def _instance(field: FieldInfo) -> object:
    """Return some value that a key without a default would take."""
    one = _one(field.annotation)
    if get_origin(one) is Literal:
        return get_args(one)[0]
    if one is int:
        return max([2, *(getattr(part, "ge", 0) for part in field.metadata)])
    return {float: 0.4, Path: "path/of/a/file", str: "text", bool: True}[one]


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line
