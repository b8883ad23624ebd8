"""Gradient-normalised critics for GANs, exact and without double backward."""

import importlib
import sys
from typing import TYPE_CHECKING

from gnfast import start  # noqa: F401 - first: from here on Ctrl-C during the imports of a command is one line

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gnfast.public import *  # noqa: F403
    from gnfast.public import __all__ as __all__
else:
    # They are large, or need the packages of `gnfast[train]`.
    _PARTS = ("data", "losses", "measure", "metrics", "models", "train")

    def __getattr__(name: str) -> object:
        """What is asked for the first time. `gnfast --help` does without PyTorch, which takes a second or two."""
        if name in _PARTS:
            return importlib.import_module(f"gnfast.{name}")
        if name == "__all__" or not name.startswith("__"):
            globals().update({known: getattr(_public(), known) for known in ("__all__", *_public().__all__)})
        if name not in globals():
            raise AttributeError(f"module 'gnfast' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        return globals()[name]

    def __dir__() -> list[str]:
        return [*globals(), *_PARTS, *_public().__all__]

    def _public() -> object:
        return importlib.import_module("gnfast.public")
