"""What `module:name` names in a user's own code."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from gnfast.errors import nearest


def load_object(spec: str, argument: str, wanted: str = "module:Class or file.py:Class") -> Any:
    """Imports a class, a function or a module's value; the module may lie in the current folder.

    Args:
        spec: "module:name" or "file.py:name".
        argument: what error messages begin with, as `--net`.
        wanted: what they say should have come.

    Raises:
        ValueError: it is not of that form, no file, or cannot be imported.
    """
    module, _, name = spec.rpartition(":")
    if not module or not name:
        raise ValueError(f"{argument}: got {spec!r}, wanted {wanted}")
    folder = os.getcwd()
    if module.endswith(".py"):
        path = Path(module).expanduser().absolute()
        if not path.is_file():
            raise ValueError(f"{argument}: {module} is not a file")
        folder, module = str(path.parent), path.stem
    if folder not in sys.path:
        # As `python -m` does it; installed commands begin with their own folder.
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{argument}: {spec} cannot be imported ({error}){_advice(module, error)}") from error
    if not hasattr(found, name):
        own = _named_in(found)
        raise ValueError(f"{argument}: {module} has no {name}" + (f"; {nearest(name, own)}" if own else ""))
    return getattr(found, name)


def _advice(module: str, error: Exception) -> str:
    """What to do about a module that cannot be imported; nothing if that is its own fault."""
    parts = module.split(".")
    packages = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return "; is its folder on PYTHONPATH?" if getattr(error, "name", None) in packages else ""


def _named_in(module: ModuleType) -> list[str]:
    """What can be called of a module's own, or all that can be if nothing is its own."""
    public = {name: value for name, value in vars(module).items() if name[0] != "_" and callable(value)}
    own = [name for name, value in public.items() if getattr(value, "__module__", "") == module.__name__]
    return own or [*public]
