"""Real bundles and backends: weights that go bad in memory, a card that nobody can use, a driver that is broken."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.errors import BundleError
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.runtime.recipe import BundleRecipe
from ssai3d_rt.runtime.settings import WatchSettings
from tests.faults.badrestorer import BadRecipe
from tests.faults.device import blob_stacks
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, built

if TYPE_CHECKING:
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.progress import Progress
    from ssai3d_rt.runtime.messages import Part, Restore, Restorer

REAL: dict[str, Any] = {"backend": "onnxruntime", "threads": 1, "denoise": "off", "quiet_s": 0.05}
MISMATCH = "the NVIDIA driver and its library do not match (error 803); start the computer again"


@cache
def tiny_bundle() -> Bundle:
    """Export a bundle of a tiny network with random weights, once for all drills of a run."""
    from ssai3d_rt.export import export_bundle
    from tests.tiny import TILE, tiny_model

    folder = Path(tempfile.mkdtemp(prefix="faults-bundle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return export_bundle(tiny_model(), folder / "tiny.ssai3d", tile=TILE)


def recipe_of(bundle: Bundle, **changes: Any) -> BundleRecipe:
    """Recipe of a bundle with the settings of these drills."""
    return BundleRecipe.of(bundle, WatchSettings.model_validate(REAL | {"reserve_bytes": 0} | changes))


@dataclass(frozen=True, slots=True)
class OnGpuMachine:
    """A bundle's recipe, on what seems to be a machine with a graphics card that no installed package can use."""

    recipe: BundleRecipe

    @property
    def bundle_id(self) -> str:
        """The bundle's."""
        return self.recipe.bundle_id

    @property
    def parameters(self) -> str:
        """The bundle's."""
        return self.recipe.parameters

    def open(self, most_tiles: int | None = None) -> Restorer:
        """Open it in the child, where a graphics card is found."""
        from ssai3d_rt.runtime.backends import registry
        from ssai3d_rt.runtime.cuda import Gpu

        vars(registry)["gpu"] = lambda: Gpu("NVIDIA RTX A4000", (8, 6), (13, 0))
        return self.recipe.open(most_tiles)

    def made(self, result: Path, content: str) -> int:
        """As the bundle's."""
        return self.recipe.made(result, content)


@dataclass(frozen=True, slots=True)
class WearsOut:
    """A bundle's recipe whose runner loses its weights (in memory) in the middle of a stack, once, for each word."""

    recipe: BundleRecipe
    flags: Path

    @property
    def bundle_id(self) -> str:
        """The bundle's."""
        return self.recipe.bundle_id

    @property
    def parameters(self) -> str:
        """The bundle's."""
        return self.recipe.parameters

    def open(self, most_tiles: int | None = None) -> Restorer:
        """Open it, and turn its memory bad if a flag is still there."""
        return _Wearing(self.recipe.open(most_tiles), self.flags)

    def made(self, result: Path, content: str) -> int:
        """As the bundle's."""
        return self.recipe.made(result, content)


class _Wearing:
    """A bundle's real restorer, whose session is exchanged for one with damaged weights while a stack is restored."""

    def __init__(self, real: Any, flags: Path) -> None:
        self.name, self._real, self._flags = real.name, real, flags

    def restore(self, order: Restore, progress: Progress) -> list[Part]:
        flag = next(self._flags.glob(f"{order.source.name}.*"), None)
        if flag is not None:
            share = float(flag.read_text())
            flag.rename(flag.with_name("done " + flag.name))
            _damage(self._real._runner, self._real._bundle, share)
        parts: list[Part] = self._real.restore(order, progress)
        return parts

    def check(self) -> None:
        self._real.check()

    def close(self) -> None:
        self._real.close()


def _damage(runner: Any, bundle: Bundle, share: float) -> None:
    """Exchange a runner's session for one in which so many of the weights' bytes have a bit flipped."""
    import onnx
    import onnxruntime

    model = onnx.load_from_string(bundle.onnx)
    rng = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= 64:
            data = np.frombuffer(tensor.raw_data, np.uint8).copy()
            chosen = rng.random(data.size) < share
            data[chosen] ^= np.uint8(1) << rng.integers(0, 8, int(chosen.sum()), np.uint8)
            tensor.raw_data = data.tobytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    runner._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


