from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.calibration import calibrate
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.simulate import Camera, acquire, beads, standard_strands, strands, tubes
from ssai3d_rt.imaging.spots import GAUSSIAN_FWHM
from ssai3d_rt.imaging.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAMPLES: dict[str, Callable[[], Any]] = {
    "strands": lambda: strands((96, 64, 64), 30, seed=2),
    "flat strands": lambda: strands((96, 64, 64), 22, flat=True, seed=2),
    "tubes": lambda: tubes((96, 64, 64), 20, seed=2),
    "beads": lambda: beads((96, 64, 64), 10, std_px=1.5, seed=2),
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(("step", "photons"), [(1, 500), (3, 200), (5, 500)])
def test_the_blur_range_holds_the_true_blur(sample: str, step: int, photons: float) -> None:
    truth = SAMPLES[sample]()
    for std in (2.0, 4.0, 6.0):
        rig = calibrate(acquire(truth, step, std_px=(std, 0.5, 0.5), camera=Camera(photons)))
        assert rig.blur_px_min <= 1.02 * std
        assert rig.blur_px_max >= 0.98 * std
        assert rig.blur_px_max <= 2.3 * rig.blur_px_min  # a range that says something
        assert rig.resolution_from == ("spots" if sample == "beads" else "spectrum")


def test_beads_give_the_resolution_directly() -> None:
    truth = beads((96, 96, 96), 20, std_px=1.5, seed=3)
    rig = calibrate(acquire(truth, 3, std_px=(4.0, 0.5, 0.5)))
    assert rig.spots >= 10
    assert rig.axial_um == pytest.approx(0.1 * GAUSSIAN_FWHM * np.hypot(1.5, 4.0), rel=0.05)
    assert rig.lateral_um == pytest.approx(0.1 * GAUSSIAN_FWHM * np.hypot(1.5, 0.5), rel=0.05)
    assert rig.isotropy == pytest.approx(rig.lateral_um / rig.axial_um)


def test_planes_too_far_apart_to_show_the_blur_are_said_to_be() -> None:
    rig = calibrate(acquire(standard_strands(4), 5, std_px=(2.0, 0.5, 0.5)))
    assert any("too coarse to show the axial blur" in warning for warning in rig.warnings)
    assert rig.blur_px_min <= 2.0 <= rig.blur_px_max
    assert rig.axial_um >= 0.5


def test_an_isotropic_stack_has_no_blur_to_undo() -> None:
    rig = calibrate(acquire(standard_strands(5), 1, std_px=(1.0, 1.0, 1.0)))
    assert any("as sharp as lateral" in warning for warning in rig.warnings)
    assert rig.blur_px_max <= 1.0
    assert rig.isotropy == pytest.approx(1.0, abs=0.1)


def test_blur_beyond_the_base_networks_is_clipped_and_said() -> None:
    rig = calibrate(acquire(beads((96, 96, 96), 8, std_px=1.5, seed=4), 3, std_px=(10.0, 0.5, 0.5)))
    assert (rig.blur_px_min, rig.blur_px_max) == (6.0, 8.0)
    assert any("beyond the 8 px" in warning for warning in rig.warnings)


def test_very_noisy_data_are_said_to_be() -> None:
    truth = standard_strands(6)
    noisy = calibrate(acquire(truth, 3, camera=Camera(photons=12, read_noise=6, offset=4000)))
    clean = calibrate(acquire(truth, 3, camera=Camera(photons=2000)))
    assert any("very noisy data" in warning for warning in noisy.warnings)
    assert not any("noisy" in warning for warning in clean.warnings)
    assert clean.noise.snr > 2 * noisy.noise.snr


def test_several_stacks_are_taken_together() -> None:
    stacks = [acquire(strands((60, 48, 48), 15, seed=seed), 3, seed=seed) for seed in (7, 8, 9)]
    together, alone = calibrate(stacks), [calibrate(stack) for stack in stacks]
    assert together.blur_px_min == pytest.approx(np.median([rig.blur_px_min for rig in alone]))
    assert together.axial_um == pytest.approx(np.median([rig.axial_um for rig in alone]))
    assert calibrate(iter(stacks)) == together


def test_stacks_of_different_voxel_size_are_refused() -> None:
    truth = standard_strands(7)
    with pytest.raises(InputError, match="voxel sizes differ"):
        calibrate([acquire(truth, 3), acquire(truth, 4)])
    with pytest.raises(InputError, match="no stack"):
        calibrate([])


def test_stacks_that_show_nothing_are_refused_with_their_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(1000, 20, (20, 64, 64)).astype(np.uint16)
    source = tmp_path / "empty.tif"
    with pytest.raises(InputError, match=r"lateral resolution cannot be measured .*empty\.tif"):
        calibrate(Stack(noise, (0.3, 0.1, 0.1), source=source))


def test_an_odd_amount_of_planes_or_pixels_is_no_reason_to_fail() -> None:
    stack = acquire(standard_strands(1), 3)
    thin = calibrate(Stack(stack.data[:6, :61, :35], stack.voxel_um))
    assert thin.planes == 6
    with pytest.raises(InputError, match="at least 4"):
        calibrate(Stack(stack.data[:, :3, :3], stack.voxel_um))
    few = calibrate(Stack(stack.data[:3], stack.voxel_um))
    assert any("could not be measured" in warning for warning in few.warnings)
    assert (few.blur_px_min, few.blur_px_max) == (3.0, 7.0)


@pytest.mark.parametrize(
    ("file", "voxel_um", "source", "axial_um", "lateral_um"),
    [
        pytest.param("xyz_16bit__spots.tif", (0.4, 0.0941, 0.0941), "spots", 0.95, 0.274, id="spots"),
        pytest.param("Bead_Image1_crop.tif", (0.125, 0.0225, 0.0225), "spots", 0.58, 0.194, id="beads"),
    ],
)
def test_real_stacks(
    shared_data: Path, file: str, voxel_um: tuple[float, float, float], source: str, axial_um: float, lateral_um: float
) -> None:
    import tifffile

    path = shared_data / "stacks" / file
    rig = calibrate(Stack(tifffile.imread(path), voxel_um, source=path))
    assert (rig.source, rig.resolution_from) == (file, source)
    assert rig.axial_um == pytest.approx(axial_um, rel=0.1)
    assert rig.lateral_um == pytest.approx(lateral_um, rel=0.1)
    assert rig.noise.snr > 2
