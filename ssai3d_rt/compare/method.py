"""What a method of restoration is, so that all can be compared: fitted to one stack, then given stacks to restore.

`Method` is the protocol, `Budget` how long it may train, `Fit` what comes of it. The methods themselves are in the
other modules of this package, and named in `METHODS`.

>>> Budget().longest_s, Budget(minutes=0.5).longest_s
(300.0, 30.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]

DEFAULT_MINUTES = 5.0
"""How long a method trains where a budget says nothing; what fine-tuning takes by default."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a method may train.

    Parameters
    ----------
    iterations
        Steps of training, whatever time they take; the result then depends on the seed alone.
    minutes
        Time of training, where `iterations` is not set; `DEFAULT_MINUTES` where neither is.
    seed
        Fixes all that is drawn.

    Raises
    ------
    ConfigError
        Not positive.
    """

    iterations: int | None = None
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("iterations", self.iterations), ("minutes", self.minutes)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} of training must be above 0, got {value}")

    @property
    def longest_s(self) -> float:
        """Seconds of training where the steps are not set."""
        return 60 * (DEFAULT_MINUTES if self.minutes is None else self.minutes)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A method fitted to one stack.

    Parameters
    ----------
    restore
        Restores a stack of the same kind, the one it was fitted to included: ``(Zi, Y, X)`` float32 counts on the
        stack's scale, isotropic voxels, `Stack.isotropic_planes` of them along Z, the first plane on the stack's first.
    seconds
        Time that fitting took; 0 for what needs none.
    trained_parameters
        Numbers that fitting changed.
    notes
        What else is worth knowing, JSON values by name. Methods that train on lateral pairs give ``lateral_psnr_db``
        (held-out pairs, peak 1, the weights that are used) and ``train_psnr_db`` (the last batches).
    """

    restore: Callable[[Stack], Float]
    seconds: float
    trained_parameters: int
    notes: Mapping[str, Any]


class Method(Protocol):
    """A way to restore stacks."""

    @property
    def name(self) -> str:
        """Name on the command line and in tables."""

    @property
    def summary(self) -> str:
        """What it does, in one line."""

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Fit to one stack.

        Parameters
        ----------
        stack
            A raw stack.
        rig
            What was measured about the microscope; without it a method takes the article's blur, 3 to 7 px.
        budget
            How long it may train.
        progress
            Told how far it is.

        Raises
        ------
        InputError
            The stack is too small for the method, or constant.
        MissingPackageError
            A package that the method needs is not installed.
        """
