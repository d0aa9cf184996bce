"""The daemon end to end with a real bundle, a real backend and real data."""

from __future__ import annotations

import contextlib
import gzip
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from ssai3d_rt.errors import BundleError
from ssai3d_rt.imaging.read import open_acquisition, read_stacks
from ssai3d_rt.imaging.write import read_provenance
from ssai3d_rt.runtime.backends import open_runner
from ssai3d_rt.runtime.ledger import State
from ssai3d_rt.runtime.recipe import BundleRecipe
from ssai3d_rt.runtime.restore import restore
from ssai3d_rt.runtime.source import content_hash
from ssai3d_rt.runtime.watch import WatchSettings
from tests.runtime.daemon import QUICK, Rig, stack_file

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle

pytest.importorskip("onnxruntime")

REAL = QUICK.model_copy(update={"backend": "onnxruntime", "threads": 1, "incomplete_after_s": 30.0})


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    return Rig(incoming, tmp_path / "isotropic", tmp_path / "restored.log", REAL)


def test_real_pixels_come_out_isotropic_in_one_file_each(rig: Rig, tiny_bundle: Bundle, shared_data: Path) -> None:
    two = "xyzc_16bit__spots.tif"
    bad = "xyz_8bit__mitotic_plate_badZcalibrated.tif"
    shutil.copyfile(shared_data / "stacks" / bad, rig.incoming / bad)
    tifffile.imwrite(
        rig.incoming / two,
        tifffile.imread(shared_data / "stacks" / two)[:, :, 20:60, 20:60],
        imagej=True,
        resolution=(1 / 0.0941,) * 2,
        metadata={"axes": "ZCYX", "spacing": 0.4, "unit": "um"},
    )
    first = "1.4compatTest_3_MMStack_1-Pos_000_000.ome.tif"
    packed = shared_data / "mmstack" / f"{first}.gz"
    (rig.incoming / first).write_bytes(gzip.decompress(packed.read_bytes()))
    with rig.running_with(BundleRecipe.of(tiny_bundle, rig.settings)):
        wanted = {two: State.DONE, bad: State.FAILED, first: State.FAILED}
        rig.wait(lambda: rig.states() == wanted, timeout_s=60.0)
    assert "--voxel-z" in rig.reason(bad)
    assert "planes" in rig.reason(first)  # two planes are no stack
    result = rig.out / "xyzc_16bit__spots_iso.ome.tif"
    assert rig.results() == [result.name]
    restored, raw = list(read_stacks(result)), list(read_stacks(rig.incoming / two))
    assert len(restored) == len(raw) == 2
    with contextlib.closing(open_runner(tiny_bundle, "onnxruntime", threads=1)) as runner:
        assert np.array_equal(restored[1].data, restore(raw[1], runner).stack.data)
    for made, source in zip(restored, raw, strict=True):
        assert made.voxel_um == pytest.approx((source.lateral_um,) * 3)
        assert (made.data.dtype, made.channel) == (source.data.dtype, source.channel)
    found = read_provenance(result)
    assert found["source_sha256"] == content_hash([rig.incoming / two])
    assert found["bundle_id"] == tiny_bundle.bundle_id
    assert found["backend"].startswith("onnxruntime")


def test_a_result_is_known_by_its_provenance_and_trust_maps_come_with_it(rig: Rig, tiny_bundle: Bundle) -> None:
    rig = rig.with_settings(trust=True)
    source = stack_file(rig.incoming / "a.ome.tif")
    recipe = BundleRecipe.of(tiny_bundle, rig.settings)
    with rig.running_with(recipe):
        rig.wait_for(a=State.DONE)
    assert rig.results() == ["a_iso.ome.tif", "a_trust.ome.tif"]
    assert rig.reason("a.ome.tif").startswith("warning: very noisy data")
    result, content = rig.out / "a_iso.ome.tif", content_hash([source])
    assert recipe.made(result, content)
    assert not recipe.made(result, "0" * 64)
    assert not recipe.made(source, content)
    assert not replace(recipe, bundle_id="other").made(result, content)
    assert not BundleRecipe.of(tiny_bundle, REAL).made(result, content)
    with open_acquisition(rig.out / "a_trust.ome.tif") as doubt, open_acquisition(result) as iso:
        assert (doubt.shape, doubt.dtype.name) == (iso.shape, "float32")


PARAMETERS: dict[str, tuple[dict[str, Any], bool]] = {
    "quiet time": ({"quiet_s": 9.0}, True),
    "backend": ({"backend": "openvino"}, True),
    "trust": ({"trust": True}, False),
    "voxel size": ({"voxel_z_um": 0.5}, False),
    "denoise": ({"denoise": "off"}, False),
}


@pytest.mark.parametrize(("changes", "same"), PARAMETERS.values(), ids=PARAMETERS)
def test_only_what_decides_the_result_is_a_parameter(tiny_bundle: Bundle, changes: dict[str, Any], same: bool) -> None:
    base = BundleRecipe.of(tiny_bundle, WatchSettings())
    assert (BundleRecipe.of(tiny_bundle, WatchSettings(**changes)).parameters == base.parameters) is same


def test_a_bundle_that_was_replaced_is_refused(tiny_bundle: Bundle) -> None:
    recipe = replace(BundleRecipe.of(tiny_bundle, REAL), bundle_id="0" * 64)
    with pytest.raises(BundleError, match="was replaced while it was in use; start again"):
        recipe.open()
