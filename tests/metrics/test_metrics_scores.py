"""Inception score and kernel distance against their formulas; one pass, its results and their cache."""

import functools

import numpy as np
import pytest
import torch
import torch.distributed
from torch.multiprocessing import start_processes

from gnfast.data import ImageDataset, to_uint8
from gnfast.metrics import (
    PROTOCOLS,
    FeatureExtractor,
    FeatureStatistics,
    ImageStatistics,
    InceptionScore,
    Scores,
    compare,
    dataset_statistics,
    evaluate,
    generated_statistics,
    kernel_distance,
    origin,
    reference_statistics,
)
from tests.metrics.metrics_oracle import inception_score
from tests.processes import START

evaluate = functools.partial(evaluate, progress=False)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "splits", "batch"), [(100, 10, 100), (103, 10, 7), (11, 10, 4), (50, 1, 49)])
def test_inception_score(n, splits, batch):
    logits = 3 * random(n, 6)
    score = InceptionScore(6, n, splits)
    for start in range(0, n, batch):
        score.update(logits[start : start + batch], start)
    assert score.result() == pytest.approx(inception_score(logits.numpy(), splits), rel=1e-12)


def test_inception_score_of_certainty():
    # Sure of each image and even over five classes: 5; sure and always the same: 1. Zero probabilities do not harm.
    for label, wanted in ((torch.arange(50) % 5, 5.0), (torch.zeros(50, dtype=torch.long), 1.0)):
        score = InceptionScore(5, 50, 10)
        score.update(1e4 * torch.nn.functional.one_hot(label, 5).float(), 0)
        assert score.result() == pytest.approx((wanted, 0.0))


def mmd_by_loops(x, y):
    n, d = x.shape
    kernel = lambda a, b: (a @ b / d + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(n) for j in range(n)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j)
    return within / (n * (n - 1)) - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / n**2


def test_kernel_distance_of_all():
    x, y = random(9, 4, seed=1), 0.5 + random(9, 4, seed=2)
    mean, std = kernel_distance(x, y, subsets=3, subset_size=9)
    assert mean == pytest.approx(mmd_by_loops(x.numpy(), y.numpy()), rel=1e-12)
    # One and the same subset again and again has no spread to tell of.
    assert std is None
    assert kernel_distance(x, y, subsets=1, subset_size=5)[1] is None
    assert kernel_distance(x, y, subsets=2, subset_size=8)[1] > 0


def test_kernel_distance_is_unbiased():
    # Subsets of ten or of a thousand estimate the same number, which for two draws of one distribution is zero.
    x, y = random(4000, 5, seed=1), random(4000, 5, seed=2)
    moved = random(4000, 5, seed=3) + 0.3
    far = kernel_distance(x, moved, subsets=20, subset_size=1000)[0]
    mean, std = kernel_distance(x, moved, subsets=2000, subset_size=10)
    assert abs(mean - far) < 4 * std / 2000**0.5 + 0.02 * far
    same, spread = kernel_distance(x, y, subsets=2000, subset_size=10)
    assert abs(same) < 4 * spread / 2000**0.5
    assert far > 20 * abs(kernel_distance(x, y, subsets=20, subset_size=1000)[0])


def test_kernel_distance_by_its_seed():
    x, y = random(50, 3, seed=1), random(60, 3, seed=2)
    assert kernel_distance(x, y, subset_size=20, seed=1) == kernel_distance(x, y, subset_size=20, seed=1)
    assert kernel_distance(x, y, subset_size=20, seed=1) != kernel_distance(x, y, subset_size=20, seed=2)


def features_and_logits(images):
    flat = images.float().flatten(1) / 255
    return torch.stack([flat.mean(1), flat.std(1), flat[:, 0]], 1), 5 * flat[:, :4]


def plain(images):
    return features_and_logits(images)[0]


def extractor(classes=4, **options):
    return FeatureExtractor("f", 3, features_and_logits, classes=classes, **options)


def pictures(n, seed=0, name="pictures"):
    generator = torch.Generator().manual_seed(seed)
    return ImageDataset(name, torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator))


