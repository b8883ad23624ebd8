"""The Fréchet distance against closed forms and scipy, and the extractors' promises."""

import functools
import io
import os
import zipfile

import numpy as np
import pytest
import torch

from gnfast.data import ImageDataset, load
from gnfast.metrics import (
    FeatureStatistics,
    ImageStatistics,
    evaluate,
    frechet_distance,
    load_extractor,
    registered_extractors,
)

evaluate = functools.partial(evaluate, progress=False)
load_extractor = functools.partial(load_extractor, progress=False)


def vectors(n, dim, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return scale * torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix + shift


def statistics(features):
    result = FeatureStatistics(features.shape[1])
    result.update(features)
    return result


def gaussian(tmp_path, name, mean, cov, n=100):
    """Statistics of a Gaussian given by its moments."""
    np.savez(tmp_path / f"{name}.npz", mu=np.asarray(mean, float), sigma=np.asarray(cov, float), n=n)
    return FeatureStatistics.load(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(
    "sizes", [[500], [1] * 500, [1, 499], [250, 0, 249, 1], [7] * 71 + [3]], ids=lambda s: str(len(s))
)
def test_chunks_do_not_matter(sizes):
    # A mean far above the spread is where sums of squares would lose their digits.
    features = vectors(500, 5, 0, shift=1e5)
    chunked = FeatureStatistics(5)
    for chunk in features.split(sizes):
        chunked.update(chunk)
    assert chunked.count == 500
    torch.testing.assert_close(chunked.mean, features.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(chunked.cov, features.T.cov(), rtol=1e-9, atol=1e-9)


def test_merge():
    features = vectors(100, 4, 0)
    merged = statistics(features[:30])
    merged.merge(statistics(features[30:]))
    merged.merge(FeatureStatistics(4))
    torch.testing.assert_close(merged.cov, features.T.cov(), rtol=1e-12, atol=1e-12)


def test_closed_forms(tmp_path):
    make = functools.partial(gaussian, tmp_path)
    unit = make("unit", [0, 0], np.eye(2))
    assert frechet_distance(unit, make("moved", [3, 4], np.eye(2))) == pytest.approx(25, rel=1e-12)
    # For commuting covariances: |mu|^2 + sum of (s_a - s_b)^2 over the standard deviations.
    assert frechet_distance(unit, make("wide", [0, 1], np.diag([9, 16]))) == pytest.approx(1 + 4 + 9, rel=1e-12)
    assert frechet_distance(unit, make("point", [0, 0], np.zeros((2, 2)))) == pytest.approx(2, rel=1e-12)
    assert frechet_distance(make("p", [1, 0], np.zeros((2, 2))), make("q", [0, 0], np.zeros((2, 2)))) == 1


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_against_scipy(dim):
    from scipy.linalg import sqrtm

    a, b = vectors(200, dim, 1), vectors(150, dim, 2, scale=1.7, shift=0.3)
    cov_a, cov_b = np.cov(a.numpy().T).reshape(dim, dim), np.cov(b.numpy().T).reshape(dim, dim)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    got = frechet_distance(statistics(a), statistics(b))
    assert got == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(statistics(b), statistics(a)) == pytest.approx(got, rel=1e-9)


def test_small_eigenvalues_keep_their_digits(tmp_path):
    # Commuting covariances over twenty orders of magnitude, in a basis where nothing is diagonal.
    basis = torch.linalg.qr(vectors(60, 60, 0))[0]
    a, b = torch.logspace(0, -9, 60, dtype=torch.float64), torch.logspace(0, -11, 60, dtype=torch.float64)
    make = functools.partial(gaussian, tmp_path, mean=np.zeros(60))
    one, other = (make(name=name, cov=(basis * values) @ basis.T) for name, values in (("one", a), ("other", b)))
    wanted = float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(wanted, rel=1e-9)


def test_one_singular_covariance(tmp_path):
    # Of rank one: the root's trace is the length of its axis under the other's covariance.
    axis = vectors(1, 7, 0)[0]
    other = statistics(vectors(50, 7, 1))
    line = gaussian(tmp_path, "line", other.mean.numpy(), torch.outer(axis, axis))
    wanted = float(axis @ axis + other.cov.trace() - 2 * (axis @ other.cov @ axis).sqrt())
    assert frechet_distance(line, other) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(other, line) == pytest.approx(wanted, rel=1e-9)


def test_singular_covariances():
    # Fewer vectors than dimensions: both covariances have a null space.
    a = statistics(vectors(20, 50, 1))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * a.cov.trace().item())
    assert np.isfinite(frechet_distance(a, statistics(vectors(30, 50, 2))))


@pytest.mark.parametrize("count", [20, 50, 400])
def test_few_vectors_have_the_distance_of_their_covariance_by_a_small_matrix(tmp_path, monkeypatch, count):
    few, other = FeatureStatistics(60), statistics(vectors(count, 60, 2, shift=1) @ vectors(60, 60, 3))
    for chunk in vectors(23, 60, 1).split(7):
        few.update(chunk)
    torch.testing.assert_close(few.factor @ few.factor.T, few.cov, rtol=0, atol=1e-12)
    few.save(tmp_path / "few.npz")
    alone = FeatureStatistics.load(tmp_path / "few.npz")
    other.save(tmp_path / "other.npz")
    wanted, sizes, original = frechet_distance(alone, other), [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: sizes.append(len(matrix)) or original(matrix))
    got = frechet_distance(few, other)
    assert sizes == [23] and got == pytest.approx(wanted, rel=1e-8)
    # A reference that was in the cache gives the same to the bit.
    assert frechet_distance(few, FeatureStatistics.load(tmp_path / "other.npz")) == got
    few.update(vectors(38, 60, 4))
    assert few.factor is None and alone.factor is None


def test_saved_and_loaded(tmp_path):
    # Chunks of unequal means, and a product whose triangles differ by rounding.
    before, whole = FeatureStatistics(33), vectors(150, 33, 0, shift=3)
    for chunk in whole.split(37):
        before.update(chunk)
    before.save(tmp_path / "s.npz")
    after = FeatureStatistics.load(tmp_path / "s.npz")
    assert after.count == 150
    # Bit for bit: a run that finds its reference in the cache must log what the one that computed it logs.
    assert torch.equal(after.mean, before.mean)
    assert torch.equal(after.cov, before.cov)
    assert torch.equal(after.cov, after.cov.T)
    other = statistics(vectors(120, 33, 1))
    assert frechet_distance(after, other) == frechet_distance(before, other)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    after.save(tmp_path / "s.npz")
    assert torch.equal(FeatureStatistics.load(tmp_path / "s.npz").cov, before.cov)
    # What was loaded can be added to, and be added.
    more = vectors(30, 33, 2)
    for one, two in ((after, statistics(more)), (statistics(more), FeatureStatistics.load(tmp_path / "s.npz"))):
        one.merge(two)
        torch.testing.assert_close(one.cov, torch.cat([whole, more]).T.cov(), rtol=1e-10, atol=1e-10)


def test_refusals(tmp_path):
    one, two = statistics(vectors(1, 3, 0)), statistics(vectors(2, 3, 0))
    with pytest.raises(ValueError, match="got 1 feature vectors, wanted at least 2"):
        frechet_distance(one, two)
    with pytest.raises(ValueError, match="got dimensions 3 and 4, wanted the same"):
        frechet_distance(two, statistics(vectors(5, 4, 0)))
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 2"):
        two.update(torch.tensor([[1.0, 2.0, 3.0], [1.0, float("nan"), 3.0]]))
    with pytest.raises(ValueError, match=r"shape \(N, 3\)"):
        two.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="got 1 feature vectors, wanted at least 2"):
        one.save(tmp_path / "one.npz")


SIGMA = vectors(9, 3, 0).T.cov().numpy()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sigma": None}, "it has no sigma, wanted an .npz file with mu and sigma"),
        ({"mu": np.array([0, 0, np.nan])}, "mu: got NaN or infinity"),
        ({"sigma": -SIGMA}, r"got the eigenvalue -[\d.]+ \(its largest"),
        ({"sigma": SIGMA - 0.9 * SIGMA.trace() * np.eye(3)}, "wanted a covariance, without negative ones"),
        ({"sigma": np.triu(SIGMA)}, "entries across its diagonal differ by .*, wanted a symmetric"),
        ({"sigma": SIGMA + 1j}, "got mu and sigma of float64 and complex128, wanted real"),
        ({"mu": np.array(["1", "2", "3"])}, "got mu and sigma of <U1"),
        ({"sigma": SIGMA * [[np.inf, 1, 1]]}, "sigma: got NaN or infinity"),
        ({"sigma": SIGMA[:2]}, r"got mu \(3,\) and sigma \(2, 3\), wanted"),
        ({"n": np.array(2.5)}, "got n .*, wanted an integer of at least 2"),
        ({"n": np.array([5])}, "got n .*, wanted an integer of at least 2"),
        ({"n": np.array(1)}, "got n .*, wanted an integer of at least 2"),
        ({"kept": np.zeros((), np.float32)}, r"kept: got float32 \(\), wanted \(k, 3\) float32"),
        ({"kept": np.zeros((2, 4), np.float32)}, r"kept: got .*, wanted \(k, 3\) float32"),
        ({"kept": np.zeros((9, 3), np.float32), "n": np.array(8)}, "no more than the n images"),
        ({"kept": np.full((2, 3), np.nan, np.float32)}, "kept: got NaN or infinity"),
        ({"score": np.array([1.0])}, "score: got .*, wanted two finite numbers"),
        ({"extractor": np.array([1, 2])}, "extractor: got .*, wanted a short text"),
    ],
)
def test_files_that_are_no_statistics_are_not_measured_against(tmp_path, arrays, message):
    arrays = {"mu": np.zeros(3), "sigma": SIGMA} | arrays
    np.savez(tmp_path / "s.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=r"s\.npz.*" + message):
        ImageStatistics.load(tmp_path / "s.npz")


@pytest.mark.parametrize("dtype", [np.float32, np.dtype(">f8")])
def test_covariances_of_less_precision_are_taken(tmp_path, dtype):
    # Singular, so that rounding makes some eigenvalues negative.
    sigma = np.cov(vectors(5, 40, 0).numpy().T).astype(dtype)
    np.savez_compressed(tmp_path / "s.npz", mu=np.zeros(40, dtype), sigma=sigma)
    loaded = ImageStatistics.load(tmp_path / "s.npz").features
    torch.testing.assert_close(loaded.cov, torch.from_numpy(sigma.astype(float)), rtol=1e-12, atol=1e-12)
    assert frechet_distance(loaded, loaded) < 1e-3 * sigma.trace()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_no_file_of_statistics(tmp_path):
    os.mkfifo(tmp_path / "s.npz")
    with pytest.raises(ValueError, match=r"s\.npz: a named pipe, wanted a regular file"):
        ImageStatistics.load(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("size", "message"),
    [(10**6, "Unable to allocate 71.1 PiB"), (1 << 27, "mu.npy claims 134,217,856 bytes, wanted at most 134,217,728")],
)
def test_a_file_that_is_huge_or_says_so_is_not_read(tmp_path, size, message):
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**8, 10**8)})
        archive.writestr("mu.npy", header.getvalue() + bytes(size), compresslevel=1)
    with pytest.raises(ValueError, match=rf"s\.npz: wanted an .npz file, but {message}"):
        ImageStatistics.load(tmp_path / "s.npz")


