from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.adapt.model import Fingerprint
from ssai3d_rt.calibration.character import Character, measure_character
from ssai3d_rt.export.bundle import AdaptationEntry
from ssai3d_rt.imaging import Stack, read_stack
from ssai3d_rt.imaging.simulate import Camera, acquire, spheres, strands
from ssai3d_rt.runtime.stale import changes, known_characters, stale_warning

if TYPE_CHECKING:
    from pathlib import Path

SIDE = (48, 64, 64)


def taken(seed: int = 1, *, brighter: float = 1.0, photons: float = 500, **how: Any) -> Stack:
    camera = Camera(photons=photons, full_scale=4000 * brighter)
    return acquire(strands(SIDE, 40, seed=seed), how.pop("step", 3), camera=camera, seed=seed, **how)


def fingerprint(stack: Stack, **changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "sha256": "0" * 64,
        "shape": stack.data.shape,
        "dtype": stack.data.dtype.name,
        "voxel_um": stack.voxel_um,
        "mean": float(stack.data.mean()),
        "std": float(stack.data.std()),
        "offset": 100.0,
        "scale": measure_character(stack).range_counts,
        "character": measure_character(stack),
    }
    return Fingerprint.model_validate(values | changed).model_dump(mode="json")


def adapted_to(*fingerprints: dict[str, Any]) -> AdaptationEntry:
    return AdaptationEntry(record={"stacks": list(fingerprints)})


ADAPTED = adapted_to(fingerprint(taken(1)))


@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_another_stack_of_the_same_kind_is_not_stale(seed: int) -> None:
    assert stale_warning(taken(seed), ADAPTED) is None


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (taken(2, brighter=3), "the intensity range is"),
        (taken(2, pixel_um=0.2), "the pixel is 0.2 um, it was 0.1"),
        (taken(2, step=5), "the anisotropy is 5, it was 3"),
        (taken(2, photons=40), "the signal to noise ratio is"),
        (taken(2, std_px=(9.0, 0.5, 0.5)), "the length of structures along z is"),
        (taken(2, std_px=(4.0, 2.5, 2.5)), "the width of structures is"),
        (acquire(spheres(SIDE, 15, seed=2), 3, seed=2), "the width of structures is"),
        (acquire(strands(SIDE, 2, seed=2), 3, seed=2), "the contrast (standard deviation over range) is"),
    ],
    ids=["brighter", "pixel", "planes", "noisier", "axial blur", "lateral blur", "spheres", "sparser"],
)
def test_a_stack_of_another_kind_is_named_with_figures(stack: Stack, words: str) -> None:
    found = stale_warning(stack, ADAPTED)
    assert found is not None
    assert words in found
    assert found.startswith("the model was adapted to another kind of stack: ")
    assert found.endswith("; fine-tune again on a stack like this")
    assert "\n" not in found


def test_one_of_several_kinds_is_enough() -> None:
    both = adapted_to(fingerprint(taken(1)), fingerprint(taken(1, brighter=3)))
    assert stale_warning(taken(2, brighter=3), both) is None
    assert stale_warning(taken(2, brighter=12), both) is not None


def test_bundles_from_before_know_less() -> None:
    old = fingerprint(taken(1))
    del old["character"]
    assert known_characters(adapted_to(old))[0].snr == 0
    assert stale_warning(taken(2), adapted_to(old)) is None
    assert stale_warning(acquire(spheres(SIDE, 15, seed=2), 3, pixel_um=0.2), adapted_to(old)) is not None


def test_bundles_that_say_nothing_are_never_stale() -> None:
    for silent in (None, AdaptationEntry(), adapted_to({"voxel_um": [1, 1]}), AdaptationEntry(record={"stacks": [3]})):
        assert stale_warning(taken(2), silent) is None
    assert stale_warning(Stack(np.full((5, 9, 9), 7, np.uint8), (1, 1, 1)), ADAPTED) is None


def test_a_cleaner_stack_is_welcome() -> None:
    noisy = Character(pixel_um=0.1, anisotropy=3, range_counts=3000, contrast=0.1, snr=3)
    clean = noisy.model_copy(update={"snr": 300.0})
    assert changes(clean, noisy) == []
    assert changes(noisy, clean) == ["the signal to noise ratio is 3, it was 300"]
    assert changes(noisy.model_copy(update={"snr": 60.0}), clean) == []


@pytest.mark.parametrize("name", ["xyzc_16bit__dna_conf_wf.tif", "xyzc_16bit__spots.tif"])
def test_halves_and_the_other_channel_of_real_stacks(shared_data: Path, name: str) -> None:
    stacks = [read_stack(shared_data / "stacks" / name, channel=channel) for channel in (0, 1)]
    for stack in stacks:
        half = stack.data.shape[2] // 2
        left, right = (Stack(part, stack.voxel_um) for part in (stack.data[:, :, :half], stack.data[:, :, half:]))
        found = stale_warning(left, adapted_to(fingerprint(right)))
        assert found is None
