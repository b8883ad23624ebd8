"""A module around a module that does not show in the names of parameters, buffers and submodules."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Wrapper(nn.Module, Generic[M]):
    """Holds `net` as an ordinary child, and leaves its name out of every other.

    Moving, training mode, hooks, copies and replicas go through it as through any child. Names are those of `net` where
    PyTorch makes them (`state_dict`, `named_parameters`, `named_buffers`, `named_modules`) and where it looks them up
    (`load_state_dict`, attributes, `torch.func.functional_call`, `torch.distributed.checkpoint`), so checkpoints with
    and without the wrapper are the same. PyTorch's own wrapper for activation checkpoints does the same. Renaming the
    keys of the `state_dict` alone would not be enough: others follow them as paths.

    One path is the wrapper's own: `.net` is what is wrapped, also where that has a member called net, which
    `functional_call` then wants to be called "net.net".
    """

    net: M

    def __init__(self, net: M) -> None:
        super().__init__()
        self.net = net
        self.register_state_dict_post_hook(_without_net_prefix)
        self.register_load_state_dict_pre_hook(_with_net_prefix)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As of any module; the wrapper and what it wraps have the same name."""
        memo = set() if memo is None else memo
        if self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self
            yield from self.net.named_modules(memo, prefix, remove_duplicate)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            # Before `net` is there (in copies, in pickles) there is nothing to look into.
            net = self.__dict__.get("_modules", {}).get("net")
            member = getattr(net, name, None)
            if isinstance(member, Tensor | nn.Module):
                return member
            if member is not None and not name.startswith("_"):
                error.add_note(f"What the {type(self).__name__} is around has it: .net.{name}")
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        # As functional_call puts tensors in the place of parameters and buffers.
        if isinstance(value, Tensor):
            for registry in (self._innermost._parameters, self._innermost._buffers):
                if name in registry:
                    registry[name] = value
                    return
        super().__setattr__(name, value)

    @property
    def _innermost(self) -> nn.Module:
        return self.net._innermost if isinstance(self.net, Wrapper) else self.net

    def _fqn_modifiers(self) -> dict[str, str]:
        """For torch.distributed.checkpoint: through which attribute every path leads on; `net` stands for no part."""
        inner = self._innermost
        names = (*inner._modules, *inner._parameters, *inner._buffers)
        return {"": "net", **dict.fromkeys(names, "_innermost")}


def _without_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    inner = f"{prefix}net."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)


def _with_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}net.{key[len(prefix) :]}"] = state.pop(key)
