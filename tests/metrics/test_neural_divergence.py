"""Neural divergence, where its value is known: of two single images, and of images that are the same."""

import sys

import pytest
import torch

from gnfast.metrics import neural_divergence

SIDE = 8
LEVEL = 191


def points(value):
    return lambda count: torch.full((count, 1, SIDE, SIDE), value)


REAL = torch.full((10, 1, SIDE, SIDE), LEVEL, dtype=torch.uint8)


def test_of_two_single_images_it_comes_near_its_largest_value():
    """A critic of slope s gives s d - 10 (s - 1)² at a distance of d, which is largest at s = 1 + d / 20."""
    distance = (LEVEL / 127.5 - 1) * SIDE
    largest = distance + distance**2 / 40
    state = torch.random.get_rng_state()
    found = neural_divergence(REAL, points(0.0), steps=200, batch_size=8)
    assert 0.8 * largest < found <= largest + 1e-4
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_is_0_where_there_is_nothing_to_tell():
    assert abs(neural_divergence(REAL, points(LEVEL / 127.5 - 1), steps=20, batch_size=8)) < 1e-3


def test_every_real_image_counts_once(monkeypatch):
    """In batches of eight and two."""
    real = torch.randint(0, 256, (10, 1, SIDE, SIDE), dtype=torch.uint8)
    module = sys.modules["gnfast.metrics.neural_divergence"]
    monkeypatch.setattr(module, "_objective", lambda critic, x, fake: x.mean() + 0 * critic(x).sum())
    found = neural_divergence(real, points(0.0), steps=1, batch_size=8)
    assert found == pytest.approx(float((real.double() / 127.5 - 1).mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"batch_size": 1}, "batch_size: got 1"),
        ({"real": REAL.float()}, "real: got"),
        ({"real": REAL[:1]}, "N at least 2"),
        ({"real": REAL[:, :, :5, :5]}, "resolution"),
    ],
)
def test_bad_input(changes, said):
    arguments = {"real": REAL, "draw": points(0.0), "steps": 2} | changes
    with pytest.raises(ValueError, match=said):
        neural_divergence(**arguments)
