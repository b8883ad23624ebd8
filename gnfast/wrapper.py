"""A module around a module that does not show in its `state_dict`."""

from typing import Any

from torch import nn


class Wrapper(nn.Module):
    """Holds `net`; its `state_dict` has the keys of `net`, so checkpoints with and without the wrapper are the same."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_state_dict_post_hook(_without_net_prefix)
        self.register_load_state_dict_pre_hook(_with_net_prefix)


def _without_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    inner = f"{prefix}net."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)


def _with_net_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}net.{key[len(prefix) :]}"] = state.pop(key)
