from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import pytest
from pydantic import Field, ValidationError

from ssai3d_rt.config import Settings, Toml, read_toml
from ssai3d_rt.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class Stage(Settings):
    step_um: Annotated[float, Field(gt=0)] = 0.5


class Rig(Settings):
    exposure_ms: float
    stage: Stage = Stage()


def test_values_are_taken_and_nested_and_frozen() -> None:
    rig = Rig.of({"exposure_ms": 20, "stage": {"step_um": 0.3}})
    assert (rig.exposure_ms, rig.stage.step_um) == (20.0, 0.3)
    with pytest.raises(ValidationError, match="frozen"):
        rig.exposure_ms = 5.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(
            {"exposure": 20},
            'rig.toml: unknown key "exposure"; did you mean "exposure_ms"?',
            id="misspelt before missing",
        ),
        pytest.param(
            {"exposure_ms": 20, "stage": {"step": 1}},
            'rig.toml: unknown key "stage.step"; did you mean "step_um"?',
            id="nested",
        ),
        pytest.param(
            {"exposure_ms": 20, "zzz": 1},
            'rig.toml: unknown key "zzz"; known keys: exposure_ms, stage',
            id="nothing near",
        ),
        pytest.param({}, 'rig.toml: key "exposure_ms" is missing', id="missing"),
        pytest.param(
            {"exposure_ms": 20, "stage": {"step_um": -1}},
            "rig.toml: stage.step_um: Input should be greater than 0 (got -1)",
            id="out of range",
        ),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_file_and_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Rig.of(values, where="rig.toml")
    assert str(caught.value) == message


def test_toml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("exposure_ms = 2.5\n[stage]\nstep_um = 1\n", encoding="utf-8")
    assert Rig.of(read_toml(path), where=path) == Rig(exposure_ms=2.5, stage=Stage(step_um=1))


def test_broken_or_absent_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with pytest.raises(ConfigError, match=r"a\.toml does not exist"):
        read_toml(path)
    path.write_text("exposure_ms = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.toml is not valid TOML: .*line 1"):
        read_toml(path)


def test_a_file_of_an_editor_on_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfexposure_ms = 2.5\r\n[stage]\r\nstep_um = 1\r\n")
    assert read_toml(path) == {"exposure_ms": 2.5, "stage": {"step_um": 1}}
    path.write_bytes("exposure_ms = 2.5".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"a\.toml is not valid TOML.*UTF-8"):
        read_toml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)


TRICKY = '''# exposure_ms = 1
note = """
[stage]
step_um = 9
"""
"exposure_ms" = [  # step_um = 8
  1,
  # 2,
  3,
]
a.b."c d" = 1 # a line separator\u2028in a comment
dotted = { step_um = 1, other = [
  2 ] }

# [stage]
  [ stage ]
step_um = -1
[[lenses]]
step_um = 1
[[lenses]]
step_um = 2
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("note",), 2),
        (("exposure_ms",), 6),
        (("exposure_ms", 1), 6),
        (("a", "b", "c d"), 11),
        (("dotted", "other", 0), 12),
        (("stage",), 16),
        (("stage", "step_um"), 17),
        (("stage", "missing"), 16),
        (("lenses", 1, "step_um"), 21),
        (("missing",), None),
        ((), None),
    ],
)
def test_the_line_of_a_key_however_it_is_written(key: tuple[int | str, ...], line: int | None) -> None:
    assert Toml(TRICKY, "rig.toml").line_of(key) == line


def test_all_that_is_wrong_is_said_in_the_order_of_the_lines() -> None:
    toml = Toml("exposure_ms = '20'\nstep_um = 1\n[stage]\nstep_um = -1\n[stag]\nstep_um = 1\n", "rig.toml")
    rig, problems = Rig.judged(toml)
    assert rig is None
    assert [toml.words(problem) for problem in problems] == [
        "rig.toml, line 1: exposure_ms: Input should be a valid number (got '20')",
        'rig.toml, line 2: unknown key "step_um"; it belongs in the table [stage]',
        "rig.toml, line 4: stage.step_um: Input should be greater than 0 (got -1)",
        "rig.toml, line 5: unknown table [stag]; did you mean [stage]?",
    ]


@pytest.mark.parametrize("value", ["true", '"1"', "1979-05-27", "[1]", "{}"])
def test_a_value_of_another_type_is_no_number(value: str) -> None:
    rig, problems = Rig.judged(Toml(f"exposure_ms = {value}\n", "rig.toml"))
    assert rig is None
    assert [problem.key for problem in problems] == [("exposure_ms",)]
