"""Commands that make a bundle for one microscope and sample: calibrate, finetune, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Channel, Debug, Denoise, Json, Position, Stacks, Time, VoxelXY, VoxelZ
from ssai3d_rt.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.imaging.stack import Stack

Ranked = Literal[
    "surgeon",
    "surgeon-published",
    "snip",
    "grasp",
    "fisher",
    "synflow",
    "grad-norm",
    "plain",
    "magnitude",
    "activation-mean",
    "activation-std",
    "activation-abs-mean",
    "activation-abs-std",
    "gradient-mean",
    "gradient-std",
    "gradient-abs-mean",
    "gradient-abs-std",
    "weight-mean",
    "weight-std",
    "random",
]
Layers = Literal[Ranked, "first-last", "depthwise", "all", "none"]
Targets = Literal["auto", "turned", "synthetic", "bootstrapped", "raw"]
Precision = Literal["fp16", "fp32"]
LayerNorm = Literal["island", "native32", "native16"]
Engine = Literal["none", "tensorrt", "tensorrt-rtx"]


def calibrate(
    stacks: Stacks,
    out: Annotated[Path, typer.Option("--out", "-o", help="The rig profile to write.")] = Path("rig.toml"),
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    channel: Channel = None,
    time: Time = None,
    position: Position = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a microscope from stacks that it took: resolutions, blur range, intensity and noise.

    Writes a profile that a person can read and edit, and a picture of the spectra beside it.
    """
    from ssai3d_rt.calibration import calibrate as measure
    from ssai3d_rt.commands.inputs import Choice, read

    choice = Choice(channel=channel, time=time, position=position)
    chosen = read(stacks, choice=choice, voxel_z=voxel_z, voxel_xy=voxel_xy)
    profile = measure(chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    profile.save(out)
    picture = _draw_spectra(chosen[0], profile, out.with_suffix(".png"))
    for warning in profile.warnings:
        console.warn(warning)
    lines = [
        f"lateral resolution {profile.lateral_um:.3g} um, axial {profile.axial_um:.3g} um",
        f"blur along Z {profile.blur_px_min:.2g} to {profile.blur_px_max:.2g} px (Gaussian std, isotropic pixels)",
        f"rig profile: {out}",
        f"spectra:     {picture}" if picture else 'no picture of the spectra; run: pip install "ssai3d-rt[train]"',
    ]
    record = {"rig": str(out), "picture": picture and str(picture), "profile": profile.model_dump(mode="json")}
    console.emit(record, as_json=as_json, lines=lines)


def _draw_spectra(stack: "Stack", profile: "RigProfile", path: Path) -> Path | None:
    """Draw the spectra where matplotlib is installed; return the picture's path, or None where it is not."""
    from ssai3d_rt.calibration.picture import draw_spectra

    try:
        draw_spectra(stack, profile, path)
    except MissingPackageError:
        return None
    return path


def finetune(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="MODEL_DIR", help="Folder of the adapted model.")],
    stacks: Annotated[
        list[Path] | None,
        typer.Argument(metavar="STACK", help="TIFF, or a folder of Micro-Manager, NDTiff, OME-Zarr."),
    ] = None,
    follow: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Learn from this file while it is still being acquired; it need not exist."),
    ] = None,
    ready_within: Annotated[
        float, typer.Option(metavar="SECONDS", help="With --follow: from the last plane to the model.")
    ] = 60.0,
    planes: Annotated[
        int | None, typer.Option(min=1, help="With --follow: how many there will be, where the file does not say so.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="With --follow: how long to wait for the file and for more of it.")
    ] = 300.0,
    rig: Annotated[Path | None, typer.Option(help="Rig profile; without it the article's blur, 3 to 7 px.")] = None,
    base: Annotated[str, typer.Option(metavar="NAME|FILE", help="Base network: see `weights list`.")] = "base",
    minutes: Annotated[float | None, typer.Option(help="How long; 5 by default.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="How many steps, whatever time they take.")] = None,
    layers: Annotated[
        Layers | None,
        typer.Option(
            metavar="MODE",
            help="How the layers that may change are chosen: snip (the default), surgeon, surgeon-published, another"
            " metric, random, first-last, depthwise, all or none; see docs/surgeon.md.",
        ),
    ] = None,
    surgeon: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Surgeon for --layers surgeon or surgeon-published (sur.pt).")
    ] = None,
    targets: Annotated[
        Targets | None,
        typer.Option(
            metavar="WHAT",
            help="What to learn from: auto (turned or synthetic, by the sample), bootstrapped, or raw (article).",
        ),
    ] = None,
    denoise: Denoise = None,
    rehearsal: Annotated[float | None, typer.Option(help="Share of synthetic pairs; 0.75 by default, 0: none.")] = None,
    blend: Annotated[float | None, typer.Option(help="Share of the tuned weights in those kept; 1 by default.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, stacks and iterations: same result.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in MODEL_DIR.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapted model in MODEL_DIR.")] = False,
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    channel: Channel = None,
    time: Time = None,
    position: Position = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Adapt the base network to a sample, from one raw stack or a few of the kind that will be restored.

    Where tuning does not help on planes that were held out, the base network is kept, and you are told. With --follow
    it starts with the first planes of a stack that is being acquired, and is ready soon after the last:
    `ssai3d-rt finetune --follow incoming/cells.ome.tif -o cells-model --rig rig.toml`
    """
    from ssai3d_rt.adapt.finetune import finetune as tune
    from ssai3d_rt.adapt.model import RECORD
    from ssai3d_rt.adapt.settings import FinetuneSettings
    from ssai3d_rt.adapt.train import CHECKPOINT
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.commands.inputs import Choice, read

    asked: dict[str, Any] = {"minutes": minutes, "iterations": iterations, "layers": layers, "targets": targets}
    asked |= {"denoise": denoise, "rehearsal": rehearsal, "blend": blend, "surgeon": str(surgeon) if surgeon else None}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    settings = FinetuneSettings.of({"base": base, "seed": seed} | given, where="finetune")
    if (follow is None) == (not stacks):
        raise typer.BadParameter("name the stacks, or with --follow one file that is still being acquired")
    if follow is not None and resume:
        raise typer.BadParameter("a stream cannot be gone on with; leave --resume out", param_hint="--resume")
    if (out / RECORD).exists() and not overwrite:
        raise ConfigError(f"{out} holds an adapted model; replace it with --overwrite, or name another folder with -o")
    if (out / CHECKPOINT).exists() and not resume:
        raise ConfigError(f"{out} holds an interrupted run; go on with --resume, or name another folder with -o")
    if resume and not (out / CHECKPOINT).exists():
        raise ConfigError(f"{out} holds no interrupted run to go on with; leave --resume out")
    profile = RigProfile.load(rig) if rig is not None else None
    choice = Choice(channel=channel, time=time, position=position)
    with console.progress_bar(as_json=as_json) as progress:
        if follow is not None:
            from ssai3d_rt.commands.growing import follow as tune_while_growing
            from ssai3d_rt.imaging.growing import Following

            how = Following(channel, time, position, voxel_z, voxel_xy, planes=planes, patience_s=timeout)
            model = tune_while_growing(
                follow, how, profile, settings, ready_within_s=ready_within, folder=out, progress=progress
            )
        else:
            chosen = read(stacks or [], choice=choice, voxel_z=voxel_z, voxel_xy=voxel_xy)
            model = tune(chosen, profile, settings=settings, folder=out, progress=progress)
    record = model.record
    if record.kept == "base":
        console.warn(
            f"tuning gained less on held-out pairs than they can tell, so {out} holds the base network as it is;"
            " it suits this sample already"
        )
    tuned_db = max(check.held_out_psnr_db for check in record.checks)
    gain = f"{record.base_psnr_db:.2f} dB with the base network, {tuned_db:.2f} dB tuned"
    changed = f"{len(record.mask)}, {record.trained_parameters} of {record.total_parameters} parameters"
    lines = [
        f"held-out pairs: {gain}, after {record.iterations} iterations in {record.seconds:.0f} s",
        f"layers that changed: {changed if record.kept == 'tuned' else 'none'}",
        *(f"stack {number}: {sentence}" for number, sentence in enumerate(record.denoise, 1)),
        f"adapted model: {out}",
    ]
    result = {
        "model": str(out),
        "stacks": len(record.stacks),
        "kept": record.kept,
        "denoise": list(record.denoise),
        "base_psnr_db": record.base_psnr_db,
        "tuned_psnr_db": tuned_db,
        "iterations": record.iterations,
        "seconds": record.seconds,
        "trained_parameters": record.trained_parameters,
        "total_parameters": record.total_parameters,
    }
    console.emit(result, as_json=as_json, lines=lines)


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="An adapted model, as `finetune` wrote it.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NAME.ssai3d", help="The bundle to write.")],
    tile: Annotated[
        str, typer.Option(metavar="auto|PX", help="Side of the tiles that the network is fixed to.")
    ] = "auto",
    precision: Annotated[Precision, typer.Option(help="fp16 keeps FP32 where it is needed.")] = "fp16",
    layer_norm: Annotated[
        LayerNorm, typer.Option(help="How LayerNorm is written; native16 may overflow, which is then refused.")
    ] = "island",
    engine: Annotated[Engine, typer.Option(help="Also build an engine for this machine.")] = "none",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle of that name.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the portable bundle of an adapted model; refuse it where it does not reproduce the FP32 reference."""
    from ssai3d_rt.adapt.model import AdaptedModel
    from ssai3d_rt.export import export_bundle

    adapted = AdaptedModel.load(model)
    with console.progress_bar(as_json=as_json) as progress:
        bundle = export_bundle(
            adapted,
            out,
            tile=_tile(tile),
            precision=precision,
            layer_norm=layer_norm,
            overwrite=overwrite,
            progress=progress,
        )
        built = None
        if engine != "none":
            from ssai3d_rt.export.engine import engine_from_bundle

            built = engine_from_bundle(bundle, engine, progress=progress)
    manifest = bundle.manifest
    lines = [
        *_precision_lines(bundle),
        f"parity with the FP32 reference: {manifest.parity.real.psnr_db:.1f} dB on real tiles",
        f"bundle: {bundle.folder} ({manifest.precision}, tiles of {manifest.tile} px)",
        *([f"engine: {built}"] if built else []),
    ]
    result = {
        "bundle": str(bundle.folder),
        "bundle_id": bundle.bundle_id,
        "precision": manifest.precision,
        "layer_norm": manifest.layer_norm,
        "calibration": manifest.calibration.model_dump(mode="json") if manifest.calibration else None,
        "tile": manifest.tile,
        "parity": manifest.parity.model_dump(mode="json"),
        "engine": str(built) if built else None,
    }
    console.emit(result, as_json=as_json, lines=lines)


def _precision_lines(bundle: "Bundle") -> list[str]:
    """Say how many tensors stay FP32, and where the picture of all ranges is."""
    from ssai3d_rt.calibration.precision import sentence_of
    from ssai3d_rt.export.bundle import PICTURE

    entry = bundle.manifest.calibration
    if entry is None:
        return []
    counts = len(entry.wide), entry.tensors, len(entry.wide_weights)
    lines = [f"precision: {sentence_of(*counts, entry.highest, entry.highest_in)}"]
    if PICTURE in bundle.manifest.files:
        return [*lines, f"ranges: {bundle.folder / PICTURE}"]
    return [*lines, 'no picture of the ranges; run: pip install "ssai3d-rt[train]"']


def _tile(text: str) -> int | Literal["auto"]:
    """Read ``auto`` or a number of pixels."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number of pixels", param_hint="--tile")
    return int(text)
