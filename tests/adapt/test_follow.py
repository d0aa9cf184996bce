"""Learning from a stack while its planes arrive: the result, its time, its honesty, and every way in which it ends."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ssai3d_rt as rt
from ssai3d_rt import cli
from ssai3d_rt.adapt import stream
from ssai3d_rt.adapt.arrivals import Arrivals, Geometry
from ssai3d_rt.adapt.finetune import finetune
from ssai3d_rt.adapt.follow import Follower, finetune_stream
from ssai3d_rt.adapt.lesson import prepare
from ssai3d_rt.adapt.model import AdaptedModel
from ssai3d_rt.adapt.pairs import Pairs
from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.errors import ConfigError, IncompleteError, InputError, VoxelSizeError, WeightsError
from ssai3d_rt.imaging.simulate import acquire, spheres
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.network.weights import load_network, save_state, state_from

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

SHAPE = NAFNetShape(width=8, enc=(1, 1), middle=1, dec=(1, 1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = NAFNet(SHAPE)
    with torch.no_grad():  # beta and gamma start at zero: give the blocks a little to say
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.fill_(0.1)
        network.ending.weight.mul_(0.01)
        network.get_parameter("ending.bias").zero_()
    return save_state(state_from(network), tmp_path_factory.mktemp("base") / "tiny.safetensors", {"train_px": 32})


@pytest.fixture(scope="module")
def stack() -> Stack:
    return acquire(spheres((40, 48, 48), 12, radius_px=(3.0, 6.0), seed=1), 2.0, std_px=(3.0, 0.5, 0.5), seed=1)


def settings(base: Path, **changes: Any) -> FinetuneSettings:
    values = {"base": str(base), "iterations": 20, "check_every": 10, "crop": 32, "batch": 4, "lr": 2e-3, "share": 0.3}
    values |= {"rehearsal": 0.0, "blend": 1.0, "min_gain_db": 0.0, "targets": "raw"}
    return FinetuneSettings.of(values | changes)


def geometry(stack: Stack, *, planes: int | None = -1) -> Geometry:
    depth, rows, columns = stack.data.shape
    return Geometry((depth if planes == -1 else planes, rows, columns), stack.voxel_um, source=stack.source)


def planes_of(stack: Stack, pause_s: float = 0.0) -> Iterator[npt.NDArray[Any]]:
    for plane in stack.data:
        yield plane
        time.sleep(pause_s)


def test_it_learns_as_from_the_finished_stack(base: Path, stack: Stack) -> None:
    chosen = settings(base, iterations=30)
    offline = finetune(stack, settings=chosen).record
    model = finetune_stream(planes_of(stack), geometry=geometry(stack), settings=chosen)
    record = model.record
    assert record.kept == "tuned"
    assert record.iterations == 30
    assert record.checks[0].iteration == 0
    assert record.checks[-1].iteration == 30
    assert record.checks[1].iteration > 10  # there were steps before the last plane
    assert record.stacks == offline.stacks
    gained, offline_gain = (r.best_psnr_db - r.base_psnr_db for r in (record, offline))
    assert gained > 0.5 * offline_gain > 0.1
    before = load_network(base).state
    changed = {key.rpartition(".")[0] for key in before if not np.array_equal(before[key], model.state[key])}
    assert changed == set(record.mask)


@pytest.mark.parametrize("declared", [True, False], ids=["planes known", "planes unknown"])
def test_with_steps_set_it_does_not_matter_when_planes_come(base: Path, stack: Stack, *, declared: bool) -> None:
    where = geometry(stack) if declared else geometry(stack, planes=None)
    at_once, slowly = (
        finetune_stream(planes_of(stack, pause_s), geometry=where, settings=settings(base, iterations=6, batch=2))
        for pause_s in (0.0, 0.04)
    )
    assert at_once.record.kept == "tuned"
    assert all(np.array_equal(at_once.state[key], slowly.state[key]) for key in at_once.state)


class Begun:
    """Progress that knows when the training before the last plane has begun."""

    def __init__(self) -> None:
        self.steps = 0
        self.event = threading.Event()

    def __call__(self, label: str, done: int, total: int, /) -> None:
        if label.startswith("learn while"):
            self.steps += 1
            self.event.set()

    def feed(self, follower: Follower, stack: Stack) -> None:
        """Add more planes than a group, wait for a step, then add the others."""
        for z, plane in enumerate(stack.data):
            if z == 12:
                assert self.event.wait(60)
            follower.add(plane)


def test_the_model_is_there_in_time(base: Path, stack: Stack) -> None:
    chosen = settings(base, iterations=None, minutes=10.0, patience=10**6)
    begun = Begun()
    with Follower(geometry(stack), settings=chosen, ready_within_s=1.5, progress=begun) as follower:
        begun.feed(follower, stack)
        last_s = time.monotonic()
        model = follower.result()
        took_s = time.monotonic() - last_s
    assert 0.3 < took_s < 30  # far from the ten minutes; the machine may be busy
    assert model.record.checks[1].iteration > begun.steps


def test_training_before_the_last_plane_is_bounded(base: Path, stack: Stack) -> None:
    begun = Begun()
    chosen = settings(base, iterations=None, minutes=1e-5)
    with Follower(geometry(stack), settings=chosen, ready_within_s=0.5, progress=begun) as follower:
        begun.feed(follower, stack)
    assert begun.steps == 1


def test_work_on_a_part_is_dropped_when_the_last_plane_comes(
    base: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    make, added = prepare, threading.Event()

    def slowly(stacks: list[Stack], *args: Any, progress: Any, **options: Any) -> Any:
        prepared.append(len(stacks[0].data))
        if len(prepared) == 1:
            assert added.wait(60)
        progress("restore the targets once", 1, 2)
        return make(stacks, *args, progress=progress, **options)

    monkeypatch.setattr(stream, "prepare", slowly)
    chosen = settings(base, iterations=None, minutes=10.0)
    with Follower(geometry(stack), settings=chosen, ready_within_s=0.5) as follower:
        for plane in stack.data:
            follower.add(plane)
            while not prepared and follower.count > 8:
                time.sleep(0.01)
        threading.Timer(0.3, added.set).start()
        model = follower.result()
    assert prepared == [8, 20]
    assert model.record.iterations >= 1


def test_held_out_planes_are_never_trained_on(base: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark each plane by a value of its own and look at what training gets."""
    grey = 1000 + 10 * np.arange(20)[:, None, None] + np.arange(48) % 2 + np.zeros((48, 1), int)
    marked = Stack(grey.astype("uint16"), stack.voxel_um)
    held_out = stream.held_out_planes(marked)
    assert len(held_out) == 3
    assert stream.held_out_planes(Stack(marked.data[:16], marked.voxel_um)) == held_out[:2]
    trained: list[set[int]] = []
    make = Pairs.__init__

    def noted(self: Pairs, planes: npt.NDArray[np.float32], *args: Any, **options: Any) -> None:
        make(self, planes, *args, **options)
        trained.append(set(self.trained))

    monkeypatch.setattr(Pairs, "__init__", noted)
    monkeypatch.setattr(stream, "shows_something", lambda _: True)
    finetune_stream(planes_of(marked), geometry=geometry(marked), settings=settings(base, iterations=4))
    assert len(trained) == 3  # of 8, of 16 and of all planes
    assert not set().union(*trained) & set(held_out)
    assert set().union(*trained) == set(range(20)) - set(held_out)


