"""Commands about a rig's file of settings: check, example, show."""

from pathlib import Path
from typing import Annotated

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Debug, Json
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown

File = Annotated[Path, typer.Argument(metavar="FILE", help="A file of settings (TOML).")]


def check(file: File, as_json: Json = False, debug: Debug = False) -> None:
    """Say all that is wrong with a file of settings, on this machine; exits with 1 when something is.

    Looks at keys, types and ranges, at folders, rights and room, opens the bundle and tries every hash of it. Nothing
    is changed, so it may run beside the daemon. Run it as the user that the daemon runs as.
    """
    from ssai3d_rt.runtime.rigcheck import complaints

    found = complaints(file)
    console.emit({"problems": found}, as_json=as_json, lines=found or [f"{shown(file)} is in order"])
    if found:
        console.fail(f"{len(found)} {'problem' if len(found) == 1 else 'problems'}; mend the file and check it again")
        raise typer.Exit(1)


def example(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A new file for it, in place of printing it.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a complete file of settings, or write it: every key with its meaning, unit, range and default."""
    from ssai3d_rt.runtime.rigexample import example as written

    text = written()
    if out is None:
        console.emit({"toml": text}, as_json=as_json, lines=text.splitlines())
        return
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{shown(out)} exists already and is left as it is; give another name") from None
    lines = [f"wrote {shown(out)}; set folders, out and bundle, then run: ssai3d-rt config check {shown(out)}"]
    console.emit({"path": str(out)}, as_json=as_json, lines=lines)


def show(file: File, as_json: Json = False, debug: Debug = False) -> None:
    """Print what is in force with a file of settings, paths in full, defaults marked."""
    from ssai3d_rt.runtime.rigconfig import load
    from ssai3d_rt.runtime.rigexample import in_force

    config = load(file)
    console.emit(config.model_dump(mode="json"), as_json=as_json, lines=in_force(config).splitlines())
