from __future__ import annotations

import io

import numpy as np
import pytest

from ssai3d_rt.calibration.precision import (
    FP16_MAX,
    HEADROOM,
    PrecisionPlan,
    TensorRange,
    decide,
    fits_half,
    tensor_names,
)
from ssai3d_rt.calibration.precision_picture import draw_precision
from ssai3d_rt.network.nafnet import NAFNetShape

LIMIT = FP16_MAX / HEADROOM


def seen(name: str, peak: float, rms: float = 1.0) -> TensorRange:
    return TensorRange(name, peak, "real", rms * 3, rms)


def plan_over_depth() -> PrecisionPlan:
    names = tensor_names(NAFNetShape(width=8, enc=(1, 1, 1, 4), middle=1, dec=(1, 1, 1, 1)))
    rng = np.random.default_rng(0)
    ranges = [seen(name, float(10 ** rng.uniform(0, 5.5)), float(10 ** rng.uniform(-5, 1))) for name in names]
    return decide(ranges, wide_weights=["middle_blks.0.conv3"])


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (seen("intro", LIMIT), ""),
        (seen("intro", LIMIT * 1.001), "range"),
        (seen("intro", float("inf")), "range"),
        (seen("intro", float("nan")), "range"),
        (seen("middle_blks.0.gate1", 1.0, 1e-4), "small"),
        (seen("middle_blks.0.gate1", 1.0, 2e-4), ""),
        (seen("middle_blks.0.gate1", 0.0, 0.0), ""),
        (seen("middle_blks.0.conv3", 1.0, 1e-6), ""),
        (seen("ending", 1.0, 1e-6), ""),
        (seen("ups.0", 1.0, 1e-6), ""),
    ],
)
def test_what_fp16_cannot_hold_stays_fp32(found: TensorRange, why: str) -> None:
    assert decide([found]).reasons == ({found.name: why} if why else {})


def test_more_headroom_keeps_more() -> None:
    ranges = [seen("intro", 5000.0), seen("ending", 50.0)]
    assert decide(ranges).wide == frozenset()
    assert decide(ranges, headroom=20).wide == {"intro"}
    with pytest.raises(ValueError, match=r"a headroom of 0.5"):
        decide(ranges, headroom=0.5)


def test_a_plan_survives_its_file_and_reads_as_a_table() -> None:
    plan = plan_over_depth()
    again = PrecisionPlan.from_json(plan.to_json())
    assert again.wide == plan.wide
    assert again.wide_weights == ("middle_blks.0.conv3",)
    assert again.sentence() == plan.sentence()
    assert ", and the weights of 1 convolution, stay FP32; the highest value is" in plan.sentence()
    lines = plan.table().splitlines()
    assert len(lines) == 1 + len(plan.ranges) == 1 + 12 * 14 + 3 * 4 + 3
    assert sum(" fp32 " in line for line in lines) == len(plan.wide) > 5
    for text in ("", "{}", "[]", '{"tensors": [{}]}'):
        with pytest.raises(ValueError, match="not a precision report"):
            PrecisionPlan.from_json(text)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (np.zeros(4), True),
        (np.linspace(-2, 2, 100), True),
        (np.array([FP16_MAX]), True),
        (np.array([65536.0]), False),
        (np.array([np.nan]), False),
        (np.linspace(-1, 1, 100) * 1e-6, False),  # FP16 has steps of 6e-8 there
        (np.append(np.linspace(-1, 1, 100), 1e-7), True),  # one small weight among many
    ],
)
def test_weights_fit_where_they_keep_their_digits(values: np.ndarray, fits: bool) -> None:
    assert fits_half(values.astype(np.float32)) is fits


def test_the_picture_shows_what_stays_fp32() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    def orange(plan: PrecisionPlan) -> int:
        pixels = imread(io.BytesIO(draw_precision(plan)))[..., :3]
        return int((np.abs(pixels - np.array([0xD5, 0x5E, 0]) / 255).max(-1) < 0.02).sum())

    plan = plan_over_depth()
    calm = PrecisionPlan(tuple(seen(item.name, 1.0) for item in plan.ranges))
    assert len(calm.wide) == 0
    assert orange(plan) > orange(calm) + 10 * len(plan.wide)
