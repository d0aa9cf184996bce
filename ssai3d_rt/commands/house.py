"""Commands about the installation itself: demo, doctor, weights, version."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Debug, Json

if TYPE_CHECKING:
    from ssai3d_rt.doctor import Check

Source = Literal["microscope", "demo-camera", "simulation"]

MARKS = {"ok": "ok", "absent": "-", "problem": "!!"}


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for everything; an earlier demo's is replaced.")
    ] = Path("demo-out"),
    source: Annotated[
        Source,
        typer.Option(
            help="What acquires: Micro-Manager with a simulated sample, its own DemoCamera (truth not known), or a"
            " simulation that needs no Micro-Manager."
        ),
    ] = "microscope",
    minutes: Annotated[float, typer.Option(min=0.05, help="Time for fine-tuning.")] = 2.0,
    stacks: Annotated[int, typer.Option(min=1, help="Stacks to restore, after the one for fine-tuning.")] = 3,
    seed: Annotated[int, typer.Option(help="Fixes samples, noise and fine-tuning.")] = 0,
    engine: Annotated[
        bool, typer.Option(help="Build a TensorRT-for-RTX engine where its builder is installed.")
    ] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Do the whole job on this machine: acquire, calibrate, fine-tune, export, watch, restore, report.

    Prints a table; the last line of stdout is always one JSON object.
    """
    from ssai3d_rt.demo.job import Plan, run_demo

    with console.progress_bar(as_json=as_json) as progress:
        result = run_demo(
            out, source=source, minutes=minutes, seed=seed, plan=Plan(stacks=stacks, engine=engine), progress=progress
        )
    if not as_json:
        console.show_table(result.table())
        if not result.tuned:
            console.show("tuning:  gained less on held-out planes than they can tell, so the base network was used")
        console.show(f"picture: {result.picture}", f"bundle:  {result.bundle}", f"engine:  {result.engine}")
    console.emit(result.summary(), as_json=True)


def doctor(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Where results would go.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what runs on this machine, and the next step for what does not.

    Exits with 1 when no backend can run, so that nothing could be restored here.
    """
    from ssai3d_rt.doctor import examine

    report = examine(folder)
    lines = []
    for group in ("machine", "packages", "backends"):
        lines += ["", group, *(_check_line(c) for c in report.checks if c.group == group)]
    lines += ["", "This machine can restore." if report.can_restore else "This machine cannot restore yet."]
    console.emit(report.record(), as_json=as_json, lines=lines[1:])
    if not report.can_restore:
        console.fail('no backend runs here; run: pip install "ssai3d-rt[cpu]"')
        raise typer.Exit(1)


def _check_line(check: "Check") -> str:
    """Lay out one check, and its next step below it."""
    line = f"  {MARKS[check.state.value]:2}  {check.name:16}  {check.detail}"
    return f"{line}\n      {'':16}  -> {check.next_step}" if check.next_step else line


def version(as_json: Json = False, debug: Debug = False) -> None:
    """Print the version."""
    import ssai3d_rt

    console.emit({"version": ssai3d_rt.__version__}, as_json=as_json, lines=[f"ssai3d-rt {ssai3d_rt.__version__}"])


def weights_list(as_json: Json = False, debug: Debug = False) -> None:
    """List the base networks that `finetune --base` knows by name."""
    from ssai3d_rt.network.weights import list_bases

    bases: list[dict[str, Any]] = [
        {"name": b.name, "shipped": b.shipped, "bytes": b.path.stat().st_size, "path": str(b.path)}
        for b in list_bases()
    ]
    lines = [
        f"{b['name']:16} {'shipped' if b['shipped'] else 'imported':9} {b['bytes'] / 1e6:6.1f} MB  {b['path']}"
        for b in bases
    ]
    console.emit({"bases": bases}, as_json=as_json, lines=lines or ["no base network is installed"])


def weights_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A NAFNet checkpoint (.pth, .pt, .safetensors).")],
    name: Annotated[str | None, typer.Option(help="Name to keep it under; the file's name by default.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Keep a published NAFNet checkpoint as a base network.

    It is read without executing anything in it, folded to one gray channel and saved as safetensors.
    """
    from ssai3d_rt.network.weights import import_weights

    entry = import_weights(file, name)
    console.emit(
        {"name": entry.name, "path": str(entry.path)},
        as_json=as_json,
        lines=[
            f"imported as {entry.name!r}: {entry.path}",
            f"use it with: ssai3d-rt finetune STACK -o MODEL_DIR --base {entry.name}",
        ],
    )


def weights_pretrain(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints, log and network.")],
    iterations: Annotated[int | None, typer.Option(min=1, help="Length of the run.")] = None,
    width: Annotated[int | None, typer.Option(min=4, help="Width of the network; 32 for a GPU.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per iteration.")] = None,
    crop: Annotated[int | None, typer.Option(min=32, help="Side of the training images in px.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes images, order, degradation and first weights.")] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Let torch compile the network.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw images.")] = 1,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a base network on synthetic images; goes on from the checkpoint in the folder if there is one."""
    from ssai3d_rt.network.pretrain import PretrainSettings, pretrain

    asked: dict[str, Any] = {"iterations": iterations, "width": width, "batch": batch, "crop": crop, "seed": seed}
    asked["compiled"] = compiled
    settings = PretrainSettings.of({k: v for k, v in asked.items() if v is not None}, where="weights pretrain")
    with console.progress_bar(as_json=as_json) as progress:
        path = pretrain(settings, out, device=device, workers=workers, progress=progress)
    console.emit(
        {"path": str(path), "iterations": settings.iterations}, as_json=as_json, lines=[f"base network: {path}"]
    )