def test_one_pass_gives_all_scores(tmp_path):
    real, fake = pictures(90, 1), pictures(70, 2).images
    position = 0

    def generate(n):
        nonlocal position
        position += n
        return fake[position - n : position]

    scores = evaluate(
        generate, real, extractor(), n_fake=70, batch_size=32, kid_subset_size=50, seed=4, cache_dir=tmp_path
    )
    assert position == 70
    a, b = plain(real.images).double().numpy(), plain(fake).double().numpy()
    assert scores.distance == pytest.approx(frechet(a, b), rel=1e-6)
    wanted = inception_score(features_and_logits(fake)[1].double().numpy())
    assert (scores.is_mean, scores.is_std) == pytest.approx(wanted, rel=1e-6)
    everything = 1000 * kernel_distance(torch.from_numpy(a)[:70], torch.from_numpy(b), subsets=1, subset_size=70)[0]
    assert abs(scores.kid_mean - everything) < 3 * scores.kid_std
    assert (scores.n_real, scores.n_fake, scores.extractor, scores.seed) == (90, 70, "f", 4)
    assert set(scores.timing) == {"images_per_second", "distance_seconds"}
    assert not any("second" in key for key in scores.as_dict())


def frechet(a, b):
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    values = np.linalg.eigvals(cov_a @ cov_b)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * np.sqrt(values.real).sum()


def test_without_logits_or_subsets(tmp_path):
    real = pictures(30)
    scores = evaluate(
        lambda n: real.images[:n],
        real,
        FeatureExtractor("f", 3, plain),
        n_fake=20,
        kid_subsets=0,
        cache_dir=tmp_path,
    )
    assert (scores.is_mean, scores.is_std, scores.kid_mean, scores.kid_std) == (None,) * 4
    assert not {"is_mean", "kid_mean", "protocol", "seed"} & set(scores.as_dict())
    assert len(scores.rows()) == 1


def test_floating_point_images_are_rounded_unless_the_protocol_says_otherwise(tmp_path):
    images = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = []

    def function(pixels):
        seen.append(pixels.dtype)
        return pixels.float().flatten(1)[:, :3]

    for protocol, dtype in ((None, torch.uint8), ("tf", torch.uint8), ("paper-gn", torch.float32)):
        chosen = FeatureExtractor("f", 3, function, protocol=PROTOCOLS[protocol] if protocol else None)
        features = chosen(images)
        assert seen.pop() == dtype
        assert torch.equal(features, function(images if protocol == "paper-gn" else to_uint8(images)))
        seen.clear()
    with pytest.raises(ValueError, match=r"images: got .* to 255, wanted floating point in \[-1, 1\]"):
        FeatureExtractor("f", 3, function)(255 * images.abs().clamp(min=1))
    with pytest.raises(ValueError, match=r"images: got nan"):
        FeatureExtractor("f", 3, function)(images * float("nan"))


def test_names():
    fid = Scores(3.15, "inception", 50_000, 10_000, "tf", 0, 11.24, 0.1, 0.5, 0.05)
    assert str(fid) == (
        "FID 3.1500, IS 11.2400 ± 0.1000, KID × 1000 0.5000 ± 0.0500 (50000 real / 10000 generated images, protocol tf)"
    )
    other = Scores(12.34, "digits-classifier", None, 2000, is_mean=9.0, is_std=0.1, kid_mean=1.0, kid_std=0.1)
    assert str(other) == (
        "Fréchet distance in features of digits-classifier 12.3400, class score by digits-classifier 9.0000 ± 0.1000, "
        "kernel distance × 1000 in features of digits-classifier 1.0000 ± 0.1000 "
        "(unknown number of real / 2000 generated images)"
    )
    whole = Scores(3.15, "inception", 90, 90, kid_mean=0.5)
    assert str(whole) == "FID 3.1500, KID × 1000 0.5000 (90 real / 90 generated images)"
    assert not any(word in str(Scores(1.0, "inception-0123abcd", 2, 2)) for word in ("FID", "IS", "KID"))


