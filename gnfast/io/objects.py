"""What `module:name` names in a user's own code."""

import importlib
import os
import sys
from typing import Any


def load_object(spec: str, argument: str, wanted: str = "module:Class") -> Any:
    """Imports a class, a function or a module's value; the module may lie in the current folder.

    Args:
        spec: "module:name".
        argument: what error messages begin with, as `--net`.
        wanted: what they say should have come.

    Raises:
        ValueError: it is not of that form, or cannot be imported.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ValueError(f"{argument}: got {spec!r}, wanted {wanted}")
    if os.getcwd() not in sys.path:
        # As `python -m` does it; installed commands begin with their own folder.
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{argument}: {spec} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
