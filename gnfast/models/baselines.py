"""Weight normalisation of a whole network, a baseline of the SN-GAN paper."""

from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from gnfast.spectral import LAYERS
from gnfast.spectral.layer import TRANSPOSED


def weight_norm_(net: nn.Module) -> nn.Module:
    """PyTorch's `weight_norm` on the weight of every convolution, transposed convolution, linear and embedding.

    Each becomes w = g·v/‖v‖ per output channel, with g and v trained and w unchanged at first. Source: Salimans and
    Kingma, 2016; a baseline in Miyato et al., ICLR 2018.

    Args:
        net: changed in place.

    Returns:
        the network.

    Raises:
        ValueError: no such layer.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, LAYERS)]
    if not layers:
        raise ValueError(f"net: {type(net).__name__} has no convolution, linear or embedding to normalise")
    for layer in layers:
        # The second dimension of a transposed convolution's weight holds the outputs.
        weight_norm(layer, dim=int(isinstance(layer, TRANSPOSED)))
    return net
