"""PyTorch's second names of functions: recorded as what they are, under the name that the user has written."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# second name: first, of torch's functions and Tensor's methods; in place too.
_NAMES = {
    **{f"arc{name}": f"a{name}" for name in ("cos", "cosh", "sin", "sinh", "tan", "tan2", "tanh")},
    "absolute": "abs",
    "negative": "neg",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "row_stack": "vstack",
    "moveaxis": "movedim",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "ravel": "flatten",
    "unsafe_chunk": "chunk",
    "unsafe_split": "split",
    "unsafe_split_with_sizes": "split_with_sizes",
}
_SPECIAL = ("erf", "exp2", "expm1", "log1p", "log_softmax", "logsumexp", "round", "sinc", "softmax")
_OF_TORCH = (
    *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "threshold"),
    *("alpha_dropout", "feature_alpha_dropout"),
)
_OF_NN = (
    *("adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "pad"),
    *("glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu6", "silu"),
)

ALIASES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.special.expit: torch.sigmoid,
    torch.linalg.matmul: torch.matmul,
    torch.adaptive_max_pool1d: F.adaptive_max_pool1d_with_indices,
    torch.native_channel_shuffle: F.channel_shuffle,
    torch._C._nn.adaptive_max_pool2d: F.adaptive_max_pool2d_with_indices,
    torch._C._nn.adaptive_max_pool3d: F.adaptive_max_pool3d_with_indices,
    **{getattr(torch.special, name): getattr(torch, name) for name in _SPECIAL},
    **{getattr(torch, name): getattr(F, name) for name in _OF_TORCH},
    **{getattr(torch._C._nn, name): getattr(F, name) for name in _OF_NN},
}
"""function: the same by its first name, which is recorded or has a twin that is."""

for _owner in (torch, Tensor):
    for _second, _first in _NAMES.items():
        for _suffix in ("", "_"):
            if hasattr(_owner, _second + _suffix) and hasattr(_owner, _first + _suffix):
                ALIASES[getattr(_owner, _second + _suffix)] = getattr(_owner, _first + _suffix)
