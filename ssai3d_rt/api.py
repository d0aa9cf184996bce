"""The public functions that join stages, with the arguments a script has at hand: paths as text, minutes, no settings.

Each does what the command of its name does, for one stack in memory. The other public names are the stages' own; see
`ssai3d_rt.__all__`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from ssai3d_rt.adapt.follow import Follower
    from ssai3d_rt.adapt.model import AdaptedModel
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.imaging.stack import Stack


def finetune(
    stack: Stack | Sequence[Stack],
    rig: RigProfile | None = None,
    *,
    minutes: float | None = None,
    iterations: int | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> AdaptedModel:
    """Adapt the base network to one stack, or to several of one kind.

    Parameters
    ----------
    stack
        Raw stacks of the kind that will be restored.
    rig
        From `calibrate`; without it the article's blur sizes are taken.
    minutes, iterations
        How long: 5 minutes by default; with `iterations` the time plays no part.
    progress
        Told about every step.
    settings
        Any other of `ssai3d_rt.adapt.finetune.FinetuneSettings`, such as ``seed=1`` or ``layers="all"``.

    Raises
    ------
    ConfigError
        A setting that does not exist, or a value that it cannot take.
    InputError
        A stack that nothing can be learnt from.
    MissingPackageError
        The `train` extra is not installed.
    """
    from ssai3d_rt.adapt.finetune import finetune as tune
    from ssai3d_rt.adapt.settings import FinetuneSettings

    length = {key: value for key, value in (("minutes", minutes), ("iterations", iterations)) if value is not None}
    return tune(stack, rig, settings=FinetuneSettings.of(settings | length, where="finetune"), progress=progress)


def follow(
    shape: tuple[int | None, int, int],
    voxel_um: tuple[float, float, float],
    rig: RigProfile | None = None,
    *,
    ready_within_s: float = 60.0,
    progress: Progress = silent,
    **settings: Any,
) -> Follower:
    """Adapt the base network to a stack while it is being acquired: add its planes as they come.

    Parameters
    ----------
    shape
        ``(Z, Y, X)`` of the stack; Z is None where nobody knows how many planes there will be.
    voxel_um
        ``(z, y, x)`` in micrometres.
    rig
        From `calibrate`, on an earlier stack; without it the article's blur sizes are taken.
    ready_within_s
        Time from the last plane to the model.
    progress
        Told about planes and steps.
    settings
        As for `finetune`; ``minutes`` bounds the training before the last plane, ``iterations`` all of it.

    Returns
    -------
    A context manager with ``add(plane)`` and ``result()``.

    Raises
    ------
    ConfigError
        A setting that does not exist, or a value that it cannot take.
    InputError, VoxelSizeError
        A geometry that no stack has.
    """
    from ssai3d_rt.adapt.arrivals import Geometry
    from ssai3d_rt.adapt.follow import Follower
    from ssai3d_rt.adapt.settings import FinetuneSettings

    chosen = FinetuneSettings.of(settings, where="follow")
    return Follower(Geometry(shape, voxel_um), rig, settings=chosen, ready_within_s=ready_within_s, progress=progress)


def restore(
    stack: Stack,
    bundle: Bundle | str | os.PathLike[str],
    *,
    backend: str = "auto",
    denoise: str | None = None,
    progress: Progress = silent,
) -> Stack:
    """Restore one stack: isotropic voxels, same dtype, same intensity scale.

    Parameters
    ----------
    stack
        The raw stack.
    bundle
        From `export`, or the folder of one.
    backend
        A name that ``ssai3d-rt doctor`` lists, or ``auto``: the first that runs and gives the right numbers.
    denoise
        ``auto`` (where the stack is noisy), ``off`` or a denoiser's name; None does as the bundle says.
    progress
        Told about every batch of tiles.

    Raises
    ------
    BundleError
        The bundle is damaged or was changed.
    BackendError
        No backend can run it here.
    """
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.runtime.backends import open_runner
    from ssai3d_rt.runtime.restore import restore as run

    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
    mode = opened.manifest.adaptation.denoise if denoise is None else denoise
    runner = open_runner(opened, backend)
    try:
        return run(stack, runner, denoise=mode, progress=progress).stack
    finally:
        runner.close()