@drill(row=38, title="a real network loses its weights", bar=9, quick_s=30, full_s=90, needs=("linux", "bundle"))
def weights_go_bad(lab: Lab) -> Outcome:
    """While a stack is restored, bits of the loaded weights are flipped, from one in a hundred bytes to all of them."""
    recipe = recipe_of(tiny_bundle())
    shares = (1.0, 0.1, 0.01) if lab.quick else (1.0, 0.3, 0.1, 0.03, 0.01, 1.0, 0.3, 0.1, 0.03, 0.01)
    calm = Lab(lab.folder / "undisturbed", quick=lab.quick)
    number = 2 * len(shares)
    sources = blob_stacks(calm, number)
    with calm.daemon(recipe=recipe, **REAL):
        calm.wait_done(number, 300)
    flags = lab.folder / "flags"
    flags.mkdir()
    for at, share in enumerate(shares):
        (flags / f"{sources[2 * at + 1].name}.{at}").write_text(str(share))
    for path in sources:
        shutil.copyfile(path, lab.incoming / path.name)
    with lab.daemon(recipe=WearsOut(recipe, flags), **REAL) as daemon:
        lab.wait_done(number, 300)
        noticed = daemon.log.count("the device no longer computes what it did")
        looks = daemon.log.count("nothing in common with the raw one")
        nans = daemon.log.count("values that are not finite")
    complaints = [f"a flag is left: {flag.name}" for flag in flags.iterdir() if not flag.name.startswith("done ")]
    right = [path for path in lab.finals() if np.array_equal(_data(path), _data(calm.out / path.name))]
    complaints += [] if noticed + looks + nans else ["no damage was noticed: nothing was damaged"]
    complaints += [] if len(right) == number else [f"{number - len(right)} of {number} results are wrong"]
    figures = {"stacks": number, "damages": len(shares), "by_golden_tiles": noticed, "by_the_look": looks, "nan": nans}
    good = f"{number} of {number} results right after {len(shares)} damages of the weights in memory"
    return Outcome(not complaints, figures, "; ".join(complaints) or good)


def _data(path: Path) -> Any:
    return read_stack(path).data


@drill(row=39, title="the CPU in place of a graphics card", quick_s=30, full_s=30, needs=("linux", "bundle"))
def only_where_allowed(lab: Lab) -> Outcome:
    """The child finds a graphics card that no installed package can use; `backend` is ``auto``, then ``cpu``."""
    sources = blob_stacks(lab, 2)
    refused = OnGpuMachine(recipe_of(tiny_bundle(), backend="auto"))
    with lab.daemon(recipe=refused, wait=False, **REAL) as daemon:
        daemon.may_end = True
        status = daemon.process.wait(60)
        said = daemon.log
    complaints = [] if status and "no backend can use this machine's NVIDIA RTX A4000" in said else [said[-400:]]
    complaints += ["something was restored"] if lab.finals() else []
    with lab.daemon(recipe=OnGpuMachine(recipe_of(tiny_bundle(), backend="cpu")), **REAL) as daemon:
        lab.wait_done(len(sources))
        named = [name for name in ("openvino", "onnxruntime") if f"restoring with {name}" in daemon.log]
    complaints += [] if named else ["the log does not name what restores"]
    return Outcome(not complaints, {"status": status}, "; ".join(complaints) or f"refused; with `cpu`: {named[0]}")


