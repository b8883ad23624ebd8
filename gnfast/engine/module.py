"""Gradient normalisation as a module around a critic."""

from typing import Any, Literal, Protocol, overload

from torch import Tensor

from gnfast.engine import heads
from gnfast.engine.functional import Impl, Memory, normalize_gradient
from gnfast.engine.heads import Method
from gnfast.errors import InputError
from gnfast.interop.wrapper import M, Wrapper


class Call(Protocol):
    """How a `GradientNorm` is called, for type checkers: to them, calls of modules return anything."""

    @overload
    def __call__(self, x: Tensor, *args: Any, return_grad_norm: Literal[False] = ..., **kwargs: Any) -> Tensor: ...
    @overload
    def __call__(
        self, x: Tensor, *args: Any, return_grad_norm: Literal[True], **kwargs: Any
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(
        self, x: Tensor, *args: Any, return_grad_norm: bool, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]: ...


class GradientNorm(Wrapper[M]):
    """A critic that returns f̂, f / (‖∇ₓf‖ + |f|) by default, wherever it returned f.

    Equivalent to calling `normalize_gradient(net, x, ...)`. Its parameters and buffers have the names that they have in
    `net`, and its `state_dict` has these keys, so checkpoints of the plain and of the normalised critic are the same
    files. What shares gradients between processes goes around it: `DDP(GradientNorm(net))`,
    `fully_shard(GradientNorm(net))`. Delete a DDP before `destroy_process_group`, or PyTorch may hang there.

    Args:
        net: the critic, x (B, ...) ↦ one logit per sample; available as `.net`.
        method, tau, eps: the normaliser, as in `normalize_gradient`.
        impl: "auto" or "reference", as in `normalize_gradient`.
        strict: raise UnsupportedError instead of falling back to double backward.
        rewrite: merge operations where that is exact and cheaper.
        static: a promise that `net` does the same on every call, as in `normalize_gradient`.
        memory: "keep" or "low", as in `normalize_gradient`.
    """

    __call__: Call

    def __init__(
        self,
        net: M,
        *,
        method: Method = "gn",
        tau: float | None = None,
        eps: float | None = None,
        impl: Impl = "auto",
        strict: bool = False,
        rewrite: bool = True,
        static: bool = False,
        memory: Memory = "keep",
    ) -> None:
        super().__init__(net)
        if isinstance(net, GradientNorm):
            raise InputError("net: got a GradientNorm, which is normalised already, wanted a critic")
        heads.find(method, tau=tau, eps=eps)
        # In one attribute, so that they hide no members of `net`.
        self._options: dict[str, Any] = {"method": method, "tau": tau, "eps": eps, "impl": impl, "strict": strict}
        self._options |= {"rewrite": rewrite, "static": static, "memory": memory}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
        """f̂ of the shape that `net` returns; further arguments go to `net`, `return_grad_norm` to the function."""
        return normalize_gradient(self.net, x, *args, **self._options, **kwargs)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options.items() if value is not None)
