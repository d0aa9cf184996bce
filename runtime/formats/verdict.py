"""What a judgement on a file or a folder says: the words that every format shares."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Judgement(str, Enum):
    """What `completeness` says about a file."""

    COMPLETE = "complete"
    GROWING = "growing"
    """Something that it needs is not there yet; a file cut off for good looks the same."""
    BROKEN = "broken"
    """No further bytes can make it a stack."""
    NOT_OURS = "not-ours"
    """Left alone: another kind of file, or one that belongs to another file's stacks."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """The judgement on one file or data set, with its reason in words.

    Parameters
    ----------
    state
        The judgement.
    reason
        One line for people; empty where complete.
    planes_expected, planes_found
        Planes that the file declares (None: it declares nothing) and planes whose data lie in the file.
    format
        ``plain``, ``imagej``, ``ome``, ``micro-manager``, ``ndtiff``, ``ome-zarr``, ``separate``, or empty where not
        known.
    also
        Names of the other files, in the same folder, that hold planes of its stacks.
    open_ended
        Its writer may go on without contradicting what it has declared.
    """

    state: Judgement
    reason: str = ""
    planes_expected: int | None = None
    planes_found: int = 0
    format: str = ""
    also: tuple[str, ...] = ()
    open_ended: bool = False

    @property
    def declared(self) -> bool:
        """Whether it says itself that it is whole; a plain TIFF and an OME-Zarr never do."""
        return self.planes_expected is not None and not self.open_ended


def not_ours(reason: str) -> Completeness:
    """Judge it as left alone."""
    return Completeness(Judgement.NOT_OURS, reason)


def growing(reason: str, expected: int | None = None, found: int = 0, kind: str = "") -> Completeness:
    """Judge it as not there yet."""
    return Completeness(Judgement.GROWING, reason, expected, found, kind)


def broken(reason: str, found: int = 0, kind: str = "") -> Completeness:
    """Judge it as never going to be a stack."""
    return Completeness(Judgement.BROKEN, reason, None, found, kind)
