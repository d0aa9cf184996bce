from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from ssai3d_rt import cli
from ssai3d_rt.adapt.surgeon import Surgeon, read_record
from ssai3d_rt.adapt.zeroshot import layers_of
from ssai3d_rt.imaging.simulate import acquire, spheres
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.network.weights import save_state, state_from

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stack and a tiny base network."""
    monkeypatch.setenv("SSAI3D_RT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = NAFNet(NAFNetShape(width=4, enc=(1,), middle=1, dec=(1,)))
    save_state(state_from(network), tmp_path / "tiny.safetensors", {"train_px": 32})
    stack = acquire(spheres((24, 32, 32), 8, radius_px=(3.0, 5.0)), 2, std_px=(2.0, 0.5, 0.5))
    write_ome_tiff(tmp_path / "cells.tif", stack, {})
    return tmp_path


def test_a_surgeon_is_trained_and_ranks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["surgeon", "train", "cells.tif", "-o", "mine", "--base", "tiny.safetensors", "--per-kind", "0"]
    assert cli.main([*arguments, "--iterations", "1", "--steps", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["stacks"] == 1
    assert read_record(folder / "mine" / "surgeon.json").stacks == {"0-cells-0": "0-cells-0"}
    assert Surgeon.load(folder / result["known"]).record.base == "tiny.safetensors"

    arguments = [
        "surgeon",
        "rank",
        "cells.tif",
        "--base",
        "tiny.safetensors",
        "-o",
        "bars.png",
        "--all",
        "--share",
        "0.1",
    ]
    assert cli.main([*arguments, "--rehearsal", "0", "--share", "0.1"]) == 0
    out = capsys.readouterr().out
    names = layers_of(NAFNet(NAFNetShape(width=4, enc=(1,), middle=1, dec=(1,))))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert sorted(row[1] for row in rows) == sorted(names)
    assert [row[5] for row in rows] == ["yes" if number < 3 else "" for number in range(len(names))]
    scores = [float(row[3]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert out.splitlines()[-1] == "picture: bars.png"
    assert (folder / "bars.png").stat().st_size > 5000


def test_without_a_surgeon_for_the_base_the_next_step_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["surgeon", "rank", "cells.tif", "--base", "tiny.safetensors"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == (
        "ssai3d-rt: no surgeon for this base network; train one with: ssai3d-rt surgeon train --base NAME"
    )
