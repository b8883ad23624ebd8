"""Gradient normalisation as a module around a critic."""

from typing import Any

from torch import Tensor, nn

from gnfast import heads
from gnfast.function import normalize_gradient
from gnfast.heads import Method


class GradientNorm(nn.Module):
    """A critic that returns f̂, f / (‖∇ₓf‖ + |f|) by default, wherever it returned f.

    Equivalent to calling `normalize_gradient(net, x, ...)`. Its `state_dict` has the keys of `net`, so checkpoints of
    the plain and of the normalised critic are the same files. With DistributedDataParallel, wrap the GradientNorm:
    `DDP(GradientNorm(net))`.

    Args:
        net: the critic, x (B, ...) ↦ one logit per sample; available as `.net`.
        method, tau, eps: the normaliser, as in `normalize_gradient`.
        impl: "auto" or "reference", as in `normalize_gradient`.
        strict: raise UnsupportedError instead of falling back to double backward.
        rewrite: merge operations where that is exact and cheaper.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        method: Method = "gn",
        tau: float | None = None,
        eps: float | None = None,
        impl: str = "auto",
        strict: bool = False,
        rewrite: bool = True,
    ) -> None:
        super().__init__()
        heads.find(method, tau=tau, eps=eps)
        self.net = net
        self.method = method
        self.tau = tau
        self.eps = eps
        self.impl = impl
        self.strict = strict
        self.rewrite = rewrite
        self.register_state_dict_post_hook(_without_net_prefix)
        self.register_load_state_dict_pre_hook(_with_net_prefix)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """f̂ of the shape that `net` returns; further arguments go to `net`, `return_grad_norm` to the function."""
        return normalize_gradient(self.net, x, *args, **self._options(), **kwargs)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items() if value is not None)

    def _options(self) -> dict[str, Any]:
        names = ("method", "tau", "eps", "impl", "strict", "rewrite")
        return {name: getattr(self, name) for name in names}


def _without_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    inner = f"{prefix}net."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)


def _with_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}net.{key[len(prefix) :]}"] = state.pop(key)
