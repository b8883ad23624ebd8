"""Algorithm 1 of GN-GAN (Wu et al., ICCV 2021) on the networks of a run's `State`.

One step is `n_dis` updates of the critic, one of the generator, and the moving average. Nothing here is random: what
chance decides is given (`draws.py`).
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnfast import grouped_batch_norm, value_and_grad_norm
from gnfast.data.augment import apply_shifts
from gnfast.engine.penalties import PENALTIES
from gnfast.engine.rescale import rescaling
from gnfast.models.baselines import clip_weights_, orthonormality
from gnfast.train.buckets import averaged
from gnfast.train.draws import CriticDraw, Draw, Latents, parts
from gnfast.train.networks import DTYPES, present

if TYPE_CHECKING:
    from gnfast.train.state import State


def algorithm_1(state: "State", draws: Iterable[Draw]) -> Tensor:
    """One step; returns the mean losses of its updates, one for each of `state.loss_names`."""
    draws = iter(_with_fakes(state, draws) if state.generates_ahead else draws)
    critic_losses = [critic_update(state, next(draws)) for _ in range(state.config.n_dis)]
    losses = torch.cat([_mean(critic_losses), generator_update(state, next(draws))])
    state.ema.update(state.generator, state.step + 1)
    return losses


def critic_update(state: "State", draw: CriticDraw) -> Tensor:
    """Returns the critic's losses, one for each of `state.loss_names` but the generator's."""
    state.optim_d.zero_grad(set_to_none=True)
    found = []
    with _rescaled(state, draw), _averaged(state, state.critic):
        for part in parts(draw, state.config.accumulate):
            found.append(_backward(state, _critic_losses(state, part), state.scaler_d))
    _descend(state.optim_d, state.scaler_d)
    if state.config.weight_clip:
        clip_weights_(state.critic, state.config.weight_clip)
    return _mean(found)


def generator_update(state: "State", latents: Latents) -> Tensor:
    """Returns the generator's losses, (1,) or with a classifier (2,)."""
    state.optim_g.zero_grad(set_to_none=True)
    found = []
    # With frozen weights the critic needs two passes instead of four.
    with _frozen(state.critic), _averaged(state, state.generator):
        for z, y in parts(latents, state.config.accumulate):
            with autocast(state):
                fake = state.generate(*present(z, y))
            losses = [state.loss.generator(scores_of(state, (fake, y)))]
            if state.config.auxiliary:
                losses.append(state.config.auxiliary / 10 * _classification(state, fake, y))
            # One alone needs no launch to stand in a vector.
            found.append(_backward(state, torch.stack(losses) if losses[1:] else losses[0].reshape(1), state.scaler_g))
    _descend(state.optim_g, state.scaler_g)
    return _mean(found)


