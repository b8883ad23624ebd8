"""A row of the tables of critics, and layers that several families have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def labels(count: int) -> Tensor:
    """Class labels out of 5, one class twice."""
    return torch.tensor([3, 0, 3, 1, 4, 2])[:count]


def one_hot(count: int) -> Tensor:
    return F.one_hot(labels(count), 5).double()


class Critic(NamedTuple):
    """A small critic in the manner of a published one."""

    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Of x."""
    beside: Callable[[int], Any] | None = None
    """Makes the network's further argument, for so many samples."""
    training: bool = False
    idle: tuple[str, ...] = ()
    """How the names of parameters begin that f does not depend on: heads beside it, biases before a norm."""

    def make(self) -> tuple[nn.Module, Tensor, tuple[Any, ...]]:
        """The network, x, and the network's further arguments; all in float64."""
        net = seasoned(self.net()).train(self.training)
        return net, noise(*self.shape), (self.beside(self.shape[0]),) if self.beside else ()


def seasoned(net: nn.Module) -> nn.Module:
    """The network in float64, with biases, gains and running statistics that are not 0 and 1."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() <= 1:
                parameter += 0.3 * torch.randn_like(parameter)
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
    return net.double()


def spectrally_normalised(net: nn.Module) -> nn.Module:
    """Puts spectral norm on every weight of the network."""
    for module in list(net.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            spectral_norm(module)
    return net


class Residual(nn.Module):
    """h + f(h)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class DownBlock(nn.Module):
    """Two 3x3 convolutions with an activation before each, mean pooling, and a 1x1 shortcut."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        activation: Callable[[Tensor], Tensor] = F.relu,
        down: bool = True,
        norm: Callable[[int], nn.Module] = lambda channels: nn.Identity(),
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(channels_in), norm(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)
        self.activation, self.down = activation, down

    def forward(self, h: Tensor) -> Tensor:
        main = self.conv1(self.activation(self.norm1(h)))
        main = self.conv2(self.activation(self.norm2(main)))
        total = main + self.shortcut(h)
        return F.avg_pool2d(total, 2) if self.down else total


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h, *self.args, **self.kwargs)


def pixel_norm(h: Tensor) -> Tensor:
    """Each place's channels scaled to a mean square of 1 (Karras et al., 2018)."""
    return h * torch.rsqrt(torch.mean(h**2, dim=1, keepdim=True) + 1e-8)
