"""A user's file: every public name, with the types that users rely on. `test_types.py` checks it, and runs it."""

from collections.abc import Sequence
from typing import assert_type

import torch
from torch import Tensor, nn

import gnfast
from gnfast import heads, penalties, reference
from gnfast.losses import LOSSES, Curve, Loss, Term, domain_scaled, in_pytorch


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
        self.logit = nn.Linear(8 * 6 * 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.logit(self.features(x))
        return logit


def normaliser(f: Tensor, n: Tensor) -> Tensor:
    return f / (n + 1)


def critics(net: Critic, x: Tensor, asked: bool) -> None:
    f_hat = gnfast.normalize_gradient(net, x)
    assert_type(f_hat, Tensor)
    assert_type(-f_hat.mean(), Tensor)
    options = gnfast.normalize_gradient(
        net, x, method="gran", tau=0.8, eps=0.1, impl="auto", strict=True, rewrite=True, static=False, memory="low"
    )
    assert_type(options, Tensor)
    assert_type(gnfast.normalize_gradient(net, x, method=normaliser, return_grad_norm=False), Tensor)
    assert_type(gnfast.normalize_gradient(net, x, method=heads.GN, return_grad_norm=True), tuple[Tensor, Tensor])
    assert_type(gnfast.normalize_gradient(net, x, return_grad_norm=asked), Tensor | tuple[Tensor, Tensor])
    assert_type(gnfast.value_and_grad_norm(net, x, impl="reference"), tuple[Tensor, Tensor])
    assert_type(gnfast.value_and_input_grad(net, x, memory="keep"), tuple[Tensor, Tensor])


def modules(net: Critic, x: Tensor) -> None:
    critic = gnfast.GradientNorm(net, method="pgn", static=True)
    assert_type(critic, gnfast.GradientNorm[Critic])
    assert_type(critic.net, Critic)
    assert_type(critic(x), Tensor)
    assert_type(critic(x, return_grad_norm=True), tuple[Tensor, Tensor])
    assert_type(gnfast.rewrite(net).net, Critic)
    assert_type(gnfast.spectral_norm_(net, coeff=2.0, filter=lambda name, layer: name != "logit"), Critic)
    assert_type(gnfast.remove_spectral_norm(net), Critic)
    layer = gnfast.spectral_norm(nn.Conv2d(3, 8, 3), stable_rank=0.5)
    assert_type(layer, nn.Conv2d)
    assert_type(gnfast.spectral_values(net), dict[str, Tensor])
    assert_type(gnfast.rescale_(net, x), float)


def plans(net: Critic, x: Tensor) -> None:
    plan = gnfast.trace(net, x)
    assert_type(plan, gnfast.Plan)
    assert_type(plan.flops(), dict[str, float])
    assert_type(plan.kept_bytes(), int)
    assert_type(plan.takes_six, bool)
    explanation = gnfast.explain(net, x)
    assert_type(explanation, gnfast.Explanation)
    assert_type(explanation.accelerated, bool)


def errors(net: Critic, x: Tensor) -> str:
    try:
        gnfast.normalize_gradient(net, x.long())
    except gnfast.UnsupportedError as error:
        return str(error)
    except (gnfast.InputError, gnfast.CaptureError) as error:
        return str(error)
    return gnfast.FallbackWarning.__name__ + gnfast.UncompiledWarning.__name__


def steps(net: Critic, x: Tensor) -> None:
    def update(images: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean(), images

    step = gnfast.CapturedStep(update, "cpu", warmup=2)
    assert_type(step(x), tuple[Tensor, Tensor])
    assert_type(step.seconds, dict[str, float])
    with gnfast.reuse_memory(), torch.no_grad(), gnfast.grouped_batch_norm(net, 2):
        net(x)
    gnfast.release_memory()
    assert_type(gnfast.memory_use(), dict[str, int])


def penalised(net: Critic, real: Tensor, fake: Tensor, place: Tensor) -> Tensor:
    f_hat, norm = gnfast.normalize_gradient(net, real, return_grad_norm=True)
    terms: Sequence[Tensor] = (
        penalties.r1(net, real, static=True),
        penalties.zero_centered(net, real),
        penalties.one_centered(net, real, fake, target=1.0),
        penalties.dragan(net, real, strength=0.5),
        penalties.centered(norm, target=1.0),
        penalties.interpolate(real, fake, place),
    )
    penalty: penalties.Penalty = penalties.PENALTIES["1-gp"]
    assert_type(penalty.cost(norm, 1.0), Tensor)
    assert_type(penalty.points(real, fake, place), Tensor)
    return torch.stack([term.mean() for term in terms]).sum() + f_hat.mean()


def normalisers(f: Tensor, g: Tensor, name: heads.Name) -> None:
    head = gnfast.Head("mine", normaliser, partials=lambda f, n: (1 / (n + 1), -f / (n + 1) ** 2))
    value: heads.Value = head.value
    partials: heads.Partials | None = head.partials
    known = (heads.GN, heads.GN0, heads.GN1, heads.PGN, heads.PGN_TABLE, heads.gran(tau=0.8), heads.gran_shift(eps=1.0))
    method: heads.Method = name
    for each in (head, *known, heads.find(method), heads.METHODS["gran"](tau=2.0)):
        assert_type(heads.apply_head(each, f, g), Tensor)
        assert_type(heads.normalized_grad_norm(each, f, g), Tensor)
        assert_type(heads.plain(each), gnfast.Head)
    n = heads.grad_norm(g)
    assert_type(n, Tensor)
    assert_type(value(f, n), Tensor)
    assert_type(partials, heads.Partials | None)


def oracle(net: Critic, x: Tensor) -> None:
    assert_type(reference.normalize_gradient(net, x, method="gran", tau=2.0), Tensor)
    assert_type(reference.value_and_grad_norm(net, x), tuple[Tensor, Tensor])
    assert_type(reference.value_and_input_grad(net, x), tuple[Tensor, Tensor])
    assert_type(reference.input_grad(net.forward, x), tuple[Tensor, Tensor])


def losses(f_hat: Tensor, fake: Tensor) -> None:
    loss = LOSSES["hinge"]
    assert_type(loss, Loss)
    for each in (loss, domain_scaled(loss, 10.0), in_pytorch(loss)):
        assert_type(each.critic(f_hat, fake), Tensor)
        assert_type(each.critic_terms(f_hat, 1), Tensor)
        assert_type(each.generator(fake), Tensor)
    own = Term(Curve(torch.exp, lambda x, alpha, shift: torch.expm1(alpha * x) / alpha), mirrored=True)
    assert_type(Loss(own, own, own).critic_real(f_hat), Tensor)


def wrong(net: Critic, x: Tensor) -> None:
    """What checkers have to find; each line's comment fails where they do not."""
    gnfast.normalize_gradient(net, x, method="gan")  # type: ignore[call-overload]
    gnfast.normalize_gradient(net, x, impl="fast")  # type: ignore[call-overload]
    gnfast.normalize_gradient(net, x, return_grad_norm=True).mean()  # type: ignore[attr-defined]
    gnfast.normalize_gradient(net, x, method=len)  # type: ignore[arg-type]
    gnfast.value_and_grad_norm(net, x, memory="none")  # type: ignore[arg-type]
    gnfast.GradientNorm(net, method="no-such")  # type: ignore[arg-type]
    gnfast.spectral_norm_(net, coeff="2")  # type: ignore[arg-type]
    gnfast.rewrite(x)  # type: ignore[type-var]
    heads.find("granny")  # type: ignore[arg-type]
    reference.normalize_gradient(net, x, method="no-such")  # type: ignore[arg-type]
    gnfast.trace(net, x).flop  # type: ignore[attr-defined]


def main() -> None:
    """Runs all but what is wrong."""
    net, x = Critic(), torch.randn(2, 3, 8, 8)
    critics(net, x, True)
    modules(net, x)
    plans(net, x)
    steps(net, x)
    oracle(net, x)
    losses(net(x), net(-x))
    normalisers(*gnfast.value_and_input_grad(nn.Sequential(net, nn.Flatten(0)), x), "gn")
    assert penalised(net, x, -x, torch.rand(2)).isfinite()
    assert "float" in errors(net, x)


if __name__ == "__main__":
    main()
