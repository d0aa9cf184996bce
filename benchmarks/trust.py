"""Does the trust map say where a restored stack is wrong? Measured on simulated stacks with known truth.

python benchmarks/trust.py --picture docs/trust.png
python benchmarks/trust.py --fit

For each kind of sample, plane step and camera the base network restores a stack (96^3, axial blur std 4 px) and the map
is compared with the true absolute error: Spearman's rank correlation; AUSE, the area between the sparsification curves
of the map and of a perfect map (mean error of what is left, over the mean error of all, the least trusted voxels taken
away first; 0 is perfect, `chance` is what a random order has); the error of the least trusted tenth of the voxels over
that of the rest; the mean of the map over the mean error; the share of doubtful voxels that the report gives.

Then networks that invent: tuned, all layers, at the article's learning rate and without a judge, on another sample and
with a wrong blur. Where their result, and not the base network's, is a tenth of the range brighter than the truth, both
maps are compared: mean, upper decile, and the share of these voxels in which the inventing network's map is higher.

--fit finds `WEIGHTS` of `ssai3d_rt.runtime.trust` on other kinds of sample, other seeds and an inventing network of its
own: the weights, none negative, whose sum of signs is the mean absolute error (quasi-Poisson likelihood).
Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.finetune import finetune
from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.calibration.profile import RigProfile
from ssai3d_rt.imaging.axial import deblur_axial, resample_z, restore_array
from ssai3d_rt.imaging.simulate import (
    Camera,
    acquire,
    beads,
    cylinders,
    gaussian_psf_blur,
    spheres,
    standard_strands,
    tubes,
)
from ssai3d_rt.network.weights import load_network, network_from, torch_network
from ssai3d_rt.runtime.trust import SMOOTH_PX, WEIGHTS, doubtful_share, seen_again, signs, smoothed, trust_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ssai3d_rt.imaging.axial import Network
    from ssai3d_rt.imaging.normalise import Normalisation
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
SIDE = (96, 96, 96)
CAMERAS = {
    "clean": Camera(photons=None),
    "500 photons": Camera(photons=500, read_noise=2),
    "100 photons": Camera(photons=100, read_noise=3, offset=600),
}


def blobs(seed: int) -> Float:
    """Soft shapes of all sizes."""
    field = gaussian_psf_blur(np.random.default_rng(seed).normal(size=SIDE).astype(np.float32), (3, 3, 3))
    return np.clip(1.2 * (field / field.std() - 0.8), 0, 1).astype(np.float32)


def boxes(seed: int) -> Float:
    """Upright boxes with sharp tops and bottoms."""
    rng = np.random.default_rng(seed)
    volume = np.zeros(SIDE, np.float32)
    for _ in range(50):
        half, centre = rng.integers(2, 9, 3), rng.integers(0, 96, 3)
        place = tuple(slice(max(0, c - h), c + h) for c, h in zip(centre, half, strict=True))
        volume[place] = np.maximum(volume[place], rng.uniform(0.5, 1.0))
    return volume


SAMPLES: dict[str, Callable[[int], Float]] = {
    "strands": standard_strands,
    "cylinders": lambda seed: cylinders(SIDE, 60, seed=seed),
    "flat strands": lambda seed: standard_strands(seed, flat=True),
    "spheres": lambda seed: spheres(SIDE, 60, seed=seed),
    "tubes": lambda seed: tubes(SIDE, 25, seed=seed),
    "beads": lambda seed: beads(SIDE, 60, seed=seed),
    "blobs": blobs,
    "boxes": boxes,
}
BAR = ("strands", "cylinders")
FITTED = {"spheres": 4.0, "tubes": 4.0, "beads": 3.0, "blobs": 5.0, "boxes": 4.0}
"""Samples that the weights are found on, and their axial blur in px."""
DRAWN = ("strands", 2, "500 photons")
PLANTED = {"cylinders": "strands", "spheres": "strands", "strands": "cylinders"}
"""Sample that is restored, and the one that the inventing network was tuned on."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A restored stack; `truth` ``(Zi, Y, X)`` and `error` on the normalised scale."""

    stack: Stack
    truth: Float
    restored: Float
    disagreement: Float
    scale: Normalisation
    again: Float

    @property
    def volume(self) -> Float:
        """The restored stack on the normalised scale."""
        return self.scale.apply(self.restored)

    @property
    def error(self) -> Float:
        """True absolute error, fraction of the range."""
        return np.abs(self.volume - self.truth)

    def trust(self) -> Float:
        """Return the map."""
        return trust_map(self.stack, self.restored, self.disagreement, self.scale, again=self.again)


