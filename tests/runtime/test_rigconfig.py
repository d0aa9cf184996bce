"""A rig's file of settings: what it may say, what is refused and in which words, and what the example tells."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.config import Toml
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.runtime import rigcheck
from ssai3d_rt.runtime.rigcheck import complaints
from ssai3d_rt.runtime.rigconfig import RigConfig, contradictions, load, read
from ssai3d_rt.runtime.rigexample import example, in_force, keys_of, meaning_of, tables
from ssai3d_rt.runtime.settings import WatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ssai3d_rt.export.bundle import Bundle

GOOD = """\
[watch]
folders = ["raw"]
out = "iso"
bundle = "cells.ssai3d"
scan_s = 3
back_off_s = [1, 2]
ledger = "local/rig.sqlite"
reserve_bytes = 0

[log]
file = "rig.log"
"""


@pytest.fixture
def rig(tmp_path: Path, tiny_bundle: Bundle) -> Path:
    """A folder with all that a rig's file speaks of, and the file."""
    for name in ("raw/day1", "local"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cells.ssai3d").symlink_to(tiny_bundle.folder, target_is_directory=True)
    file = tmp_path / "rig.toml"
    file.write_text(GOOD, encoding="utf-8")
    return file


def changed(file: Path, *edits: tuple[str, str]) -> Path:
    text = file.read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    return file


def test_paths_count_from_the_file_and_the_watch_gets_what_was_set(
    rig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "raw")
    config = load(Path("..") / "rig.toml")
    assert config.watch.folders == (tmp_path / "raw",)
    assert (config.watch.out, config.watch.bundle) == (tmp_path / "iso", tmp_path / "cells.ssai3d")
    assert config.log.file == tmp_path / "rig.log"
    settings = config.watch.settings()
    assert type(settings) is WatchSettings
    assert settings == WatchSettings(
        scan_s=3.0, back_off_s=(1.0, 2.0), ledger=tmp_path / "local" / "rig.sqlite", reserve_bytes=0
    )
    assert complaints(rig) == []


def test_the_command_line_goes_before_the_file(rig: Path, tmp_path: Path) -> None:
    asked = {"folders": (Path("elsewhere"),), "out": None, "backend": "cpu", "denoise": None}
    config = load(rig, asked)
    assert (config.watch.folders, config.watch.backend) == ((Path("elsewhere"),), "cpu")
    assert (config.watch.out, config.watch.scan_s) == (tmp_path / "iso", 3.0)
    assert load(asked={"backend": "cpu"}).watch.settings() == WatchSettings(backend="cpu")
    with pytest.raises(ConfigError, match="voxel_z_um: Input should be greater than 0"):
        load(rig, {"voxel_z_um": -1.0})
    with pytest.raises(ConfigError, match=r"line 2: the output folder .* lie in each other"):
        load(rig, {"out": tmp_path / "raw" / "iso"})


WRONG = {
    "key": (("scan_s", "scna_s"), 5, 'unknown key "watch.scna_s"; did you mean "scan_s"?'),
    "key of another table": (('file = "rig.log"', "scan_s = 1"), 11, 'unknown key "log.scan_s"; it belongs in the'),
    "table": (("[log]", "[logg]"), 10, "unknown table [logg]; did you mean [log]?"),
    "text for a number": (("scan_s = 3", 'scan_s = "3"'), 5, "watch.scan_s: Input should be a valid number (got '3')"),
    "no yes": (("scan_s = 3", "trust = 1"), 5, "watch.trust: Input should be a valid boolean"),
    "no whole number": (("scan_s = 3", "attempts = 2.5"), 5, "watch.attempts: "),
    "no list": (('["raw"]', '"raw"'), 2, "watch.folders: Input should be a valid array (got 'raw')"),
    "no path": (('"iso"', "7"), 3, "watch.out: Input should be a valid string (got 7)"),
    "range": (("scan_s = 3", "scan_s = 0"), 5, "watch.scan_s: Input should be greater than 0 (got 0)"),
    "endless": (("scan_s = 3", "scan_s = inf"), 5, "watch.scan_s: Input should be a finite number"),
    "not a number": (("[1, 2]", "[1, nan]"), 6, "watch.back_off_s.1: Input should be a finite number"),
    "choice": (("scan_s = 3", 'observer = "eyes"'), 5, "watch.observer: Input should be 'auto', 'native'"),
    "date": (("scan_s = 3", "voxel_z_um = 2026-01-01"), 5, "watch.voxel_z_um: "),
    "home": (('"iso"', '"~/iso"'), 3, "watch.out: ~ is not expanded"),
    "output in input": (('"iso"', '"raw/iso"'), 2, "lie in each other"),
    "input in output": (('"iso"', '"."'), 2, "lie in each other"),
    "folder in folder": (('["raw"]', '["raw", "raw/day1"]'), 2, "which is watched as a whole; leave it out"),
    "file for a folder": (('["raw"]', '["rig.toml"]'), 2, "is a file; a folder is needed"),
    "ledger in raw data": (('"local/rig.sqlite"', '"raw/rig.sqlite"'), 7, "watch.ledger: "),
    "log in raw data": (('"rig.log"', '"raw/rig.log"'), 11, "which is only read"),
    "no bundle": (('"cells.ssai3d"', '"other.ssai3d"'), 4, "other.ssai3d is not the folder of a bundle"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_line(case: str, rig: Path) -> None:
    edit, line, words = WRONG[case]
    changed(rig, edit)
    with pytest.raises(ConfigError) as caught:
        load(rig)
    assert str(caught.value).startswith(f"{rig}, line {line}: ")
    assert words in str(caught.value)
    assert "more" not in str(caught.value)
    assert complaints(rig) == [str(caught.value)]


def test_the_yaml_way_to_run_code_is_just_not_toml(rig: Path) -> None:
    rig.write_text("watch: !!python/object/apply:os.system ['touch hacked']\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        load(rig)
    assert not (rig.parent / "hacked").exists()


def test_the_first_problem_is_told_and_how_many_more(rig: Path) -> None:
    changed(rig, ("scan_s = 3", 'scan_s = "3"'), ("[log]", "[logg]"))
    with pytest.raises(ConfigError, match=r"line 5: .*\(and 1 more; see them all with: ssai3d-rt config check\)"):
        load(rig)
    assert len(complaints(rig)) == 2


def test_hostile_names_stay_on_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a\nb.toml"
    file.write_text('[watch]\n"x\\u001b[2J\\ny" = 1\n', encoding="utf-8")
    (line,) = complaints(file)
    assert line.isprintable()


MACHINE: dict[str, tuple[Callable[[Path], object], int | None, str]] = {
    "no folder": (lambda here: (here / "raw").rename(here / "gone"), 2, "raw cannot be read: No such file"),
    "nothing set": (lambda here: (here / "rig.toml").write_text("[watch]\n[log]\n"), 1, "folders is missing"),
    "output is a file": (lambda here: (here / "iso").touch(), 2, "iso is a file"),
    "no folder for the log": (
        lambda here: changed(here / "rig.toml", ('"rig.log"', '"logs/rig.log"')),
        11,
        "logs does not exist",
    ),
    "disk too small": (
        lambda here: changed(here / "rig.toml", ("reserve_bytes = 0", f"reserve_bytes = {1 << 60}")),
        3,
        "less than reserve_bytes",
    ),
    "token": (
        lambda here: changed(here / "rig.toml", ("[log]", '[health]\ntoken_file = "secret"\n[log]')),
        11,
        "secret",
    ),
    "health for others without a token": (
        lambda here: changed(here / "rig.toml", ("[log]", '[health]\nport = 9\naddress = "0.0.0.0"\n[log]')),
        12,
        "give a token_file",
    ),
    "backend": (
        lambda here: changed(here / "rig.toml", ("scan_s = 3", 'backend = "abacus"')),
        5,
        "there is no backend 'abacus'",
    ),
}


@pytest.mark.parametrize("case", MACHINE)
def test_what_the_machine_lacks_is_told(case: str, rig: Path) -> None:
    breaking, line, words = MACHINE[case]
    breaking(rig.parent)
    found = complaints(rig)
    assert found
    assert found[0].startswith(f"{rig}, line {line}: ")
    assert words in found[0]


def test_a_changed_bundle_and_a_ledger_on_a_share_are_told(
    rig: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rig.parent / "cells.ssai3d").unlink()
    (rig.parent / "cells.ssai3d").mkdir()
    for file in tiny_bundle.folder.iterdir():
        (rig.parent / "cells.ssai3d" / file.name).write_bytes(file.read_bytes())
    with open(rig.parent / "cells.ssai3d" / "model.onnx", "r+b") as graph:
        graph.seek(100)
        graph.write(b"\xff\xff\xff\xff")
    monkeypatch.setattr(rigcheck, "is_network", lambda folder: folder.name == "local")
    assert [line.partition(": ")[0][-1] for line in complaints(rig)] == ["4", "7"]
    assert "model.onnx" in complaints(rig)[0]
    assert "network file system" in complaints(rig)[1]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_rights_are_looked_at(rig: Path) -> None:
    rig.parent.chmod(0o500)
    try:
        assert any("iso cannot be written" in line for line in complaints(rig))
    finally:
        rig.parent.chmod(0o700)


def test_a_check_leaves_everything_as_it_was(rig: Path) -> None:
    before = sorted((str(path), path.stat().st_mtime_ns) for path in rig.parent.rglob("*"))
    complaints(rig)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in rig.parent.rglob("*")) == before


def test_the_example_explains_every_key_and_is_valid(tmp_path: Path) -> None:
    text = example()
    blocks = text.split("\n\n")
    for table, settings in tables():
        assert f"\n[{table}]\n" in text
        for key in keys_of(settings):
            (block,) = (b for b in blocks if re.search(rf"^#?{key} = ", b, re.MULTILINE) and b.startswith("# "))
            assert meaning_of(settings, key).split()[0] in block
            if key.endswith("_s"):
                assert "econds" in block
            if key.endswith("_bytes"):
                assert "ytes" in block
    assert RigConfig.judged(Toml(text, "example"))[1] == []
    everything = re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE)
    config, problems = RigConfig.judged(Toml(everything, "example"))
    assert problems == []
    assert config is not None
    assert all(getattr(config, table).model_fields_set == set(settings.model_fields) for table, settings in tables())
    (tmp_path / "rig.toml").write_text(text, encoding="utf-8")
    assert read(tmp_path / "rig.toml").problems == []


def test_defaults_in_the_example_are_the_defaults() -> None:
    everything = re.sub(r"^#(\w+ = )", r"\1", example(), flags=re.MULTILINE)
    config, _ = RigConfig.judged(Toml(everything, "example"))
    for table, settings in tables():
        for key, field in settings.model_fields.items():
            if field.default is not None and key not in ("folders", "out", "bundle"):
                assert getattr(getattr(config, table), key) == field.default, key


def test_a_key_without_a_meaning_is_found() -> None:
    class Quiet(WatchSettings):
        secret_s: float = 1.0

    with pytest.raises(LookupError, match="secret_s has no meaning"):
        meaning_of(Quiet, "secret_s")


def test_what_is_in_force_can_be_read_back(rig: Path, tmp_path: Path) -> None:
    config = load(rig)
    text = in_force(config)
    assert "scan_s = 3.0\n" in text
    assert "poll_s = 2.0  # default\n" in text
    assert "# threads is not set\n" in text
    (tmp_path / "other.toml").write_text(text, encoding="utf-8")
    assert load(tmp_path / "other.toml") == config
    odd = RigConfig.of({"watch": {"out": 'a"\\\x7f\n\tµ'}})
    assert RigConfig.judged(Toml(in_force(odd), "odd"))[0] == odd


def test_nothing_set_contradicts_nothing() -> None:
    assert contradictions(RigConfig()) == []
