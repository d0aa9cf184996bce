"""Which denoiser serves the restoration best: PSNR of what the base network makes of simulated noisy stacks.

python benchmarks/denoising.py --samples strands,spheres --steps 2 --photons 100,25
python benchmarks/denoising.py --methods off,dct,auto --photons 500,100,25,clean

Each stack (axial blur std 4 px, read noise of 2 photons) is denoised with the noise that calibration measures on it
and restored by the base network. Prints for each case the measured signal to noise ratio and the PSNR (dB, peak 1)
against the truth, at the end the means over all cases, what became of the raw stack itself, the change of its mean and
the seconds, and one JSON line. Methods of scikit-image need it: pip install "ssai3d-rt[train]" PyWavelets.

``gat-`` works behind a generalised Anscombe transform with its exact unbiased inverse (M. Makitalo, A. Foi, IEEE Trans.
Image Process. 22, 91, 2013). ``spectrum`` is a Wiener filter in bins of axial and lateral frequency of the whole
stack. ``dct-full`` reckons with all of the noise, see `ssai3d_rt.imaging.denoise.CAUTION`. ``NAME*70`` mixes 70 % of
the denoised stack with 30 % of the raw one.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from adaptation import CAMERA, SAMPLES, on_truth_scale

from ssai3d_rt.calibration.denoising import measured_noise
from ssai3d_rt.imaging import denoise as own
from ssai3d_rt.imaging.axial import restore_array
from ssai3d_rt.imaging.denoise import NoiseModel, choose_denoiser, denoise
from ssai3d_rt.imaging.metrics import psnr
from ssai3d_rt.imaging.simulate import Camera, acquire
from ssai3d_rt.network.weights import load_network, network_from, torch_network

if TYPE_CHECKING:
    from collections.abc import Callable

Float = npt.NDArray[np.float32]
TILE = 96


def stabilised(work: Callable[[Float], Float]) -> Callable[[Float, NoiseModel], Float]:
    """Let a method for noise of standard deviation 1 work behind a generalised Anscombe transform."""

    def method(volume: Float, noise: NoiseModel) -> Float:
        gain, read = max(noise.gain, 1e-6), noise.read / max(noise.gain, 1e-6)
        floor = 3 / 8 + read**2
        root = 2 * np.sqrt(np.maximum((volume - noise.background) / gain + floor, 0))
        d = np.maximum(work(root.astype(np.float32)), 2 * (3 / 8) ** 0.5)
        back = d**2 / 4 + (1.5**0.5 / 4) / d - 11 / 8 / d**2 + (5 / 8 * 1.5**0.5) / d**3 - 1 / 8 - read**2
        return np.asarray(back * gain + noise.background, np.float32)

    return method


def plain(work: Callable[[Float], Float]) -> Callable[[Float, NoiseModel], Float]:
    """Let a method for noise of standard deviation 1 work on counts over the mean noise."""

    def method(volume: Float, noise: NoiseModel) -> Float:
        std = float(np.sqrt(noise.variance(volume).mean())) or 1.0
        return work(volume / np.float32(std)) * np.float32(std)

    return method


def planewise(volume: Float) -> Float:
    """Non-local means, plane by plane."""
    from skimage.restoration import denoise_nl_means as nlm

    return np.stack([nlm(p, patch_size=5, patch_distance=6, h=0.8, sigma=1, fast_mode=True) for p in volume])


def volumewise(volume: Float) -> Float:
    """Non-local means, in the volume."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(volume, patch_size=3, patch_distance=3, h=0.6, sigma=1, fast_mode=True)


def wavelet(volume: Float) -> Float:
    """BayesShrink with cycle spinning over eight shifts."""
    from skimage.restoration import cycle_spin, denoise_wavelet

    asked = {"sigma": 1, "wavelet": "db2", "method": "BayesShrink", "rescale_sigma": True}
    return cycle_spin(volume, func=denoise_wavelet, max_shifts=1, workers=1, func_kw=asked)


def variation(volume: Float) -> Float:
    """Total variation in the volume."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(volume, weight=1.0)


def gaussian(volume: Float) -> Float:
    """Blur of 0.7 px."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(volume, 0.7)


def spectrum(volume: Float) -> Float:
    """Wiener filter of the whole stack, in bins of axial and lateral frequency."""
    planes, rows, columns = volume.shape
    mean = volume.mean()
    mirrored = np.concatenate([volume, volume[::-1]]) - mean
    waves = np.fft.rfftn(mirrored)
    power = np.abs(waves) ** 2 / mirrored.size
    axial = np.abs(np.fft.fftfreq(2 * planes, 1 / (2 * planes))).round().astype(int)
    lateral = (np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)) * 48).astype(int)
    bins = axial[:, None, None] * (lateral.max() + 1) + lateral
    found = np.bincount(bins.ravel(), power.ravel()) / np.maximum(np.bincount(bins.ravel()), 1)
    gain = (np.maximum(found - 1, 0) / np.maximum(found, 1e-12))[bins]
    gain[0, 0, 0] = 1
    return np.asarray(np.fft.irfftn(waves * gain, mirrored.shape, (0, 1, 2))[:planes] + mean, np.float32)


