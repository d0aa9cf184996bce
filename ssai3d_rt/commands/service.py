"""Commands about the daemon as a service of the machine: install, uninstall, status."""

from pathlib import Path
from typing import Annotated

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Debug, Json

NAME = "ssai3d-rt"
Name = Annotated[str, typer.Option(help="The service's name, where a machine has several.")]
Own = Annotated[bool, typer.Option("--user", help="Your own service, while you are logged in; not the machine's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write and run nothing.")]


def install(
    config: Annotated[Path, typer.Option(metavar="TOML", help="File of settings, see `config example`.")],
    name: Name = NAME,
    user: Own = False,
    run_as: Annotated[
        str | None,
        typer.Option(metavar="ACCOUNT", help="Who it runs as. By default the output folder's owner; never root."),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Have the watch of a file of settings started with the machine, and started again whatever ends it.

    Checks the file first. On Linux a unit of systemd is written, shown and started, on Windows a scheduled task. Run it
    again after a change of folders; it never replaces a service that it did not write.
    """
    from ssai3d_rt.runtime.service import manager
    from ssai3d_rt.runtime.serviceplan import plan_of

    plan = plan_of(config, name=name, user=user, account=run_as)
    lines = manager(user=user).install(plan, dry_run=dry_run)
    console.emit({"name": name, "done": not dry_run, "lines": lines}, as_json=as_json, lines=lines)


def uninstall(
    name: Name = NAME, user: Own = False, dry_run: DryRun = False, as_json: Json = False, debug: Debug = False
) -> None:
    """Stop the service and remove it; results, ledger, settings and logs stay."""
    from ssai3d_rt.runtime.service import manager
    from ssai3d_rt.runtime.serviceplan import check_name

    lines = manager(user=user).uninstall(check_name(name), dry_run=dry_run)
    console.emit({"name": name, "done": not dry_run, "lines": lines}, as_json=as_json, lines=lines)


def status(name: Name = NAME, user: Own = False, as_json: Json = False, debug: Debug = False) -> None:
    """Say whether the service is installed, runs, and how it last ended; exits with 1 where it does not run."""
    from ssai3d_rt.runtime.service import manager
    from ssai3d_rt.runtime.serviceplan import check_name

    running, lines = manager(user=user).status(check_name(name))
    console.emit({"name": name, "running": running, "lines": lines}, as_json=as_json, lines=lines)
    if not running:
        raise typer.Exit(1)
