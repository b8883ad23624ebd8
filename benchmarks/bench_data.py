"""Batches of 64 from the cache against plain PyTorch: `make bench`, or `pytest benchmarks/bench_data.py`.

A batch is gathered, flipped and scaled to floats in [-1, 1], on the device. Every row is checked against plain PyTorch
before it is timed; `extra_info` has images per second at the median. The images are CIFAR-10 (JPEG) where that archive
is there, else random ones of the same size; both are mapped from a file of the cache.
"""

from pathlib import Path

import pytest
import torch

from benchmarks.timed import DEVICES, time_call
from gnfast.data import Batches, Request, Source, cache, flip_and_translate, load, random_flip
from gnfast.data.source import Contents

CIFAR_JPEG = Path(__file__).parents[2] / "shared" / "data" / "cifar10-jpeg.tar.xz"
BATCH = 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        if CIFAR_JPEG.exists():
            load(CIFAR_JPEG, progress=False)
            yield load(CIFAR_JPEG, progress=False)
        else:
            yield cache.prepared(Source("noise", Request(progress=False), {}, random_images))
        assert cache.entries()


def random_images(canvas):
    canvas.expect(50_000)
    canvas.extend(torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8).numpy())
    return Contents()


def batches(dataset, device, **options):
    for images, _ in Batches(dataset, BATCH, flip=True, device=device, **options):
        yield images


def plain(dataset, device):
    """Indexing, `torch.where` and arithmetic, drawing as `Batches` does."""
    drawn = Batches(dataset, BATCH, flip=True)
    while True:
        images = dataset.images[drawn.indices.next_batch(BATCH)]
        mirrored = torch.rand(BATCH, generator=drawn._flips) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        yield images.to(device).to(torch.float32) / 127.5 - 1


def loader(dataset, device):
    """`torch.utils.data.DataLoader` without workers, one image after another, as the papers' codes load."""
    generator = torch.Generator().manual_seed(0)

    def collate(images):
        return torch.stack([random_flip(image[None], generator)[0] / 127.5 - 1 for image in images])

    while True:
        for images in torch.utils.data.DataLoader(dataset.images, BATCH, True, drop_last=True, collate_fn=collate):
            yield images.to(device)


ROWS = {
    "resident": lambda dataset, device: batches(dataset, device, resident=True),
    "prefetched": lambda dataset, device: batches(dataset, device, resident=False),
    "gathered": lambda dataset, device: batches(dataset, device, resident=False, prefetch=0),
    "plain PyTorch": plain,
    "DataLoader, image by image": loader,
}


def check(dataset, device, name):
    """The row's batches are those of plain PyTorch; a DataLoader, which draws otherwise, gives some of its images."""
    row = ROWS[name](dataset, device)
    if name.startswith("DataLoader"):
        found = ((next(row) + 1) * 127.5).round().to(torch.uint8).cpu()
        assert any(torch.equal(found[0], image) or torch.equal(found[0], image.flip(-1)) for image in dataset.images)
        return
    for got, wanted, _ in zip(row, plain(dataset, device), range(5), strict=False):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


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