def test_restored_targets_hold_the_same_planes_out(base: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[set[int]] = []
    make = Pairs.__init__

    def noted(self: Pairs, planes: npt.NDArray[np.float32], *args: Any, **options: Any) -> None:
        make(self, planes, *args, **options)
        held.append({round(i / stack.anisotropy) for i in self.held_out})

    monkeypatch.setattr(Pairs, "__init__", noted)
    chosen = settings(base, iterations=2, targets="bootstrapped")
    finetune_stream(planes_of(stack), geometry=geometry(stack), settings=chosen)
    assert held[-1] == set(stream.held_out_planes(stack))


def test_tuning_that_does_not_help_is_not_used(base: Path, stack: Stack) -> None:
    model = finetune_stream(
        planes_of(stack), geometry=geometry(stack), settings=settings(base, layers="all", lr=1.0, iterations=8)
    )
    before = load_network(base).state
    assert model.record.kept == "base"
    assert all(np.array_equal(before[key], model.state[key]) for key in before)


def test_rehearsal_images_are_drawn_once(base: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("ssai3d_rt.adapt.lesson.REHEARSAL_IMAGES", 4)
    chosen = settings(base, iterations=4, rehearsal=0.5)

    def note(label: str, done: int, total: int, /) -> None:
        drawn.extend([label] if label.startswith("draw images") else [])

    model = finetune_stream(planes_of(stack), geometry=geometry(stack), settings=chosen, progress=note)
    assert len(drawn) == 4
    assert model.record.settings["rehearsal"] == 0.5


def test_planes_from_a_queue_and_a_stack_too_short_to_start_early(base: Path, stack: Stack) -> None:
    arriving: queue.Queue[npt.NDArray[Any] | None] = queue.Queue()
    for plane in [*stack.data[:6], None]:
        arriving.put(plane)
    chosen = settings(base, iterations=3)
    model = finetune_stream(arriving, geometry=geometry(stack, planes=None), settings=chosen)
    assert model.record.stacks[0].shape == (6, 48, 48)
    assert model.record.iterations == 3


def test_dark_planes_at_first_are_waited_out(base: Path, stack: Stack) -> None:
    noise = np.random.default_rng(0).normal(100, 4, (16, 48, 48)).astype("uint16")
    assert not stream.shows_something(Stack(noise, stack.voxel_um))
    assert not stream.shows_something(Stack(np.zeros_like(noise), stack.voxel_um))
    assert stream.shows_something(stack)
    dark_first = Stack(np.concatenate([noise, stack.data[:12]]), stack.voxel_um)
    model = finetune_stream(planes_of(dark_first), geometry=geometry(dark_first), settings=settings(base, iterations=6))
    assert model.record.iterations == 6


def test_the_public_function_saves_and_loads(base: Path, stack: Stack, tmp_path: Path) -> None:
    depth, rows, columns = stack.data.shape
    changes = settings(base, iterations=2).model_dump(exclude_defaults=True)
    with rt.follow((depth, rows, columns), stack.voxel_um, **changes) as otf:
        for plane in stack.data:
            otf.add(plane)
    model = otf.result()
    assert AdaptedModel.load(model.save(tmp_path / "model")).record == model.record


# Ways to end.


def test_a_failure_of_the_training_reaches_the_caller(stack: Stack, tmp_path: Path) -> None:
    missing = FinetuneSettings(base=str(tmp_path / "none.safetensors"))
    taken = []

    def planes() -> Iterator[npt.NDArray[Any]]:
        for plane in stack.data:
            taken.append(plane)
            yield plane
            time.sleep(0.2)

    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        finetune_stream(planes(), geometry=geometry(stack), settings=missing)
    assert len(taken) < 20


def test_fewer_planes_than_declared(base: Path, stack: Stack) -> None:
    chosen = settings(base, iterations=2)
    with pytest.raises(IncompleteError, match="20 planes, and only 12 of them came"):
        finetune_stream(stack.data[:12], geometry=geometry(stack), settings=chosen)
    with Follower(geometry(stack), settings=chosen) as follower:
        for plane in stack.data[:12]:
            follower.add(plane)
        model = follower.result(stopped_early=True)
    assert model.record.stacks[0].shape[0] == 12


def test_too_few_planes_to_learn_from(base: Path, stack: Stack) -> None:
    with pytest.raises(InputError, match="has 3 planes"):
        finetune_stream(stack.data[:3], geometry=geometry(stack, planes=None), settings=settings(base))


def test_leaving_with_an_exception_ends_the_thread_soon(base: Path, stack: Stack) -> None:
    chosen = settings(base, iterations=None, minutes=5)
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117, PT012
        with Follower(geometry(stack), settings=chosen) as follower:
            for plane in stack.data[:12]:
                follower.add(plane)
            while not any(thread.name == "ssai3d-follow" for thread in threading.enumerate()):
                time.sleep(0.01)
            raise KeyboardInterrupt
    assert not any(thread.name == "ssai3d-follow" for thread in threading.enumerate())
    with pytest.raises(ConfigError, match="stopped"):
        follower.result(stopped_early=True)


@pytest.mark.parametrize(
    ("plane", "match"),
    [
        (np.zeros((48, 47), "uint16"), r"plane 1 has shape \(48, 47\)"),
        (np.zeros((48, 48), "int32"), "sample type int32; convert"),
        (np.zeros((48, 48), "uint8"), "sample type uint8, the others uint16"),
    ],
    ids=["shape", "type", "another type"],
)
def test_planes_that_do_not_fit(stack: Stack, plane: npt.NDArray[Any], match: str) -> None:
    arrivals = Arrivals(geometry(stack))
    arrivals.add(stack.data[0])
    with pytest.raises(InputError, match=match):
        arrivals.add(plane)
    assert arrivals.count == 1


def test_planes_that_cannot_be(stack: Stack) -> None:
    arrivals = Arrivals(geometry(stack, planes=1))
    with pytest.raises(InputError, match="NaN"):
        arrivals.add(np.full((48, 48), np.nan, "float32"))
    arrivals.add(stack.data[0])
    with pytest.raises(InputError, match="plane 1 comes after the end of a stack of 1"):
        arrivals.add(stack.data[0])
    with pytest.raises(VoxelSizeError):
        Arrivals(Geometry((3, 8, 8), (0.0, 0.1, 0.1)))
    with pytest.raises(ConfigError, match="above 0 s"):
        Follower(geometry(stack), ready_within_s=0)


def test_a_plane_is_copied(stack: Stack) -> None:
    for planes in (3, None):
        arrivals = Arrivals(geometry(stack, planes=planes))
        buffer = stack.data[0].copy()
        arrivals.add(buffer)
        buffer[:] = 0
        np.testing.assert_array_equal(arrivals.stack().data[0], stack.data[0])


# The command.


def command(base: Path, *words: str | Path) -> list[str]:
    fixed = ["--base", base, "--iterations", "2", "--rehearsal", "0", "--targets", "raw", "--ready-within", "5"]
    return ["finetune", *map(str, words), *map(str, fixed)]


def test_the_command_follows_a_file(
    base: Path, stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cells.ome.tif"

    def write() -> None:
        time.sleep(0.2)
        write_ome_tiff(path, stack, {})

    writer = threading.Thread(target=write)
    writer.start()
    status = cli.main(command(base, "--follow", path, "-o", tmp_path / "model"))
    writer.join()
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert "planes arrived: 20/20" in shown.out
    assert "after 2 iterations" in shown.out
    record = AdaptedModel.load(tmp_path / "model").record
    assert record.source == ("cells.ome.tif",)
    assert record.stacks[0].shape == stack.data.shape


def test_the_command_says_what_is_wrong(
    base: Path, stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = tmp_path / "model", tmp_path / "cells.ome.tif"
    assert cli.main(command(base, "-o", model)) == 2
    assert cli.main(command(base, path, "--follow", path, "-o", model)) == 2
    assert cli.main(command(base, "--follow", path, "--resume", "-o", model)) == 2
    capsys.readouterr()
    assert cli.main(command(base, "--follow", path, "-o", model, "--timeout", "0.2")) == 1
    assert "no such file; nothing new for 0.2 s" in capsys.readouterr().err
    write_ome_tiff(path, stack, {})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert cli.main(command(base, "--follow", path, "-o", model, "--timeout", "0.5")) == 1
    said = capsys.readouterr().err
    assert "nothing new for 0.5 s" in said
    assert not model.exists()
