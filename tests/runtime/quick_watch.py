"""The daemon as a process of its own, told everything in one JSON argument, see `Plan`; by default the quick restorer.

Every change of a file's state goes to standard error as `<seconds since 1970> event <state> <name> <reason>`.
"""

from __future__ import annotations

import base64
import json
import logging
import pickle
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.watch import WatchEvent, WatchSettings, watch
from tests.runtime.daemon import QUICK

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.runtime.messages import Recipe


@dataclass(frozen=True)
class Plan:
    """What a daemon is to do: everything that crosses to its process, as text."""

    folders: list[str]
    out: str
    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folders: list[Path], out: Path, recipe: Recipe, **settings: Any) -> Plan:
        """Make a plan; `settings` differ from those of quick tests."""
        pickled = base64.b64encode(pickle.dumps(recipe)).decode()
        plain = json.loads(json.dumps(settings, default=str))
        return cls([str(folder) for folder in folders], str(out), pickled, plain)

    def command(self) -> list[str]:
        """Command line that runs it; from the project's root."""
        return [sys.executable, "-m", "tests.runtime.quick_watch", json.dumps(asdict(self))]


def _tell(event: WatchEvent) -> None:
    logging.getLogger("event").info("%s %s %s", event.state.value, shown(event.path.name), event.reason)


def main() -> None:
    """Run the daemon."""
    logging.basicConfig(level=logging.INFO, format="%(created).3f %(name)s %(message)s")
    plan = Plan(**json.loads(sys.argv[1]))
    settings = WatchSettings.model_validate(QUICK.model_dump() | plan.settings)
    recipe = pickle.loads(base64.b64decode(plan.recipe))
    watch(plan.folders, recipe, plan.out, settings=settings, listener=_tell)


if __name__ == "__main__":
    main()
