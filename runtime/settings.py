"""How the daemon works: every key of its settings, with defaults that suit a rig.

In a settings file they stand in a table of their own:

```toml
[watch]
quiet_s = 2.0              # a file must be unchanged for so long, where it does not say itself that it is whole
incomplete_after_s = 60.0  # a file that stays incomplete for so long is listed as failed (and taken up when it grows)
```

>>> WatchSettings.of({"quiet": 3})
Traceback (most recent call last):
ssai3d_rt.errors.ConfigError: settings: unknown key "quiet"; did you mean "quiet_s"?
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field, PositiveFloat

from ssai3d_rt.config import Settings
from ssai3d_rt.imaging.denoise import DenoiseMode


class WatchSettings(Settings):
    """Settings of `watch`.

    Parameters
    ----------
    quiet_s
        A file must be unchanged for so long, unless it says itself that it is whole and was closed, or was submitted.
    scan_s
        Time between two full scans, which find what events missed.
    incomplete_after_s
        A file that is not whole and unchanged for so long is listed as failed; it is taken up again when it changes.
    observer
        Where hints come from: ``native`` events, ``polling``, ``off`` (scans only), ``auto`` polls network folders.
    poll_s
        Time between two looks of a polling observer.
    attempts
        A stack on which the restoring process fails so often is listed as failed.
    back_off_s
        Waiting times after the first, second and following failures in a row, of a stack, the process or the disk.
    stall_s, start_s
        The restoring process is thrown away when it says nothing for so long, at work and while it starts. Between two
        batches of tiles it is also thrown away after ten times the longest usual silence, but not before 30 s.
    stop_s
        When asked to stop, a stack in work may take so long to finish before it is given up (and resumed next time).
    threads
        Threads of the restoring process; absent: the backend decides.
    nice, idle_disk
        How far the processes step back for others: processor time (0 to 19; on Linux anything above 0 also lets whoever
        wakes up go first, on Windows it is below normal), and whether they use the disk only while nobody else does.
    while_acquiring
        What to do while a watched folder is written to: ``full`` speed, ``slow`` (the device works half of the time) or
        ``pause`` (it waits until nothing was written for `acquiring_s`).
    acquiring_s
        An acquisition is taken to be over when nothing was written for so long.
    judge_s
        Deciding whether a file is complete may take so long; it is done in a process of its own.
    examine_bytes
        Memory that reading a source may take, in a process of its own (not enforced on Windows); absent: half of the
        machine's.
    reserve_bytes
        Room on the results' disk that is never used.
    backend
        What restores: a backend's name, ``auto``, or ``cpu``, see `ssai3d_rt.runtime.backends.open_runner`.
    trust
        Also publish a trust map of each stack.
    denoise
        ``auto``, ``off`` or a denoiser's name; absent: as the bundle says.
    voxel_z_um, voxel_xy_um
        Voxel size for files that do not say theirs.
    ledger
        The ledger's file, on a local disk; absent: inside the output folder.
    """

    quiet_s: float = Field(default=2.0, ge=0)
    scan_s: float = Field(default=5.0, gt=0)
    incomplete_after_s: float = Field(default=60.0, gt=0)
    observer: Literal["auto", "native", "polling", "off"] = "auto"
    poll_s: float = Field(default=2.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    back_off_s: tuple[PositiveFloat, ...] = Field(default=(1.0, 5.0, 30.0, 60.0), min_length=1)
    stall_s: float = Field(default=600.0, gt=0)
    start_s: float = Field(default=1800.0, gt=0)
    stop_s: float = Field(default=10.0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    nice: int = Field(default=10, ge=0, le=19)
    idle_disk: bool = True
    while_acquiring: Literal["full", "slow", "pause"] = "slow"
    acquiring_s: float = Field(default=10.0, gt=0)
    judge_s: float = Field(default=5.0, gt=0)
    examine_bytes: int | None = Field(default=None, ge=1 << 28)
    reserve_bytes: int = Field(default=1 << 30, ge=0)
    backend: str = "auto"
    trust: bool = False
    denoise: DenoiseMode | None = None
    voxel_z_um: float | None = Field(default=None, gt=0)
    voxel_xy_um: float | None = Field(default=None, gt=0)
    ledger: Path | None = None

    @property
    def examine_bytes_or_default(self) -> int:
        """Memory that reading a source may take, in bytes."""
        return self.examine_bytes or max(1 << 30, psutil.virtual_memory().total // 2)

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return self.back_off_s[min(max(failures, 1), len(self.back_off_s)) - 1]
