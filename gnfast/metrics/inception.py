"""The Inception network of 2015-12-05 that FID, IS and KID are defined by, in plain PyTorch.

It is not the Inception-v3 of torchvision: average pooling leaves padding out of the mean, the last block pools by
maximum, and there are 1008 logits. Modules are named as in pytorch-fid's port, whose weights it loads.

Sources: Szegedy et al., "Rethinking the Inception architecture for computer vision" (2016); the graph
inception-2015-12-05 that Salimans et al. (2016) and Heusel et al. (2017) evaluated with.
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 2048
LOGITS = 1008


class Conv(nn.Module):
    """A convolution without bias, batch norm with running statistics, ReLU."""

    def __init__(
        self, channels: int, out: int, kernel: int | tuple[int, int] = 1, stride: int = 1, padding: str | int = "same"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu_()

    @torch.no_grad()
    def fold_(self) -> None:
        """Moves batch norm into the convolution's weight and bias: a tenth less time on a CPU."""
        conv, bn = self.conv, self.bn
        factor = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        conv.weight = nn.Parameter((conv.weight.double() * factor[:, None, None, None]).float(), False)
        conv.bias = nn.Parameter((bn.bias.double() - bn.running_mean.double() * factor).float(), False)
        self.bn = nn.Identity()


class Block(nn.Module):
    """Paths over the same input, side by side in the result's channels.

    Args:
        channels: of the input.
        paths: each a list of steps: a pooling function; a layer, its name and the arguments of `Conv` after the first;
            or a list of such layers, over the same input and side by side.
    """

    def __init__(self, channels: int, paths: list[list]) -> None:
        super().__init__()
        self.channels = 0
        self.paths = []
        for path in paths:
            width, steps = channels, []
            for step in path:
                if callable(step):
                    steps.append([step])
                    continue
                layers = step if isinstance(step, list) else [step]
                for name, *sizes in layers:
                    self.add_module(name, Conv(width, *sizes))
                steps.append([self.get_submodule(name) for name, *_ in layers])
                width = sum(out for _, out, *_ in layers)
            self.paths.append(steps)
            self.channels += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([reduce(_side_by_side, steps, x) for steps in self.paths], 1)


def _side_by_side(x: Tensor, functions: list[Callable[[Tensor], Tensor]]) -> Tensor:
    parts = [function(x) for function in functions]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Inception(nn.Module):
    """(N, 3, 299, 299) float32, about [-1, 1], to features (N, 2048) of the last pooling and logits (N, 1008).

    The logits are float64 and without the bias, as the score's original code leaves it out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, 1, 0)
        channels = 192
        for name, paths in _BLOCKS.items():
            block = Block(channels, paths)
            self.add_module(f"Mixed_{name}", block)
            channels = block.channels
        self.fc = nn.Linear(FEATURES, LOGITS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_shrink(x)))
        x = _shrink(x)
        for name in _BLOCKS:
            x = self.get_submodule(f"Mixed_{name}")(x)
        features = x.mean((2, 3))
        # In float64, where no setting of the process trades digits for speed.
        return features, features.double() @ self.fc.weight.double().T


def build_inception(state: Mapping[str, Tensor]) -> Inception:
    """The network with the weights of pytorch-fid's file, frozen.

    Args:
        state: parameter names to tensors.

    Raises:
        ValueError: a weight is missing, is of another shape, or is not this network's.
    """
    with torch.device("meta"):
        net = Inception()
    try:
        # A plain dict says nothing of batch norm's version, so that it may lack the counters of training steps.
        net.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"these are not the weights of the Inception network: {reason[:300]}") from error
    for module in net.modules():
        if isinstance(module, Conv):
            module.fold_()
    return net.float().requires_grad_(False).eval().to(memory_format=torch.channels_last)


_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_shrink = partial(F.max_pool2d, kernel_size=3, stride=2)


def _a(pooled: int) -> list[list]:
    return [
        [("branch1x1", 64)],
        [("branch5x5_1", 48), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        [_average, ("branch_pool", pooled)],
    ]


def _c(width: int) -> list[list]:
    double = [(f"branch7x7dbl_{i}", width, (7, 1) if i % 2 == 0 else (1, 7)) for i in (2, 3, 4)]
    return [
        [("branch1x1", 192)],
        [("branch7x7_1", width), ("branch7x7_2", width, (1, 7)), ("branch7x7_3", 192, (7, 1))],
        [("branch7x7dbl_1", width), *double, ("branch7x7dbl_5", 192, (1, 7))],
        [_average, ("branch_pool", 192)],
    ]


def _e(pool: Callable[[Tensor], Tensor]) -> list[list]:
    return [
        [("branch1x1", 320)],
        [("branch3x3_1", 384), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
        [
            ("branch3x3dbl_1", 448),
            ("branch3x3dbl_2", 384, 3),
            [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
        ],
        [pool, ("branch_pool", 192)],
    ]


_BLOCKS = {
    "5b": _a(32),
    "5c": _a(64),
    "5d": _a(64),
    "6a": [
        [("branch3x3", 384, 3, 2, 0)],
        [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2, 0)],
        [_shrink],
    ],
    "6b": _c(128),
    "6c": _c(160),
    "6d": _c(160),
    "6e": _c(192),
    "7a": [
        [("branch3x3_1", 192), ("branch3x3_2", 320, 3, 2, 0)],
        [
            ("branch7x7x3_1", 192),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2, 0),
        ],
        [_shrink],
    ],
    "7b": _e(_average),
    "7c": _e(_maximum),
}
