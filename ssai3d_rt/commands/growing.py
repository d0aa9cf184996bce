"""Fine-tune on a file that is still being written: what `finetune --follow` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssai3d_rt import console
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging import limits
from ssai3d_rt.imaging.growing import Following, GrowingStack

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.adapt.model import AdaptedModel
    from ssai3d_rt.adapt.settings import FinetuneSettings
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.progress import Progress


def follow(
    path: Path,
    how: Following,
    rig: RigProfile | None,
    settings: FinetuneSettings,
    *,
    ready_within_s: float,
    folder: Path,
    progress: Progress,
) -> AdaptedModel:
    """Wait for the file, learn from its planes as they come, and save the model; warn as `read` does.

    Raises
    ------
    IncompleteError
        The file did not come, or no more of it.
    InputError
        It cannot be used.
    """
    from ssai3d_rt.adapt.arrivals import Geometry
    from ssai3d_rt.adapt.follow import Follower

    progress(f"wait for {path.name}", 0, 1)
    growing = GrowingStack(path, how)
    header = growing.header()
    progress(f"wait for {path.name}", 1, 1)
    geometry = Geometry(header.shape, header.voxel_um, header.channel, header.position, header.time, header.path)
    follower = Follower(
        geometry, rig, settings=settings, ready_within_s=ready_within_s, folder=folder, progress=progress
    )
    growing.on_look = follower.check
    try:
        with follower:
            for _, plane in growing:
                follower.add(plane)
            model = follower.result(stopped_early=growing.header().shape != header.shape)
    except (KeyboardInterrupt, InputError):
        console.warn(
            f"what was learnt from {follower.count} planes is lost, as a stream cannot be gone on with; "
            f"when the file is whole, run: ssai3d-rt finetune {header.path} -o {folder}"
        )
        raise
    for warning in limits(follower.stack()):
        console.warn(f"{header.path}: {warning}")
    return model
