from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.reblur import blurred_planes, fitted_blur_px
from ssai3d_rt.imaging.simulate import Camera, acquire, strands
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.runtime.caution import summed_up, warnings_of
from ssai3d_rt.runtime.trust import (
    WEIGHTS,
    doubt_warning,
    doubtful_share,
    seen_again,
    signs,
    trust_map,
    unexplained,
)

if TYPE_CHECKING:
    from ssai3d_rt.runtime.trust import Float

TRUTH = strands((45, 40, 40), 8, seed=2)
BLUR_PX = 2.8


def taken(photons: float | None = 500) -> tuple[Stack, Normalisation, Float]:
    """Give a stack, its scale, and the truth in its counts."""
    camera = Camera(photons=photons)
    raw = acquire(TRUTH, 4, std_px=(BLUR_PX, 0.0, 0.0), camera=camera, seed=0)
    return raw, Normalisation.of(raw.data), (TRUTH * camera.full_scale + camera.offset).astype(np.float32)


def test_the_blur_is_fitted_and_what_it_does_not_explain_is_found() -> None:
    raw = blurred_planes(TRUTH, 12, 4.0, BLUR_PX)
    assert fitted_blur_px(raw, TRUTH, 4.0) == BLUR_PX
    assert unexplained(raw, TRUTH, 4.0).max() < 1e-5
    invented = TRUTH.copy()
    invented[20:24, 10:14, 10:14] = 1.0
    doubt = unexplained(raw, invented, 4.0)
    z, y, x = np.unravel_index(doubt.argmax(), doubt.shape)
    assert 16 <= z <= 28
    assert 9 <= y <= 14
    assert 9 <= x <= 14
    assert doubt.max() > 0.1


def test_noise_alone_raises_little_doubt_and_invention_more() -> None:
    raw, scale, counts = taken()
    agreeing = np.zeros_like(counts)
    honest = trust_map(raw, counts, agreeing, scale)
    invented = counts.copy()
    invented[10:30, 15:25, 15:25] = counts.max()
    lying = trust_map(raw, invented, agreeing, scale)
    assert np.median(honest) < 0.1 * lying[20, 20, 20]


def test_views_that_disagree_raise_doubt_by_their_weight() -> None:
    raw, scale, counts = taken()
    nothing = np.zeros_like(counts)
    plain = trust_map(raw, counts, nothing, scale)
    split = trust_map(raw, counts, nothing + np.float32(scale.scale / 2), scale)
    assert np.allclose((split - plain)[plain > 0.3], 0.5 * WEIGHTS["disagreement"], atol=0.03)
    assert (split >= plain).all()


def test_a_network_that_does_not_find_its_own_result_again_is_doubted() -> None:
    raw, scale, counts = taken()
    nothing = np.zeros_like(counts)
    same = trust_map(raw, counts, nothing, scale, again=scale.apply(counts))
    assert np.allclose(same, trust_map(raw, counts, nothing, scale))
    other = scale.apply(counts)
    other[20:25, 20:25, 20:25] += 0.5
    assert trust_map(raw, counts, nothing, scale, again=other)[22, 22, 22] > same[22, 22, 22] + 0.1


@pytest.mark.parametrize("photons", [None, 200])
def test_what_is_seen_again_of_the_truth_is_the_raw_stack(photons: float | None) -> None:
    raw, scale, counts = taken(photons)
    again = seen_again(raw, counts, scale)
    assert again.shape == raw.data.shape
    difference = again[1:-1] - raw.data[1:-1].astype(np.float32)
    signal = float(raw.data.std())
    noise = 0.0 if photons is None else 60.0
    assert difference.std() < 0.08 * signal + 1.6 * noise
    assert difference.std() > 0.8 * noise
    assert np.array_equal(again, seen_again(raw, counts, scale))


def test_every_sign_has_a_weight_and_none_is_negative() -> None:
    _, scale, counts = taken()
    nothing = np.zeros_like(counts)
    found = dict(signs(counts, nothing, scale, again=nothing))
    assert set(found) == set(WEIGHTS)
    assert min(WEIGHTS.values()) >= 0
    for sign in found.values():
        assert sign.shape == counts.shape
        assert sign.dtype == np.float32
        assert sign.min() >= 0


def test_the_doubtful_share_counts_what_is_visible() -> None:
    raw, scale, counts = taken()
    sure = np.zeros_like(counts)
    assert doubtful_share(sure, raw, counts, scale) == 0
    assert doubtful_share(sure + 1, raw, counts, scale) == 1
    visible = np.maximum(resample_z(scale.apply(raw.data), 4.0), scale.apply(counts)) > 0.1
    assert doubtful_share((~visible).astype(np.float32), raw, counts, scale) == 0
    flat = Stack(np.full((12, 9, 9), 7, np.uint8), (0.4, 0.1, 0.1))
    assert doubtful_share(np.ones((45, 9, 9), np.float32), flat, np.full((45, 9, 9), 7, np.float32), scale) == 0


def test_much_doubt_is_said_in_one_sentence() -> None:
    assert doubt_warning(0.1) is None
    sentence = doubt_warning(0.62)
    assert sentence is not None
    assert sentence.startswith("62% of what is visible is doubtful")
    assert "\n" not in sentence


def test_warnings_of_a_stack_come_from_all_three_checks() -> None:
    raw, _, _ = taken()
    assert warnings_of(raw) == []
    far = Stack(raw.data, (0.9, 0.1, 0.1))
    assert [sentence[:16] for sentence in warnings_of(far)] == ["9.0x anisotropy "]


def test_warnings_of_many_stacks_are_summed_up() -> None:
    assert summed_up([["9.0x anisotropy"]]) == ["9.0x anisotropy"]
    assert summed_up([["9.0x anisotropy", "noisy"], ["9.5x anisotropy"], []]) == [
        "9.0x anisotropy (2 of 3 stacks)",
        "noisy (1 of 3 stacks)",
    ]
    assert summed_up([[], []]) == []