def test_other_extractors_and_protocols_are_not_compared():
    def statistics(**names):
        features = FeatureStatistics(3)
        features.update(random(9, 3))
        return ImageStatistics(features, **names)

    for one, other, wanted in (
        ({"extractor": "inception"}, {"extractor": "f"}, "got inception and f, wanted the same extractor"),
        ({"protocol": "tf"}, {"protocol": "torch"}, "got tf and torch, wanted the same protocol"),
        ({"fingerprint": "12"}, {"fingerprint": "34"}, "got 12 and 34, wanted the same extractor's weights"),
        ({"shape": "3x32x32"}, {"shape": "1x32x32"}, "got 3x32x32 and 1x32x32, wanted the same channels and size"),
    ):
        with pytest.raises(ValueError, match=wanted):
            compare(statistics(**one), statistics(**other))
    # A file that does not say is taken at its word.
    scores = compare(statistics(), statistics(extractor="inception", protocol="tf"))
    assert (scores.extractor, scores.protocol, scores.n_real) == ("inception", "tf", 9)


def test_saved_and_loaded(tmp_path):
    before = dataset_statistics(
        pictures(40), extractor(protocol=PROTOCOLS["clean"], fingerprint="7"), keep=25, progress=False
    )
    before.save(tmp_path / "s.npz")
    after = ImageStatistics.load(tmp_path / "s.npz")
    assert torch.equal(after.kept, before.kept)
    assert after.kept.shape == (25, 3)
    assert (after.score, after.extractor, after.protocol) == (before.score, "f", "clean")
    assert (after.fingerprint, after.shape) == ("7", "3x4x4")
    assert after.features.count == 40
    assert compare(before, after).distance == pytest.approx(0, abs=1e-9)


def test_statistics_of_the_papers_code(tmp_path):
    # They hold mu and sigma, and no number of images.
    features = random(50, 3)
    np.savez(tmp_path / "paper.npz", mu=features.mean(0).numpy(), sigma=features.T.cov().numpy())
    loaded = ImageStatistics.load(tmp_path / "paper.npz")
    assert loaded.features.count is None
    torch.testing.assert_close(loaded.features.cov, features.T.cov(), rtol=1e-14, atol=1e-16)
    scores = evaluate(lambda n: pictures(n).images, loaded, extractor(), n_fake=20)
    assert scores.n_real is None
    assert scores.kid_mean is None
    assert scores.is_mean is not None
    loaded.save(tmp_path / "again.npz")
    assert ImageStatistics.load(tmp_path / "again.npz").features.count is None
    for act in (loaded.features.update, lambda x: loaded.features.merge(FeatureStatistics(3))):
        with pytest.raises(ValueError, match="cannot be added to"):
            act(features)


def test_a_sorted_data_set_is_shuffled():
    # Each image sure of its class: in the data set's own order each of the ten parts would be one class, and score 1.
    levels = torch.arange(4).repeat_interleave(25)
    images = torch.zeros(100, 3, 4, 4, dtype=torch.uint8)
    images.flatten(1)[torch.arange(100), levels] = 255
    sure = FeatureExtractor("f", 3, lambda x: (plain(x), 100 * features_and_logits(x)[1]), classes=4)
    statistics = dataset_statistics(ImageDataset("sorted", images), sure, keep=20, progress=False)
    assert statistics.score[0] > 2.5
    assert len(statistics.kept.unique(dim=0)) > 1


def test_reference_is_kept_and_cached(tmp_path):
    calls = []

    def counted(images):
        calls.append(len(images))
        return features_and_logits(images)

    def make(protocol="tf", fingerprint="1"):
        return FeatureExtractor("f", 3, counted, fingerprint=fingerprint, classes=4, protocol=PROTOCOLS[protocol])

    get = functools.partial(reference_statistics, pictures(60), cache_dir=tmp_path, progress=False)
    tf = make()
    assert get(tf, keep=0).kept is None
    # Without features for the kernel distance, a cached file is not enough.
    assert len(get(tf, keep=50).kept) == 50
    assert get(tf, keep=50) is get(tf, keep=50)
    # Another object with the same weights finds the file; another protocol, or other weights of the same name, do not.
    assert get(make(), keep=50).score == get(tf, keep=50).score
    assert sum(calls) == 120
    get(make("torch"), keep=50)
    get(make(fingerprint="2"), keep=50)
    assert sum(calls) == 240
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="computed again"):
        get(make(), keep=50)
    assert sum(calls) == 300


