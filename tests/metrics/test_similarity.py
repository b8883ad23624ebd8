"""MS-SSIM against its formula written as loops, and the similarity of a generator's images of a class."""

import math

import numpy as np
import pytest
import torch

from gnfast.metrics import intra_class_ms_ssim, ms_ssim

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def random(*shape, seed=0):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def smooth(*shape, seed=0):
    """Images with structure at every scale."""
    coarse = random(*shape[:2], 3, 3, seed=seed).double()
    found = torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic") + 0.2 * random(*shape, seed=seed + 1)
    return found.clamp(0, 255).to(torch.uint8)


def half(image):
    """Means of 2x2 pixels; the last row and column of an odd side are doubled."""
    h, w = image.shape
    rows, columns = np.minimum(np.arange(h + h % 2), h - 1), np.minimum(np.arange(w + w % 2), w - 1)
    even = image[rows][:, columns]
    return np.array(
        [[even[i : i + 2, j : j + 2].sum() / 4 for j in range(0, len(columns), 2)] for i in range(0, len(rows), 2)]
    )


def by_loops(x, y):
    """Of one pair (C, H, W): the formulas of Wang et al. (2003, 2004), position by position."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x, y = list(x.double().numpy()), list(y.double().numpy())
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            x, y = [half(c) for c in x], [half(c) for c in y]
        h, w = x[0].shape
        size = min(11, h, w)
        sigma = 1.5 * size / 11
        centre = (size - 1) / 2
        window = np.array(
            [
                [math.exp(-((i - centre) ** 2 + (j - centre) ** 2) / (2 * sigma**2)) for j in range(size)]
                for i in range(size)
            ]
        )
        window /= window.sum()
        values = []
        for a, b in zip(x, y, strict=True):
            for i in range(h - size + 1):
                for j in range(w - size + 1):
                    p, q = a[i : i + size, j : j + size], b[i : i + size, j : j + size]
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    value = (2 * cov + c2) / (vp + vq + c2)
                    if scale == 4:
                        value *= (2 * mp * mq + c1) / (mp**2 + mq**2 + c1)
                    values.append(value)
        product *= max(np.mean(values), 0.0) ** weight
    return product


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (2, 37, 21), (1, 48, 64)])
@pytest.mark.parametrize("make", [random, smooth])
def test_against_the_formula(shape, make):
    x = make(2, *shape, seed=1)
    y = torch.stack([make(1, *shape, seed=7)[0], (0.8 * x[1] + 0.2 * make(1, *shape, seed=7)[0]).to(torch.uint8)])
    found = ms_ssim(x, y)
    assert found.dtype == torch.float64
    wanted = torch.tensor([by_loops(a, b) for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert found[1] > found[0]
    # The same pixels as floats in [-1, 1].
    floats = ms_ssim(x.double() / 127.5 - 1, y.double() / 127.5 - 1)
    torch.testing.assert_close(floats, wanted, rtol=1e-10, atol=1e-10)


def test_the_full_window_at_every_scale():
    """From 161 pixels on nothing is shrunk: the definition as it is."""
    x, y = smooth(1, 1, 161, 161, seed=1), smooth(1, 1, 161, 161, seed=5)
    assert float(ms_ssim(x, y)) == pytest.approx(by_loops(x[0], y[0]), abs=1e-10)


def test_ends_of_the_scale():
    x = smooth(3, 3, 40, 40)
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    # The negative has negative structure, which counts as none.
    assert ms_ssim(x, 255 - x).tolist() == [0, 0, 0]
    torch.testing.assert_close(ms_ssim(x, x.flip(3)), ms_ssim(x.flip(3), x))


@pytest.mark.parametrize(("classes", "pairs", "batch"), [(3, 2, 12), (3, 2, 5), (4, 3, 64), (2, 5, 2)])
def test_pairs_of_a_class(classes, pairs, batch):
    """Each pair is of one class, all classes are in as many pairs, and batches are whole."""
    made, labels = [], []

    def generate(y):
        assert y.shape == (batch,) and y.dtype == torch.int64
        images = smooth(batch, 1, 16, 16, seed=2 * len(made)).double() / 127.5 - 1
        made.extend(images)
        labels.extend(y.tolist())
        return images

    found = intra_class_ms_ssim(generate, classes, pairs=pairs, batch_size=batch)
    total = 2 * classes * pairs
    assert total <= len(made) < total + batch
    first, second = made[:total:2], made[1:total:2]
    assert labels[:total:2] == labels[1:total:2]
    by_class = [[] for _ in range(classes)]
    for label, a, b in zip(labels[:total:2], first, second, strict=True):
        by_class[label].append(float(ms_ssim(a[None], b[None])))
    assert [len(values) for values in by_class] == [pairs] * classes
    assert found == pytest.approx(np.mean([np.mean(values) for values in by_class]), abs=1e-12)


def test_a_generator_without_variety():
    """One image per class: 1. Batch norm sees several classes in every batch that can hold them."""
    images = smooth(5, 3, 32, 32).double() / 127.5 - 1
    seen = []

    def generate(y):
        seen.append(len(y.unique()))
        return images[y]

    assert intra_class_ms_ssim(generate, 5, pairs=7, batch_size=16) == pytest.approx(1, abs=1e-12)
    assert min(seen) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ms_ssim(random(2, 3, 15, 32), random(2, 3, 15, 32)), r"got \(2, 3, 15, 32\) .* at least 16"),
        (lambda: ms_ssim(random(2, 3, 32, 32), random(2, 1, 32, 32)), "of one shape"),
        (lambda: ms_ssim(random(3, 32, 32), random(3, 32, 32)), r"wanted two batches \(B, C, H, W\)"),
        (lambda: intra_class_ms_ssim(None, 0), "classes: got 0, wanted an int of at least 1"),
        (lambda: intra_class_ms_ssim(None, 2, pairs=0), "pairs: got 0"),
        (lambda: intra_class_ms_ssim(None, 2, batch_size=1), "batch_size: got 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
