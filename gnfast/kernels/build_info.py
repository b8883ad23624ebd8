"""The compiled libraries: loading them, and saying how they were built.

`gnfast._C` declares the operators and implements them for the CPU; `gnfast._C_cuda` implements them for CUDA. Both are
optional: without them every operation runs as plain PyTorch.
"""

import importlib
import importlib.util
import warnings
from typing import Any

import torch

MODULES = {"cpp": "gnfast._C", "cuda": "gnfast._C_cuda"}

# library -> "loaded", or why it is not; filled by `load`, once per library and process.
_status: dict[str, str] = {}


def load(library: str) -> bool:
    """Whether "cpp" or "cuda" is usable; the first call loads it. Never raises: `why_not_loaded` has the reason.

    A library that is there but cannot be loaded (built against another torch, say) gives one `RuntimeWarning`.
    """
    if library not in _status:
        _status[library] = _load(library)
    return _status[library] == "loaded"


def why_not_loaded(library: str) -> str | None:
    """The reason why the library is not usable, or None if it is."""
    return None if load(library) else _status[library]


def _load(library: str) -> str:
    name = MODULES[library]
    if importlib.util.find_spec(name) is None:
        return "not built"
    if library == "cuda":
        if not load("cpp"):
            return f"{MODULES['cpp']}, which declares the operators, is unusable: {_status['cpp']}"
        if not torch.cuda.is_available():
            return "built, but no CUDA device is available"
    status = attempt(library)
    if status != "loaded":
        warnings.warn(f"{name} {status}; its operations run as plain PyTorch", RuntimeWarning, stacklevel=2)
    return status


def attempt(library: str) -> str:
    """Loads "cpp" or "cuda" whether or not a device is there: "loaded", or why it is not."""
    name = MODULES[library]
    if importlib.util.find_spec(name) is None:
        return "not built"
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        return f"cannot be loaded: {error}"
    return "loaded"


def build_info() -> dict[str, dict[str, Any]]:
    """How each library was built.

    Returns:
        "cpp" and "cuda", each with `status` ("loaded", or why not) and, where loaded, what the library reports: torch
        version at build time, compiler and instruction sets, or CUDA version and architectures.
    """
    info = {}
    for library, name in MODULES.items():
        loaded = load(library)
        info[library] = {"status": _status[library]}
        if loaded:
            info[library].update(importlib.import_module(name).build_info())
    return info
