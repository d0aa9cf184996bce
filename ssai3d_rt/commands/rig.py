"""Commands of the rig: restore, watch, submit, status."""

import logging
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Backend, Debug, Denoise, Json, VoxelXY, VoxelZ
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown

logger = logging.getLogger(__name__)


def restore(
    stack: Annotated[Path, typer.Argument(metavar="STACK", help="A file, or the folder of one acquisition.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The OME-TIFF to write (.tif), or a folder for it.")],
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="NAME.ssai3d", help="Without it the base network as it ships, run by PyTorch."),
    ] = None,
    backend: Backend = None,
    trust: Annotated[bool, typer.Option("--trust", help="Also write the likely error of each voxel.")] = False,
    denoise: Denoise = None,
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Restore every stack of a file: same type and intensity scale, isotropic voxels, as OME-TIFF."""
    from ssai3d_rt.runtime.restore import restore_file

    if bundle is None and backend not in (None, "auto", "torch"):
        raise ConfigError(f"--backend {backend} runs a bundle; give one with --bundle (ssai3d-rt export makes it)")
    with console.progress_bar(as_json=as_json) as progress:
        reports = restore_file(
            stack,
            out,
            bundle,
            backend=backend or "auto",
            trust=trust,
            denoise=denoise,
            voxel_z=voxel_z,
            voxel_xy=voxel_xy,
            progress=progress,
        )
    if bundle is None:
        console.warn("the base network as it ships was used; fine-tuning and exporting adapt it to your sample")
    lines = []
    for result in dict.fromkeys(report["result"] for report in reports):
        of_it = [report for report in reports if report["result"] == result]
        z_um, y_um, _ = of_it[0]["restored_voxel_um"]
        seconds = sum(report["seconds"] for report in of_it)
        lines.append(
            f"{result}: {len(of_it)} {'stack' if len(of_it) == 1 else 'stacks'} of {of_it[0]['restored_shape']}, "
            f"voxel {z_um:.4g} x {y_um:.4g} um, {seconds:.1f} s with {of_it[0]['backend']}"
        )
        lines += list(dict.fromkeys(report["denoise_why"] for report in of_it))
        if trust:
            doubtful = max(report["doubtful"] for report in of_it)
            lines.append(f"trust map: {of_it[0]['trust']}; {doubtful:.0%} of what is visible is doubtful")
    console.emit({"stacks": reports}, as_json=as_json, lines=lines)


def watch(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Folders that a microscope writes to.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for results and the ledger.")] = None,
    bundle: Annotated[Path | None, typer.Option(metavar="NAME.ssai3d", help="What to restore with.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="File of settings, see `config example`; the command line goes before it."),
    ] = None,
    backend: Backend = None,
    denoise: Denoise = None,
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    while_acquiring: Annotated[
        Literal["full", "slow", "pause"] | None,
        typer.Option(help="While a folder is written to: full speed, half of the time (the default), or not at all."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Restore every stack that becomes complete below the folders, until Ctrl-C or SIGTERM.

    Raw data is only read. Stopped in any way, the next start goes on where this one ended. Prints a line for every
    change; with --json only the number of files by state, at the end. FOLDER, --out and --bundle may stand in the file
    of settings instead.
    """
    from ssai3d_rt.runtime.logfile import logs_to_file
    from ssai3d_rt.runtime.notify import Notifier
    from ssai3d_rt.runtime.rigconfig import load
    from ssai3d_rt.runtime.watch import WatchEvent
    from ssai3d_rt.runtime.watch import watch as run

    asked: dict[str, Any] = {"folders": tuple(folders or ()) or None, "out": out, "bundle": bundle, "backend": backend}
    asked |= {"denoise": denoise, "voxel_z_um": voxel_z, "voxel_xy_um": voxel_xy, "while_acquiring": while_acquiring}
    rig = load(config, asked)
    wanted, results, restorer = rig.watch.folders, rig.watch.out, rig.watch.bundle
    if not wanted or results is None or restorer is None:
        lacking = {"FOLDER": wanted, "--out": results, "--bundle": restorer}
        names = ", ".join(name for name, value in lacking.items() if not value)
        raise typer.BadParameter(f"missing: {names}; give it here or in the table [watch] of --config")

    def listen(event: WatchEvent) -> None:
        logger.info("%s", event)
        if not as_json:
            console.show(str(event))

    level = logging.DEBUG if debug else logging.WARNING
    # watchdog notices a folder twice, and says so, where folders come quickly; it does no harm.
    warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
    with console.logs_to_stderr(level, timed=True), logs_to_file(rig.log):
        words = f"watching {', '.join(map(shown, wanted))}; results go to {shown(results)}"
        logger.info("%s", words)
        if not as_json:
            console.show(f"{words}; stop with Ctrl-C")
        counts = run(
            wanted,
            restorer,
            results,
            settings=rig.watch.settings(),
            health=rig.health,
            listener=listen,
            notifier=Notifier.from_environment(),
        )
        logger.info("stopped; %s", _count_words(counts))
    console.emit({"counts": counts}, as_json=as_json, lines=[f"stopped; {_count_words(counts)}"])


def _count_words(counts: dict[str, int]) -> str:
    """Say how many files are in which state."""
    return ", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "nothing seen"


def submit(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A finished file, or the folder of a data set.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The watch's output folder; without it, NAME.done beside PATH.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell a watch, running or not, that a data set is finished: it looks at once, and tries a failed one again."""
    from ssai3d_rt.runtime.submit import submit as leave_word

    word = leave_word(path, out)
    console.emit({"path": str(path), "word": str(word)}, as_json=as_json, lines=[f"submitted {path} ({word})"])


def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a watch, or its ledger file.")],
    most: Annotated[int, typer.Option(min=1, help="How many of the latest to list.")] = 10,
    live: Annotated[
        bool, typer.Option("--live", help="Only ask the watch whether its loop goes round: 0 or 1.")
    ] = False,
    ready: Annotated[bool, typer.Option("--ready", help="Only ask the watch whether it is ready: 0 or 1.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a watch has seen, done and published; works beside a running watch, and without one.

    With --live or --ready it asks the running watch, which must serve its health (table [health] of its settings), and
    exits with 0 for yes and 1 for no.
    """
    if live or ready:
        _probe(out, ready=ready, as_json=as_json)
        return
    from ssai3d_rt.runtime.status import summary

    found = summary(out, most=most)
    lines = [f"{'running' if found['running'] else 'not running'}; {_count_words(found['counts'])}"]
    if found["paused"]:
        lines.append(f"paused: {found['paused']}")
    lines += [f"working  {entry['path']}" for entry in found["working"]]
    lines += [f"failed   {entry['path']}: {entry['reason']}" for entry in found["failed"]]
    for entry in found["done"]:
        lines.append(f"done     {entry['path']} -> {', '.join(entry['results'])}")
        lines += [f"         {entry['reason']}"] if entry["reason"] else []
    console.emit(found, as_json=as_json, lines=lines)


def _probe(out: Path, *, ready: bool, as_json: bool) -> None:
    """Ask a running watch, print what it says, and end with 1 where it says no."""
    from ssai3d_rt.runtime.probe import ask

    what: Literal["live", "ready"] = "ready" if ready else "live"  # one that is not live is never ready
    verdict = ask(out, what)
    lines = [what] if verdict.ok else [f"not {what}: {reason}" for reason in verdict.reasons]
    console.emit({what: verdict.ok, "reasons": list(verdict.reasons)}, as_json=as_json, lines=lines)
    if not verdict.ok:
        raise typer.Exit(1)
