"""Resizing against Pillow, PyTorch and a loop, and what each protocol makes of an image."""

import numpy as np
import pytest
import torch
from PIL import Image

from gnfast.metrics import PROTOCOLS, find_protocol
from gnfast.metrics.resize import bicubic_pil, bilinear_tf1

SHAPES = [(32, 32), (48, 48), (17, 5), (299, 299), (300, 640), (1, 2)]


def picture(height, width, channels=3, seed=0):
    return torch.randint(
        0, 256, (2, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def tf1_by_a_loop(image, size):
    """The documented formula, pixel by pixel: source = destination · in / out, neighbours clamped at the edge."""
    height, width = image.shape
    out = np.empty((size, size))
    for i in range(size):
        y = i * height / size
        top, bottom = int(y), min(int(y) + 1, height - 1)
        for j in range(size):
            x = j * width / size
            left, right = int(x), min(int(x) + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            out[i, j] = upper + (lower - upper) * (y - top)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bilinear_tf1(shape):
    size = 299 if shape == (32, 32) else 23
    image = picture(*shape).double()
    wanted = tf1_by_a_loop(image[1, 2].numpy(), size)
    got = bilinear_tf1(image, size)
    assert got.shape == (2, 3, size, size)
    np.testing.assert_allclose(got[1, 2].numpy(), wanted, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bicubic_pil(shape):
    image = picture(*shape).float()
    got = bicubic_pil(image, 299)
    for n, channel in ((0, 0), (1, 2)):
        pillow = Image.fromarray(image[n, channel].numpy()).resize((299, 299), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(got[n, channel].numpy(), np.asarray(pillow), atol=1e-4)


def test_inputs_by_definition():
    image = picture(64, 64)
    x = image.float()
    wanted = {
        "tf": (bilinear_tf1(x, 299) - 128) / 128,
        # pytorch-fid: [0, 1], then resized, then 2x - 1.
        "torch": 2 * torch.nn.functional.interpolate(x / 255, (299, 299), mode="bilinear") - 1,
        "clean": (bicubic_pil(x, 299).clamp(0, 255) - 128) / 128,
        "paper-gn": 2 * torch.nn.functional.interpolate(x / 255, (299, 299), mode="bilinear") - 1,
    }
    assert set(wanted) == set(PROTOCOLS)
    for name, value in wanted.items():
        torch.testing.assert_close(PROTOCOLS[name].prepare(image), value, rtol=0, atol=1e-5)
    assert bicubic_pil(x, 299).max() > 255


def test_quantisation():
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    for name, protocol in PROTOCOLS.items():
        is_exact = name == "paper-gn"
        assert protocol.pixels(images).dtype == (torch.float32 if is_exact else torch.uint8)
        assert protocol.batch_statistics == is_exact
    exact = PROTOCOLS["paper-gn"]
    wanted = torch.nn.functional.interpolate(images, (299, 299), mode="bilinear")
    torch.testing.assert_close(exact.prepare(exact.pixels(images)), wanted, rtol=0, atol=1e-6)


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"protocol: got 'pytorch', wanted one of tf, torch, clean, paper-gn"):
        find_protocol("pytorch")
