from __future__ import annotations

import numpy as np
import pytest

from ssai3d_rt.imaging.reblur import BLURS_PX, blurred_planes, fitted_blur_px
from ssai3d_rt.imaging.simulate import standard_strands


@pytest.mark.parametrize("anisotropy", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("std_px", [1.7, 3.1, 5.0])
def test_the_blur_between_a_volume_and_its_planes_is_found(anisotropy: float, std_px: float) -> None:
    truth = standard_strands(1)
    planes = int((len(truth) - 1) / anisotropy) + 1
    raw = blurred_planes(truth, planes, anisotropy, std_px)
    raw += np.random.default_rng(0).normal(0, 0.02, raw.shape).astype(np.float32)
    assert fitted_blur_px(raw, truth, anisotropy, finely=True) == pytest.approx(std_px, rel=0.05)
    assert fitted_blur_px(raw, truth, anisotropy) in BLURS_PX


def test_a_blurred_constant_is_the_same_constant() -> None:
    planes = blurred_planes(np.full((30, 4, 5), 7.0, np.float32), 10, 3.0, 4.0)
    assert planes.shape == (10, 4, 5)
    np.testing.assert_allclose(planes, 7.0, rtol=1e-5)