def case_of(sample: str, seed: int, step: int, camera: Camera, network: Network, blur_px: float = 4.0) -> Case:
    """Simulate, denoise where that is called for, as `restore` does, and restore."""
    truth = SAMPLES[sample](seed)
    stack = acquire(truth, step, camera=camera, std_px=(blur_px, 0.5, 0.5), seed=seed)
    plan = Denoising.of(stack.data, "auto")
    done = restore_array(
        stack.data, stack.voxel_um, network, tile=96, want_disagreement=True, denoised=plan.apply(stack.data)
    )
    assert done.disagreement is not None
    counts = truth[: len(done.data)] * camera.full_scale + camera.offset
    scale = done.normalisation
    restored = done.data.astype(np.float32)
    planes = seen_again(stack, restored, scale)
    quiet = plan.apply(planes)
    shown = resample_z(scale.apply(planes if quiet is None else quiet), stack.anisotropy)
    again = deblur_axial(shown, network, tile=96).volume
    return Case(stack, scale.apply(counts), restored, done.disagreement, scale, again)


def inventor(sample: str, seed: int, iterations: int) -> Network:
    """Tune a network that will invent: all layers, on one clean sample, for twice the blur that it will meet."""
    rig = RigProfile.of(
        {
            **{"voxel_um": (0.1, 0.1, 0.1), "planes": 96, "lateral_um": 0.2, "axial_um": 1.8},
            **{"blur_px_min": 7.0, "blur_px_max": 8.0},
            **{"intensity": {"low": 100, "high": 4000}, "noise": {"gain": 0.0, "read": 0.0}},
        }
    )
    wrong = acquire(SAMPLES[sample](seed), std_px=(1.0, 0.5, 0.5), camera=CAMERAS["clean"])
    values = {"iterations": iterations, "layers": "all", "targets": "raw", "lr": 1e-3, "angles_deg": (0.0,)}
    values |= {"rehearsal": 0.0, "blend": 1.0, "judge": False, "crop": 64, "check_every": iterations}
    return torch_network(network_from(finetune(wrong, rig, settings=FinetuneSettings.of(values)).state))


def ranks(values: npt.NDArray[Any]) -> Doubles:
    """Ranks from 0, ties share their mean."""
    _, place, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count + 1) / 2)[place])


def spearman(a: Float, b: Float) -> float:
    """Rank correlation."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def sparsified(error: Float, order: Float, points: int = 50) -> Doubles:
    """Mean error of what is left over that of all, when shares 0, 1/points, ... of the largest `order` are removed."""
    sorted_error = error.ravel()[np.argsort(order.ravel(), kind="stable")].astype(np.float64)
    left = np.cumsum(sorted_error)[[round(sorted_error.size * (1 - i / points)) - 1 for i in range(points)]]
    count = sorted_error.size * (1 - np.arange(points) / points)
    return np.asarray(left / count / sorted_error.mean())


def figures(case: Case) -> dict[str, float]:
    """Compare the map with the error."""
    error, trust = case.error, case.trust()
    by_map, perfect = sparsified(error, trust), sparsified(error, error)
    worst = trust > np.quantile(trust, 0.9)
    return {
        "spearman": spearman(trust, error),
        "ause": float(np.mean(by_map - perfect)),
        "chance": float(np.mean(1 - perfect)),
        "worst_tenth": float(error[worst].mean() / error[~worst].mean()),
        "mean_error": float(error.mean()),
        "map_over_error": float(trust.mean() / error.mean()),
        "doubtful": doubtful_share(trust, case.stack, case.restored, case.scale),
    }


def planted(honest: Case, lying: Case) -> dict[str, float]:
    """Compare the maps of both networks where only the second one invents."""
    invented = (lying.volume - lying.truth > 0.1) & (honest.volume - honest.truth < 0.05)
    maps = honest.trust(), lying.trust()
    return {
        "invented": float(invented.mean()),
        "honest_mean": float(maps[0][invented].mean()),
        "lying_mean": float(maps[1][invented].mean()),
        "honest_q90": float(np.quantile(maps[0][invented], 0.9)),
        "lying_q90": float(np.quantile(maps[1][invented], 0.9)),
        "higher": float((maps[1] > maps[0])[invented].mean()),
        "honest_error": float(honest.error.mean()),
        "lying_error": float(lying.error.mean()),
        "spearman": spearman(maps[1], lying.error),
        "honest_doubtful": doubtful_share(maps[0], honest.stack, honest.restored, honest.scale),
        "lying_doubtful": doubtful_share(maps[1], lying.stack, lying.restored, lying.scale),
    }


def fitted(cases: Iterator[Case], per_case: int = 20_000) -> dict[str, float]:
    """Find the weights."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    rows, errors = [], []
    for case in cases:
        pick = rng.choice(case.restored.size, per_case, replace=False)
        found = signs(case.restored, case.disagreement, case.scale, again=case.again)
        rows.append({name: smoothed(sign, (0, 1, 2), SMOOTH_PX).ravel()[pick] for name, sign in found})
        errors.append(case.error.ravel()[pick])
    names = list(WEIGHTS)
    design = np.stack([np.concatenate([row[name] for row in rows]) for name in names], 1).astype(np.float64)
    error = np.concatenate(errors).astype(np.float64)

    def loss(weights: Doubles) -> tuple[float, Doubles]:
        mean = design @ weights + 1e-5
        slope = design.T @ (1 - error / mean) / error.size
        return float(np.mean(mean - error * np.log(mean))), slope

    bounds = [(0.0, None)] * len(names)
    best = minimize(loss, np.full(len(names), 0.1), jac=True, bounds=bounds, method="L-BFGS-B")
    return {name: round(float(weight), 4) for name, weight in zip(names, best.x, strict=True)}


