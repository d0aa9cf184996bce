from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging import Stack, limits, read_stack, require_restorable


def stack_of(planes: int = 10, z_um: float = 0.4, top: int = 3000, clipped: int = 0, dtype: str = "uint16") -> Stack:
    data = np.linspace(100, top - 1, planes * 100).astype(dtype).reshape(planes, 10, 10)
    data.reshape(-1)[:clipped] = top
    return Stack(data, (z_um, 0.1, 0.1), source=Path("a.tif"))


def cut_off(zeros: int, dtype: str = "uint16") -> Stack:
    data = np.linspace(1, 240, 1000).astype(dtype)
    data[:zeros] = 0
    return Stack(data.reshape(10, 10, 10), (0.4, 0.1, 0.1))


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (stack_of(), []),
        (stack_of(z_um=0.7), []),
        (stack_of(z_um=0.75), ["7.5x anisotropy is outside the method's limits (about 7x)"]),
        (stack_of(z_um=3.52), ["35x anisotropy is outside the method's limits (about 7x)"]),
        (stack_of(z_um=0.05), ["planes are closer (0.05 um) than pixels (0.1 um)"]),
        (stack_of(planes=5), []),
        (stack_of(planes=4), ["4 planes are outside the method's limits (at least 5)"]),
        (stack_of(top=4095, clipped=10), []),
        (stack_of(top=4095, clipped=11), ["1.1% of the voxels are saturated at 4095"]),
        (stack_of(top=255, clipped=500, dtype="uint8"), ["50.0% of the voxels are saturated at 255"]),
        (stack_of(top=4095, clipped=500, dtype="float32"), []),
        (stack_of(top=4000, clipped=500), []),
        (cut_off(250), []),
        (cut_off(260), ["26% of the voxels are zero (more than 25%)"]),
        (cut_off(900, "uint8"), ["90% of the voxels are zero"]),
        (cut_off(900, "float32"), []),
        (Stack(np.full((6, 4, 4), 255, np.uint8), (1.0, 1.0, 1.0)), ["all voxels are equal"]),
        (stack_of(planes=3, z_um=2.0), ["20x anisotropy is outside", "3 planes are outside"]),
    ],
)
def test_limits(stack: Stack, words: list[str]) -> None:
    found = limits(stack)
    assert len(found) == len(words), found
    for sentence, beginning in zip(found, words, strict=True):
        assert sentence.startswith(beginning)
        assert "\n" not in sentence


def test_limits_of_real_stacks(shared_data: Path) -> None:
    assert limits(read_stack(shared_data / "stacks" / "xyz_16bit__spots.tif")) == []
    plate = shared_data / "stacks" / "xyz_8bit__mitotic_plate_badZcalibrated.tif"
    assert limits(read_stack(plate, voxel_z=3.0)) == [
        "35x anisotropy is outside the method's limits (about 7x): expect invented detail along z, check with --trust"
    ]


@pytest.mark.parametrize("planes", [1, 2])
def test_too_few_planes_are_refused(planes: int) -> None:
    with pytest.raises(
        InputError, match=rf"a\.tif: a stack of {planes} planes? cannot be restored; acquire at least 3"
    ):
        require_restorable(stack_of(planes=planes))


def test_three_planes_are_enough_to_try() -> None:
    require_restorable(stack_of(planes=3))
