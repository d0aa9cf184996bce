from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.errors import BundleError, StorageError
from ssai3d_rt.export.bundle import Bundle, write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.folder, tmp_path / "copy.ssai3d")


def reseal(folder: Path, name: str, data: bytes) -> None:
    """Change a file as someone would who also puts the manifest right."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forget(folder: Path, files: tuple[str, ...], keys: tuple[str, ...]) -> None:
    """Make a bundle as it was made before it held these files and said these things."""
    for name in files:
        (folder / name).unlink(missing_ok=True)
    path = folder / "manifest.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in keys}
    values["files"] = {name: entry for name, entry in values["files"].items() if name not in files}
    path.write_text(json.dumps(values))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def golden(tiles: Any, reference: Any, kinds: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, tiles=tiles, reference=reference, kinds=kinds)
    return buffer.getvalue()


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"x")


def test_an_opened_bundle_holds_what_was_exported(tiny_bundle: Bundle, copy: Path) -> None:
    bundle = Bundle.open(str(copy))
    tiles, reference = bundle.golden
    assert bundle.onnx == tiny_bundle.onnx
    assert bundle.bundle_id == tiny_bundle.bundle_id
    assert tiles.shape == reference.shape == (len(bundle.golden_kinds), 1, 64, 64)
    assert set(bundle.manifest.files) - {"precision.png"} == {
        *("model.onnx", "golden.npz", "adapted.safetensors", "precision.json")
    }
    assert hashlib.sha256(bundle.weights()).hexdigest() == bundle.manifest.files["adapted.safetensors"].sha256


def test_a_network_that_is_changed_after_opening_is_not_used(copy: Path) -> None:
    bundle = Bundle.open(copy)
    file = copy / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"model.onnx was changed after its export"):
        _ = bundle.onnx


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (shutil.rmtree, r"copy.ssai3d does not exist; give the folder NAME.ssai3d"),
    "a file": (replace_by_file, "is a file, a bundle is a folder"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest not json": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not valid JSON"),
    "manifest huge": (lambda f: (f / "manifest.json").write_bytes(b" " * (2 << 20)), "larger than"),
    "newer schema": (lambda f: edit(f, schema_version=2), "has schema version 2, this ssai3d-rt reads 1"),
    "not an object": (lambda f: (f / "manifest.json").write_text("[]"), "has schema version None"),
    "unknown key": (lambda f: edit(f, colour="red"), "manifest.json: colour: "),
    "bad value": (lambda f: edit(f, tile=-1), "manifest.json: tile: "),
    "file missing": (lambda f: (f / "golden.npz").unlink(), "is not whole, golden.npz is missing"),
    "file more": (lambda f: (f / "extra.engine").write_bytes(b"x"), "does not list: extra.engine"),
    "file cut off": (
        lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:-1]),
        r"model.onnx has \d+ of \d+ bytes",
    ),
    "file grown": (
        lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes() + b"x"),
        "model.onnx is larger than its",
    ),
    "onnx changed": (lambda f: flip(f / "model.onnx"), r"model.onnx was changed after its export \(SHA-256 differs\)"),
    "golden changed": (lambda f: flip(f / "golden.npz"), "golden.npz was changed"),
    "ranges changed": (lambda f: flip(f / "precision.json"), "precision.json was changed"),
    "weights changed": (lambda f: flip(f / "adapted.safetensors"), "adapted.safetensors was changed"),
    "not onnx": (lambda f: reseal(f, "model.onnx", b"MZ"), "model.onnx: not an ONNX file"),
    "other tile": (lambda f: edit(f, tile=96), r"one port tiles \(N, 1, 96, 96\) float32"),
    "not golden": (lambda f: reseal(f, "golden.npz", b"PK"), "golden.npz does not hold golden tiles"),
    "pickle": (
        lambda f: reseal(f, "golden.npz", golden(tiles=np.array([{}]), reference=np.ones(1), kinds=np.ones(1))),
        "does not hold golden tiles: Object arrays cannot be loaded",
    ),
    "golden shape": (
        lambda f: reseal(f, "golden.npz", golden(tiles=np.ones(1), reference=np.ones(1), kinds=np.array(["a"]))),
        r"does not hold float32 tiles of shape \(1, 1, 64, 64\)",
    ),
}


@pytest.mark.parametrize(("damage", "message"), CASES.values(), ids=CASES)
def test_a_damaged_bundle_is_refused_in_one_line(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(copy)
    assert "\n" not in str(caught.value)
    assert "copy.ssai3d" in str(caught.value)


def test_a_bundle_made_before_precision_was_calibrated_opens(copy: Path) -> None:
    forget(copy, ("precision.json", "precision.png"), ("calibration", "folding", "layer_norm"))
    manifest = Bundle.open(copy).manifest
    assert (manifest.calibration, manifest.folding, manifest.layer_norm) == (None, {}, "island")


def test_a_link_to_a_file_elsewhere_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.onnx").rename(tmp_path / "model.onnx")
    (copy / "model.onnx").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="is not a regular file"):
        Bundle.open(copy)


def test_weights_outside_the_onnx_file_are_refused(copy: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(copy / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    reseal(copy, "model.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match="keeps weights in another file"):
        Bundle.open(copy)


def test_what_a_file_manager_leaves_is_no_damage(copy: Path) -> None:
    (copy / ".DS_Store").write_bytes(b"x")
    assert Bundle.open(copy).tile == 64


def test_it_opens_without_torch_onnx_or_safetensors(copy: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'safetensors', 'onnxruntime', 'openvino', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import ssai3d_rt\n"
        "print(ssai3d_rt.Bundle.open(sys.argv[1]).bundle_id)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == Bundle.open(copy).bundle_id


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {name: (bundle.folder / name).read_bytes() for name in bundle.manifest.files}


@pytest.mark.parametrize(
    ("name", "there", "message"),
    [
        ("cells", None, r"a bundle's name ends in .ssai3d; try .*cells.ssai3d"),
        ("cells.ssai3d", "bundle", "exists already; choose another name"),
        ("cells.ssai3d", "file", "exists already"),
    ],
)
def test_nothing_is_overwritten_unasked(
    tiny_bundle: Bundle, tmp_path: Path, name: str, there: str | None, message: str
) -> None:
    target = tmp_path / name
    if there == "bundle":
        shutil.copytree(tiny_bundle.folder, target)
    if there == "file":
        target.write_text("mine")
    with pytest.raises(BundleError, match=message):
        write_bundle(target, tiny_bundle.manifest, contents(tiny_bundle))
    assert [p.name for p in tmp_path.iterdir()] == ([name] if there else [])


def test_only_a_bundle_is_ever_overwritten(tiny_bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    renamed = tiny_bundle.manifest.model_copy(update={"name": "new"})
    written = write_bundle(copy, renamed, contents(tiny_bundle), overwrite=True)
    assert written.manifest.name == "new"
    assert written.bundle_id != tiny_bundle.bundle_id
    photos = tmp_path / "photos.ssai3d"
    photos.mkdir()
    (photos / "me.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="is not a bundle; it is not overwritten"):
        write_bundle(photos, renamed, contents(tiny_bundle), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.ssai3d", "photos.ssai3d"]


def test_contents_that_do_not_fit_the_manifest_leave_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    wrong = contents(tiny_bundle) | {"golden.npz": b"other"}
    with pytest.raises(BundleError, match=r"golden.npz has 5 of"):
        write_bundle(tmp_path / "cells.ssai3d", tiny_bundle.manifest, wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write the bundle"):
        write_bundle(tmp_path / "file" / "cells.ssai3d", tiny_bundle.manifest, contents(tiny_bundle))
