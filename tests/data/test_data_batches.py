"""Batches: the same numbers wherever the images lie, however many processes share them, and after a resume."""

import gc
import io
import threading

import pytest
import torch

from gnfast.data import Batches, DataError, ImageDataset, ShuffledIndices, random_flip, to_float, to_uint8

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def dataset():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 3, 5, 7), dtype=torch.uint8, generator=generator)
    return ImageDataset("noise", images, torch.arange(23), tuple(map(str, range(23))))


def take(batches, count):
    """Images and labels of the next `count` batches, on the CPU."""
    drawn = [next(batches) for _ in range(count)]
    return [batch.images.cpu() for batch in drawn], [batch.labels.cpu() for batch in drawn]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def expected(dataset, count, batch_size, seed):
    """The batches in plain PyTorch, written independently: one permutation per epoch, one uniform number per image."""
    order = torch.Generator().manual_seed(seed)
    flips = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed))))
    indices = torch.cat([torch.randperm(len(dataset), generator=order) for _ in range(count * batch_size)])
    for i in range(count):
        chosen = indices[i * batch_size : (i + 1) * batch_size]
        mirrored = torch.rand(batch_size, generator=flips) < 0.5
        images = dataset.images[chosen]
        images = torch.stack([image.flip(-1) if flip else image for image, flip in zip(images, mirrored, strict=True)])
        yield images / 127.5 - 1, dataset.labels[chosen]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("resident", "prefetch"), [(True, 2), (False, 0), (False, 1), (False, 3), ("auto", 2)])
def test_same_numbers_wherever_the_images_lie(dataset, device, resident, prefetch):
    batches = Batches(dataset, 6, seed=5, flip=True, device=device, resident=resident, prefetch=prefetch)
    images, labels = take(batches, 10)
    wanted = list(expected(dataset, 10, 6, 5))
    assert same(images, [image for image, _ in wanted])
    assert same(labels, [label for _, label in wanted])
    assert next(batches).images.device.type == device


@pytest.mark.parametrize("device", DEVICES)
def test_dtypes_and_missing_labels(dataset, device):
    state = torch.get_rng_state()
    batch = Batches(dataset, 4, flip=True, device=device).next_batch()
    assert torch.equal(torch.get_rng_state(), state), "the global generator was moved"
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    assert batch.images.shape == (4, 3, 5, 7)
    assert batch.labels.device.type == device
    unlabelled = ImageDataset("noise", dataset.images)
    assert Batches(unlabelled, 4, device=device, resident=False).next_batch().labels is None


@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.parametrize("resident", [True, False])
def test_processes_share_every_batch(dataset, world, resident):
    whole = Batches(dataset, 6, seed=2, flip=True)
    ranks = [Batches(dataset, 6, seed=2, flip=True, rank=r, world=world, resident=resident) for r in range(world)]
    for _ in range(8):
        parts = [next(batches) for batches in ranks]
        batch = next(whole)
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


