"""Parse command lines with the real options, without running the command."""

from __future__ import annotations

import typer
from typer.core import TyperGroup

from ssai3d_rt import cli


def parse(arguments: list[str]) -> str:
    """Parse the arguments after ``ssai3d-rt``; return the command's name, such as ``weights list``.

    Raises
    ------
    Exception
        What the command line raises for a wrong usage, for example an option that does not exist.
    """
    command = typer.main.get_command(cli.app)
    names = []
    rest = list(arguments)
    while isinstance(command, TyperGroup):
        names.append(rest.pop(0))
        command = command.commands[names[-1]]
    command.make_context(" ".join(names), rest)
    return " ".join(names)
