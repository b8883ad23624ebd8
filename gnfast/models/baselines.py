"""What SN-GAN compares itself with: weights that are normalised, clipped or held near orthonormal, in a whole network.

Source: Miyato et al., ICLR 2018, section 3 and appendices D to F.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gnfast.kernels.spectral.plain import as_matrix
from gnfast.spectral import LAYERS
from gnfast.spectral.layer import TRANSPOSED


class WeightNorm(nn.Module):
    """The parametrization W ↦ γ W/‖W‖, with a norm for each index outside `dims`; 0 where ‖W‖ = 0.

    A value that is assigned becomes W. With `learn_scale`, a parameter `gamma` has a number for each norm, 1 at first.
    """

    def __init__(self, weight: Tensor, dims: tuple[int, ...], learn_scale: bool) -> None:
        super().__init__()
        self.dims = dims
        shape = [1 if dim in dims else size for dim, size in enumerate(weight.shape)]
        self.gamma = nn.Parameter(weight.new_ones(shape)) if learn_scale else None

    def forward(self, weight: Tensor) -> Tensor:
        unit = F.normalize(weight, dim=self.dims)
        return unit if self.gamma is None else self.gamma * unit

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def weight_norm_(
    net: nn.Module, kind: Literal["unit", "learned", "frobenius"] = "learned", learn_scale: bool = False
) -> nn.Module:
    """Normalises the weight of every convolution, transposed convolution, linear and embedding.

    Args:
        net: changed in place.
        kind: "unit" gives every row (output channel) norm 1 (SN-GAN, eq. 25), "frobenius" every weight Frobenius norm 1
            (eq. 26). "learned" is PyTorch's `weight_norm`, rows w = g·v/‖v‖ with g and v trained and w unchanged at
            first (Salimans and Kingma, 2016).
        learn_scale: a learned factor γ on what "unit" and "frobenius" give, one for each row or one for the weight, 1
            at first (SN-GAN, eq. 32).

    Returns:
        the network.

    Raises:
        ValueError: no such layer or kind, or `learn_scale` for "learned", which has a scale.
    """
    if kind not in ("unit", "learned", "frobenius"):
        raise ValueError(f"kind: got {kind!r}, wanted one of unit, learned, frobenius")
    if kind == "learned" and learn_scale:
        raise ValueError("learn_scale: got True, wanted False with kind 'learned', which has a scale")
    layers = [layer for layer in net.modules() if isinstance(layer, LAYERS)]
    if not layers:
        raise ValueError(f"net: {type(net).__name__} has no convolution, linear or embedding to normalise")
    for layer in layers:
        rows, ndim = _rows(layer), layer.weight.ndim
        if kind == "learned":
            parametrizations.weight_norm(layer, dim=rows)
        else:
            dims = tuple(dim for dim in range(ndim) if kind == "frobenius" or dim != rows)
            parametrize.register_parametrization(layer, "weight", WeightNorm(layer.weight, dims, learn_scale))
    return net


@torch.no_grad()
def clip_weights_(net: nn.Module, limit: float) -> nn.Module:
    """Clips the weights of convolutions and linear layers to [-limit, limit]; biases stay (SN-GAN, section 4.1).

    Raises:
        ValueError: such a weight is parametrised.
    """
    for layer in _layers(net):
        layer.weight.clamp_(-limit, limit)
    return net


def orthonormality(net: nn.Module) -> Tensor:
    """Σ ‖WᵀW − I‖²_F over the weights W (out, in · kernel size) of convolutions and linear layers (SN-GAN, eq. 14).

    Where W has fewer rows than columns, WᵀW cannot be I: the sum is then at least the number of columns less rows.

    Returns:
        () of the weights' dtype, differentiable any number of times.

    Raises:
        ValueError: no such layer, or its weight is parametrised.
    """
    return torch.stack([_gap(as_matrix(layer.weight, _rows(layer))) for layer in _layers(net)]).sum()


def _gap(matrix: Tensor) -> Tensor:
    """‖WᵀW − I‖²_F, by the smaller of the two Gram matrices: both have the same eigenvalues other than 0."""
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum() + max(columns - rows, 0)


def _layers(net: nn.Module) -> list[nn.Module]:
    """Its convolutions and linear layers, all with weights of their own."""
    layers = [layer for layer in net.modules() if isinstance(layer, LAYERS) and not isinstance(layer, nn.Embedding)]
    if not layers:
        raise ValueError(f"net: {type(net).__name__} has no convolution or linear layer")
    if any(parametrize.is_parametrized(layer, "weight") for layer in layers):
        raise ValueError("net: got parametrised weights, wanted weights that are parameters")
    return layers


def _rows(layer: nn.Module) -> int:
    """The dimension of the outputs in its weight."""
    return int(isinstance(layer, TRANSPOSED))