def saved(state):
    """The state after a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("before", [0, 1, 3, 4, 11])
def test_state_is_what_was_handed_out_not_what_was_prefetched(dataset, before):
    """A state of any of them continues in any other, whatever its seed was."""
    kinds = [
        {"resident": True},
        {"resident": False, "prefetch": 0},
        {"resident": False, "prefetch": 3},
        {"resident": False, "rank": 0, "world": 2},
    ]
    states, wanted = [], None
    for kind in kinds:
        batches = Batches(dataset, 6, seed=1, flip=True, **kind)
        take(batches, before)
        states.append(saved(batches.state_dict()))
        assert set(states[-1]) == {"size", "epoch", "position", "generator", "flips"}
        wanted = wanted or take(batches, 9)[0]
    for kind in kinds[:3]:
        for state in states:
            batches = Batches(dataset, 6, seed=99, flip=True, **kind)
            next(batches)
            batches.load_state_dict(state)
            assert same(take(batches, 9)[0], wanted)


def test_a_state_stays_as_it_was_taken(dataset):
    batches = Batches(dataset, 6, flip=True, resident=False)
    next(batches)
    state = batches.state_dict()
    kept = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    take(batches, 9)
    assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(kept[key])) for key in kept)


def test_images_are_left_as_they_were(dataset):
    kept = dataset.images.clone()
    take(Batches(dataset, 23, flip=True), 5)
    flipped = random_flip(dataset.images, torch.Generator().manual_seed(0))
    assert not torch.equal(flipped, kept)
    assert torch.equal(dataset.images, kept)


@pytest.mark.parametrize("device", DEVICES)
def test_flips_mean_the_same_on_every_device(dataset, device):
    wanted = random_flip(dataset.images, torch.Generator().manual_seed(3))
    assert torch.equal(random_flip(dataset.images.to(device), torch.Generator().manual_seed(3)).cpu(), wanted)
    assert torch.equal(to_float(dataset.images.to(device), device).cpu(), to_float(dataset.images))


def test_an_error_in_the_thread_reaches_the_caller(dataset):
    batches = Batches(dataset, 4, resident=False)
    next(batches)
    batches.images = None
    with pytest.raises(AttributeError):
        for _ in range(4):
            next(batches)


def test_the_thread_ends_with_its_batches(dataset):
    before = set(threading.enumerate())
    batches = Batches(dataset, 4, resident=False)
    next(batches)
    (thread,) = set(threading.enumerate()) - before
    del batches
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 7, "world": 2}, "batch_size: got 7, wanted a multiple of world, which is 2"),
        ({"batch_size": 0}, "batch_size: got 0, wanted an int of at least 1"),
        ({"batch_size": 4, "seed": -1}, "seed: got -1, wanted an int of at least 0"),
        ({"batch_size": 4, "seed": 2**32}, "seed: got 4294967296, wanted at most"),
        ({"batch_size": 4, "rank": 2, "world": 2}, "rank: got 2, wanted less than world, which is 2"),
        ({"batch_size": 4, "rank": -1}, "rank: got -1, wanted an int of at least 0"),
        ({"batch_size": 4, "world": 0}, "world: got 0, wanted an int of at least 1"),
        ({"batch_size": 4, "resident": "yes"}, "resident: got 'yes', wanted True, False or 'auto'"),
        ({"batch_size": 4, "prefetch": -1}, "prefetch: got -1, wanted an int of at least 0"),
    ],
    ids=str,
)
def test_refuses(dataset, options, message):
    with pytest.raises(DataError, match=message):
        Batches(dataset, **options)


@pytest.mark.gpu
def test_what_is_too_large_for_the_device_is_not_moved_there(dataset, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * dataset.images.nbytes - 1, 1 << 40))
    assert not Batches(dataset, 4, device="cuda").resident
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * dataset.images.nbytes, 1 << 40))
    assert Batches(dataset, 4, device="cuda").resident


def test_float_and_back():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = to_float(images)
    assert (floats.dtype, float(floats.min()), float(floats.max())) == (torch.float32, -1, 1)
    assert torch.equal(to_uint8(floats), images)
    assert to_uint8(torch.tensor([-2.0, 0.0, 2.0])).tolist() == [0, 128, 255]
    with pytest.raises(DataError, match=r"images: got torch.float32, wanted uint8"):
        to_float(floats)
    with pytest.raises(DataError, match=r"images: got torch.uint8, wanted floating"):
        to_uint8(images)


def test_flip_mirrors_about_half():
    images = torch.arange(8, dtype=torch.uint8).expand(400, 1, 8, 8).contiguous()
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped[:, 0, 0, 0] == 7).sum().item()
    assert 150 < mirrored < 250
    assert torch.equal(flipped.sort(-1).values, images)


def test_indices_cover_every_epoch():
    indices = ShuffledIndices(10, seed=3)
    batches = torch.cat([indices.next_batch(7) for _ in range(10)]).reshape(7, 10)
    assert (batches.sort(1).values == torch.arange(10)).all()
    assert len({tuple(row.tolist()) for row in batches}) == 7
    assert indices.epoch == 7
    assert len(ShuffledIndices(3).next_batch(10)) == 10


def test_states_of_other_batches_are_refused(dataset):
    batches = Batches(dataset, 4)
    with pytest.raises(DataError, match="state: got one that lacks"):
        batches.load_state_dict({})
    fewer = Batches(ImageDataset("noise", dataset.images[1:]), 4)
    with pytest.raises(DataError, match="with 22 images, this one has 23"):
        batches.load_state_dict(fewer.state_dict())