@pytest.mark.parametrize("n", [2, 7, 30, 59, 60])
def test_fewer_real_images_are_evenly_spread(tmp_path, n):
    real = pictures(60)
    chosen = [i * 60 // n for i in range(n)]
    assert len(set(chosen)) == n
    found = reference_statistics(real, extractor(), n=n, progress=False)
    features = plain(real.images[chosen]).double()
    assert found.features.count == len(found.kept) == n
    torch.testing.assert_close(found.features.mean, features.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.features.cov, features.T.cov(), rtol=1e-10, atol=1e-12)
    scores = evaluate(lambda n: pictures(n).images, real, extractor(), n_fake=20, n_real=n, progress=False)
    assert scores.n_real == n


def test_the_cache_tells_counts_of_real_images_apart(tmp_path):
    calls = []

    def counted(images):
        calls.append(len(images))
        return features_and_logits(images)

    make = lambda: FeatureExtractor("f", 3, counted, fingerprint="1", classes=4)  # noqa: E731
    one, other = make(), make()
    for n, measured in ((60, 60), (None, 60), (20, 80), (None, 80), (20, 80), (21, 101)):
        for extractor in (one, other):
            found = reference_statistics(pictures(60), extractor, n=n, cache_dir=tmp_path, progress=False)
            assert found.features.count == (n or 60)
            assert sum(calls) == measured
    assert len(list(tmp_path.iterdir())) == 3


class Corner(torch.nn.Module):
    """A module as a function of images, with a weight that says where it is."""

    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        return images.flatten(1)[:, :3] * self.scale


def test_a_plain_function_is_an_extractor_under_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path))
    real, how = pictures(60), {"n_fake": 20, "kid_subsets": 0}
    fake = lambda n: pictures(n, 1).images  # noqa: E731
    first = lambda images: images.flatten(1)[:, :3].double()  # noqa: E731
    other = lambda images: images.flatten(1)[:, 3:6].double()  # noqa: E731
    found = [evaluate(fake, real, function, **how) for function in (first, other, first)]
    wanted = [evaluate(fake, real, FeatureExtractor("f", 3, function), **how) for function in (first, other)]
    # Of two functions of one name, neither has the other's statistics.
    assert [scores.distance for scores in found] == [wanted[i].distance for i in (0, 1, 0)]
    assert found[0].distance != found[1].distance and not list(tmp_path.rglob("*.npz"))
    name = f"{__name__}:test_a_plain_function_is_an_extractor_under_its_own_name.<locals>.<lambda>"
    assert found[0].as_dict()["extractor"] == name and not found[0].is_fid
    for function in (Corner(1.0).eval(), functools.partial(Corner.forward, Corner(1.0))):
        scores = evaluate(fake, real, function, **how)
        assert scores.distance == pytest.approx(wanted[0].distance, rel=1e-4)
        assert scores.extractor.startswith(f"{__name__}:Corner")
    pair = evaluate(fake, real, lambda images: (first(images), other(images)), **how)
    assert pair.distance == found[0].distance and pair.is_mean is not None


def scored(*updates, total=50):
    """The Inception score of (images, first) of uncertain images."""
    score = InceptionScore(5, total, 10)
    for images, classes, first in updates:
        score.update(torch.zeros(images, classes), first)
    return score.result()


def measured(generate=lambda n: pictures(30).images[:n], **options):
    return evaluate(generate, pictures(30), extractor(), kid_subsets=0, **{"n_fake": 4} | options)


def sides_of_4_and_5():
    sides = iter((4, 5))
    generate = lambda n: torch.zeros(n, 3, *[next(sides)] * 2)  # noqa: E731
    return generated_statistics(generate, 8, extractor(), batch_size=4, progress=False)


