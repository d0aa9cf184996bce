from __future__ import annotations

import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.calibration import Intensity, Noise, RigProfile
from ssai3d_rt.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

AWKWARD = 'C:\\rig "1"\tµ\n\x7f.tif'


def profile(**changes: Any) -> RigProfile:
    values: dict[str, Any] = {
        "voxel_um": (0.4, 0.0941, 0.0941),
        "planes": 17,
        "source": "cells.ome.tif",
        "lateral_um": 0.27,
        "axial_um": 0.95,
        "blur_px_min": 3.1,
        "blur_px_max": 5.2,
        "intensity": Intensity(low=101, high=4321.5),
        "noise": Noise(gain=2.2, read=1e-7, snr=12),
        "warnings": ("first", "second"),
    }
    return RigProfile(**(values | changes))


@pytest.mark.parametrize("source", ["cells.ome.tif", "", AWKWARD])
def test_a_profile_comes_back_from_its_file(tmp_path: Path, source: str) -> None:
    path = tmp_path / "rig.toml"
    saved = profile(source=source, warnings=(source, "ü"))
    saved.save(path)
    assert RigProfile.load(path) == saved
    assert RigProfile.load(str(path)) == saved
    assert [p.name for p in tmp_path.iterdir()] == ["rig.toml"]


def test_the_file_explains_every_value_with_its_unit() -> None:
    lines = profile().to_toml().splitlines()
    values = [line for line in lines if " = " in line]
    assert len(values) == len(RigProfile.model_fields) - 2 + len(Intensity.model_fields) + len(Noise.model_fields)
    assert all("  # " in line for line in values)
    assert any("um" in line for line in values if line.startswith("axial_um"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("axial_um", "axial", 'unknown key "axial"; did you mean "axial_um"?', id="unknown key"),
        pytest.param("snr", "sn", 'unknown key "noise.sn"; did you mean "snr"?', id="unknown key in a table"),
        pytest.param("blur_px_min = 3.1", "blur_px_min = 6.0", "blur_px_min 6.0 is above blur_px_max 5.2", id="order"),
        pytest.param(
            "lateral_um = 0.27", "lateral_um = -1", "lateral_um: Input should be greater than 0", id="negative"
        ),
        pytest.param("lateral_um = 0.27", "lateral_um = nan", "lateral_um: Input should be", id="not a number"),
        pytest.param('"spectrum"', '"magic"', "resolution_from: Input should be 'spots' or 'spectrum'", id="choice"),
        pytest.param("planes = 17", "planes = many", "not valid TOML", id="not TOML"),
    ],
)
def test_a_wrong_edit_is_named_with_its_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "rig.toml"
    text = profile().to_toml()
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        RigProfile.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rig\.toml does not exist"):
        RigProfile.load(tmp_path / "rig.toml")


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write the rig profile .*rig\.toml"):
        profile().save(tmp_path / "absent" / "rig.toml")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_failed_save_leaves_the_old_profile(tmp_path: Path) -> None:
    path = tmp_path / "rig.toml"
    profile().save(path)
    (tmp_path / ".rig.toml.part").mkdir()
    with pytest.raises((StorageError, OSError)):
        profile(planes=5).save(path)
    assert RigProfile.load(path).planes == 17
    assert path.stat().st_mode & stat.S_IRUSR
