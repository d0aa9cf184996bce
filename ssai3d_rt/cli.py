"""The command line `ssai3d-rt`: the table of commands, and what becomes of failures.

The commands themselves are in `ssai3d_rt.commands`. An expected failure (`Ssai3dError`, or a file the system refuses)
prints one line on stderr and exits with 1; a wrong usage exits with 2; Ctrl-C with 130. Anything else is a defect: one
line says where its traceback was saved, and ``--debug`` prints it.

>>> main(["version"])
ssai3d-rt ...
0
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from ssai3d_rt import console
from ssai3d_rt.commands import adaptation, bench, compare, config, engine, house, rig, service, surgeon
from ssai3d_rt.errors import Ssai3dError

INTERRUPTED = 130

app = typer.Typer(
    name="ssai3d-rt",
    help="Isotropic 3D microscopy on the acquisition rig: adapt, export and run axial restoration.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
weights_app = typer.Typer(no_args_is_help=True, help="List, import and train base networks.")
engine_app = typer.Typer(no_args_is_help=True, help="List, build and clear the engines of this machine.")
surgeon_app = typer.Typer(no_args_is_help=True, help="Rank the layers of a base network; train what ranks them.")
config_app = typer.Typer(no_args_is_help=True, help="Check, print and explain a rig's file of settings.")
service_app = typer.Typer(no_args_is_help=True, help="A watch that starts with the machine: install, remove, ask.")

SUBGROUPS = {
    "weights": weights_app,
    "engine": engine_app,
    "surgeon": surgeon_app,
    "config": config_app,
    "service": service_app,
}

EXAMPLES: dict[str, str] = {}
"""Every command's example, as its help shows it."""


def _add(group: typer.Typer, name: str, function: Callable[..., Any], example: str) -> None:
    """Add a command with its example."""
    parent = next((f"{word} " for word, sub in SUBGROUPS.items() if sub is group), "")
    path = f"{parent}{name}"
    EXAMPLES[path] = example
    group.command(name, epilog=f"Example: {example}")(function)


_add(app, "demo", house.demo, "ssai3d-rt demo --source simulation -o demo-out")
_add(app, "calibrate", adaptation.calibrate, "ssai3d-rt calibrate cells.tif -o rig.toml --voxel-z 0.4 --voxel-xy 0.1")
_add(app, "finetune", adaptation.finetune, "ssai3d-rt finetune cells.tif -o cells-model --rig rig.toml --minutes 5")
_add(app, "export", adaptation.export, "ssai3d-rt export cells-model -o cells.ssai3d --engine tensorrt-rtx")
_add(app, "restore", rig.restore, "ssai3d-rt restore cells.tif -o isotropic --bundle cells.ssai3d --trust")
_add(app, "watch", rig.watch, "ssai3d-rt watch incoming -o isotropic --bundle cells.ssai3d")
_add(app, "compare", compare.compare, "ssai3d-rt compare cells.tif -o compared --methods base,ssai3d,richardson-lucy")
_add(app, "bench", bench.bench, "ssai3d-rt bench cells.ssai3d -o bench-out --compare upstream-style")
_add(app, "submit", rig.submit, "ssai3d-rt submit incoming/cells_001.ome.tif -o isotropic")
_add(app, "status", rig.status, "ssai3d-rt status isotropic")
_add(app, "doctor", house.doctor, "ssai3d-rt doctor --json")
app.add_typer(weights_app, name="weights")
_add(weights_app, "list", house.weights_list, "ssai3d-rt weights list")
_add(weights_app, "import", house.weights_import, "ssai3d-rt weights import NAFNet-REDS-width64.pth --name reds64")
_add(weights_app, "pretrain", house.weights_pretrain, "ssai3d-rt weights pretrain -o my-base --iterations 10000")
app.add_typer(engine_app, name="engine")
_add(engine_app, "list", engine.engine_list, "ssai3d-rt engine list")
_add(engine_app, "build", engine.engine_build, "ssai3d-rt engine build cells.ssai3d --backend tensorrt-rtx")
_add(engine_app, "clear", engine.engine_clear, "ssai3d-rt engine clear")
app.add_typer(surgeon_app, name="surgeon")
_add(surgeon_app, "rank", surgeon.rank, "ssai3d-rt surgeon rank cells.tif --rig rig.toml -o layers.png")
_add(surgeon_app, "train", surgeon.train, "ssai3d-rt surgeon train -o my-surgeon --base reds64")
app.add_typer(config_app, name="config")
_add(config_app, "check", config.check, "ssai3d-rt config check rig.toml")
_add(config_app, "example", config.example, "ssai3d-rt config example -o rig.toml")
_add(config_app, "show", config.show, "ssai3d-rt config show rig.toml")
app.add_typer(service_app, name="service")
_add(service_app, "install", service.install, "ssai3d-rt service install --config rig.toml --run-as microscope")
_add(service_app, "uninstall", service.uninstall, "ssai3d-rt service uninstall")
_add(service_app, "status", service.status, "ssai3d-rt service status")
_add(app, "version", house.version, "ssai3d-rt version")


def _print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        house.version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Isotropic 3D microscopy on the acquisition rig: adapt, export and run axial restoration."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Parameters
    ----------
    argv
        The arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    # Threads that wait for one another sleep: beside an acquisition, spinning ones make torch many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with console.logs_to_stderr(logging.DEBUG if debug else logging.WARNING):
            app(args=arguments, prog_name="ssai3d-rt")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if status == INTERRUPTED:
            console.fail("interrupted")
        return status
    except KeyboardInterrupt:
        console.fail("interrupted")
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        console.fail(_explain(error, arguments))
        return 1
    return 0


def _explain(error: Exception, arguments: list[str]) -> str:
    """Return the one line about a failure; an unexpected one is saved first."""
    if isinstance(error, Ssai3dError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    saved = console.save_traceback(error, arguments)
    where = f"its traceback is in {saved}" if saved else "run it again with --debug for the traceback"
    return f"unexpected failure, please report it: {type(error).__name__}: {error}; {where}"


if __name__ == "__main__":
    sys.exit(main())
