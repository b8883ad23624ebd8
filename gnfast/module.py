"""Gradient normalisation as a module around a critic."""

from typing import Any

from torch import Tensor, nn

from gnfast.function import normalize_gradient


class GradientNorm(nn.Module):
    """A critic that returns f̂ = f / (‖∇ₓf‖ + |f|) wherever it returned f.

    Equivalent to calling `normalize_gradient(net, x, ...)`. Its `state_dict` has the keys of `net`, so checkpoints of
    the plain and of the normalised critic are the same files. With DistributedDataParallel, wrap the GradientNorm:
    `DDP(GradientNorm(net))`.

    Args:
        net: the critic, x (B, ...) ↦ one logit per sample; available as `.net`.
        impl: "auto" or "reference", as in `normalize_gradient`.
        strict: raise UnsupportedError instead of falling back to double backward.
    """

    def __init__(self, net: nn.Module, *, impl: str = "auto", strict: bool = False) -> None:
        super().__init__()
        self.net = net
        self.impl = impl
        self.strict = strict
        self.register_state_dict_post_hook(_without_net_prefix)
        self.register_load_state_dict_pre_hook(_with_net_prefix)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """f̂ of the shape that `net` returns; further arguments go to `net`."""
        return normalize_gradient(self.net, x, *args, impl=self.impl, strict=self.strict, **kwargs)

    def extra_repr(self) -> str:
        return f"impl={self.impl!r}, strict={self.strict}"


def _without_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    inner = f"{prefix}net."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)


def _with_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}net.{key[len(prefix) :]}"] = state.pop(key)
