"""Batches of 64 from the cache against plain PyTorch: `make bench`, or `pytest benchmarks/bench_data.py`.

A batch is gathered, flipped and scaled to floats in [-1, 1], on the device. Every row is checked against plain PyTorch
before it is timed; `extra_info` has images per second at the median. The images are random ones of CIFAR-10's size,
mapped from a file of the cache.
"""

import pytest
import torch

from benchmarks.timed import DEVICES, time_call
from gnfast.data import Batches, Request, Source, cache, flip_and_translate, random_flip
from gnfast.data.source import Contents

BATCH = 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield cache.prepared(Source("noise", Request(progress=False), {}, random_images))
        assert cache.entries()


def random_images(canvas):
    canvas.expect(50_000)
    canvas.extend(torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8).numpy())
    return Contents()


def plain(dataset, device):
    """Indexing, `torch.where` and arithmetic, drawing as `Batches` does."""
    batches = Batches(dataset, BATCH, flip=True)
    while True:
        images = dataset.images[batches.indices.next_batch(BATCH)]
        mirrored = torch.rand(BATCH, generator=batches._flips) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        yield (images.to(device).to(torch.float32) / 127.5 - 1,)


def loader(dataset, device):
    """`torch.utils.data.DataLoader` without workers, one image after another, as the papers' codes load."""
    generator = torch.Generator().manual_seed(0)

    def collate(indices):
        return torch.stack([random_flip(dataset.images[i : i + 1], generator)[0] / 127.5 - 1 for i in indices])

    batches = torch.utils.data.DataLoader(range(len(dataset)), BATCH, shuffle=True, drop_last=True, collate_fn=collate)
    while True:
        yield from ((images.to(device),) for images in batches)


ROWS = {
    "resident": lambda dataset, device: Batches(dataset, BATCH, flip=True, device=device, resident=True),
    "prefetched": lambda dataset, device: Batches(dataset, BATCH, flip=True, device=device, resident=False),
    "gathered": lambda dataset, device: Batches(dataset, BATCH, flip=True, device=device, resident=False, prefetch=0),
    "plain PyTorch": plain,
    "DataLoader, image by image": loader,
}


def check(dataset, device, name):
    """The row's batches are those of plain PyTorch; a DataLoader, which draws otherwise, gives some of its images."""
    row = ROWS[name](dataset, device)
    if name.startswith("DataLoader"):
        images = next(row)[0]
        found = ((images + 1) * 127.5).round().to(torch.uint8).cpu()
        assert any(torch.equal(found[0], image) or torch.equal(found[0], image.flip(-1)) for image in dataset.images)
        return
    expected = plain(dataset, device)
    for _ in range(5):
        torch.testing.assert_close(next(row)[0], next(expected)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ROWS)
def bench_batches(benchmark, dataset, device, name):
    check(dataset, device, name)
    row = ROWS[name](dataset, device)
    group = f"batch of {BATCH} {device} {tuple(dataset.images.shape[1:])}"
    time_call(benchmark, group, lambda: next(row), {"images/s": BATCH})


@pytest.mark.parametrize("device", DEVICES)
def bench_augment(benchmark, device):
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    generator = torch.Generator().manual_seed(0)
    group = f"augmentation of {BATCH} {device}"
    time_call(benchmark, group, lambda: flip_and_translate(images, generator), {"images/s": BATCH})
