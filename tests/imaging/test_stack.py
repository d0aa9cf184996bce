from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssai3d_rt.errors import InputError, VoxelSizeError
from ssai3d_rt.imaging import Stack

ISOTROPIC = (1.0, 1.0, 1.0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_supported_sample_types(dtype: str) -> None:
    stack = Stack(np.zeros((2, 3, 4), dtype), voxel_um=(2.0, 0.5, 0.5))
    assert stack.data.dtype == dtype
    assert stack.lateral_um == 0.5
    assert stack.anisotropy == 4.0


@pytest.mark.parametrize("dtype", ["int16", "uint32", "float64", "complex64", "bool"])
def test_other_sample_types_are_refused_with_what_to_do(dtype: str) -> None:
    with pytest.raises(InputError, match=f"{dtype} is not supported.*a.tif.*convert to uint8, uint16, float32"):
        Stack(np.zeros((2, 3, 4), dtype), ISOTROPIC, source=Path("a.tif"))


@pytest.mark.parametrize("shape", [(3, 4), (1, 2, 3, 4), (0, 3, 4), (2, 3, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"axes \(Z, Y, X\), got shape"):
        Stack(np.zeros(shape, np.uint8), ISOTROPIC)


@pytest.mark.parametrize(
    ("voxel_um", "words"),
    [
        ((0.0, 1.0, 1.0), "three positive numbers"),
        ((-1.0, 1.0, 1.0), "three positive numbers"),
        ((float("nan"), 1.0, 1.0), "three positive numbers"),
        ((float("inf"), 1.0, 1.0), "three positive numbers"),
        ((1.0, 1.0), "three positive numbers"),
        ((1.0, 1.0, 1.02), "lateral pixels must be square"),
    ],
)
def test_senseless_voxel_sizes_are_refused(voxel_um: tuple[float, float, float], words: str) -> None:
    with pytest.raises(VoxelSizeError, match=words):
        Stack(np.zeros((2, 3, 4), np.uint8), voxel_um)


def test_a_stack_cannot_be_changed() -> None:
    stack = Stack(np.zeros((2, 3, 4), np.uint8), ISOTROPIC)
    with pytest.raises(AttributeError):
        stack.channel = "DAPI"  # type: ignore[misc]


@given(planes=st.integers(1, 200), z_um=st.floats(0.05, 20.0), xy_um=st.floats(0.05, 2.0))
def test_isotropic_planes_stay_inside_the_stack(planes: int, z_um: float, xy_um: float) -> None:
    stack = Stack(np.zeros((planes, 1, 1), np.uint8), (z_um, xy_um, xy_um))
    depth_um = (planes - 1) * z_um
    last_um = (stack.isotropic_planes - 1) * xy_um
    assert last_um <= depth_um + 1e-5 * xy_um
    assert depth_um - last_um < xy_um


@given(planes=st.integers(1, 100), factor=st.integers(1, 12), xy_um=st.floats(0.01, 3.0))
def test_whole_anisotropies_keep_the_last_plane(planes: int, factor: int, xy_um: float) -> None:
    stack = Stack(np.zeros((planes, 1, 1), np.uint8), (factor * xy_um, xy_um, xy_um))
    assert stack.isotropic_planes == (planes - 1) * factor + 1
