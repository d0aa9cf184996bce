"""How the daemon's child restores a file with a bundle: all its stacks, one OME-TIFF per position.

The recipe is what crosses from the daemon to its child: a bundle's folder and a few parameters. The child opens the
bundle (which checks every hash again), the backend (which checks itself on the golden tiles), and then restores stack
after stack with one of them in memory. Every result carries its provenance: what it was made from, and with what.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import BundleError, DeviceError, InputError, ParityError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.messages import Part
from ssai3d_rt.runtime.publish import TRUST_SUFFIX, require_space, temporary_name

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.imaging.read import Acquisition
    from ssai3d_rt.progress import Progress
    from ssai3d_rt.runtime.backends.runner import Runner
    from ssai3d_rt.runtime.messages import Restore
    from ssai3d_rt.runtime.settings import WatchSettings


@dataclass(frozen=True, slots=True)
class BundleRecipe:
    """Restore with a bundle.

    Parameters
    ----------
    folder, bundle_id
        The bundle, and the hash that it must still have in the child.
    parameters
        What else decides the result, as JSON.
    settings
        The daemon's.
    """

    folder: Path
    bundle_id: str
    parameters: str
    settings: WatchSettings

    @classmethod
    def of(cls, bundle: Bundle, settings: WatchSettings) -> BundleRecipe:
        """Make the recipe of an opened bundle."""
        values: dict[str, Any] = {
            "trust": settings.trust,
            "voxel_z_um": settings.voxel_z_um,
            "voxel_xy_um": settings.voxel_xy_um,
        }
        values |= {"denoise": settings.denoise}
        parameters = json.dumps({key: value for key, value in values.items() if value}, sort_keys=True)
        return cls(bundle.folder.absolute(), bundle.bundle_id, parameters, settings)

    def open(self, most_tiles: int | None = None) -> BundleRestorer:
        """Open bundle and backend; in the child."""
        from ssai3d_rt.export.bundle import Bundle
        from ssai3d_rt.runtime.backends import open_runner

        bundle = Bundle.open(self.folder)
        if bundle.bundle_id != self.bundle_id:
            raise BundleError(
                f"{self.folder} was replaced while it was in use; start again to restore with the new one"
            )
        settings = self.settings
        runner = open_runner(bundle, settings.backend, threads=settings.threads, most_tiles=most_tiles)
        return BundleRestorer(self, runner, bundle)

    def made(self, result: Path, content: str) -> int:
        """Of how many files the result is, where its provenance names this recipe and that content; else 0."""
        from ssai3d_rt.imaging.write import read_provenance

        try:
            found = read_provenance(result)
        except InputError:
            return 0
        wanted = self.provenance(content)
        if any(found.get(key) != value for key, value in wanted.items()):
            return 0
        positions = found.get("positions")
        return positions * (2 if self.settings.trust else 1) if isinstance(positions, int) else 0

    def provenance(self, content: str) -> dict[str, Any]:
        """Return what a result says of its making."""
        return {"source_sha256": content, "bundle_id": self.bundle_id, "parameters": json.loads(self.parameters)}


class BundleRestorer:
    """Restores files with an open backend.

    Parameters
    ----------
    recipe
        Where it comes from.
    runner
        The backend, with the bundle loaded.
    bundle
        The bundle.
    """

    def __init__(self, recipe: BundleRecipe, runner: Runner, bundle: Bundle) -> None:
        self.name = runner.name
        self._recipe, self._runner, self._bundle = recipe, runner, bundle

    def restore(self, order: Restore, progress: Progress) -> list[Part]:
        """Restore all stacks of a file."""
        from ssai3d_rt.imaging.read import open_acquisition

        settings = self._recipe.settings
        with open_acquisition(order.source, settings.voxel_z_um, settings.voxel_xy_um) as acquisition:
            require_space(order.folder, 2 * _bytes(acquisition), settings.reserve_bytes)
            names = {key.position: key.position_name for key in acquisition.keys}
            notes = self._recipe.provenance(order.content) | {
                "source": shown(order.source.name),
                "bundle": shown(self._recipe.folder.name),
                "positions": len(names),
            }
            parts: list[Part] = []
            for position, name in names.items():
                label = "" if len(names) == 1 else name or f"p{position:03d}"
                parts += self._position(order.folder, acquisition, position, label, notes, progress)
            return parts

    def check(self) -> None:
        """Run the golden tiles again."""
        from ssai3d_rt.runtime.backends.runner import self_test

        try:
            self_test(self._runner, self._bundle)
        except ParityError as error:
            raise DeviceError(f"the device no longer computes what it did when it was loaded: {error}") from None

    def close(self) -> None:
        """Close the backend."""
        self._runner.close()

    def _position(
        self,
        folder: Path,
        acquisition: Acquisition,
        position: int,
        label: str,
        notes: dict[str, Any],
        progress: Progress,
    ) -> list[Part]:
        from ssai3d_rt.imaging.write import verify_ome_tiff
        from ssai3d_rt.runtime.caution import summed_up
        from ssai3d_rt.runtime.restore import restore_position

        file = temporary_name(folder)
        doubts = temporary_name(folder) if self._recipe.settings.trust else None
        done = restore_position(
            acquisition,
            position,
            file,
            self._runner,
            trust_path=doubts,
            denoise=self._recipe.settings.denoise,
            adaptation=self._bundle.manifest.adaptation,
            notes=notes,
            progress=progress,
        )
        warnings = tuple(summed_up([report["warnings"] for report in done.reports]))
        parts = [Part(file, partial(verify_ome_tiff, expected=done.written), label, warnings=warnings)]
        if doubts is not None and done.trust is not None:
            parts.append(Part(doubts, partial(verify_ome_tiff, expected=done.trust), label, TRUST_SUFFIX))
        return parts


def _bytes(acquisition: Acquisition) -> int:
    """Size of all restored stacks, not compressed."""
    planes, height, width = acquisition.shape
    z_um, _, x_um = acquisition.voxel_um
    isotropic = math.floor((planes - 1) * z_um / x_um) + 1
    return isotropic * height * width * acquisition.dtype.itemsize * len(acquisition.keys)