@pytest.fixture(scope="module")
def digits():
    return load("digits", progress=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(digits, cache):
    """The classifier, trained with another state of the global generator than it will be loaded with."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    extractor = load_extractor("digits-classifier", digits, cache_dir=cache)
    assert torch.equal(torch.get_rng_state(), state)
    return extractor


def test_classifier(trained, digits, cache):
    assert (trained.name, trained.dim) == ("digits-classifier", 64)
    assert trained.details["held_out_accuracy"] >= 0.97
    features = trained(digits.images[:5])
    assert features.shape == (5, 64)
    assert not features.requires_grad
    again = load_extractor("digits-classifier", digits, cache_dir=cache)
    assert (again.fingerprint, again.details) == (trained.fingerprint, trained.details)
    assert torch.equal(again(digits.images[:5]), features)


FEW = pytest.mark.filterwarnings("ignore:the classifier of few is right on")


def few(digits, n=100):
    return ImageDataset("few", digits.images[:n], digits.labels[:n], digits.classes)


@FEW
def test_training_is_deterministic(digits, tmp_path):
    small = few(digits)
    prints = []
    for i in range(2):
        torch.manual_seed(i)
        with torch.inference_mode(bool(i)):
            prints.append(load_extractor("classifier", small, cache_dir=tmp_path / str(i)).fingerprint)
    assert prints[0] == prints[1]


@FEW
@pytest.mark.parametrize("damage", [b"", b"damaged", None], ids=["empty", "text", "truncated"])
def test_damaged_cache_is_trained_again(digits, tmp_path, damage):
    small = few(digits)
    first = load_extractor("classifier", small, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    with pytest.warns(UserWarning, match="is damaged .*trained again"):
        second = load_extractor("classifier", small, cache_dir=tmp_path)
    assert second.fingerprint == first.fingerprint
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 17, 40)], ids=str)
def test_classifier_takes_any_size(tmp_path, shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (81, *shape), dtype=torch.uint8, generator=generator)
    odd = ImageDataset("odd", images, torch.arange(81) % 2, ("a", "b"))
    for _ in range(2):
        # Images that say nothing of their classes.
        poor = r"the classifier of odd is right on \d+% of held-out images, where naming the commonest class is on 51%"
        with pytest.warns(UserWarning, match=poor):
            extractor = load_extractor("classifier", odd, cache_dir=tmp_path)
    assert extractor.name == "odd-classifier"
    assert extractor(images).shape == (81, 64)


def test_distance_tells_real_from_noise(trained, digits, cache):
    generator = torch.Generator().manual_seed(0)

    def noise(n):
        return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)

    def real(n):
        return digits.images[torch.randint(len(digits), (n,), generator=generator)]

    far = evaluate(noise, digits, trained, n_fake=500, batch_size=200, cache_dir=cache)
    near = evaluate(real, digits, trained, n_fake=500, batch_size=200, cache_dir=cache)
    assert 20 * near.distance < far.distance
    assert (far.n_real, far.n_fake) == (1797, 500)
    assert far.as_dict()["held_out_accuracy"] >= 0.97
    # The classifier's ten classes: real digits are of all of them, noise is not.
    assert near.is_mean > 6 > 2 * far.is_mean
    assert far.kid_mean > 20 * near.kid_mean
    assert far.distance_name == "Fréchet distance in features of digits-classifier"


def mean_and_std(images):
    flat = images.float().flatten(1)
    return torch.stack([flat.mean(1), flat.std(1)], 1)


def not_features(images):
    return images.float()


def mean_and_logits(images):
    return mean_and_std(images), images.float().flatten(1)[:, :5]


@pytest.mark.parametrize(("name", "classes"), [("mean_and_std", None), ("mean_and_logits", 5)])
def test_own_extractor(digits, name, classes):
    extractor = load_extractor(f"{__name__}:{name}", digits)
    assert (extractor.dim, extractor.classes) == (2, classes)
    assert extractor(digits.images[:3]).shape == (3, 2)
    result = evaluate(lambda n: digits.images[:n], digits, extractor, n_fake=1797, batch_size=1797)
    assert result.distance == pytest.approx(0, abs=1e-6)
    assert result.extractor == f"{__name__}:{name}"
    assert result.is_mean is None if classes is None else result.is_mean > 1


def test_pixels_need_neither_weights_nor_labels(digits, tmp_path):
    colour = ImageDataset("colour", digits.images[:200].repeat(1, 3, 2, 3) // 2)
    for images, dim in ((colour, 192), (ImageDataset("grey", digits.images[:200]), 64)):
        extractor = load_extractor("pixels-8x8", images)
        assert (extractor.name, extractor.dim) == ("pixels-8x8", dim)
        half = lambda n, of=images: of.images[-n:]  # noqa: E731
        found = evaluate(half, images, extractor, n_fake=100, cache_dir=tmp_path, kid_subsets=0)
        assert not found.is_fid and found.distance_name == "Fréchet distance in features of pixels-8x8"
        darker = evaluate(lambda n, of=half: of(n) // 2, images, extractor, n_fake=100, cache_dir=tmp_path)
        assert darker.distance > 2 * found.distance
    assert torch.equal(extractor(digits.images[:2]), digits.images[:2].flatten(1).float() / 255)


def test_a_module_in_training_mode_is_said_to_be_one(digits, recwarn):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(64, 5))
    with pytest.warns(UserWarning, match=r"training mode, whose dropout and batch norm .*\.eval\(\)"):
        load_extractor(Scaled(net), digits)
    recwarn.clear()
    load_extractor(Scaled(net).eval(), digits)
    assert not recwarn.list


class Scaled(torch.nn.Sequential):
    def forward(self, images):
        return super().forward(images / 255)


@pytest.mark.parametrize(
    ("count", "covariance"),
    [
        (65, None),
        (
            64,
            "singular: 64 generated images for 64 features; compare this distance with others of the same N alone",
        ),
    ],
)
def test_too_few_images_for_the_features_are_said(digits, tmp_path, count, covariance):
    extractor = load_extractor("pixels-8x8", digits)
    found = evaluate(lambda n: digits.images[:n], digits, extractor, n_fake=count, cache_dir=tmp_path)
    assert found.as_dict().get("covariance") == covariance
    few = evaluate(lambda n: digits.images[:n], digits, extractor, n_fake=count, n_real=5, cache_dir=tmp_path)
    assert few.covariance.startswith(f"singular: 5 real{' and 64 generated' if covariance else ''} images for 64")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("vgg", {}, "extractor: got 'vgg', wanted .*digits-classifier.*module:function"),
        ("digits-classifier", {"dataset": None}, "got no data set"),
        ("digits-classifier", {"protocol": "legacy"}, "protocol: got 'legacy', wanted one of tf,"),
        ("nowhere:f", {}, "cannot be imported"),
        (f"{__name__}:not_features", {}, r"floats of shape \(2, D\)"),
        ("classifier", {"dataset": ImageDataset("x", torch.zeros(20, 1, 8, 8, dtype=torch.uint8))}, "with no labels"),
    ],
)
def test_extractor_refusals(digits, cache, spec, options, message):
    assert {"inception", "classifier", "digits-classifier"} <= set(registered_extractors())
    with pytest.raises(ValueError, match=message):
        load_extractor(spec, **{"dataset": digits, "cache_dir": cache} | options)
