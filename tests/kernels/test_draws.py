"""Draws by seed and step: Philox against published vectors, kernels against the twin, permutations, distributions."""

import math

import pytest
import torch

from gnfast import InputError
from gnfast.data.batches import to_float
from gnfast.kernels.draws import Purpose, Rows, latents, plain, real_batch, sides, uniform

# Counter, key and words of `philox4x32 10` in tests/kat_vectors of https://github.com/DEShawResearch/random123.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SIZES = [1, 2, 3, 7, 24, 1797, 50000]
SEEDS = [0, 1, 16, 2**31 + 7, 2**40 + 3]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def at(step, device="cpu"):
    return torch.tensor([step], device=device)


def permutations(size, epochs, seed=0):
    """(epochs, size): that of each epoch from 0 on."""
    place, epoch = torch.arange(size).expand(epochs, -1), torch.arange(epochs)[:, None].expand(-1, size)
    return plain.permuted(seed, epoch, place, size)


def assert_even(counts, free=None):
    """χ² of counts that should all be alike, within four standard deviations of what chance gives."""
    wanted = counts.sum() / counts.numel()
    free = free or counts.numel() - 1
    statistic = float(((counts - wanted) ** 2 / wanted).sum())
    assert abs(statistic - free) < 4 * math.sqrt(2 * free), (statistic, free)


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_philox_gives_the_published_words(counter, key, words):
    counter, key, words = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    assert list(plain.philox(counter, key)) == words
    # The same as tensors, where products are cut off at 64 bits; and as the counter of a seed and a step.
    assert [word.item() for word in plain.philox(map(torch.tensor, counter), key)] == words
    purpose, upper = divmod(counter[3], 2**24)
    step = at((upper << 32) + counter[2])
    found = plain._words((key[1] << 32) + key[0], step, purpose, torch.tensor(counter[0]), counter[1])
    assert [word.item() for word in found] == words


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_has_every_image_once(size):
    orders = permutations(size, 12, seed=3)
    assert torch.equal(orders.sort(1).values, torch.arange(size).expand(12, -1))
    if size > 7:
        assert len(orders.unique(dim=0)) == 12
        assert not torch.equal(orders, permutations(size, 12, seed=4))


def test_sides_are_near_a_square_and_near_the_size():
    for size in [*range(1, 3000), 50_000, 202_599, 3_033_042, 9_999_991, 2**31 - 1]:
        a, b = sides(size)
        assert 0 <= a * b - size < min(max(1, math.sqrt(size)), 32) and (
            size < 3 or 0.65 < a / math.sqrt(size) < 1.42
        ), size


def test_orders_of_few_images_are_equally_likely():
    for size in (2, 3):
        orders = permutations(size, 6000) @ torch.tensor([100, 10, 1])[:size]
        _, counts = orders.unique(return_counts=True)
        assert len(counts) == math.factorial(size)
        assert_even(counts)


@pytest.mark.parametrize("size", [7, 24, 61])
def test_images_come_at_all_places_and_after_all_others(size):
    orders = permutations(size, 20_000)
    counts = torch.zeros(size, size).index_put_((orders, torch.arange(size).expand_as(orders)), torch.ones(()), True)
    assert_even(counts, (size - 1) ** 2)
    pairs = torch.bincount((orders[:, 1:] * size + orders[:, :-1]).flatten(), minlength=size**2).view(size, size)
    assert (pairs.diagonal() == 0).all()
    assert_even(pairs[~torch.eye(size, dtype=torch.bool)])


def test_epochs_are_unrelated():
    size, epochs = 1797, 400
    orders = permutations(size, epochs)
    # As many images as one on average are at the same place in two epochs.
    same = (orders[1:] == orders[:-1]).sum(1).double()
    assert abs(same.mean() - 1) < 4 / math.sqrt(epochs)
    assert abs(same.var() - 1) < 0.4
    ranks = orders.double() - (size - 1) / 2
    own = (ranks[0] ** 2).mean()
    for other in (ranks[1:], ranks.roll(1, 1)):
        pairs = (ranks[: len(other)] * other).mean(1) / own
        assert pairs.abs().max() < 4.5 / math.sqrt(size) and abs(pairs.mean()) < 4 / math.sqrt(size * len(pairs))


