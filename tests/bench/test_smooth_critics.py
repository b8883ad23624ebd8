"""The critics of benchmarks/smooth_critics.py take the passes, and the script says what it measured."""

import json

import pytest
import torch

import gnfast
from benchmarks import smooth_critics
from gnfast.bench.smooth_critics import networks

TINY = networks(width=1 / 32)


@pytest.mark.parametrize("name", TINY)
def test_critics_take_six_passes(name):
    network = TINY[name]
    net = network.critic(torch.float32, torch.channels_last)
    plan = gnfast.trace(net, network.images(4, torch.float32, torch.channels_last))
    assert plan.takes_six and not plan.refusals


def test_rows(tmp_path, capsys):
    out = tmp_path / "rows.json"
    # At this size a bound may be missed.
    status = smooth_critics.main(
        ["--only", "ViT 32", "--width", "0.04", "--batch", "4", "--rounds", "2", "--out", str(out)]
    )
    (row,) = json.loads(out.read_text())["rows"]
    assert row["times"].keys() == row["bytes"].keys() == row["forwards"].keys() == smooth_critics.WAYS.keys()
    assert row["bytes"]["gnfast"] == row["memory / double backward"] * row["bytes"]["double backward"] > 0
    assert max(error for way in row["errors"].values() for error in way) < 1e-2
    said = capsys.readouterr().out
    assert "| ViT 32 | " in said and ("missed: none" in said) == (status == 0)


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setitem(smooth_critics.WAYS, "gnfast", lambda net, x: gnfast.normalize_gradient(net, 1.1 * x))
    with pytest.raises(AssertionError, match="results differ"):
        smooth_critics.main(["--only", "SiLU ResNet 32", "--width", "0.05", "--batch", "4", "--rounds", "2"])


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (1, True), (2, False), (3, False)])
def test_one_batch_of_three_may_differ(wrong, passes, monkeypatch):
    """By an activation that rounding put on the other side of 0."""
    given = []

    def way(net, x):
        given.append(x)
        return gnfast.normalize_gradient(net, x * (1.1 if len(given) <= wrong else 1))

    monkeypatch.setitem(smooth_critics.WAYS, "gnfast", way)
    network = networks(0.05)["SiLU ResNet 32"]
    images = network.images(4, torch.float32, torch.channels_last)
    if passes:
        smooth_critics.checked(network, images, torch.channels_last)
    else:
        with pytest.raises(AssertionError, match="results differ"):
            smooth_critics.checked(network, images, torch.channels_last)
    assert len(given) == (3 if wrong else 1)
    assert all(torch.equal(x, y) for x, y in zip(given, (images, images * 0.9, images * 0.8), strict=False))
