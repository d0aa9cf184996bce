"""The published way to restore a stack, as a yardstick: the same weights and the same stack, in plain PyTorch.

Written from the description of SSAI-3D's published code, none of it copied: gray slices replicated to RGB, FP32, eager,
batch 1, whole slices padded with zeros to the network's multiple, NAFNet's `Local` variant (pooling in a window of 1.5
times the training images; 384 px where their size is not known), one TIFF per slice written and read back, first all
XZ, then all YZ slices, both volumes averaged. Three things are as in this project, so that the results can be compared:
the normalisation (the published code divides by the maximum and never undoes it), the interpolation along Z, and 32-bit
TIFFs in place of 16-bit ones.

A slice no larger than the pooling window is pooled as a whole in both. Where it also fits in one tile, the only thing
left is what lies around it: the published code adds zeros to the next multiple, this project reflects the slice to the
tile. With `padded_to` that is done here too, and then both compute the same function; so they do where a slice is as
large as the tile. Larger slices are pooled over other regions, and their results differ.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from ssai3d_rt.errors import MissingPackageError
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.imaging.tiling import Cover
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.network.nafnet import NAFNet, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt
    from torch import Tensor

    Float = npt.NDArray[np.float32]

TLC_WINDOW = 384
"""Side of the pooling window in px that the published code takes for any network."""


def time_upstream(
    *,
    weights: str,
    source: str,
    out: str,
    threads: int | None,
    train_px: int | None = None,
    padded_to: int | None = None,
    voxel_um: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """Restore one stack in the published way; a task for `ssai3d_rt.bench.child`.

    Parameters
    ----------
    weights
        Safetensors file of a NAFNet.
    source, out
        A data set of one stack, and the OME-TIFF that does not exist yet; slices go into a folder beside it.
    threads
        Threads of torch; None leaves them as they are.
    train_px
        Side of the network's training images, where it is known.
    padded_to
        Reflect slices to a tile of this side, as this project does; None adds zeros to the multiple, as published.
    voxel_um
        Spacing of planes, lateral pixel, where the file lacks them.

    Returns
    -------
    ``open_s``, ``restore_s``, ``voxels``, ``detail``.

    Raises
    ------
    MissingPackageError
        torch or safetensors is not installed.
    """
    try:
        import torch
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingPackageError((error.name or "torch").partition(".")[0], extra="train") from None

    start = time.perf_counter()
    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = in_colour(load_file(weights))
    network = NAFNet(shape_of(state), TLC_WINDOW if train_px is None else train_px * 3 // 2)
    network.load_state_dict(state)
    del state
    network = network.eval().to(device)
    open_s = time.perf_counter() - start

    def restored(slice_: Float) -> Float:
        """(Z, X) -> the same; the network pads to its multiple."""
        shown, inside = (slice_, (slice(None), slice(None))) if padded_to is None else _reflected(slice_, padded_to)
        colour = torch.from_numpy(np.repeat(shown[None, None], 3, axis=1)).to(device)
        with torch.no_grad():
            answer: Float = network(colour).mean(1)[0].cpu().numpy()
        return answer[inside]

    start = time.perf_counter()
    stack = read_stack(source, *voxel_um)
    scale = Normalisation.of(stack.data)
    volume = resample_z(scale.apply(stack.data), stack.anisotropy)
    with tempfile.TemporaryDirectory(prefix="slices-", dir=Path(out).parent) as folder:
        merged = np.zeros_like(volume)
        # The YZ slices of a volume are the XZ slices of the volume with Y and X exchanged.
        for axes in ((0, 1, 2), (0, 2, 1)):
            _through_files(volume.transpose(axes), merged.transpose(axes), restored, Path(folder))
    merged *= np.float32(0.5)
    voxel_out = (stack.lateral_um, stack.voxel_um[1], stack.lateral_um)
    write_ome_tiff(out, replace(stack, data=scale.undo(merged, stack.data.dtype), voxel_um=voxel_out))
    return {
        "detail": f"FP32 on {device}, eager, RGB, batch 1, version {torch.__version__}",
        "open_s": open_s,
        "restore_s": time.perf_counter() - start,
        "voxels": merged.size,
    }


def in_colour(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network for RGB that is equal to one for gray, on gray replicated and averaged; others as they are."""
    colour = dict(state)
    if state["intro.weight"].shape[1] == 1:
        colour["intro.weight"] = state["intro.weight"].repeat(1, 3, 1, 1) / 3
        colour["ending.weight"] = state["ending.weight"].repeat(3, 1, 1, 1)
        colour["ending.bias"] = state["ending.bias"].repeat(3)
    return colour


def _through_files(volume: Float, target: Float, restored: Callable[[Float], Float], folder: Path) -> None:
    """Write each XZ slice as a file, restore each into another, and add them all to the target."""
    count = volume.shape[1]
    for number in range(count):
        tifffile.imwrite(folder / f"raw_{number:05d}.tif", np.ascontiguousarray(volume[:, number]))
    for number in range(count):
        slice_ = tifffile.imread(folder / f"raw_{number:05d}.tif")
        tifffile.imwrite(folder / f"restored_{number:05d}.tif", restored(slice_))
    for number in range(count):
        target[:, number] += tifffile.imread(folder / f"restored_{number:05d}.tif")


def _reflected(slice_: Float, tile: int) -> tuple[Float, tuple[slice, slice]]:
    """Put a slice into one tile as `deblur_axial` does; also return where it lies in there."""
    covers = [Cover.of(length, tile=tile, overlap=0) for length in slice_.shape]
    inside = (covers[0].inside(0)[0], covers[1].inside(0)[0])
    return slice_[np.ix_(covers[0].reads(0), covers[1].reads(0))], inside
