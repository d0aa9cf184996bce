"""Commands about engines: list those in the private cache, build those of a bundle, clear the cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssai3d_rt import console
from ssai3d_rt.commands.options import Debug, Json

if TYPE_CHECKING:
    from ssai3d_rt.export.enginecache import CachedEngine

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]

COLUMNS = ("bundle", "ONNX", "backend", "version", "for", "tile", "batches", "MB", "built (UTC)", "took", "state")


def engine_list(as_json: Json = False, debug: Debug = False) -> None:
    """List the engines that were built on this machine; each is read and its hash checked."""
    from ssai3d_rt.export.cache import cache_folder
    from ssai3d_rt.export.enginecache import cached_engines

    found = list(cached_engines())
    if not as_json:
        if found:
            _show(found)
        else:
            console.show(f"no engine was built yet; they would lie in {cache_folder() / 'engines'}")
    else:
        console.emit({"engines": [_record(engine) for engine in found]}, as_json=True)


def engine_build(
    bundle: Annotated[Path, typer.Argument(metavar="NAME.ssai3d", help="The bundle.")],
    backend: Annotated[
        EngineBackend,
        typer.Option(
            help="tensorrt-rtx builds for Turing to Blackwell on any machine, tensorrt for this machine's GPU."
        ),
    ] = "tensorrt-rtx",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Build the engines of a bundle, so that the first `restore` or `watch` does not have to.

    What the cache has is not built again. Ctrl-C stops the build and leaves nothing half-built.
    """
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.export.engine import engines_from_bundle
    from ssai3d_rt.export.enginecache import cached_engines

    opened = Bundle.open(bundle)
    before = {engine.path for engine in cached_engines()}
    with console.progress_bar(as_json=as_json) as progress:
        paths = engines_from_bundle(opened, backend, progress=progress)
    engines = [engine for engine in cached_engines() if engine.path in paths]
    if as_json:
        records = [_record(engine) | {"new": engine.path not in before} for engine in engines]
        console.emit({"engines": records}, as_json=True)
        return
    for engine in engines:
        note = engine.note
        told = "was there:" if engine.path in before else f"built in {note.seconds:.1f} s:"
        console.show(f"{told} {engine.size_bytes / 1e6:.1f} MB for {', '.join(note.targets)}: {engine.path}")
        for warning in note.warnings:
            console.warn(f"the builder says: {warning}")


def engine_clear(as_json: Json = False, debug: Debug = False) -> None:
    """Delete all engines and what their builders keep; they are built again when they are needed."""
    from ssai3d_rt.export.enginecache import clear_engines

    removed = clear_engines()
    size = sum(size_bytes for _, size_bytes in removed)
    lines = [f"removed {path} ({size_bytes / 1e6:.1f} MB)" for path, size_bytes in removed]
    lines.append(f"{size / 1e6:.1f} MB freed" if removed else "there was nothing to remove")
    record = {"removed": [{"path": path, "bytes": size_bytes} for path, size_bytes in removed], "bytes": size}
    console.emit(record, as_json=as_json, lines=lines)


def _record(engine: "CachedEngine") -> dict[str, Any]:
    """Give everything about an engine as plain values."""
    from dataclasses import asdict

    return asdict(engine.note) | {"path": str(engine.path), "bytes": engine.size_bytes, "whole": engine.whole}


def _show(engines: "list[CachedEngine]") -> None:
    """Print the table."""
    from rich.table import Table

    table = Table(*COLUMNS)
    for engine in engines:
        note = engine.note
        least, best, most = note.batches
        table.add_row(
            note.bundle,
            note.onnx_sha256[:8],
            note.backend,
            note.version,
            " ".join(note.targets),
            f"{note.tile} px",
            f"{best} ({least}-{most})",
            f"{engine.size_bytes / 1e6:.1f}",
            note.built.replace("T", " ")[:16],
            f"{note.seconds:.1f} s",
            "ok" if engine.whole else "changed: will be built again",
        )
    console.show_table(table)
