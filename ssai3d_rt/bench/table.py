"""A bench as tables for a terminal.

>>> in_mib(3 << 20), in_mib(None), percent(0.256)
('3', '-', '26')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from ssai3d_rt.bench.run import Bench, StackRow, TileRow

ABSENT = "-"


def tile_columns(rows: Sequence[TileRow]) -> dict[str, list[str]]:
    """Return the table of tiles by its headings; memory of the GPU only where there is any."""
    table = {
        "backend": [row.backend for row in rows],
        "how": [row.detail for row in rows],
        "tile": [str(row.tile) for row in rows],
        "LayerNorm": [row.layer_norm for row in rows],
        "batch": [str(row.batch) for row in rows],
        "ms/tile": [f"{row.ms:.2f}" for row in rows],
        "p95": [f"{row.ms_p95:.2f}" for row in rows],
        "Mvoxel/s": [f"{row.voxels_per_s / 1e6:.3g}" for row in rows],
        "PSNR dB": [f"{row.psnr_db:.1f}" for row in rows],
        "% of matmul": [percent(row.peak_share) for row in rows],
        "% of memory": [percent(row.memory_share) for row in rows],
        "host MiB": [in_mib(row.host_bytes) for row in rows],
        "GPU MiB": [in_mib(row.device_bytes) for row in rows],
    }
    return {head: cells for head, cells in table.items() if set(cells) - {ABSENT}}


def stack_columns(rows: Sequence[StackRow]) -> dict[str, list[str]]:
    """Return the table of whole stacks by its headings; those of a comparison only where there is one."""
    yardstick = next((row for row in rows if row.psnr_db is None and any(r.psnr_db is not None for r in rows)), None)
    table = {
        "backend": [row.backend for row in rows],
        "how": [row.detail for row in rows],
        "load s": [f"{row.open_s:.1f}" for row in rows],
        "restore s": [f"{row.restore_s:.2f}" for row in rows],
        "Mvoxel/s": [f"{row.voxels_per_s / 1e6:.3g}" for row in rows],
        "host MiB": [in_mib(row.host_bytes) for row in rows],
        "GPU MiB": [in_mib(row.device_bytes) for row in rows],
        "times faster": [ABSENT if yardstick is None else f"{yardstick.restore_s / row.restore_s:.2f}" for row in rows],
        "likeness dB": [ABSENT if row.psnr_db is None else f"{row.psnr_db:.1f}" for row in rows],
    }
    return {head: cells for head, cells in table.items() if set(cells) - {ABSENT}}


def tables(found: Bench) -> list[Table]:
    """Return both tables for a terminal; one without rows is left out."""
    network = found.network
    blocks = "enc {} middle {} dec {}".format(*(_joined(network[key]) for key in ("enc", "middle", "dec")))
    title = f"Tiles: width {network['width']}, {blocks}; {machine_line(found.machine)}"
    made = []
    for heading, columns in (
        (title, tile_columns(found.tiles)),
        ("Whole stack, files and all", stack_columns(found.stacks)),
    ):
        if columns:
            made.append(_table(heading, columns))
    return made


def notes(found: Bench) -> list[str]:
    """Say in lines what the tables do not: refused and absent backends, and the comparison of the FP32 forms."""
    lines = [f"refused: {text}" for text in found.refused]
    lines += [f"not here: {name}: {reason}" for name, reason in found.absent.items()]
    if found.same is not None:
        value = found.same["psnr_db"]
        said = "not comparable" if value is None else f"{value:.1f} dB alike"
        lines.append(f"FP32, here and upstream-style: {said} ({found.same['why']})")
    return lines


def machine_line(machine: Mapping[str, Any]) -> str:
    """Say what the machine reached: rates of multiplying large matrices and of copying."""
    parts = [f"{name} {flops / 1e9:.0f} GFLOP/s" for name, flops in machine.get("flops", {}).items()]
    parts += [f"{name} copies {rate / 1e9:.0f} GB/s" for name, rate in machine.get("bytes_per_s", {}).items()]
    return ", ".join(parts)


def in_mib(size_bytes: int | None) -> str:
    """Write a size in MiB."""
    return ABSENT if size_bytes is None else f"{size_bytes / (1 << 20):.0f}"


def percent(share: float | None) -> str:
    """Write a fraction in percent."""
    return ABSENT if share is None else f"{100 * share:.0f}"


def _joined(blocks: int | Sequence[int]) -> str:
    return str(blocks) if isinstance(blocks, int) else ",".join(str(count) for count in blocks)


def _table(title: str, columns: Mapping[str, Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for head in columns:
        text = head in ("backend", "how", "LayerNorm")
        table.add_column(head, justify="left" if text else "right", no_wrap=head == "backend")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table
