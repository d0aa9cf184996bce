"""What a service needs of the machine: who it runs as, what it reads and writes, where Python and the package lie.

Worked out from a file of settings that passed `ssai3d_rt.runtime.rigcheck`. It does not know how a service manager is
told: see `ssai3d_rt.runtime.systemd` and `ssai3d_rt.runtime.wintask`.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.guard import is_loopback
from ssai3d_rt.runtime.rigcheck import complaints
from ssai3d_rt.runtime.rigconfig import load

if TYPE_CHECKING:
    from ssai3d_rt.runtime.rigconfig import RigConfig

NAME = "ssai3d-rt"
"""What a service is called unless the machine has several."""

GPU_GROUPS = ("video", "render")

LOCAL_SERVICE = "S-1-5-19"
"""Windows' own account for services with the fewest rights; it reaches no network shares."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run, and what it needs of the machine.

    Parameters
    ----------
    name
        The service's name.
    config
        The file of settings, as an absolute path.
    python
        The Python that has this package.
    reads, writes
        Folders that are only read (raw data), and that are written.
    fixed
        Those of `reads` whose file system is not taken away under them: on the system's own, or mount points.
    needs
        What else it reads: settings, bundle, token.
    code
        Where Python and the package lie.
    account
        Who it runs as; for a user's own service, that user.
    user
        Whether it is a user's own service, which runs while the user is logged in.
    groups
        Further groups that it needs, for the GPU.
    stop_s
        So long a stack in work may take when it is stopped.
    open_network
        Whether other machines may ask for its health.
    logs
        Whether it writes a log file of its own.
    """

    name: str
    config: Path
    python: Path
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]
    fixed: tuple[Path, ...] = ()
    needs: tuple[Path, ...] = ()
    code: tuple[Path, ...] = ()
    account: str = ""
    user: bool = False
    groups: tuple[str, ...] = ()
    stop_s: float = 10.0
    open_network: bool = False
    logs: bool = True


def check_name(name: str) -> str:
    """Return a service's name where it can be one: letters, digits, ``_``, ``.`` and ``-``.

    Raises
    ------
    ConfigError
        It cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(f"{shown(name)!r} cannot be a service's name; use letters, digits, _, . and -")
    return name


def plan_of(
    config: str | os.PathLike[str], *, name: str = NAME, user: bool = False, account: str | None = None
) -> Plan:
    """Work out what a service for a file of settings needs.

    Parameters
    ----------
    config
        The file.
    name
        The service's name, see `check_name`.
    user
        Whether it is this user's own, or the machine's.
    account
        Who the machine's service runs as; by default the owner of the output folder.

    Raises
    ------
    ConfigError
        The file is not in order, the name cannot be used, the output folder does not exist, or nobody but root could be
        meant.
    """
    found = complaints(config)
    if found:
        more = f" (and {len(found) - 1} more; see them all with: ssai3d-rt config check)" if found[1:] else ""
        raise ConfigError(found[0] + more)
    rig = load(config)
    out = rig.watch.out
    if out is None or not out.is_dir():
        raise ConfigError(
            f"the output folder {shown(str(out))} does not exist; make it, owned by who the service runs as"
        )
    package = Path(__file__).resolve().parent.parent
    settings = Path(os.path.abspath(config))
    needs = [settings, rig.watch.bundle, rig.health.token_file]
    return Plan(
        name=check_name(name),
        config=settings,
        python=Path(sys.executable),
        reads=rig.watch.folders,
        writes=_written(rig, out),
        fixed=tuple(folder for folder in rig.watch.folders if _is_fixed(folder)),
        needs=tuple(path for path in needs if path is not None),
        code=tuple(dict.fromkeys([Path(sys.prefix), Path(sys.base_prefix), package])),
        account=_me() if user else _account(account, out),
        user=user,
        groups=() if user else _groups(),
        stop_s=rig.watch.stop_s,
        open_network=bool(rig.health.port) and not is_loopback(rig.health.address),
        logs=rig.log.file is not None,
    )


def _written(rig: RigConfig, out: Path) -> tuple[Path, ...]:
    """Folders that the daemon writes to: results, ledger, log."""
    files = (rig.watch.ledger, rig.log.file)
    folders = [out, *(file.parent for file in files if file is not None)]
    return tuple(f for i, f in enumerate(folders) if not any(f.is_relative_to(g) for g in folders[:i]))


def _is_fixed(folder: Path) -> bool:
    return os.path.ismount(folder) or os.stat(folder).st_dev == os.stat(folder.anchor).st_dev


def _account(asked: str | None, out: Path) -> str:
    """Return who the machine's service runs as: who was asked for, else who the output folder belongs to.

    Root needs not and should not run this, and is refused.
    """
    if sys.platform == "win32":
        return asked or LOCAL_SERVICE
    import pwd

    try:
        entry = pwd.getpwnam(asked) if asked is not None else pwd.getpwuid(out.stat().st_uid)
    except KeyError:
        who = f"there is no account {shown(asked)!r}" if asked is not None else f"{shown(out)} belongs to no account"
        raise ConfigError(f"{who} on this machine; name one with --run-as") from None
    if entry.pw_uid == 0:
        raise ConfigError(
            f"the service shall not run as root; give {shown(out)} to the account that restores (chown), or name one"
            " with --run-as"
        )
    return entry.pw_name


def _me() -> str:
    import getpass

    return getpass.getuser()


def _groups() -> tuple[str, ...]:
    """Return those groups for GPUs that this machine has: systemd refuses to start with one that it has not."""
    if sys.platform == "win32":
        return ()
    import grp

    known = {group.gr_name for group in grp.getgrall()}
    return tuple(name for name in GPU_GROUPS if name in known)
