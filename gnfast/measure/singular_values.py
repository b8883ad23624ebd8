"""Singular values of a critic's layers: raw and normalised weights as matrices, and the convolutions as operators.

Source: the spectra of SN-GAN (Miyato et al., ICLR 2018, figs. 3 and 9).
"""

import contextlib
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gnfast.measure.convolution_operator import circular_singular_values, operator_norm
from gnfast.measure.gradient_norms import evaluation
from gnfast.measure.lanczos import largest_singular_value
from gnfast.spectral.layer import TRANSPOSED

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class LayerSpectrum:
    """The singular values of one layer.

    Attributes:
        layer: its name in the critic.
        kind: "linear" or "convolution".
        raw: (min(rows, columns),) of the parameter as a matrix with one row per output channel, largest first.
        normalized: the same of the weight that the layer applies; `raw` again where no parametrisation acts.
        circular: the largest of the convolution as an operator on a map that wraps around; None unless it is
            two-dimensional with stride 1.
        operator: the largest of the layer as it acts on its input, zero padding and stride included.
    """

    layer: str
    kind: str
    raw: Tensor
    normalized: Tensor
    circular: float | None
    operator: float


def layer_spectra(net: nn.Module, image: Tensor, *args: Tensor, steps: int = 100) -> list[LayerSpectrum]:
    """The spectra of every convolution and linear layer that a forward meets, in the order of the forward.

    Args:
        net: the critic; left as it was.
        image: (1, ...) in the network's dtype, on its device; what sizes the layers work at is read from its forward.
        args: further arguments of the critic, the label (1,) of a class-conditional one.
        steps: at most so many applications of each operator and of its adjoint.

    Raises:
        ValueError: the critic has no such layer.
    """
    spectra = []
    with torch.no_grad(), evaluation(net):
        for name, (layer, shape, _) in layers_met(net, image, *args).items():
            weight = layer.weight.detach()
            circular = None
            if isinstance(layer, nn.Conv2d) and layer.stride == layer.dilation == (1, 1) and layer.groups == 1:
                circular = float(circular_singular_values(weight.double(), shape[-2:])[0])
            kind = "linear" if isinstance(layer, nn.Linear) else "convolution"
            own = _raw_weight(layer)
            raw = _spectrum(layer, own)
            normalized = raw if own is layer.weight else _spectrum(layer, weight)
            operator = operator_norm(layer, shape, steps=steps)
            spectra.append(LayerSpectrum(name, kind, raw, normalized, circular, operator))
    return spectra


@torch.no_grad()
def layer_sigmas(net: nn.Module) -> dict[str, tuple[float, float | None]]:
    """The largest singular value of each layer's weight as a matrix, to about 1e-4 of itself, from below.

    Returns:
        Name to that of the parameter, and that of the weight that the layer applies where a parametrisation acts; NaN
        of a weight whose square is not finite, as those of a run that diverges. The critic is left as it was.
    """
    found = {}
    with evaluation(net):
        for name, layer in net.named_modules():
            if isinstance(layer, LAYERS):
                is_plain = not parametrize.is_parametrized(layer, "weight")
                found[name] = _sigma(layer, _raw_weight(layer)), None if is_plain else _sigma(layer, layer.weight)
    return found


def _raw_weight(layer: nn.Module) -> Tensor:
    """The parameter behind a parametrised weight; of weight norm, which has two, the direction."""
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight
    held = layer.parametrizations.weight
    return held.original if held.is_tensor else held.original1


def _as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as (out, in · kernel size), without a graph."""
    rows = weight.transpose(0, 1) if isinstance(layer, TRANSPOSED) else weight
    return rows.detach().flatten(1)


def _sigma(layer: nn.Module, weight: Tensor) -> float:
    matrix = _as_matrix(layer, weight).float()
    start = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0)).to(matrix.device)
    try:
        return largest_singular_value(lambda v: matrix @ v, lambda u: matrix.T @ u, start, tol=1e-4, steps=20)[0]
    except torch.linalg.LinAlgError:
        return math.nan


def _spectrum(layer: nn.Module, weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(_as_matrix(layer, weight).double()).cpu()


def layers_met(net: nn.Module, x: Tensor, *args: Tensor) -> dict[str, tuple[nn.Module, tuple[int, ...], Tensor]]:
    """The convolution and linear layers that a forward meets: name to layer, input shape (without batch) and output.

    They come in the order of the forward; of a layer that is met more than once, the last time counts.

    Raises:
        ValueError: there is none.
    """
    met = {}

    def keep(name: str, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # A copy, for an in-place activation after the layer would change it.
        met[name] = layer, tuple(args[0].shape[1:]), output.clone()

    with contextlib.ExitStack() as hooks:
        for name, layer in net.named_modules():
            if isinstance(layer, LAYERS):
                hooks.callback(layer.register_forward_hook(partial(keep, name)).remove)
        net(x, *args)
    if not met:
        raise ValueError(f"net: {type(net).__name__} has no convolution or linear layer")
    return met
