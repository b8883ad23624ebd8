"""Training steps against plain PyTorch, in float64: the same weights and batches give the same losses."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gnfast.data import ImageDataset
from gnfast.data.augment import flip_and_translate
from gnfast.train import PRESETS, Config
from gnfast.train import state as state_module
from gnfast.train.networks import build_networks
from gnfast.train.state import State
from tests.train import plain_loop

SMALL = {"width": 0.04, "batch_d": 4, "batch_g": 6, "precision": "float64", "device": "cpu", "z_dim": 7}


def dataset(resolution, classes=0):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (40, 3, resolution, resolution), dtype=torch.uint8, generator=generator)
    if not classes:
        return ImageDataset("noise", images)
    return ImageDataset("noise", images, torch.arange(40) % classes, tuple(map(str, range(classes))))


def state_of(config):
    # The losses of all updates are looked at.
    config = dataclasses.replace(config, log_every=20)
    return State(config, dataset(config.resolution, config.classes), torch.device("cpu"))


def updated(state, steps):
    """The losses of `steps` updates."""
    for _ in range(steps):
        state.update()
    return torch.stack(state.pending)


def assert_plain_losses(config, steps, *, atol=1e-9, rtol=0, less=0, state=None, **formula):
    """`steps` updates have the losses that the formula gives, less a constant."""
    theirs = plain_loop.losses_of_steps(state or state_of(config), steps, **formula)
    # Training must have moved the losses by far more than what they may differ by.
    assert theirs.std(0).min() > 1e-7
    torch.testing.assert_close(updated(state_of(config), steps), theirs - less, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("name", "steps"), [("gngan-cifar10-cnn", 20), ("gngan-cifar10-resnet", 4)])
def test_presets_train_as_plain_pytorch_with_double_backward(name, steps):
    config = dataclasses.replace(PRESETS[name].config, **SMALL)
    formula = plain_loop.NON_SATURATING if config.loss == "non-saturating" else plain_loop.HINGE
    assert_plain_losses(config, steps, score=plain_loop.normalized, **formula)


def test_batch_norm_sees_real_and_generated_images_apart():
    """As SN-GAN's code does: in the generator's update, too, generated images are alone in a batch."""
    config = dataclasses.replace(PRESETS["sngan-cifar10-batch-norm"].config, **SMALL)

    def apart(critic, images):
        return torch.cat([critic(part) for part in images.split(4 if len(images) == 8 else 6)])

    assert_plain_losses(config, 4, score=apart, **plain_loop.NON_SATURATING)


def test_conditional_training():
    config = dataclasses.replace(PRESETS["gngan-cifar10-biggan"].config, **SMALL)
    assert_plain_losses(config, 2, score=plain_loop.normalized, **plain_loop.HINGE)


def test_consistency_regularisation():
    config = dataclasses.replace(PRESETS["gngan-cifar10-cnn-cr"].config, **SMALL)
    state, changed = state_of(config), []

    def change(critic, real, fake, score_real):
        # The State draws its augmentations after the latents of the same update.
        moved = flip_and_translate(real, state.noise)
        changed.append((moved != real).any().item())
        return [5 * (plain_loop.normalized(critic, moved) - score_real).square().mean()]

    formula = plain_loop.NON_SATURATING | {"score": plain_loop.normalized, "extra": change}
    assert_plain_losses(config, 4, state=state, **formula)
    assert state.loss_names == ("loss_real", "loss_fake", "loss_consistency", "loss_generator")
    assert len(changed) == 4 and all(changed)


class Classifying(nn.Module):
    """A critic with a second head, of classes; the first has no use for labels."""

    def __init__(self, classes):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.LeakyReLU(0.1), nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(6 * 15 * 15, out) for out in (1, classes))

    def forward(self, x, y):
        return self.heads[0](self.trunk(x))

    def classify(self, x):
        return self.heads[1](self.trunk(x))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_auxiliary_classifier(accumulate, monkeypatch):
    config = dataclasses.replace(PRESETS["gngan-cifar10-biggan"].config, **SMALL, method="none", accumulate=accumulate)
    with pytest.raises(ValueError, match=r"--auxiliary: got 0\.7, wanted 0 with a --model that has no classifier"):
        dataclasses.replace(config, auxiliary=0.7)
    config = dataclasses.replace(config, model="sngan-ac", auxiliary=0.7, loss="wasserstein", penalty="1-gp")
    with pytest.raises(ValueError, match=r"--auxiliary: got 0\.7, wanted 0 without --classes"):
        dataclasses.replace(config, classes=0)

    def pair(config):
        torch.manual_seed(1)
        return build_networks(dataclasses.replace(config, auxiliary=0.0))[0].eval(), Classifying(config.classes)

    monkeypatch.setattr(state_module, "build_networks", pair)
    state = state_of(config)
    assert state.loss_names[2:] == ("loss_penalty", "loss_auxiliary", "loss_generator", "loss_auxiliary_generator")

    def penalise(critic, real, fake, score_real):
        points = real + torch.rand(len(real), generator=state.noise).double()[:, None, None, None] * (fake - real)
        return [10 * (gradient_norms(lambda x: critic(x, None), points) - 1).square().mean()]

    formula = plain_loop.WASSERSTEIN | {"score": plain_loop.plain, "extra": penalise, "classified": 0.7}
    assert_plain_losses(config, 3, state=state, **formula)


def gradient_norms(critic, points):
    points = points.detach().requires_grad_()
    (g,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return g.flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("name", "penalty", "target", "formula"),
    [
        ("wgan-gp-cifar10", "1-gp", 1.0, plain_loop.WASSERSTEIN),
        ("nsgan-gp-cifar10", "1-gp", 1.0, plain_loop.NON_SATURATING),
        ("nsgan-cifar10", "0-gp", 0.0, plain_loop.NON_SATURATING),
        ("nsgan-cifar10", "r1", 0.0, plain_loop.NON_SATURATING),
        ("lipschitz-cifar10-w-gp", "1-gp", 1.0, plain_loop.WASSERSTEIN),
    ],
)
def test_gradient_penalties(name, penalty, target, formula):
    config = dataclasses.replace(PRESETS[name].config, **SMALL, penalty=penalty)
    state = state_of(config)

    def penalise(critic, real, fake, score_real):
        place = torch.rand(len(real), generator=state.noise).double()[:, None, None, None]
        if penalty == "r1":
            return [10 * 0.5 * gradient_norms(critic, real).square().mean()]
        points = real + place * (fake - real)
        return [10 * (gradient_norms(critic, points) - target).square().mean()]

    assert_plain_losses(config, 3, state=state, rtol=1e-9, score=plain_loop.plain, extra=penalise, **formula)


def test_weight_clipping_and_rmsprop():
    config = Config(
        data="",
        resolution=32,
        method="none",
        loss="wasserstein",
        optimizer="rmsprop",
        weight_clip=0.1,
        init="kaiming-normal",
        **SMALL,
    )
    assert_plain_losses(config, 5, score=plain_loop.plain, **plain_loop.WASSERSTEIN)
    state = state_of(config)
    for name, parameter in state.critic.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(parameter, 2.0)
    state.update()
    assert max(parameter.abs().max() for name, parameter in state.critic.named_parameters() if "weight" in name) == 0.1
    assert min(parameter.min() for name, parameter in state.critic.named_parameters() if "bias" in name) > 1.9


@pytest.mark.parametrize("accumulate", [1, 2])
def test_orthonormal_regularisation(accumulate):
    config = dataclasses.replace(PRESETS["nsgan-cifar10"].config, **SMALL, penalty="none", orthonormal=1e-3)
    config = dataclasses.replace(config, accumulate=accumulate, batch_d=4, init="orthogonal")

    def gap(critic, real, fake, score_real):
        weights = [w.flatten(1) for name, w in critic.named_parameters() if name.endswith("weight")]
        return [1e-3 * sum((w.T @ w - torch.eye(w.shape[1], dtype=w.dtype)).square().sum() for w in weights)]

    # With running statistics of batch norm, parts of a batch are as the whole.
    state, plain = state_of(config), state_of(config)
    for each in (state, plain):
        each.generator.eval()
    assert state.loss_names == ("loss_real", "loss_fake", "loss_orthonormal", "loss_generator")
    formula = plain_loop.NON_SATURATING | {"score": plain_loop.plain, "extra": gap}
    theirs = plain_loop.losses_of_steps(plain, 4, **formula)
    assert theirs.std(0).min() > 1e-7
    torch.testing.assert_close(updated(state, 4), theirs, rtol=0, atol=1e-9)


def test_adams_epsilon_and_a_rate_that_falls_late():
    """Linear decay after a start (SN-GAN on ImageNet, appendix B.3), and an ε that matters (GraN-GAN, eq. 21)."""
    config = dataclasses.replace(PRESETS["nsgan-cifar10"].config, **SMALL, penalty="none", steps=6)
    config = dataclasses.replace(config, adam_eps=1e-3, lr_decay="linear", lr_decay_start=2)
    state = state_of(config)
    for step, share in ((0, 1), (1, 1), (2, 1), (3, 0.75), (5, 0.25), (6, 0)):
        assert state.rates(step) == (config.lr_d * share, config.lr_g * share), step
    late = state_of(dataclasses.replace(config, lr_decay_start=9))
    assert {late.rates(step)[0] for step in range(7)} == {config.lr_d}, (
        "a run that ends before the start keeps its rate"
    )
    assert_plain_losses(config, 6, score=plain_loop.plain, **plain_loop.NON_SATURATING)
    half = state_of(dataclasses.replace(config, steps=3, lr_decay_end=6))
    torch.testing.assert_close(updated(half, 3), updated(state_of(config), 3), rtol=0, atol=0)
    usual = state_of(dataclasses.replace(config, adam_eps=1e-8))
    assert (updated(usual, 6) - updated(state, 6)).abs().max() > 1e-4


@pytest.mark.parametrize("alpha", [1e-25, 0.1, 3.0])
def test_domain_scaling_changes_the_losses_gradient_only(alpha):
    config = dataclasses.replace(PRESETS["nsgan-cifar10"].config, **SMALL, alpha=alpha)
    scaled = {
        "real_loss": lambda f: (F.softplus(-alpha * f) / alpha).mean(),
        "fake_loss": lambda f: (F.softplus(alpha * f) / alpha).mean(),
        "generator_loss": lambda f: (F.softplus(-alpha * f) / alpha).mean(),
    }
    if alpha < 1e-9:
        scaled = {"real_loss": lambda f: -f.mean() / 2, "fake_loss": lambda f: f.mean() / 2}
        scaled["generator_loss"] = scaled["real_loss"]
    constant = 0 if alpha < 1e-9 else math.log(2) / alpha
    assert_plain_losses(config, 3, rtol=1e-7, atol=1e-7, less=constant, score=plain_loop.plain, **scaled)


@pytest.mark.parametrize("how", ["initial", "glorot"])
def test_rescaling_leaves_training_as_it_is(how):
    """GN's f̂ does not see a positive factor, and the gradients are those of the weights as they were."""
    config = dataclasses.replace(PRESETS["gngan-cifar10-resnet"].config, **SMALL)
    states = [state_of(dataclasses.replace(config, rescale=rescale)) for rescale in ("none", how)]
    torch.testing.assert_close(*(updated(state, 3) for state in states), rtol=0, atol=1e-9)
    for a, b in zip(*(state.critic.parameters() for state in states), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_generating_for_all_critic_updates_at_once_changes_nothing(accumulate):
    config = dataclasses.replace(PRESETS["gngan-cifar10-resnet"].config, **SMALL, n_dis=3, accumulate=accumulate)
    states = [state_of(config) for _ in range(2)]
    states[1].generates_ahead = True
    torch.testing.assert_close(*(updated(state, 3) for state in states), rtol=0, atol=1e-9)
    torch.testing.assert_close(*(state.generator.state_dict() for state in states), rtol=0, atol=1e-9)


def test_parts_of_a_batch_add_up_to_the_whole():
    """With running statistics there is no batch norm to see the difference; the critic has none anyway."""
    config = dataclasses.replace(PRESETS["gngan-cifar10-cnn-cr"].config, **SMALL)
    states = [state_of(dataclasses.replace(config, accumulate=parts)) for parts in (1, 2)]
    for state in states:
        state.generator.eval()
    torch.testing.assert_close(*(updated(state, 3) for state in states), rtol=0, atol=1e-9)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_stays_near(precision):
    """The first losses agree with float32's to the type's accuracy, and 8 updates stay finite."""
    config = dataclasses.replace(PRESETS["gngan-cifar10-resnet"].config, **SMALL, n_dis=1, impl="auto")
    states = [state_of(dataclasses.replace(config, precision=p)) for p in ("float32", precision)]
    full, low = (updated(state, 1)[0] for state in states)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=0, atol=0.05)
    before = copy.deepcopy(states[1].critic.state_dict())
    assert updated(states[1], 7).isfinite().all()
    assert any(not torch.equal(before[name], value) for name, value in states[1].critic.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in states[1].critic.parameters())
