"""Every error that this project raises on purpose.

A message says what happened, which file or value, and what to do next, in one line: the command line prints it as it is
and exits with 1. Built-in exceptions stay in use for programming mistakes (a wrong type, an axis out of range).

>>> raise_for = MissingPackageError("torch", extra="train")
>>> str(raise_for)
'torch is not installed; run: pip install "ssai3d-rt[train]"'
"""

from __future__ import annotations


class Ssai3dError(Exception):
    """Base of all expected failures."""


class InputError(Ssai3dError, ValueError):
    """An input file or array cannot be used: not an image, wrong dtype, too few planes, out of limits."""


class IncompleteError(InputError):
    """A data set is not finished, or was cut off: fewer planes or bytes than it declares."""


class NotAStackError(InputError):
    """A single image, or several that are not planes: in order, but nothing that can be restored."""


class VoxelSizeError(InputError):
    """The voxel size is absent or makes no sense; it is never assumed."""


class ConfigError(Ssai3dError, ValueError):
    """A setting is unknown, of the wrong type or contradicts another."""


class WeightsError(Ssai3dError, ValueError):
    """A weights file does not hold a network that this project can load."""


class BundleError(Ssai3dError):
    """A bundle is damaged, of another schema version, or was changed after its export."""


class ParityError(BundleError):
    """An export, engine or backend does not reproduce the FP32 reference."""


class BackendError(Ssai3dError):
    """A backend cannot run here, or failed while running."""


class DeviceError(BackendError):
    """A device that worked computes something else now; nothing that came from it since can be believed."""


class StorageError(Ssai3dError, OSError):
    """A result or the ledger could not be stored durably (disk full, fsync failed, read-only)."""


class MissingPackageError(Ssai3dError, ImportError):
    """An optional package is needed for what was asked.

    Parameters
    ----------
    package
        Import name of the package.
    extra
        The extra of this project that installs it.
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f'{package} is not installed; run: pip install "ssai3d-rt[{extra}]"')
        self.package = package
        self.extra = extra
