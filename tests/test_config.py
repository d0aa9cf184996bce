from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import pytest
from pydantic import Field, ValidationError

from ssai3d_rt.config import Settings, read_toml
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
