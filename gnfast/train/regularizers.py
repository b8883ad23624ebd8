"""What a critic's loss may add to the GAN loss, and the range in which its weights are kept."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from gnfast.engine.penalties import PENALTIES


def gradient_penalty(
    name: str, k_gp: float, grad_norm: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, place: Tensor
) -> Tensor:
    """A gradient penalty on the critic's logit, a scalar without its factor λ.

    Args:
        name: in `gnfast.penalties.PENALTIES`.
        k_gp: k, the norm that costs nothing.
        grad_norm: images (B, ...) to the norms of the critic's input gradients (B,).
        real, fake: (B, C, H, W).
        place: (B,) in [0, 1]: where on the line from a real to a generated image.
    """
    penalty = PENALTIES[name]
    return penalty.cost(grad_norm(penalty.points(real, fake, place)), k_gp)


@torch.no_grad()
def clip_weights_(net: nn.Module, limit: float) -> None:
    """Clips every parameter to [-limit, limit] (WGAN, Arjovsky et al., 2017)."""
    for parameter in net.parameters():
        parameter.clamp_(-limit, limit)


@contextlib.contextmanager
def scaled_parameters(net: nn.Module, factors: Mapping[str, float]) -> Iterator[None]:
    """Parameters are multiplied by `factors` inside; gradients taken there become those of the parameters as they were.

    Args:
        net: the network.
        factors: by parameter name; others stay.
    """
    parameters = dict(net.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in factors}
    with torch.no_grad():
        for name, factor in factors.items():
            parameters[name].mul_(factor)
    yield
    with torch.no_grad():
        for name, factor in factors.items():
            parameters[name].copy_(kept[name])
            if parameters[name].grad is not None:
                parameters[name].grad.mul_(factor)
