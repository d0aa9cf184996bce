from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.calibration import calibrate
from ssai3d_rt.calibration.picture import draw_spectra
from ssai3d_rt.errors import StorageError
from ssai3d_rt.imaging.simulate import acquire, beads, strands

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("matplotlib")


def test_beads_add_their_profiles_to_the_spectra(tmp_path: Path) -> None:
    from matplotlib.image import imread

    pictures = []
    for number, truth in enumerate((strands((60, 48, 48), 15, seed=1), beads((60, 64, 64), 8, std_px=1.5, seed=1))):
        stack = acquire(truth, 3)
        path = tmp_path / f"{number}.png"
        draw_spectra(stack, calibrate(stack), path)
        pictures.append(imread(path))
    without, with_beads = pictures
    assert with_beads.shape[1] > 1.3 * without.shape[1]
    for picture in pictures:
        assert np.unique(picture[..., :3].reshape(-1, 3), axis=0).shape[0] > 50


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    stack = acquire(strands((60, 48, 48), 15, seed=1), 3)
    with pytest.raises(StorageError, match="cannot write the picture"):
        draw_spectra(stack, calibrate(stack), tmp_path / "absent" / "rig.png")
