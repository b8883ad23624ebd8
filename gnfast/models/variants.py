"""Variants of a critic: another activation in place of its own, and normalised features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "softplus-20": lambda: nn.Softplus(20),
}
"""Activations by name; GN-GAN's Fig. 4 compares ELU, ReLU and Softplus, log(1 + exp(βx))/β, for β = 1 and 20."""


class FeatureNorm(nn.Module):
    """Batch norm, or layer norm over all of a sample's features, with a bias for each channel and without a gain."""

    def __init__(self, kind: str, channels: int):
        super().__init__()
        self.norm = (
            nn.BatchNorm2d(channels, affine=False) if kind == "batch" else nn.GroupNorm(1, channels, affine=False)
        )
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same."""
        return self.norm(x) + self.bias[:, None, None]


def replace_activations_(critic: nn.Module, name: str) -> None:
    """Puts the activation of a name of `ACTIVATIONS` in the place of each ReLU and LeakyReLU."""
    for parent, key, _ in _activations(critic):
        setattr(parent, key, ACTIVATIONS[name]())


@torch.no_grad()
def normalise_features_(critic: nn.Module, kind: str, *example: Tensor) -> None:
    """Puts a `FeatureNorm` in front of each activation but the first: after each convolution of a CNN but the first.

    Source: the baselines "batch norm" and "layer norm" of Miyato et al., ICLR 2018, section 4.1, which leave out the
    gain. Where the norms stand is not said there: this is gnfast's choice.

    Args:
        critic: changed in place, before any parametrisation.
        kind: "batch" or "layer".
        example: its arguments for one sample, from which the channels are found.
    """
    places, channels = _activations(critic), {}
    # In the order in which they are called.
    seen = [module.register_forward_pre_hook(lambda m, x: channels.update({m: x[0].shape[1]})) for *_, module in places]
    critic(*example)
    for hook in seen:
        hook.remove()
    for parent, key, module in places:
        if module is not next(iter(channels)):
            setattr(parent, key, nn.Sequential(FeatureNorm(kind, channels[module]), module))


def _activations(critic: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Each activation with the module that it is in, and its name there."""
    return [
        (parent, key, module)
        for parent in critic.modules()
        for key, module in parent.named_children()
        if isinstance(module, tuple(type(make()) for make in ACTIVATIONS.values()))
    ]
