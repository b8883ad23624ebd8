"""The critic's loss on other images: the formula, and a run that does not notice."""

import copy
import dataclasses

import pytest
import torch
from PIL import Image

from gnfast.data import to_float
from gnfast.io.rows import read_rows
from gnfast.runs import checkpoint
from gnfast.train import Config
from gnfast.train.networks import sample
from gnfast.train.validation import critic_losses
from tests.tiny_runs import equal, quiet, tiny
from tests.train import plain_loop
from tests.train.test_train_exact import dataset, state_of


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(("method", "score"), [("gn", plain_loop.normalized), ("none", plain_loop.plain)])
def test_the_losses_are_the_formulas_and_nothing_moves(impl, method, score):
    config = Config(data="", resolution=16, width=0.1, z_dim=5, batch_d=16, precision="float64", device="cpu")
    state = state_of(dataclasses.replace(config, method=method, impl=impl, spectral_norm=True, accumulate=2))
    state.update()
    before = copy.deepcopy(state.state_dict())
    other = dataset(16)
    other.images.copy_(255 - other.images)
    found = critic_losses(state, other)
    assert equal(state.state_dict(), before) and state.critic.training
    # Each set of 40 images in parts of 8, of which each forward makes a power iteration.
    for name, images in (("training", state.batches.dataset.images), ("validation", other.images)):
        critic, noise, losses = copy.deepcopy(state.critic), torch.Generator().manual_seed(5), []
        for part in torch.randperm(40, generator=noise).split(8):
            fake = sample(state.generator, state.latents(8, noise).z)
            real = to_float(images[part], part.device).double()
            of_real, of_fake = score(critic, torch.cat([real, fake])).detach().chunk(2)
            losses.append(plain_loop.HINGE["real_loss"](of_real) + plain_loop.HINGE["fake_loss"](of_fake))
        assert found[f"loss_critic_{name}"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-10)
    assert abs(found["loss_critic_training"] - found["loss_critic_validation"]) > 1e-6


def pictures(folder, splits):
    """A data set of folders: splits, classes, eight-pixel images."""
    for split, classes in splits.items():
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(9):
                colour = 90 * (split == "test") + ord(name) - ord("a") + 9 * number
                Image.new("L", (8, 8), colour).save(folder / split / name / f"{number}.png")
    return str(folder)


def test_a_run_that_is_watched_is_the_same_run(tmp_path):
    data = pictures(tmp_path / "data", {"train": ["a", "b"], "test": ["a", "b"]})
    kept = {"steps": 6, "eval_every": 3, "n_samples": 4, "log_every": 2, "extractor": "none"}
    config = tiny(tmp_path / "plain", data=data, spectral_norm=True, **kept)
    watched = dataclasses.replace(config, run_dir=str(tmp_path / "watched"), validation_split="test")
    for each in (config, watched):
        assert quiet("digits", each)[0].finished
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("plain", "watched")]
    measured = [row for row in rows[1] if "loss_critic_validation" in row]
    assert [row["step"] for row in measured] == [0, 3, 6] and all("loss_critic_training" in row for row in measured)
    assert [row for row in rows[1] if row not in measured] == rows[0]
    a, b = (checkpoint.load_newest(tmp_path / name / "checkpoints")["state"] for name in ("plain", "watched"))
    assert equal(a, b)


def test_other_classes_and_unknown_splits_are_refused(tmp_path):
    data = pictures(tmp_path / "data", {"train": ["a", "b"], "test": ["b", "c"]})
    config = tiny(tmp_path / "run", data=data, steps=2, validation_split="test", extractor="none")
    with pytest.raises(ValueError, match="wanted one of 'test', 'train'"):
        quiet("digits", dataclasses.replace(config, validation_split="val"))
    conditional = dataclasses.replace(config, model="biggan", resolution=32, channels=3, classes=2, width=0.05)
    with pytest.raises(ValueError, match="--validation-split: 'test' has other classes than --split"):
        quiet("digits", conditional)
