"""Plain convolutional critics of a given depth, for analyses and ablations."""

from collections.abc import Callable

from torch import Tensor, nn

from gnfast.models import small
from gnfast.models.initialise import initialise_

STAGES = (64, 128, 256)

ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "relu": lambda beta: nn.ReLU(),
    "leaky-relu": lambda beta: nn.LeakyReLU(0.1),
    "elu": lambda beta: nn.ELU(),
    "softplus": lambda beta: nn.Softplus(beta),
}
"""Activations by name, from a sharpness β, which only softplus uses: log(1 + exp(βx))/β, the ReLU as β grows."""


class LayeredCritic(nn.Module):
    """Images to one logit each: n convolutions in three stages, each followed by the activation, and a linear layer.

    Every stage ends with a 4x4 stride-2 convolution that doubles its width; the others are 3x3. The stages get n/3
    convolutions each, the earlier ones one more where 3 does not divide n. Source: the critics of 3, 5 and 7 layers in
    the code of Faster GN-GAN (there with LeakyReLU 0.1), initialised from N(0, 0.02).

    Args:
        resolution: side of the images in pixels, a multiple of 8.
        channels: image channels.
        layers: n, at least 3.
        stages: width of the 3x3 convolutions of each stage.
        activation: called once per convolution, returns the activation after it.
    """

    def __init__(
        self,
        resolution: int,
        channels: int,
        layers: int,
        stages: tuple[int, ...],
        activation: Callable[[], nn.Module],
    ):
        super().__init__()
        modules: list[nn.Module] = []
        last = channels
        for index, width in enumerate(stages):
            depth = layers // len(stages) + (index < layers % len(stages))
            for _ in range(depth - 1):
                modules += [nn.Conv2d(last, width, 3, 1, 1), activation()]
                last = width
            modules += [nn.Conv2d(last, 2 * width, 4, 2, 1), activation()]
            last = 2 * width
        self.main = nn.Sequential(*modules)
        self.linear = nn.Linear(last * (resolution >> len(stages)) ** 2, 1)
        initialise_(self, "normal")

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, resolution, resolution) to (B, 1)."""
        return self.linear(self.main(x).flatten(1))


def layered_critic(
    resolution: int = 32,
    channels: int = 3,
    layers: int = 3,
    width: float = 1.0,
    activation: str = "relu",
    beta: float = 1.0,
) -> LayeredCritic:
    """A `LayeredCritic` of n convolutions; GN-GAN's Fig. 3 compares 3, 6 and 9.

    Args:
        resolution: side of the images in pixels, a multiple of 8.
        channels: image channels.
        layers: n, at least 3.
        width: factor on the channel counts (rounded, at least 1); 1.0 is the code's 64 to 512.
        activation: "relu" or "leaky-relu" (slope 0.1), which gnfast computes in four passes; "elu" or "softplus",
            which have curvature and go through double backward.
        beta: sharpness of softplus, log(1 + exp(βx))/β; the others ignore it.

    Raises:
        ValueError: another value than these.
    """
    if resolution < 8 or resolution % 8:
        raise ValueError(f"resolution: got {resolution}, wanted a multiple of 8")
    if layers < len(STAGES):
        raise ValueError(f"layers: got {layers}, wanted at least {len(STAGES)}")
    if not width > 0:
        raise ValueError(f"width: got {width}, wanted a positive factor")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, wanted one of {', '.join(ACTIVATIONS)}")
    if not beta > 0:
        raise ValueError(f"beta: got {beta}, wanted a positive number")
    stages = tuple(max(1, round(w * width)) for w in STAGES)
    return LayeredCritic(resolution, channels, layers, stages, lambda: ACTIVATIONS[activation](beta))


LAYERED = {
    "layered-3": (3, "relu", 1.0),
    "layered-6": (6, "relu", 1.0),
    "layered-9": (9, "relu", 1.0),
    "layered-3-elu": (3, "elu", 1.0),
    "layered-3-softplus-1": (3, "softplus", 1.0),
    "layered-3-softplus-20": (3, "softplus", 20.0),
}
"""Names of pairs to a layered critic's depth, activation and β."""


def build_layered(
    layers: int, activation: str, beta: float, resolution: int, channels: int, z_dim: int, width: float
) -> tuple[nn.Module, nn.Module]:
    """The small generator, with a layered critic that is as wide as the small one; see `gnfast.models.build`."""
    generator, _ = small.build(resolution, channels, z_dim, width)
    # Its first layer has half of the 64 channels.
    return generator, layered_critic(resolution, channels, layers, width / 2, activation, beta)
