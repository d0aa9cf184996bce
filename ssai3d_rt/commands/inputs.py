"""Read the stacks that a command was given: all of them, or those of the channel, time point and position asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssai3d_rt import console
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging import limits, open_acquisition

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ssai3d_rt.imaging import Stack, StackKey


@dataclass(frozen=True)
class Choice:
    """Which stacks of an acquisition are wanted; None is any.

    Parameters
    ----------
    channel, position
        Name as the file gives it, or index from 0.
    time
        Index of the time point from 0.
    """

    channel: str | None = None
    time: int | None = None
    position: str | None = None

    def takes(self, key: StackKey) -> bool:
        """Whether the stack of `key` is wanted."""
        return (
            self.channel in (None, key.channel_name, str(key.channel))
            and self.time in (None, key.time)
            and self.position in (None, key.position_name, str(key.position))
        )


def read(
    paths: Iterable[Path], *, choice: Choice, voxel_z: float | None = None, voxel_xy: float | None = None
) -> list[Stack]:
    """Read stacks for calibration or fine-tuning; warn where one is outside the method's limits.

    Without a choice of time point or position the first whole one is taken, which says enough about a microscope, and
    of it every channel.

    Raises
    ------
    InputError
        A file that cannot be read, or that has no stack of this choice.
    """
    stacks = []
    for path in paths:
        with open_acquisition(path, voxel_z=voxel_z, voxel_xy=voxel_xy) as acquisition:
            keys = [key for key in acquisition.keys if choice.takes(key)]
            if not keys:
                raise InputError(f"{path} has no such channel, time or position: {acquisition.describe()}")
            first = next((key for key in keys if acquisition.is_whole(key)), keys[0])
            if choice.time is None:
                keys = [key for key in keys if key.time == first.time]
            if choice.position is None:
                keys = [key for key in keys if key.position == first.position]
            for key in keys:
                stack = acquisition.read(key)
                stacks.append(stack)
                for warning in limits(stack):
                    console.warn(f"{path}: {warning}")
    return stacks
