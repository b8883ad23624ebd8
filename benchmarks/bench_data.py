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


class Plain:
    """Indexing, `torch.where` and arithmetic, drawing as `Batches` does."""

    def __init__(self, dataset, device):
        self.images, self.device = dataset.images, device
        self.batches = Batches(dataset, BATCH, flip=True)

    def __next__(self):
        images = self.images[self.batches.indices.next_batch(BATCH)]
        mirrored = torch.rand(BATCH, generator=self.batches._flips) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return (images.to(self.device).to(torch.float32) / 127.5 - 1,)


class Loader:
    """`torch.utils.data.DataLoader` without workers, one image after another, as the papers' codes load."""

    def __init__(self, dataset, device):
        generator = torch.Generator().manual_seed(0)

        class Images(torch.utils.data.Dataset):
            def __len__(self):
                return len(dataset)

            def __getitem__(self, index):
                image = random_flip(dataset.images[index : index + 1], generator)[0]
                return image / 127.5 - 1

        self.loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, drop_last=True)
        self.device, self.rows = device, iter(self.loader)

    def __next__(self):
        try:
            return (next(self.rows).to(self.device),)
        except StopIteration:
            self.rows = iter(self.loader)
            return next(self)


ROWS = {
    "resident": lambda dataset, device: Batches(dataset, BATCH, flip=True, device=device, resident=True),
    "prefetched": lambda dataset, device: Batches(dataset, BATCH, flip=True, device=device, resident=False),
    "gathered": lambda dataset, device: Batches(dataset, BATCH, flip=True, device=device, resident=False, prefetch=0),
    "plain PyTorch": Plain,
    "DataLoader, image by image": Loader,
}


def check(dataset, device, name):
    """The row's batches are those of plain PyTorch; a DataLoader, which draws otherwise, gives some of its images."""
    row = ROWS[name](dataset, device)
    if name.startswith("DataLoader"):
        images = next(row)[0]
        found = ((images + 1) * 127.5).round().to(torch.uint8).cpu()
        assert any(torch.equal(found[0], image) or torch.equal(found[0], image.flip(-1)) for image in dataset.images)
        return
    plain = Plain(dataset, device)
    for _ in range(5):
        torch.testing.assert_close(next(row)[0], next(plain)[0], rtol=0, atol=1e-6)


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
