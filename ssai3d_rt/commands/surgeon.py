"""Commands about the choice of layers: rank those of a base network for a stack, train the surgeon that ranks them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.adaptation import Ranked
from ssai3d_rt.commands.options import Channel, Debug, Json, Position, Stacks, Time, VoxelXY, VoxelZ

if TYPE_CHECKING:
    from ssai3d_rt.adapt.cases import Case
    from ssai3d_rt.adapt.surgeon import SurgeonRecord


def rank(
    stacks: Stacks,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="The bars over depth.")] = Path("layers.png"),
    by: Annotated[Ranked, typer.Option(metavar="MODE", help="What ranks: surgeon, a metric, ...")] = "surgeon",
    surgeon: Annotated[Path | None, typer.Option(metavar="FILE", help="Another surgeon; sur.pt if published.")] = None,
    rig: Annotated[Path | None, typer.Option(help="Rig profile; without it the article's blur, 3 to 7 px.")] = None,
    base: Annotated[str, typer.Option(metavar="NAME|FILE", help="Base network: see `weights list`.")] = "base",
    share: Annotated[float, typer.Option(help="Share of the layers that would train.")] = 0.3,
    rehearsal: Annotated[float | None, typer.Option(help="Share of synthetic pairs, as for `finetune`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="List every layer, not only those that would train.")] = False,
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    channel: Channel = None,
    time: Time = None,
    position: Position = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score the layers of the base network for a stack, as `finetune` would, and draw them; nothing is trained."""
    from rich.table import Table

    from ssai3d_rt.adapt.lesson import prepare
    from ssai3d_rt.adapt.mask import select_layers
    from ssai3d_rt.adapt.picture import draw_layers
    from ssai3d_rt.adapt.settings import FinetuneSettings
    from ssai3d_rt.adapt.surgeon import surgeon_for
    from ssai3d_rt.adapt.zeroshot import depth_order
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.commands.inputs import Choice, read
    from ssai3d_rt.network.weights import load_network, network_from

    file = str(surgeon) if surgeon else None
    values: dict[str, Any] = {"base": base, "layers": by, "share": share, "surgeon": file}
    values |= {"rehearsal": rehearsal} if rehearsal is not None else {}
    settings = FinetuneSettings.of(values, where="surgeon rank")
    profile = RigProfile.load(rig) if rig is not None else None
    choice = Choice(channel=channel, time=time, position=position)
    loaded = load_network(settings.base)
    network = network_from(loaded.state)
    if by == "surgeon":
        surgeon_for(network, surgeon)  # fails now, not after the pairs are made
    given = read(stacks, choice=choice, voxel_z=voxel_z, voxel_xy=voxel_xy)
    with console.progress_bar(as_json=as_json) as progress:
        pairs = prepare(given, profile, settings, loaded, network, progress=progress).pairs
        chosen = select_layers(network, settings.layers, pairs.batch(0, 16), share=share, surgeon=file)
    out.parent.mkdir(parents=True, exist_ok=True)
    title = f"{len(chosen.mask)} of {len(chosen.scores)} convolutions would train (green), ranked by {by}"
    draw_layers(list(chosen.scores), chosen.mask, chosen.scores, out, title=title)
    depth = {name: number for number, name in enumerate(depth_order(chosen.scores), 1)}
    ranked = sorted(chosen.scores, key=lambda name: (-chosen.scores[name], name))
    rows = [
        {
            "rank": number,
            "layer": name,
            "depth": depth[name],
            "score": chosen.scores[name],
            "parameters": sum(p.numel() for p in network.get_submodule(name).parameters()),
            "chosen": name in chosen.mask,
        }
        for number, name in enumerate(ranked, 1)
    ]
    if not as_json:
        table = Table(*("rank", "layer", "depth", "score", "parameters", "trains"))
        for row in rows if every else rows[: len(chosen.mask)]:
            cells = (row["rank"], row["layer"], row["depth"], f"{row['score']:.4g}", row["parameters"])
            table.add_row(*map(str, cells), "yes" if row["chosen"] else "")
        console.show_table(table)
    console.emit({"by": by, "layers": rows, "picture": str(out)}, as_json=as_json, lines=[f"picture: {out}"])


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the benefits and of the surgeon.")],
    stacks: Annotated[
        list[Path] | None, typer.Argument(metavar="[STACK]", help="Your own stacks, beside the simulated ones.")
    ] = None,
    base: Annotated[str, typer.Option(metavar="NAME|FILE", help="Base network: see `weights list`.")] = "base",
    per_kind: Annotated[int, typer.Option(min=0, help="Simulated stacks of each of six kinds.")] = 2,
    iterations: Annotated[int | None, typer.Option(min=1, help="Steps that each layer is tuned for.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the surgeon's own training.")] = None,
    published: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The published sur.pt, to be tried beside it.")
    ] = None,
    rig: Annotated[Path | None, typer.Option(help="Rig profile of your own stacks.")] = None,
    use: Annotated[bool, typer.Option("--use/--no-use", help="From now on, `--layers surgeon` takes it.")] = True,
    voxel_z: VoxelZ = None,
    voxel_xy: VoxelXY = None,
    channel: Channel = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a surgeon for a base network: measure what each layer gains on stack after stack, and learn to rank them.

    Takes a minute or two of one core per stack for the base network that ships; an interrupted run goes on.
    """
    from ssai3d_rt.adapt.benefit import BenefitSettings, meta_dataset
    from ssai3d_rt.adapt.ranking import RankingSettings, train_surgeon
    from ssai3d_rt.adapt.surgeon import PublishedSurgeon, surgeons_folder

    asked = {"base": base} | ({"iterations": iterations} if iterations else {})
    settings = BenefitSettings.of(asked, where="surgeon train")
    ranking = RankingSettings.of({"steps": steps} if steps else {}, where="surgeon train")
    other = PublishedSurgeon.load(published) if published else None
    cases = _cases(stacks or [], rig, per_kind, {"voxel_z": voxel_z, "voxel_xy": voxel_xy}, channel)
    with console.progress_bar(as_json=as_json) as progress:
        benefits = meta_dataset(cases, out / "benefits", settings, progress=progress)
        surgeon = train_surgeon(benefits, ranking, published=other, progress=progress)
    path = surgeon.save(out / "surgeon.safetensors")
    record = surgeon.record
    known = (
        surgeon.save(surgeons_folder() / f"{Path(base).stem}-{record.base_sha256[:12]}.safetensors") if use else None
    )
    if not as_json and record.trials:
        console.show(*trial_lines(record))
    how = "--layers surgeon" if known else f"--layers surgeon --surgeon {path}"
    lines = [f"surgeon: {path}", f"use it with: ssai3d-rt finetune STACK -o MODEL_DIR --base {base} {how}"]
    result: dict[str, Any] = {"surgeon": str(path), "known": known and str(known), "stacks": len(benefits)}
    console.emit(result | {"record": record.model_dump(mode="json")}, as_json=as_json, lines=lines)


def trial_lines(record: "SurgeonRecord") -> list[str]:
    """Lay out a record's trials, the best first."""
    ranked = sorted(record.trials.items(), key=lambda item: -item[1].rank_correlation)
    head = "on kinds of stack left out of the training: rank correlation, benefit of the chosen layers in dB"
    return [head, *(f"  {name:20} {trial.rank_correlation:6.3f} {trial.chosen_gain_db:8.4f}" for name, trial in ranked)]


def _cases(
    stacks: list[Path], rig: Path | None, per_kind: int, voxels: dict[str, float | None], channel: str | None
) -> "list[Case]":
    """Take `per_kind` simulated stacks of each kind, and a window of each stack of the files."""
    from ssai3d_rt.adapt.cases import KINDS, real_case, simulated_case
    from ssai3d_rt.adapt.psf import ARTICLE_STD_PX
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.commands.inputs import Choice, read

    cases = [simulated_case(kind, number) for kind in KINDS for number in range(per_kind)]
    profile = RigProfile.load(rig) if rig is not None else None
    blur_px = (profile.blur_px_min, profile.blur_px_max) if profile is not None else ARTICLE_STD_PX
    for number, path in enumerate(stacks):
        found = read([path], choice=Choice(channel=channel), **voxels)
        cases += [real_case(stack, f"{number}-{path.stem}-{i}", blur_px) for i, stack in enumerate(found)]
    return cases