def uncautious(volume: Float, noise: NoiseModel) -> Float:
    """Denoise by the kept method, without its caution."""
    kept, own.CAUTION = own.CAUTION, 1.0
    try:
        return denoise(volume, noise, "dct")
    finally:
        own.CAUTION = kept


METHODS: dict[str, Callable[[Float, NoiseModel], Float]] = {
    "off": lambda volume, noise: volume,
    "auto": lambda volume, noise: denoise(volume, noise, choose_denoiser("auto", noise)[0]),
    "dct": lambda volume, noise: denoise(volume, noise, "dct"),
    "dct-full": uncautious,
    "gat-dct-full": stabilised(lambda volume: uncautious(volume, NoiseModel(0.0, 1.0, 0.0, 1.0))),
    "spectrum": plain(spectrum),
    "gat-wavelet": stabilised(wavelet),
    "wavelet": plain(wavelet),
    "gat-nlm2d": stabilised(planewise),
    "gat-nlm3d": stabilised(volumewise),
    "tv": plain(variation),
    "gat-tv": stabilised(variation),
    "gaussian": plain(gaussian),
}


def denoised(method: str, counts: Float, noise: NoiseModel) -> Float:
    """Denoise by a method's name, ``NAME`` or ``NAME*PERCENT``."""
    name, _, share = method.partition("*")
    part = np.float32(float(share or 100) / 100)
    return part * METHODS[name](counts, noise) + (1 - part) * counts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default=",".join(SAMPLES))
    parser.add_argument("--steps", default="1,2")
    parser.add_argument("--photons", default="100,25", help="at intensity 1; clean for no noise")
    parser.add_argument("--methods", default=",".join(name for name in METHODS if name != "auto"))
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--no-restore", action="store_true", help="only compare with the stack without noise")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    methods = asked.methods.split(",")
    run = torch_network(network_from(load_network("base").state))
    print(f"{'case':26} {'SNR':>6}" + "".join(f" {name:>12}" for name in methods), flush=True)
    rows, sums = [], defaultdict(list)
    cases = product(asked.photons.split(","), asked.samples.split(","), asked.steps.split(","), asked.seeds.split(","))
    for photons, sample, step, seed in cases:
        truth = SAMPLES[sample](int(seed))
        camera = Camera(photons=None if photons == "clean" else float(photons))
        stack = acquire(truth, float(step), camera=camera, seed=int(seed))
        still = acquire(truth, float(step), camera=Camera(photons=None))
        noise = measured_noise(stack.data)
        row = {"photons": photons, "sample": sample, "step": float(step), "seed": int(seed), "snr": round(noise.snr, 2)}
        print(f"{photons:>5} {sample:9} step {step} seed {seed:2} {noise.snr:6.1f}", end="", flush=True)
        counts = stack.data.astype(np.float32)
        for method in methods:
            begin = time.process_time()
            shown = denoised(method, counts, noise)
            seconds = time.process_time() - begin
            error_db = psnr(on_truth_scale(shown), on_truth_scale(still.data), 1.0)
            restored_db = error_db
            if not asked.no_restore:
                volume = restore_array(stack.data, stack.voxel_um, run, tile=TILE, denoised=shown).data
                restored_db = psnr(on_truth_scale(volume), truth[: len(volume)], 1.0)
            drift = float(shown.mean(dtype=np.float64) / counts.mean(dtype=np.float64) - 1)
            row[method] = round(restored_db, 3)
            for key, value in (("db", restored_db), ("raw_db", error_db), ("drift", drift), ("s", seconds)):
                sums[photons, method, key].append(value)
            print(f" {restored_db:12.2f}", end="", flush=True)
        print(flush=True)
        rows.append(row)
    means = {}
    for photons in asked.photons.split(","):
        for key, words in (
            ("db", "restored, dB"),
            ("raw_db", "denoised, dB"),
            ("drift", "mean changed, %"),
            ("s", "CPU seconds"),
        ):
            values = [float(np.mean(sums[photons, method, key])) for method in methods]
            means[f"{photons} {key}"] = dict(zip(methods, (round(v, 5) for v in values), strict=True))
            scaled = [100 * v if key == "drift" else v for v in values]
            print(f"{photons:>5} {words:27}" + "".join(f" {v:12.2f}" for v in scaled))
    print(json.dumps({"read_noise": CAMERA.read_noise, "rows": rows, "means": means}))


if __name__ == "__main__":
    main()
