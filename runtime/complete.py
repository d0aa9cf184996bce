"""Is what appeared in a rig's folder a finished stack? Decided from its own structure, never from a stable size.

`completeness` is a pure function of what is on disk at that moment, for a TIFF file as for a data set that is a folder
(NDTiff, OME-Zarr, separate image files); what each needs is in `runtime.formats`. Files are opened read-only, nothing
is mapped and no pixel decoded. What it cannot know, because a plain TIFF declares nothing and an OME-Zarr can be made
larger, is whether a writer will add planes: `Completeness.declared` says so, and the daemon then also waits for a quiet
period.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "notes.tif"
...     _ = path.write_text("not an image")
...     completeness(path).reason
"it is not a TIFF file (it begins with b'not an i')"
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging.folder import TEMPORARY, FolderKind, is_temporary, kind_of_folder
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.datasets import folder_identity
from ssai3d_rt.runtime.formats.ndtiff import judge_ndtiff
from ssai3d_rt.runtime.formats.omezarr import judge_omezarr
from ssai3d_rt.runtime.formats.separate import judge_separate
from ssai3d_rt.runtime.formats.tiff import judge_tiff
from ssai3d_rt.runtime.formats.verdict import Completeness, Judgement, broken, growing, not_ours
from ssai3d_rt.runtime.source import identity, identity_of, open_source

__all__ = ["SUFFIXES", "TEMPORARY", "Completeness", "Judgement", "completeness", "is_candidate"]

SUFFIXES = (".tif", ".tiff")

_FOLDERS = {
    FolderKind.NDTIFF: judge_ndtiff,
    FolderKind.OME_ZARR: judge_omezarr,
    FolderKind.SEPARATE: judge_separate,
}


def is_candidate(name: str) -> bool:
    """Whether a file of this name can be a stack: a TIFF suffix, and no temporary or hidden name."""
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not lower.startswith((".", "~"))


def completeness(path: str | os.PathLike[str]) -> Completeness:
    """Judge one file, or one data set that is a folder, by its structure.

    Never raises for what is in it, or for what is gone or held by its writer.
    """
    path = Path(path)
    if is_temporary(path.name):
        return not_ours("it has a temporary or hidden name")
    if (kind := kind_of_folder(path)) is not None:
        return _folder(path, kind)
    if not path.name.lower().endswith(SUFFIXES):
        return not_ours("its name does not end with .tif, .tiff or .zarr")
    if "_ndtiffstack" in path.name.lower():
        return not_ours("it is part of an NDTiff data set, which is read as the folder that it is")
    try:
        with open_source(path) as file:
            before = identity_of(os.fstat(file.fileno()))
            verdict = judge_tiff(file, before.size, path)
        if identity(path) != before:
            return replace(verdict, state=Judgement.GROWING, reason="it changed while it was checked")
    except InputError:
        return not_ours("it is not a regular file (links and special files are not followed)")
    except FileNotFoundError:
        return growing("it is gone")
    except OSError as error:
        return growing(f"it cannot be read: {error.strerror or error}")
    return verdict


def _folder(path: Path, kind: FolderKind) -> Completeness:
    try:
        before = folder_identity(path)
        try:
            verdict = _FOLDERS[kind](path)
        except InputError as error:
            later = isinstance(error, IncompleteError) or isinstance(error.__cause__, OSError)
            verdict = (growing if later else broken)(str(error).removeprefix(f"{shown(path)}: "), kind=kind.value)
        if folder_identity(path) != before:
            return replace(verdict, state=Judgement.GROWING, reason="it changed while it was checked")
    except FileNotFoundError:
        return growing("it is gone, or a file of it", kind=kind.value)
    except OSError as error:
        return growing(f"it cannot be read: {error.strerror or error}", kind=kind.value)
    return verdict