REFUSED = [
    (lambda: scored((3, 4, 0)), r"logits: got .*, wanted \(B, 5\)"),
    (lambda: scored((3, 5, 48)), "outside a stream of 50"),
    (lambda: scored((3, 5, 0)), "score: got 3 images, wanted 50"),
    (lambda: scored(total=9), "total, splits: got"),
    (lambda: kernel_distance(random(5, 3), random(5, 4)), r"real and fake: got .*, wanted \(N, D\) and \(M, D\)"),
    (lambda: kernel_distance(random(5, 3), random(1, 3)), "at least 2 of each side"),
    (lambda: measured(n_fake=1), "n_fake: got 1, wanted an int of at least 2"),
    (
        lambda: measured(lambda n: pictures(n).images.long()),
        "images: got torch.int64 .*, wanted uint8",
    ),
    (lambda: measured(lambda n: pictures(n - 1).images), r"generate\(4\): got .*\(3, 3, 4, 4\), wanted \(4, 3, 4, 4\)"),
    (sides_of_4_and_5, "got 3x4x4 and 3x5x5, wanted one shape"),
    (lambda: dataset_statistics(pictures(30), extractor(), n=31), "wanted 2 to the 30 images"),
    (lambda: measured(n_real=31), "n_real: got 31, wanted 2 to the 30 images"),
    (lambda: measured(n_real=1), "n_real: got 1, wanted 2 to the 30 images"),
    (
        lambda: evaluate(lambda n: None, dataset_statistics(pictures(30), extractor()), extractor(), n_real=5),
        "n_real: got 5, wanted None with statistics",
    ),
    *(
        (call, r"extractor: got .*:features_and_logits, wanted what load_extractor makes of it, with dataset=")
        for call in (
            lambda: evaluate(lambda n: None, dataset_statistics(pictures(30), extractor()), features_and_logits),
            lambda: generated_statistics(lambda n: None, 8, features_and_logits),
            lambda: dataset_statistics(pictures(30), features_and_logits),
            lambda: reference_statistics(pictures(30), features_and_logits),
            lambda: origin(features_and_logits),
        )
    ),
    (lambda: evaluate(lambda n: None, pictures(30), "inception"), "extractor: got 'inception', wanted what load"),
    (lambda: evaluate(lambda n: None, pictures(30), len), "extractor builtins:len: got 2, wanted floats of shape"),
    (
        lambda: FeatureExtractor("f", 3, features_and_logits, classes=5)(pictures(30).images),
        r"wanted logits .*\(30, 5\)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(tmp_path, monkeypatch, call, message):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        call()


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    images = pictures(75, 2).images
    # Each process is asked for its own batches only, and in turn: 0, 2, … and 1, 3, ….
    mine = iter(images.split(16)[rank::2])
    group = torch.distributed.group.WORLD
    fake = generated_statistics(lambda n: next(mine), 75, extractor(), batch_size=16, group=group, progress=False)
    real = dataset_statistics(pictures(90, 1), extractor(), batch_size=16, keep=80, group=group, progress=False)
    compare(real, fake, seed=1)
    torch.save((fake.features.mean, fake.features.cov, fake.kept, fake.score, fake.features.count), f"{folder}/{rank}")
    real.save(f"{folder}/{rank}.npz")
    own = {"batch_size": 16, "cache_dir": f"{folder}/of {rank}", "progress": False}
    if rank == 0:
        reference_statistics(pictures(90, 1), extractor(fingerprint="f"), **own)
    # What the first finds in its cache the second has to compute, and both take part.
    cached = reference_statistics(pictures(90, 1), extractor(fingerprint="f"), group=group, **own)
    assert torch.equal(cached.features.cov, real.features.cov)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_statistics_of_one(tmp_path):
    start_processes(work, args=(str(tmp_path),), nprocs=2, start_method=START)
    images = iter(pictures(75, 2).images.split(16))
    fake = generated_statistics(lambda n: next(images), 75, extractor(), batch_size=16, progress=False)
    real = dataset_statistics(pictures(90, 1), extractor(), batch_size=16, keep=80, progress=False)
    for rank in range(2):
        mean, cov, kept, score, count = torch.load(tmp_path / str(rank))
        assert torch.equal(mean, fake.features.mean) and torch.equal(cov, fake.features.cov)
        assert torch.equal(kept, fake.kept) and score == fake.score and count == 75
        other = ImageStatistics.load(tmp_path / f"{rank}.npz")
        assert torch.equal(other.kept, real.kept)
        assert torch.equal(other.features.cov, real.features.cov)


@pytest.mark.gpu
def test_statistics_on_a_gpu_are_those_on_a_cpu():
    real, fake = pictures(90, 1), pictures(70, 2)
    results = []
    for device in ("cpu", "cuda"):
        a, b = (
            dataset_statistics(images, extractor(device=device), batch_size=32, progress=False)
            for images in (real, fake)
        )
        assert a.features.cov.device.type == device
        results.append(compare(a, b, seed=1))
    cpu, gpu = results
    for name in ("distance", "is_mean", "is_std", "kid_mean", "kid_std"):
        assert getattr(gpu, name) == pytest.approx(getattr(cpu, name), rel=1e-5)
