"""The page that a run writes: what was done, what the figures say, tables and pictures."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING, Any

from ssai3d_rt.compare import METHODS
from suite.figures import blur_figure, similarity_figure
from suite.job import SHIPPED_STEPS
from suite.remarks import remarks
from suite.table import GROUPS, beads_table, cases_table, cost_table, kinds_table

if TYPE_CHECKING:
    from pathlib import Path

    from suite.results import Results
    from suite.rows import Row, Size

TITLE = """\
# The article's benchmark

Simulated stacks of which the truth is known, restored by all methods side by side, after the experiments of the SSAI-3D
article (Figs. 2, 3, 4 and the supplement), in small. This page is written by the run itself:

```bash
python benchmarks/article.py --{size}
```
"""
HOW = """\
Each method is fitted to the very stack that it then restores, as in the article, but for the rows trained once. Stacks
have isotropic voxels of 100 nm and every plane, and no noise unless it is said. PSNR is in dB, of the whole
restored volume against the truth, peak 1; MSE is on the same scale; SSIM is the article's equation 9 (its L = 65535 for
16-bit images is peak 1 here). Where there are several seeds (of sample, noise and training) it is mean ± standard
deviation over them. Seconds are of one core.
"""
ABOUT = {
    "kinds": """\
Blur of std 4 px axially, 0.5 px laterally. `article` is the same as `sparse:snip`; `full` differs in the layers only.
PSNR [dB]:
""",
    "beads": """\
50 Gaussian beads of std 2 px (471 nm at half maximum), imaged with a resolution of 200 nm laterally and 700 nm axially,
and with the blur of the main rows; none is so near to the first or last plane that its light is cut off, which widens
what is restored. Gaussians are fitted to single beads: mean ± standard deviation over the n that
stand free enough. Two ratios: the axial width over the truth's lateral width, and over the lateral width in the same
volume, where the lateral blur has widened it.
""",
    "blur": """\
The bank of the article's recipe spans 3 to 7 px whatever the stack; CARE and Richardson-Lucy are told the true blur.
PSNR [dB], the best in bold:
""",
    "mismatch": """\
Each method is fitted once, to the stack blurred with std 5 px, which CARE is told, and restores stacks of other blur.
PSNR [dB], the best in bold:
""",
    "optics": """\
CARE and Richardson-Lucy are told the PSF of the field's middle, without tilt. Of the theoretical PSFs (scalar
diffraction, not Gaussian) nobody is told anything but what calibration finds. PSNR [dB], the best in bold:
""",
    "noise": """\
Poisson noise of so many photons at the truth's peak, and read noise of 2 photons. PSNR [dB], the best in bold:
""",
}
SIMILARITY = """\
Error of held-out lateral pairs against the error of the restored volume, one point a seed, after the article's Fig. 3.
On the line, lateral pairs tell what the axial direction gets. The pairs of `ssai3d` are other pairs: restored targets,
blurred and lit as this stack is.
"""


def write(results: Results, rows: list[Row], size: Size, figures: dict[str, Any], folder: Path) -> str:
    """Write ``benchmark.md`` and its pictures into a folder; returns the page.

    Parameters
    ----------
    results
        Of the run.
    rows
        That were asked for.
    size
        Of the benchmark.
    figures
        See `suite.bars.bars`.
    folder
        Made where it is absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = {r["group"] for r in results.found}
    parts = [TITLE.format(size=size.name), _facts(rows, size), HOW, "## What the figures say\n"]
    parts.append("\n".join(f"- {line}" for line in remarks(figures)) + "\n")
    for group, heading in GROUPS.items():
        if group in groups:
            parts += [f"## {heading}\n", ABOUT[group], _tables(results, group)]
    blur, similarity = folder / "benchmark-blur.png", folder / "benchmark-similarity.png"
    if blur_figure(results, blur):
        parts.append(f"## PSNR over the blur\n\n![PSNR over the axial blur]({blur.name})\n")
    if similarity_figure(results, similarity):
        parts += ["## Lateral and axial error\n", SIMILARITY, f"![Lateral and axial error]({similarity.name})\n"]
    parts += ["## Methods\n", _methods(results)]
    page = "\n".join(parts)
    (folder / "benchmark.md").write_text(page, encoding="utf-8", newline="\n")
    return page


def _facts(rows: list[Row], size: Size) -> str:
    most = max(row.iterations for row in rows)
    sides = " and ".join(f"{side}^3" for side in sorted({row.case.side for row in rows}, reverse=True))
    crops = f"crops of {size.crop} px" if size.crop else "crops as each method ships"
    date = time.strftime("%Y-%m-%d")
    return (
        f"{date}, {_machine()}. Volumes of {sides} voxels, at most {most} steps of training (`ssai3d`: "
        f"{SHIPPED_STEPS} times as many, as it is made for minutes), {crops}.\n"
    )


def _machine() -> str:
    import torch

    model = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores ({model}{gpu}), Python {platform.python_version()}, torch {torch.__version__}"


def _tables(results: Results, group: str) -> str:
    if group == "kinds":
        parts = [kinds_table(results, "psnr_db", 2), "SSIM:\n", kinds_table(results, "ssim", 3)]
        parts += ["MSE x 1000:\n", kinds_table(results, "mse", 2, 1000.0), "What it takes:\n", cost_table(results)]
        return "\n".join(parts)
    if group == "beads":
        return beads_table(results)
    if group == "optics":
        return "\n".join([cases_table(results, group), "SSIM:\n", cases_table(results, group, "ssim", 3)])
    return cases_table(results, group)


def _methods(results: Results) -> str:
    names = dict.fromkeys(r["method"] for r in results.found)
    return "\n".join(f"- `{name}`: {METHODS[name].summary}" for name in names if name in METHODS) + "\n"
