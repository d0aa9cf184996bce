"""Is a file that appeared in a rig's folder a finished stack? Decided from its own structure, never from a stable size.

`completeness` is a pure function of what is on disk at that moment: the chain of image file directories ends with 0,
every strip and tile lies inside the file, and there are as many planes as the file declares (OME-XML over several
files, ImageJ, Micro-Manager's index map). It opens the file read-only, maps nothing and decodes no pixel. What it
cannot know, because a plain TIFF declares nothing, is whether a writer will add planes: `Completeness.declared` says
so, and the daemon then also waits for a quiet period.

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

from ssai3d_rt.errors import InputError
from ssai3d_rt.runtime.formats.tiff import judge_tiff
from ssai3d_rt.runtime.formats.verdict import Completeness, Judgement, growing, not_ours
from ssai3d_rt.runtime.source import identity, identity_of, open_source

__all__ = ["SUFFIXES", "TEMPORARY", "Completeness", "Judgement", "completeness", "is_candidate"]

SUFFIXES = (".tif", ".tiff")
TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")


def is_candidate(name: str) -> bool:
    """Whether a file of this name can be a stack: a TIFF suffix, and no temporary or hidden name."""
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not lower.startswith((".", "~"))


def completeness(path: str | os.PathLike[str]) -> Completeness:
    """Judge one file by its structure.

    Never raises for what is in the file or for a file that is gone or held by its writer.
    """
    path = Path(path)
    lower = path.name.lower()
    if lower.startswith((".", "~")) or lower.endswith(TEMPORARY):
        return not_ours("it has a temporary or hidden name")
    if not lower.endswith(SUFFIXES):
        return not_ours("its name does not end with .tif or .tiff")
    if "_ndtiffstack" in lower:
        return not_ours("NDTiff data sets are not read; let Micro-Manager save image stack files")
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
