"""The rows of the benchmark: which cases, which methods, how many seeds, for how long; in three sizes.

``quick`` is for two processor cores and half an hour, ``full`` for a machine with a GPU, ``smoke`` for a few seconds:
it only shows that everything works.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssai3d_rt.imaging.optics import Objective
from suite.cases import RESOLUTION_200_700_NM, Case, gaussian

KINDS = ("strands", "flat strands", "spheres", "cylinders")
"""The four kinds of sample of the main rows."""
DISSIMILAR = ("flat strands", "cylinders")
"""Those whose axial slices do not look like their lateral planes."""
BLUR_PX = (2, 3, 4, 5, 6, 7, 8)
TOLD_PX = 5
"""Blur of the stack that the networks of the mismatch rows are trained on."""
MISMATCH_PX = (3, 4, 5, 6, 7)
PHOTONS = (500, 100, 25)
SPARSE = ("sparse:surgeon", "sparse:first-last")
MORE_SPARSE = (*SPARSE, "sparse:depthwise", "sparse:fisher", "sparse:synflow", "sparse:magnitude", "sparse:random")
PLAIN = ("raw", "richardson-lucy", "care", "self-net", "base", "full", "article")
FEW = ("raw", "richardson-lucy", "care", "base", "article", "ssai3d")
DENOISED = ("ssai3d[denoise=off]", "ssai3d[denoise=auto]")


@dataclass(frozen=True, slots=True)
class Row:
    """One case, fitted and restored by several methods.

    Parameters
    ----------
    name, group
        The row's name, and the table that it stands in.
    case
        The stack that methods are fitted to.
    methods
        Names; see `suite.methods`.
    seeds
        Of sample, noise and training.
    iterations
        Of training.
    tests
        Stacks of the same sample that are restored, each with its name; the one fitted to where there are none.
    """

    name: str
    group: str
    case: Case
    methods: tuple[str, ...]
    seeds: int
    iterations: int
    tests: tuple[tuple[str, Case], ...] = ()

    @property
    def restored(self) -> tuple[tuple[str, Case], ...]:
        """What is restored, each with its name."""
        return self.tests or ((self.name, self.case),)


@dataclass(frozen=True, slots=True)
class Size:
    """How large the benchmark is.

    Parameters
    ----------
    name
        ``quick``, ``full`` or ``smoke``.
    side, small
        Voxels along each axis in the main rows, and where only trends count.
    seeds, few
        Seeds of the main rows, and of the others.
    iterations, less
        Training of the main rows, and of the others.
    crop
        Side of the training crops in px, for all methods whose crops can be set; None for each method's own.
    main, few_methods
        Methods of the main rows, and of the others.
    once
        Methods too slow for more than one seed.
    """

    name: str
    side: int = 96
    small: int = 64
    seeds: int = 3
    few: int = 1
    iterations: int = 70
    less: int = 50
    crop: int | None = 64
    main: tuple[str, ...] = (*PLAIN, *SPARSE, "ssai3d")
    few_methods: tuple[str, ...] = FEW
    once: tuple[str, ...] = ("self-net",)


QUICK = Size("quick")
FULL = Size(
    "full",
    side=128,
    small=96,
    seeds=5,
    few=3,
    iterations=600,
    less=400,
    crop=None,
    main=(*PLAIN, *MORE_SPARSE, "ssai3d"),
    few_methods=(*FEW, "full"),
    once=(),
)
SMOKE = Size(
    "smoke", side=32, small=32, seeds=1, iterations=1, less=1, main=("raw", "base"), few_methods=("raw", "base")
)


def rows(size: Size) -> tuple[Row, ...]:
    """Return all rows of one size, the main ones first."""
    made = [Row(kind, "kinds", Case(kind, size.side), size.main, size.seeds, size.iterations) for kind in KINDS]
    some = tuple(m for m in size.main if not m.startswith("sparse:"))
    beads = {
        "beads: 200 x 700 nm": (RESOLUTION_200_700_NM, some),
        "beads: std 4 px": (gaussian(4.0), size.few_methods),
    }
    made += [
        Row(name, "beads", Case("beads", size.side, (psf,)), methods, size.few, size.iterations)
        for name, (psf, methods) in beads.items()
    ]
    learned = tuple(m for m in size.few_methods if m != "richardson-lucy")
    tests = tuple((f"flat strands: std {px} px", _flat(size, px)) for px in MISMATCH_PX)
    made.append(Row("mismatch", "mismatch", _flat(size, TOLD_PX), learned, size.few + 1, size.less, tests))
    made += [
        Row(f"flat strands: std {px} px", "blur", _flat(size, px), size.few_methods, size.few, size.less)
        for px in BLUR_PX
    ]
    made += [Row(name, "optics", case, size.few_methods, size.few, size.less) for name, case in _optics(size.small)]
    by_noise = {"clean": None} | {f"{photons} photons": photons for photons in PHOTONS}
    noisy = tuple(m for m in size.few_methods if m not in ("richardson-lucy", "care", "ssai3d"))
    noisy += () if size is SMOKE else DENOISED
    made += [
        Row(f"{kind}: {name}", "noise", Case(kind, size.small, photons=photons), noisy, size.few, size.less)
        for kind in ("strands", "cylinders")
        for name, photons in by_noise.items()
    ]
    return tuple(made)


def _flat(size: Size, blur_px: float) -> Case:
    return Case("flat strands", size.small, (gaussian(blur_px),))


def _optics(side: int) -> list[tuple[str, Case]]:
    """Return the cases of the article's Fig. 4 d to g, a PSF tilted everywhere, and theoretical PSFs (its Fig. S6)."""
    over_field = (gaussian(2.5), gaussian(4.0), gaussian(6.0))
    turning = (gaussian(2.5, rotation_deg=-25), gaussian(4.0), gaussian(6.0, rotation_deg=25))
    return [
        ("tubes: one PSF", Case("tubes", side)),
        ("tubes: std 2.5 to 6 px over the field", Case("tubes", side, over_field)),
        ("tubes: the same and tilt -25 to 25 deg", Case("tubes", side, turning)),
        ("tubes: the same and 100 photons", Case("tubes", side, turning, photons=100)),
        ("tubes: tilt 25 deg everywhere", Case("tubes", side, (gaussian(4.0, rotation_deg=25),))),
        ("tubes: confocal PSF (NA 0.9)", Case("tubes", side, objective=Objective(0.9, confocal=True))),
        ("tubes: wide-field PSF (NA 1.0)", Case("tubes", side, objective=Objective(1.0))),
    ]