@drill(
    row=40, title="an engine in the cache is damaged", quick_s=45, full_s=60, needs=("linux", "bundle", "tensorrt-rtx")
)
def engine_damage(lab: Lab) -> Outcome:
    """A byte of a built engine is changed, a hundred times; it is cut, emptied, another's, without a note."""
    from ssai3d_rt.export.engine import BatchRange, engine_from_bundle, load_engine

    bundle, few = tiny_bundle(), BatchRange(1, 2, 2)
    path = engine_from_bundle(bundle, "tensorrt-rtx", lab.folder / "cache", batches=few)
    other = engine_from_bundle(bundle, "tensorrt-rtx", lab.folder / "other", batches=BatchRange(1, 1, 1))
    good, note = path.read_bytes(), (path.parent / "engine.json").read_text()
    rng, refused, complaints = random.Random(40), 0, list[str]()

    def refuses(what: str) -> int:
        try:
            load_engine(path)
        except BundleError:
            return 1
        complaints.append(f"it was loaded: {what}")
        return 0

    for _ in range(100):
        at = rng.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ rng.randrange(1, 256)]) + good[at + 1 :])
        refused += refuses(f"byte {at}")
    damages = {"cut": good[: len(good) // 2], "empty": b"", "longer": good + b"\0", "another's": other.read_bytes()}
    for what, data in damages.items():
        path.write_bytes(data)
        refuses(what)
    path.write_bytes(good)
    damages |= {"no note": b"", "a note of nonsense": b""}
    (path.parent / "engine.json").write_text("{")
    refuses("a note of nonsense")
    (path.parent / "engine.json").unlink()
    refuses("no note")
    (path.parent / "engine.json").write_text(note)
    path.write_bytes(b"evil" + good[4:])
    again = engine_from_bundle(bundle, "tensorrt-rtx", lab.folder / "cache", batches=few)
    complaints += [] if again == path and load_engine(again)[0][:4] == good[:4] else ["it was not built again"]
    figures = {"flips_refused": refused, "other_damages": len(damages)}
    return Outcome(not complaints, figures, "; ".join(complaints[:4]) or "100 of 100 refused before use, built again")


@drill(row=41, title="driver and library do not match", quick_s=30, full_s=40, needs=("linux", "gcc", "bundle"))
def broken_driver(lab: Lab) -> Outcome:
    """The driver's library answers that it does not match; then a restorer cannot open for a while."""
    complaints = []
    fake = built("cuda", lab.folder).rename(lab.folder / "libcuda.so.1").parent
    blob_stacks(lab, 2)
    with lab.daemon(recipe=recipe_of(tiny_bundle(), backend="auto"), env={"LD_LIBRARY_PATH": str(fake)}, **REAL) as own:
        own.may_end = True
        lab.wait(lambda: not own.alive or lab.counts() == {"done": 2})
        said = own.log
    fell_back = [line for line in said.splitlines() if "restoring with" in line]
    complaints += [f"a driver that does not answer is taken for none: {fell_back[0][-60:]}"] if fell_back else []
    complaints += [] if fell_back or "driver" in said else [f"the driver is not named: {said[-300:]}"]
    complaints += _waits(Lab(lab.folder / "later", quick=lab.quick))
    return Outcome(not complaints, {}, "; ".join(complaints) or "it is named, waited for, and not replaced by the CPU")


def _waits(lab: Lab) -> list[str]:
    """Take the device away from a daemon that had it, and give it back."""
    away = lab.folder / "away"
    recipe = BadRecipe(lab.log, refuse_while=away)
    complaints = []
    with lab.daemon(recipe=recipe, back_off_s=[0.5, 1.0, 2.0], quiet_s=0.05) as daemon:
        lab.wait(recipe.events)
        lab.wait(lambda: "restoring with" in daemon.log)
        away.write_text(MISMATCH)
        with contextlib.suppress(ProcessLookupError):
            os.kill(recipe.events()[-1]["pid"], signal.SIGKILL)
        blob_stacks(lab, 2)
        lab.wait(lambda: daemon.log.count(MISMATCH) >= 3)
        said = [float(line.split()[0]) for line in daemon.log.splitlines() if MISMATCH in line]
        blamed = lab.counts().get("failed", 0)
        away.unlink()
        lab.wait_done(2)
    gaps = [after - at for at, after in pairwise(said)]
    complaints += [] if min(gaps) >= 0.5 else [f"no back-off: {gaps}"]
    complaints += ["a stack was blamed"] if blamed else []
    return complaints + lab.check(done=2)
