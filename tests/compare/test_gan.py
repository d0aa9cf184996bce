from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ssai3d_rt.compare.gan import MEMORY, Memory, discriminator, generator, judged, likeness_loss, reach_px  # noqa: E402


def test_a_generator_sees_as_far_as_it_says() -> None:
    torch.manual_seed(0)
    network = generator(4).double()
    image = torch.zeros(1, 1, 96, 96, dtype=torch.float64)
    before = network(image)
    image[0, 0, 48, 48] = 1.0
    changed = torch.nonzero((network(image) - before)[0, 0].abs() > 1e-12)
    assert int((changed - 48).abs().max()) == reach_px()


def test_a_discriminator_learns_to_tell_apart() -> None:
    torch.manual_seed(0)
    network = discriminator(4)
    rough, smooth = torch.rand(4, 1, 32, 32), torch.full((4, 1, 32, 32), 0.5)
    assert network(rough).ndim == 4
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = judged(network, rough, 1.0) + judged(network, smooth, 0.0)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_likeness_is_zero_for_equal_images_and_grows_with_the_error() -> None:
    image = torch.rand(2, 1, 24, 24)
    assert likeness_loss(image, image).item() == pytest.approx(0.0, abs=1e-6)
    near, far = likeness_loss(image + 0.01, image), likeness_loss(image.flip(-1), image)
    assert 0 < near.item() < far.item()


def test_the_memory_shows_old_images_among_new_ones() -> None:
    memory = Memory(0)
    first = memory.mix(torch.zeros(MEMORY, 1, 2, 2))
    assert first.shape == (MEMORY, 1, 2, 2)
    mixed = memory.mix(torch.ones(40, 1, 2, 2))
    old = int((mixed == 0).all(dim=(1, 2, 3)).sum())
    assert 5 < old < 35