def cases_to_fit(honest: Network, iterations: int) -> Iterator[Case]:
    """Restore other samples and seeds than the table's, and some with an inventing network."""
    cameras = list(CAMERAS.values())
    for number, (sample, blur_px) in enumerate(FITTED.items()):
        for camera in (cameras[number % 3], cameras[(number + 1) % 3]):
            yield case_of(sample, 1000 + number, 1 + number % 2, camera, honest, blur_px)
    lying = inventor("beads", 105, iterations)
    for number, sample in enumerate(("boxes", "blobs", "tubes")):
        yield case_of(sample, 3000 + number, 2, CAMERAS["500 photons"], lying)


def table(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print figures in columns."""
    names = list(next(iter(rows.values())))
    print(f"{'':34}" + "".join(f" {name:>{max(9, len(name))}}" for name in names))
    for title, row in rows.items():
        print(f"{title:34}" + "".join(f" {row[name]:{max(9, len(name))}.3f}" for name in names), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default=",".join(BAR), help=f"of {', '.join(SAMPLES)}")
    parser.add_argument("--steps", default="1,2")
    parser.add_argument("--cameras", default=",".join(CAMERAS))
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=80, help="of the inventing networks; 0 leaves them out")
    parser.add_argument("--base", default="base")
    parser.add_argument("--picture", help="PNG to write, of strands with step 2 and 500 photons")
    parser.add_argument("--fit", action="store_true", help="find the weights instead")
    asked = parser.parse_args()
    begin = time.monotonic()
    honest = torch_network(network_from(load_network(asked.base).state))
    if asked.fit:
        print(json.dumps(fitted(cases_to_fit(honest, asked.iterations))))
        return
    rows: dict[str, dict[str, float]] = {}
    first: tuple[str, Case] | None = None
    for sample in asked.samples.split(","):
        for step in map(int, asked.steps.split(",")):
            for name in asked.cameras.split(","):
                case = case_of(sample, asked.seed, step, CAMERAS[name], honest)
                title = f"{sample}, step {step}, {name}"
                rows[title] = figures(case)
                if (sample, step, name) == DRAWN:
                    first = title, case
    table(rows)
    inventions = {}
    tuned: dict[str, Network] = {}
    for sample, other in PLANTED.items() if asked.iterations else ():
        lying = tuned.get(other) or inventor(other, asked.seed + 100, asked.iterations)
        tuned[other] = lying
        pair = [case_of(sample, asked.seed, 2, CAMERAS["500 photons"], network) for network in (honest, lying)]
        inventions[f"{sample}, network tuned on {other}"] = planted(pair[0], pair[1])
    if inventions:
        table(inventions)
    if asked.picture and first is not None:
        from trust_picture import draw

        error = first[1].error
        draw(first[1], (sparsified(error, first[1].trust()), sparsified(error, error)), first[0], asked.picture)
    seconds = round(time.monotonic() - begin, 1)
    print(json.dumps({"base": asked.base, "seed": asked.seed, "rows": rows, "planted": inventions, "seconds": seconds}))


if __name__ == "__main__":
    main()
