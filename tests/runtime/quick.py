"""A restorer that is quick and real: real files in and out, the real axial geometry, a network that changes nothing.

It misbehaves where a source's name asks for it, in the process where it would happen.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import BackendError, InputError
from ssai3d_rt.imaging.axial import restore_array
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.read import open_acquisition
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import read_provenance, verify_ome_tiff, write_ome_tiff
from ssai3d_rt.runtime.messages import Part, Restore
from ssai3d_rt.runtime.publish import temporary_name

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from ssai3d_rt.progress import Progress

PID_FILE = "restoring.pid"
"""Beside the recipe's log: which process restores; the daemon has others that look alike."""


def unchanged(tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return tiles


def expected(stack: Stack) -> npt.NDArray[Any]:
    """What the quick restorer makes of a stack."""
    return restore_array(stack.data, stack.voxel_um, unchanged, tile=64, batch=16).data


@dataclass(frozen=True, slots=True)
class QuickRecipe:
    """Restores without a bundle; `delay_s` per file, `log` collects the names of what was restored.

    It refuses to open where `refuse` says why, or where the file `refuse_while` is there.
    """

    log: Path
    delay_s: float = 0.0
    bundle_id: str = "quick"
    parameters: str = "{}"
    refuse: str = ""
    refuse_while: Path | None = None

    def open(self, most_tiles: int | None = None) -> QuickRestorer:
        if self.refuse:
            raise BackendError(self.refuse)
        if self.refuse_while is not None and self.refuse_while.exists():
            raise BackendError("the device is away")
        self.log.with_name(PID_FILE).write_text(str(os.getpid()))
        return QuickRestorer(self)

    def made(self, result: Path, content: str) -> bool:
        try:
            found = read_provenance(result)
        except InputError:
            return False
        return (found.get("source_sha256"), found.get("bundle_id")) == (content, self.bundle_id)


class QuickRestorer:
    name = "quick"

    def __init__(self, recipe: QuickRecipe) -> None:
        self._recipe = recipe

    def restore(self, order: Restore, progress: Progress) -> list[Part]:
        name = order.source.name
        if "crash" in name:
            os._exit(9)
        if "hang" in name:
            time.sleep(60)
        if "once" in name and not (flag := self._recipe.log.with_name(name + ".tried")).exists():
            flag.touch()
            os.kill(os.getpid(), 9)
        if "bug" in name:
            raise ZeroDivisionError("division by zero")
        temporary = temporary_name(order.folder)
        with open_acquisition(order.source) as acquisition:
            progress("restore", 0, len(acquisition.keys))
            stacks = []
            for key in acquisition.keys:
                raw = acquisition.read(key)
                made = restore_array(raw.data, raw.voxel_um, unchanged, tile=64, batch=16)
                stacks.append(Stack(made.data, made.voxel_um, key.channel_name, key.time, key.position_name))
        if "slow" in name and not (flag := self._recipe.log.with_name(name + ".grown")).exists():
            flag.touch()
            with open(order.source, "ab") as file:  # as a writer would, while it is read
                file.write(b"more")
        time.sleep(self._recipe.delay_s)
        provenance = {"source_sha256": order.content, "bundle_id": self._recipe.bundle_id, "source": shown(name)}
        written = write_ome_tiff(temporary, stacks, provenance)
        with open(self._recipe.log, "a") as log:
            log.write(shown(name) + "\n")
        return [Part(temporary, partial(verify_ome_tiff, expected=written))]

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass
