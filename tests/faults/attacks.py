"""Attacks by path: whatever lies in a watched or an output folder and leads to a file outside of them.

Everything leads into one folder, the secret, whose stacks hold the number 777 and nothing else, or to the system's own
files. `plant` makes all of it; none of it is a good stack.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from ssai3d_rt.runtime.publish import result_name
from tests.faults.badfiles import OME, SPACING
from tests.imaging.folders import close, ndtiff, ome_zarr, separate
from tests.runtime.daemon import stack_file

if TYPE_CHECKING:
    from pathlib import Path

SECRET = 777
PLANES = np.full((6, 24, 32), SECRET, np.uint16)
OWN = np.random.default_rng(0).integers(1, 700, PLANES.shape, dtype=np.uint16)
_HEAD = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
_PIXELS = '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="32" SizeY="24" SizeZ="6" SizeC="1" '
_PIXELS += 'SizeT="1" PhysicalSizeX="0.1" PhysicalSizeY="0.1" PhysicalSizeZ="0.4">{0}</Pixels></Image></OME>'
_BLOCK = '<TiffData IFD="{0}" FirstZ="{1}" PlaneCount="1"><UUID FileName="{2}">urn:uuid:{1}</UUID></TiffData>'


def secret_files(secret: Path) -> None:
    """Make the files that nobody may read."""
    secret.mkdir()
    tifffile.imwrite(secret / "other.ome.tif", PLANES, ome=True, metadata=OME["metadata"])
    tifffile.imwrite(secret / "other.tif", PLANES, imagej=True, resolution=(10, 10), metadata=SPACING)
    ome_zarr(secret / "other.zarr", PLANES, "zyx")
    close(ndtiff(secret / "other", PLANES[None, None]))
    separate(secret / "planes", PLANES[None, None])


def plant(incoming: Path, secret: Path, *, devices: bool) -> None:
    """Lay every trap into the watched folder."""
    _links(incoming, secret)
    _special(incoming, devices=devices)
    _ome(incoming, secret)
    _zarrs(incoming, secret)
    _ndtiffs(incoming, secret)
    _separate(incoming, secret)


def _links(incoming: Path, secret: Path) -> None:
    os.symlink(secret / "other.tif", incoming / "link.tif")
    os.symlink("../secret/other.ome.tif", incoming / "link-relative.ome.tif")
    os.symlink(secret, incoming / "folder")
    os.symlink(secret / "other.zarr", incoming / "link.zarr")
    os.symlink(secret / "other", incoming / "link-ndtiff")
    os.symlink(incoming, incoming / "circle")
    os.symlink(incoming / "loop.tif", incoming / "loop.tif")
    os.symlink("/dev/zero", incoming / "zero.tif")
    os.symlink("/etc/shadow", incoming / "shadow.tif")
    os.symlink(secret / "other.tif", incoming / "link.tif.done")


def _special(incoming: Path, *, devices: bool) -> None:
    os.mkfifo(incoming / "pipe.tif")
    os.mkfifo(incoming / "pipe.done")
    here = os.getcwd()
    os.chdir(incoming)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.tif")
    os.chdir(here)
    if devices:
        os.mknod(incoming / "device.tif", 0o20600, os.makedev(1, 5))


def _ome(incoming: Path, secret: Path) -> None:
    os.symlink(secret / "other.ome.tif", incoming / ".hidden-link.ome.tif")
    os.mkfifo(incoming / ".hidden-pipe.ome.tif")
    names = {
        "up": "../secret/other.ome.tif",
        "absolute": str(secret / "other.ome.tif"),
        "backslash": "..\\secret\\other.ome.tif",
        "through-folder": "folder/other.ome.tif",
        "linked": ".hidden-link.ome.tif",
        "pipe": ".hidden-pipe.ome.tif",
        "shadow": "/etc/shadow",
        "zero-byte": "other.ome.tif&#0;",
    }
    for what, name in names.items():
        blocks = "".join(_BLOCK.format(z, z, f"ome-{what}.ome.tif" if z < 3 else name) for z in range(6))
        hidden = incoming / ".making.tif"
        tifffile.imwrite(hidden, OWN[:3], description=_HEAD + _PIXELS.format(blocks), metadata=None)
        os.rename(hidden, incoming / f"ome-{what}.ome.tif")


def _zarrs(incoming: Path, secret: Path) -> None:
    def made(name: str) -> Path:
        hidden = incoming / f".{name}.tmp"
        ome_zarr(hidden, OWN, "zyx")
        return hidden

    def ready(hidden: Path) -> None:
        os.rename(hidden, incoming / f"{hidden.name[1:-4]}.zarr")

    for what, inside in {"chunk": "0/c/2/0/0", "array": "0", "array-json": "0/zarr.json", "json": "zarr.json"}.items():
        folder = made(f"zarr-{what}")
        target = folder / inside
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        os.symlink(secret / "other.zarr" / inside, target)
        ready(folder)
    for what, path in {"up": "../secret/other.zarr/0", "absolute": str(secret / "other.zarr" / "0")}.items():
        folder = made(f"zarr-path-{what}")
        content = json.loads((folder / "zarr.json").read_text())
        content["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path
        (folder / "zarr.json").write_text(json.dumps(content))
        ready(folder)
    folder = made("zarr-pipe")
    (folder / "0/c/2/0/0").unlink()
    os.mkfifo(folder / "0/c/2/0/0")
    ready(folder)


def _ndtiffs(incoming: Path, secret: Path) -> None:
    for what, name in {"up": b"../../secret/other/NDTiffStack.tif", "absolute": None, "shadow": b"/etc/shadow"}.items():
        folder = incoming / f"ndtiff-{what}"
        close(ndtiff(folder, OWN[None, None]))
        index = folder / "NDTiff.index"
        old, new = b"NDTiffStack.tif", os.fsencode(secret / "other" / "NDTiffStack.tif") if name is None else name
        before, after = (len(text).to_bytes(4, "little") + text for text in (old, new))
        index.write_bytes(index.read_bytes().replace(before, after))
    for what in ("NDTiffStack.tif", "NDTiff.index"):
        folder = incoming / f"ndtiff-linked-{what.lower().replace('.', '-')}"
        close(ndtiff(folder, OWN[None, None]))
        (folder / what).unlink()
        os.symlink(secret / "other" / what, folder / what)


def _separate(incoming: Path, secret: Path) -> None:
    folder = incoming / "separate-linked"
    separate(folder, OWN[None, None])
    plane = sorted(folder.glob("*.tif"))[2]
    plane.unlink()
    os.symlink(secret / "planes" / plane.name, plane)
    folder = incoming / "separate-notes"
    separate(folder, OWN[None, None])
    shutil.move(folder / "metadata.txt", secret / "metadata.txt")
    os.symlink(secret / "metadata.txt", folder / "metadata.txt")


def taken_names(incoming: Path, out: Path, secret: Path) -> list[Path]:
    """Good stacks whose results' names are taken: by links to raw and secret files, a hard link, a folder, a pipe."""
    out.mkdir(exist_ok=True)
    takers: dict[str, Any] = {
        "to-raw": lambda taken, raw: os.symlink(raw, taken),
        "to-secret": lambda taken, _: os.symlink(secret / "other.tif", taken),
        "to-nothing": lambda taken, _: os.symlink(secret / "new.tif", taken),
        "hard": lambda taken, raw: os.link(raw, taken),
        "folder": lambda taken, _: taken.mkdir(),
        "pipe": lambda taken, _: os.mkfifo(taken),
        "file": lambda taken, _: taken.write_text("somebody's"),
    }
    sources = []
    for seed, (what, take) in enumerate(takers.items()):
        hidden = stack_file(incoming / ".making.ome.tif", 100 + seed)
        sources.append(incoming / f"taken-{what}.ome.tif")
        os.rename(hidden, sources[-1])
        take(out / result_name(sources[-1].name), sources[-1])
    return sources
