"""The compiled libraries: loading them, and saying how they were built.

`gnfast._C` declares the operators and implements them for the CPU; `gnfast._C_cuda` implements them for CUDA. Both are
optional: without them every operation runs as plain PyTorch.
"""

import functools
import importlib
import sys
import warnings
from importlib.machinery import PathFinder
from typing import Any

import torch

MODULES = {"cpp": "gnfast._C", "cuda": "gnfast._C_cuda"}
INTERFACE = "ecff0229a3b4"
"""Which operators and functions they have, as in csrc/interface.h: those of an older checkout have others."""


def load(library: str) -> bool:
    """Whether "cpp" or "cuda" is usable; the first call loads it. Never raises: `why_not_loaded` has the reason."""
    return why_not_loaded(library) is None


@functools.cache
def why_not_loaded(library: str) -> str | None:
    """The reason why the library is not usable, or None if it is; the first call loads it.

    A library that is there but cannot be used (built against another torch, or from other sources) gives one
    `RuntimeWarning`.
    """
    name = MODULES[library]
    if library == "cuda" and _is_here(name):
        if reason := why_not_loaded("cpp"):
            return f"{MODULES['cpp']}, which declares the operators, is unusable: {reason}"
        if not torch.cuda.is_available():
            return "built, but no CUDA device is available"
    status = attempt(library)
    if status not in ("loaded", "not built"):
        warnings.warn(f"{name} {status}; its operations run as plain PyTorch", RuntimeWarning, stacklevel=2)
    return None if status == "loaded" else status


def attempt(library: str) -> str:
    """Loads "cpp" or "cuda" whether or not a device is there: "loaded", or why it is not."""
    name = MODULES[library]
    if not _is_here(name):
        return "not built"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        return f"cannot be loaded: {error}"
    if module.build_info().get("interface") != INTERFACE:
        return "was built from other sources: build it again, by `make build` or pip install --no-build-isolation -e ."
    return "loaded"


def _is_here(name: str) -> bool:
    """Whether the library is in gnfast's own folder: an editable install of another checkout would offer its own."""
    package = name.rpartition(".")[0]
    return PathFinder.find_spec(name, sys.modules[package].__path__ if package else None) is not None


def build_info() -> dict[str, dict[str, Any]]:
    """How each library was built.

    Returns:
        "cpp" and "cuda", each with `status` ("loaded", or why not) and, where loaded, what the library reports: torch
        version at build time, compiler and instruction sets, or CUDA version and architectures.
    """
    info = {}
    for library, name in MODULES.items():
        info[library] = {"status": why_not_loaded(library) or "loaded"}
        if load(library):
            info[library].update(importlib.import_module(name).build_info())
    return info