def _backward(state: "State", losses: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    """Adds a part's share of the update's gradients; returns its losses without a graph."""
    scaled = scaler.scale(losses)
    scaled.backward(torch.full_like(scaled, 1 / state.config.accumulate))
    return losses.detach()


def _mean(losses: list[Tensor]) -> Tensor:
    """Their mean; of one, as in most updates, itself, without a launch."""
    return torch.stack(losses).mean(0) if len(losses) > 1 else losses[0]


def _critic_losses(state: "State", draw: CriticDraw) -> Tensor:
    """The GAN loss on real and on generated images, and what regularises the critic."""
    real = draw.real.to(state.dtype)
    fake = _fakes(state, draw.latents) if draw.fake is None else draw.fake
    batches = [(real, draw.labels), (fake, draw.latents.y)]
    if draw.shifts is not None:
        batches.append((apply_shifts(real, draw.shifts), draw.labels))
    scores = scores_of(state, *batches)
    further = []
    if draw.place is not None:
        further.append(state.config.penalty_weight * _penalty(state, real, fake, draw))
    if draw.shifts is not None:
        scores, of_moved = scores.split([2 * len(real), len(real)])
        further.append(state.config.consistency * (of_moved - scores[: len(real)]).square().mean())
    if state.config.orthonormal:
        further.append(state.config.orthonormal * orthonormality(state.critic))
    if state.config.auxiliary:
        further.append(state.config.auxiliary * _classification(state, real, draw.labels))
    losses = state.loss.critic_terms(scores, len(real))
    return torch.cat([losses, torch.stack(further)]) if further else losses


def _penalty(state: "State", real: Tensor, fake: Tensor, draw: CriticDraw) -> Tensor:
    """The gradient penalty on the critic before its normalisation, without its factor λ."""
    penalty = PENALTIES[state.config.penalty]
    options = {"impl": state.config.impl, "rewrite": state.config.rewrite}
    with autocast(state):
        points = penalty.points(real, fake, draw.place).contiguous(memory_format=state.format)
        _, norm = value_and_grad_norm(state.critic, *present(points, draw.labels), **options)
        return penalty.cost(norm.to(state.dtype), state.config.k_gp)


def _classification(state: "State", images: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of the critic's classifier (AC-GAN, Odena et al., 2017), without its factor."""
    with autocast(state):
        logits = state.critic.classify(images.contiguous(memory_format=state.format))
    return F.cross_entropy(logits.to(state.dtype), labels)


def scores_of(state: "State", *batches: tuple[Tensor, Tensor | None]) -> Tensor:
    """(B, 1) of the normalised critic at the images of all batches, (images, labels), in one forward.

    With batch norm in the critic each has its own, as in SN-GAN's code: in the generator's update generated images are
    alone in a batch, too.
    """
    if len(batches) > 1 and state.config.norm_d == "batch":
        return torch.cat([scores_of(state, batch) for batch in batches])
    images, labels = batches[0] if len(batches) == 1 else _joined(batches)
    with autocast(state):
        return state.normalized(*present(images.contiguous(memory_format=state.format), labels)).to(state.dtype)


def _joined(batches: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), None if labels[0] is None else torch.cat(labels)


@torch.no_grad()
def _fakes(state: "State", latents: Latents) -> Tensor:
    with autocast(state):
        return state.generate(*present(*latents)).to(state.dtype)


def _with_fakes(state: "State", draws: Iterable[Draw]) -> list[Draw]:
    """The draws with the generated images of all critic updates, from one forward in larger convolutions."""
    *critics, last = draws
    z, y = zip(*(draw.latents for draw in critics), strict=True)
    with grouped_batch_norm(state.generator, len(critics) * state.config.accumulate):
        fakes = _fakes(state, Latents(torch.cat(z), None if y[0] is None else torch.cat(y)))
    each = zip(critics, fakes.chunk(len(critics)), strict=True)
    return [*(draw._replace(fake=fake) for draw, fake in each), last]


def _averaged(state: "State", net: nn.Module) -> contextlib.AbstractContextManager:
    """In which the gradients of an update are taken: at its end they are those of all processes' images."""
    return averaged(state.group, net.parameters(), early=state.config.accumulate == 1)


def _descend(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    scaler.step(optimizer)
    scaler.update()


def autocast(state: "State") -> contextlib.AbstractContextManager:
    """In which both networks run."""
    if state.precision not in ("bfloat16", "float16"):
        return contextlib.nullcontext()
    return torch.autocast(state.device.type, DTYPES[state.precision])


@contextlib.contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """Without gradients for the weights; they have them again also after a step that could not be captured."""
    net.requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)


@contextlib.contextmanager
def _rescaled(state: "State", draw: CriticDraw) -> Iterator[None]:
    """The critic's weights brought to their first norms, or to Glorot's, where the run does that (Faster GN-GAN).

    Gradients taken inside become those of the weights as they were.
    """
    if state.config.rescale == "none":
        yield
        return
    norm = state.first_norms if state.config.rescale == "initial" else None
    labels = None if draw.labels is None else draw.labels[:1]
    factors, _ = rescaling(state.critic, *present(draw.real[:1].to(state.dtype), labels), norm=norm)
    scaled = [(state.critic.get_parameter(name), factor) for name, factor in factors.items()]
    kept = [parameter.detach().clone() for parameter, _ in scaled]
    with torch.no_grad():
        for parameter, factor in scaled:
            parameter.mul_(factor)
    yield
    with torch.no_grad():
        for (parameter, factor), value in zip(scaled, kept, strict=True):
            parameter.copy_(value)
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