def test_batches_go_through_the_images_epoch_after_epoch():
    """Batches straddle epochs; several processes and resumed runs see what one run sees."""
    size, rows = 50, Rows(3, 8, 0, 8)
    images = torch.arange(size, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    labels = torch.randint(10, (size,))
    found = [real_batch(images, labels, 5, at(step), rows) for step in range(25)]
    order = torch.cat([((real[:, 0, 0, 0] + 1) * 127.5).round().long() for real, _ in found])
    assert torch.equal(torch.cat([y for _, y in found]), labels[order])
    epochs = order[: 12 * size].view(12, size)
    assert torch.equal(epochs, permutations(size, 12, seed=5))


def test_images_are_those_of_to_float_mirrored_half_of_the_time():
    images = torch.randint(256, (40, 3, 5, 6), dtype=torch.uint8)
    rows = Rows(5, 160, 0, 160)
    straight, _ = real_batch(images, None, 0, at(0), rows)
    order = permutations(40, 20).flatten()
    assert torch.equal(straight, to_float(images)[order])
    flipped, _ = real_batch(images, None, 0, at(0), rows, flip=True)
    mirrored = torch.tensor([torch.equal(one, other.flip(-1)) for one, other in zip(flipped, straight, strict=True)])
    assert torch.equal(flipped[~mirrored], straight[~mirrored])
    assert abs(mirrored.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(800)
    again, _ = real_batch(images, None, 0, at(1), rows, flip=True, dtype=torch.float64)
    assert not torch.equal(again.float(), flipped)
    for dtype in (torch.float64, torch.bfloat16):
        low, _ = real_batch(images, None, 0, at(0), rows, flip=True, dtype=dtype, memory_format=torch.channels_last)
        assert torch.equal(low, flipped.to(dtype)) and low.is_contiguous(memory_format=torch.channels_last)


def drawn(rows, step=3, device="cpu"):
    """Everything that can be drawn, a row's together along the last axis of a table."""
    step = at(step, device)
    images = torch.randint(256, (50, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(device)
    z, y = latents(7, step, Purpose.CRITIC_LATENTS, rows, 5, 10, torch.float32)
    real, labels = real_batch(images, torch.arange(50, device=device), 7, step, rows, flip=True)
    parts = z, y[:, None], uniform(7, step, Purpose.SHIFTS, rows, 3).T, real.flatten(1), labels[:, None]
    return torch.cat([part.double() for part in parts], 1).view(rows.batches, rows.count, -1)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_parts_put_together_are_the_whole(world):
    size = 12 // world
    parts = [drawn(Rows(2, 12, rank * size, size)) for rank in range(world)]
    assert torch.equal(torch.cat(parts, 1), drawn(Rows(2, 12, 0, 12)))
    assert torch.equal(drawn(Rows(1, 12, 0, 12), step=0)[0], drawn(Rows(2, 12, 0, 12), step=0)[0])


def kolmogorov(sample, distribution):
    """√n times the largest distance of distribution functions."""
    values, n = distribution(sample.double().flatten().sort().values), sample.numel()
    above = torch.arange(1, n + 1).double() / n
    return math.sqrt(n) * max((above - values).max().item(), (values - above + 1 / n).max().item())


def test_distributions():
    rows = Rows(5, 2000, 0, 2000)
    z, y = latents(1, at(4), Purpose.CRITIC_LATENTS, rows, 34, 7, torch.float64)
    n = z.numel()
    assert abs(z.mean()) < 4 / math.sqrt(n) and abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n) and abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    # 1.95 is exceeded once in a thousand times.
    assert kolmogorov(z, torch.special.ndtr) < 1.95
    assert all(kolmogorov(column, torch.special.ndtr) < 1.95 for column in z.T)
    assert_even(torch.bincount(y, minlength=7).double())
    columns = uniform(1, at(4), Purpose.PLACE, rows, 4)
    assert columns.min() >= 0 and columns.max() < 1
    assert all(kolmogorov(column, lambda u: u) < 1.95 for column in columns)
    # No two of: columns, neighbours, other steps, other purposes, other seeds.
    others = [z.roll(1, 0), latents(2, at(4), Purpose.CRITIC_LATENTS, rows, 34, 0, z.dtype)[0]]
    others += [latents(1, at(step), Purpose.CRITIC_LATENTS, rows, 34, 0, z.dtype)[0] for step in (5, 4 + 2**32)]
    others += [latents(1, at(4), Purpose.GENERATOR_LATENTS, rows, 34, 0, z.dtype)[0]]
    every = torch.cat([z.T, *(other.T[:6] for other in others), columns.double(), y.double()[None]])
    correlation = torch.corrcoef(every) - torch.eye(len(every))
    assert correlation.abs().max() < 5 / math.sqrt(len(z))
    assert torch.corrcoef(every**2).fill_diagonal_(0).abs().max() < 5 / math.sqrt(len(z))


def test_numbers_are_those_of_their_words_in_float64():
    rows = Rows(3, 7, 2, 4)
    z, y = latents(6, at(8), Purpose.CRITIC_LATENTS, rows, 10, 9, torch.float64)
    for row, number in enumerate((2, 3, 4, 5, 9, 10, 11, 12, 16, 17, 18, 19)):
        words = [plain.philox((number, quad, 8, Purpose.CRITIC_LATENTS << 24), (6, 0)) for quad in range(4)]
        wanted = []
        for first, second in ((words[column // 4][column % 4 :][:2]) for column in range(0, 10, 2)):
            radius, angle = math.sqrt(-2 * math.log(first / 2**32 + 2**-33)), 2 * math.pi * second / 2**32
            wanted += [radius * math.cos(angle), radius * math.sin(angle)]
        # An angle is rounded by up to 2⁻²², and multiplied by up to 6.8.
        torch.testing.assert_close(z[row], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=3e-6)
        assert y[row] == 9 * words[3][0] // 2**32
    ends = torch.tensor([0, 1, 2**31, 2**32 - 1])
    assert all(n.isfinite().all() and n.abs().max() < 6.8 for n in plain._normals(ends[:, None], ends))


def test_precision_does_not_change_the_draw():
    for dtype in (torch.float64, torch.bfloat16):
        low, _ = latents(1, at(4), Purpose.PLACE, Rows(1, 9, 0, 9), 6, 0, dtype)
        assert torch.equal(low, latents(1, at(4), Purpose.PLACE, Rows(1, 9, 0, 9), 6, 0, torch.float32)[0].to(dtype))


def check_kernels(seed, step, rows, images, device):
    """Every kernel against the twin on the CPU: bit for bit but for logarithms, sines and cosines."""
    from gnfast.kernels.draws import triton as kernels

    given = seed, at(step, device), Purpose.GENERATOR_LATENTS, rows
    there = seed, at(step), Purpose.GENERATOR_LATENTS, rows
    for dim, classes in ((13, 10), (1, 0), (8, 1000)):
        z, y = kernels.latents(*given, dim, classes, torch.float32)
        wanted, labels = plain.latents(*there, dim, classes, torch.float32)
        torch.testing.assert_close(z.cpu(), wanted, rtol=1e-6, atol=1e-30)
        assert (labels is None and y is None) or torch.equal(y.cpu(), labels)
    assert torch.equal(kernels.uniform(*given, 3).cpu(), plain.uniform(*there, 3))
    for flip, (dtype, layout) in enumerate(zip((torch.float32, torch.float64), LAYOUTS.values(), strict=True)):
        labels = torch.randint(9, (len(images),)) if flip else None
        how = rows, bool(flip), dtype, layout
        real, y = kernels.real_batch(
            images.to(device), None if labels is None else labels.to(device), seed, at(step, device), *how
        )
        wanted, of_images = plain.real_batch(images, labels, seed, at(step), *how)
        assert torch.equal(real.cpu(), wanted) and real.is_contiguous(memory_format=layout) and real.dtype == dtype
        assert (of_images is None and y is None) or torch.equal(y.cpu(), of_images)


def images_of(size, *shape):
    return torch.randint(256, (size, *shape), dtype=torch.uint8)


CASES = [
    (SEEDS[0], 0, Rows(1, 5, 0, 5), (1, 1, 3, 4)),
    (SEEDS[1], 1, Rows(3, 7, 2, 4), (7, 3, 5, 7)),
    (SEEDS[2], 2**33 + 12345, Rows(2, 16, 8, 8), (24, 3, 8, 8)),
    (SEEDS[3], 77, Rows(2, 6, 4, 2), (1797, 1, 8, 8)),
    # A program of several blocks.
    (SEEDS[4], 2**31 + 5, Rows(1, 2, 0, 2), (3, 3, 81, 80)),
]


@pytest.mark.interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_interpreted_kernels_match_the_twin(case):
    *given, size = case
    check_kernels(*given, images_of(*size), "cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**63}, "seed: got 9223372036854775808"),
        ({"step": torch.zeros(1)}, "step: got torch.float32"),
        ({"step": torch.zeros(2, dtype=torch.int64)}, "step: got torch.int64 of shape (2,)"),
        ({"rows": Rows(1, 4, 2, 3)}, "rows: got 3 from 2 on, wanted a part of 4"),
        ({"rows": Rows(0, 4, 2, 2)}, "rows.batches: got 0"),
        ({"images": torch.zeros(3, 3, 4, 4)}, "images: got torch.float32"),
        ({"images": images_of(3, 3, 4, 4).transpose(2, 3)}, "wanted contiguous uint8"),
        ({"images": images_of(0, 3, 4, 4)}, "images: got torch.uint8 of shape (0, 3, 4, 4)"),
        ({"labels": torch.zeros(3)}, "labels: got torch.float32 of shape (3,)"),
        (
            {"labels": torch.zeros(2, dtype=torch.int64)},
            "labels: got torch.int64 of shape (2,), wanted int64 of shape (3,)",
        ),
        ({"images": torch.empty(3, 3, 4, 4, dtype=torch.uint8, device="meta")}, "images: got a tensor on meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments(changes, words):
    given = {"images": images_of(3, 3, 4, 4), "labels": None, "seed": 0, "step": at(0), "rows": Rows(1, 4, 0, 4)}
    with pytest.raises(InputError) as error:
        real_batch(**given | changes)
    assert words in str(error.value)


def test_wrong_numbers_of_columns():
    for dim, classes in ((0, 0), (3, -1)):
        with pytest.raises(InputError):
            latents(0, at(0), Purpose.PLACE, Rows(1, 1, 0, 1), dim, classes, torch.float32)
    with pytest.raises(InputError, match="columns: got 5"):
        uniform(0, at(0), Purpose.PLACE, Rows(1, 1, 0, 1), 5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_match_the_twin(case):
    *given, size = case
    check_kernels(*given, images_of(*size), "cuda")


@pytest.mark.gpu
def test_the_twin_on_a_gpu_gives_what_it_gives_on_a_cpu(monkeypatch):
    from gnfast.kernels import backend

    monkeypatch.setitem(backend.CHOSEN, ("draws", "cuda"), ("torch",))
    rows = Rows(2, 12, 3, 3)
    torch.testing.assert_close(drawn(rows, device="cuda").cpu(), drawn(rows), rtol=1e-6, atol=1e-30)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_graph_draws_anew_in_every_replay(backend, monkeypatch):
    from gnfast.kernels import backend as chooser

    monkeypatch.setitem(chooser.CHOSEN, ("draws", "cuda"), (backend,))
    images, rows, step = images_of(50, 3, 8, 8).cuda(), Rows(2, 8, 0, 8), at(0, "cuda")

    def draw():
        found = latents(3, step, Purpose.PLACE, rows, 5, 10, torch.float32), real_batch(images, None, 3, step, rows)
        return found[0][0], found[0][1], found[1][0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        draw()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = draw()
        step += 1
    for number in range(3):
        graph.replay()
        kept = [tensor.clone() for tensor in outputs]
        before, step = step, at(number, "cuda")
        assert all(map(torch.equal, kept, draw()))
        step = before


@pytest.mark.gpu
def test_images_beyond_two_gigabytes():
    images = torch.empty(3000, 3, 512, 512, dtype=torch.uint8, device="cuda")
    images.copy_((torch.arange(3000, device="cuda") % 251)[:, None, None, None])
    real, labels = real_batch(images, torch.arange(3000, device="cuda"), 1, at(9, "cuda"), Rows(1, 64, 0, 64))
    assert labels.max() > 2**31 / images[0].numel()
    wanted = to_float((labels.cpu() % 251).to(torch.uint8))
    assert torch.equal(real.cpu(), wanted[:, None, None, None].expand(real.shape))
