"""The arguments of `models.build` among the settings of a run, and whether there are such networks."""

from functools import lru_cache
from typing import Any

import torch

from gnfast import models
from gnfast.config.config import Config, option

_ARGUMENTS = ("resolution", "channels", "z_dim", "width", "classes", "width_g", "width_d", "last_width")
_ARGUMENTS += ("activation", "norm_d")


def arguments(config: Config) -> dict[str, Any]:
    """What `models.build` is called with, besides the name."""
    return {name: getattr(config, name) for name in _ARGUMENTS}


def require_networks(config: Config) -> None:
    """That there are networks as the settings describe them; takes no memory.

    Raises:
        ValueError: there are none; the message begins with the option.
    """
    if reason := _refused(config.model, **arguments(config)):
        raise ValueError(reason)


# The runs of a sweep have most often the same.
@lru_cache(1024)
def _refused(model: str, **arguments: Any) -> str:
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            models.build(model, **arguments)
    except ValueError as error:
        name, colon, rest = str(error).partition(": ")
        return f"{option(name)}: {rest}" if colon and name in _ARGUMENTS else str(error)
    return ""
