"""The Inception network against the same written out as functions, its weights' file, and FID from end to end."""

import contextlib
import hashlib
import io
import urllib.error

import numpy as np
import pytest
import torch

from gnfast.data import ImageDataset
from gnfast.metrics import PROTOCOLS, build_inception, evaluate, load_extractor, weights
from tests.metrics.metrics_oracle import inception, inception_score, random_weights


@pytest.fixture(scope="module")
def state():
    return random_weights()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def net(state):
    return build_inception(state)


@pytest.fixture(scope="module")
def extractor(file):
    return load_extractor("inception", weights=file)


def images(n, side=32, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").round().to(torch.uint8)


def test_layer_by_layer(state, net):
    got = {}
    with contextlib.ExitStack() as hooks:
        for name, module in net.named_children():
            hook = module.register_forward_hook(lambda _, __, output, name=name: got.__setitem__(name, output))
            hooks.callback(hook.remove)
        x = torch.rand(2, 3, 299, 299) * 2 - 1
        got["features"], got["logits"] = net(x)
    wanted = inception(state, x.double())
    assert wanted["features"].shape == (2, 2048)
    assert wanted["logits"].shape == (2, 1008)
    assert list(wanted)[:-2] == [name for name in got if name not in ("features", "logits", "fc")]
    for name, value in wanted.items():
        scale = value.abs().max()
        assert scale > 0.1
        assert (got[name] - value).abs().max() < 1e-5 * scale, name


def test_counts_and_freezes(state, net):
    # The published 23.9 million parameters, batch norm's weights folded into the convolutions.
    folded = sum(value.numel() for name, value in state.items() if name.endswith("bn.weight"))
    assert sum(parameter.numel() for parameter in net.parameters()) == 23_850_960 - folded
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not net.training


def test_takes_files_with_counters_and_leaves_the_state_alone(state, net):
    before = {name: value.clone() for name, value in state.items()}
    with_counters = state | {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}
    x = torch.rand(1, 3, 299, 299)
    assert torch.equal(build_inception(with_counters)(x)[0], net(x)[0])
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_refuses_other_weights(state):
    with pytest.raises(ValueError, match=r"not the weights of the Inception network.*AuxLogits"):
        build_inception(state | {"AuxLogits.fc.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"Missing.*fc\.bias"):
        build_inception({name: value for name, value in state.items() if name != "fc.bias"})
    # torchvision's own network has 1000 classes.
    with pytest.raises(ValueError, match=r"fc\.weight"):
        build_inception(state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})


def test_only_the_official_file_makes_fid(file, extractor, monkeypatch):
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (extractor.name, extractor.fingerprint) == (f"inception-{checksum[:8]}", checksum)
    # A file whose sum begins alike is another file.
    monkeypatch.setattr(weights, "OFFICIAL", checksum[:8] + weights.OFFICIAL[8:])
    assert load_extractor("inception", weights=file).name == f"inception-{checksum[:8]}"
    assert (extractor.dim, extractor.classes, extractor.protocol.name) == (2048, 1008, "tf")
    monkeypatch.setattr(weights, "OFFICIAL", checksum)
    assert load_extractor("inception", weights=file).name == "inception"


def test_weights_from_the_cache_or_the_release(file, tmp_path, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        answer = io.BytesIO(file.read_bytes())
        answer.headers = {}
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ValueError, match=r"wrong checksum, expected SHA256 6726825d0af5f729"):
        weights.load_weights(progress=False)
    assert list((tmp_path / "weights").iterdir()) == []
    monkeypatch.setattr(weights, "OFFICIAL", hashlib.sha256(file.read_bytes()).hexdigest())
    _, first = weights.load_weights(progress=False)
    _, second = weights.load_weights(progress=False)
    assert first == second
    assert asked == 2 * [weights.URL]
    # pytorch-fid's copy, when gnfast has none.
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "weights" / weights.NAME).rename(tmp_path / "hub" / "checkpoints" / weights.NAME)
    assert weights.load_weights(progress=False)[1] == first
    assert len(asked) == 2


def test_weights_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def urlopen(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(
        ValueError, match=r"could not download https://.*no network.*by hand and put it at .*, or give its path"
    ):
        weights.load_weights(progress=False)
    with pytest.raises(ValueError, match=r"weights: got '.*', wanted the path of a file"):
        weights.load_weights(tmp_path / "nowhere.pth")
    (tmp_path / "damaged.pth").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="safely"):
        weights.load_weights(tmp_path / "damaged.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="got a list, wanted a state dict"):
        weights.load_weights(tmp_path / "list.pth")


def test_convolutions_are_exact_while_it_runs(extractor):
    seen = []
    cells = [cell.cell_contents for cell in extractor.function.__closure__]
    (net,) = (value for value in cells if isinstance(value, torch.nn.Module))
    hook = net.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32
    extractor(images(1))
    hook.remove()
    assert seen == ["ieee"]
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32) == before


def test_grey_images_are_grey_in_three_channels(extractor):
    grey = images(1, channels=1)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_fid_of_two_fixed_sets(state, extractor, tmp_path):
    real, fake = images(4, seed=1), images(10, seed=2)
    how = {"n_fake": 10, "batch_size": 10, "cache_dir": tmp_path, "progress": False}
    scores = evaluate(lambda n: fake[:n], ImageDataset("real", real), extractor, **how)
    stages = [inception(state, PROTOCOLS["tf"].prepare(pixels)) for pixels in (real, fake)]
    a, b = (stage["features"].double().numpy() for stage in stages)
    # Of so few images the covariances have low rank: tr √(Σ_a Σ_b) is the nuclear norm of the product of their factors.
    factors = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    nuclear = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    wanted = means + sum((factor**2).sum() for factor in factors) - 2 * nuclear
    assert scores.distance == pytest.approx(wanted, rel=1e-4)
    assert not scores.is_fid
    wanted = inception_score(stages[1]["logits"].double().numpy())
    assert (scores.is_mean, scores.is_std) == pytest.approx(wanted, rel=1e-5, abs=1e-5)
