"""Logits and gradient norms of a critic, plain and normalised, over any number of images.

Source: the box plots of GraN-GAN (Bhaskara et al., WACV 2022, fig. 3).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gnfast.engine import heads
from gnfast.engine.functional import normalize_gradient, value_and_input_grad
from gnfast.engine.heads import Head
from gnfast.plan import trace

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
CHUNK = 256


@dataclass(frozen=True)
class GradientNorms:
    """What a critic gives for N images, on the CPU in float32 or better.

    Attributes:
        logit: (N,) f.
        norm: (N,) ‖∇ₓf‖₂.
        normalized: (N,) f̂; f where there is no normaliser.
        normalized_norm: (N,) ‖∇ₓf̂‖₂; ‖∇ₓf‖₂ where there is no normaliser.
    """

    logit: Tensor
    norm: Tensor
    normalized: Tensor
    normalized_norm: Tensor


def gradient_norms(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    method: heads.Method | None = None,
    tau: float | None = None,
    eps: float | None = None,
    chunk: int = CHUNK,
) -> GradientNorms:
    """The logits and gradient norms of a critic in evaluation mode, which is left as it was.

    A piecewise linear critic costs a forward and an input gradient: the norm of its normalised gradient is a function
    of the two (`gnfast.heads.normalized_grad_norm`). Any other critic takes passes 3 and 4 as well.

    Args:
        net: (B, ...) floating point to one logit per sample.
        images: (N, ...) in the network's dtype, on any device: each chunk goes to the network's; N >= 1.
        labels: (N,) for a class-conditional critic, its second argument; None for others.
        method, tau, eps: the normaliser, as in `gnfast.normalize_gradient`; None for the plain critic.
        chunk: images at a time.

    Raises:
        ValueError: no images, or a critic that does not give one logit per sample.
        RuntimeError: the critic's output does not depend differentiably on its input.
    """
    if not len(images):
        raise ValueError("images: got none, wanted at least 1")
    head = None if method is None else heads.find(method, tau=tau, eps=eps)
    rows = []
    with torch.no_grad(), evaluation(net):
        for part in range(0, len(images), chunk):
            given = (images,) if labels is None else (images, labels)
            x, *args = (near(net, tensor[part : part + chunk]) for tensor in given)
            rows.append(_chunk(net, x, tuple(args), head))
    return GradientNorms(*(torch.cat(column).cpu() for column in zip(*rows, strict=True)))


def quantiles(values: Tensor) -> dict[str, float]:
    """Least value, quartiles and largest value of (N,), under the names of `QUANTILES`."""
    places = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
    return dict(zip(QUANTILES, torch.quantile(values.double().cpu(), places).tolist(), strict=True))


def near(net: nn.Module, tensor: Tensor) -> Tensor:
    """The tensor where the network is; of a network without parameters, where the tensor is."""
    place = next(net.parameters(), tensor)
    return tensor.to(place.device)


@contextlib.contextmanager
def evaluation(net: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each submodule is in the mode that it had."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _chunk(net: nn.Module, x: Tensor, args: tuple[Tensor, ...], head: Head | None) -> list[Tensor]:
    """The fields of `GradientNorms`."""
    plan = trace(net, x, *args)
    impl = "reference" if plan.refusals else "auto"
    f, g = value_and_input_grad(net, x, *args, impl=impl)
    if f.numel() != len(x):
        raise ValueError(f"net: got an output of shape {tuple(f.shape)} for {len(x)} images, wanted one logit each")
    norm = heads.grad_norm(g)
    if head is None:
        normalized = f, norm
    elif plan.refusals or plan.takes_six:
        # The norm inside f̂ depends on x as well.
        normalized = normalize_gradient(net, x, *args, method=head, impl=impl, return_grad_norm=True)
    else:
        normalized = heads.apply_head(head, f, g), heads.normalized_grad_norm(head, f, g)
    return [value.detach().reshape(-1) for value in (f, norm, *normalized)]
