"""The private cache: where engines and measured choices live, readable by this user alone.

Deserialising an engine is running native code, so nothing that another user could have written may be taken from here.
Everything in it can be deleted at any time. It does not know what is kept in it.

>>> import tempfile, os
>>> with tempfile.TemporaryDirectory() as folder:
...     private_folder(Path(folder) / "engines").name
'engines'
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from ssai3d_rt.errors import StorageError


def cache_folder() -> Path:
    """Return where this user's cache is, whether it exists or not.

    ``$SSAI3D_RT_CACHE``, else ``ssai3d-rt`` in ``%LOCALAPPDATA%`` (Windows), ``~/Library/Caches`` (macOS), or
    ``$XDG_CACHE_HOME`` or ``~/.cache`` (elsewhere).
    """
    if own := os.environ.get("SSAI3D_RT_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ssai3d-rt"


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user can write to and read, or check that it is one.

    On Windows a user's own folders are private by their access list; there nothing is checked.

    Raises
    ------
    StorageError
        It cannot be made, belongs to another user, or is open to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform != "win32":
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise StorageError(f"{folder} is not a folder of this user; set SSAI3D_RT_CACHE to one that is")
            if found.st_mode & 0o077:
                folder.chmod(0o700)
                if found.st_mode & 0o022:
                    raise StorageError(f"{folder} was open to other users; it is private now, empty it and try again")
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot make the private folder {folder}: {error.strerror or error}") from error
    return folder
