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
        rewrite: merge operations where that is exact and cheaper.
    """

    def __init__(self, net: nn.Module, *, impl: str = "auto", strict: bool = False, rewrite: bool = True) -> None:
        super().__init__()
        self.net = net
        self.impl = impl
        self.strict = strict
        self.rewrite = rewrite
        self.register_state_dict_post_hook(_without_net_prefix)
        self.register_load_state_dict_pre_hook(_with_net_prefix)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """f̂ of the shape that `net` returns; further arguments go to `net`."""
        options = {"impl": self.impl, "strict": self.strict, "rewrite": self.rewrite}
        return normalize_gradient(self.net, x, *args, **options, **kwargs)

    def extra_repr(self) -> str:
        return f"impl={self.impl!r}, strict={self.strict}, rewrite={self.rewrite}"


def _without_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    inner = f"{prefix}net."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)


def _with_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}net.{key[len(prefix) :]}"] = state.pop(key)
