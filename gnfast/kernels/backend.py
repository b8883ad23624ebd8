"""Which implementation of an operation runs on which device.

Every operation has a folder here. `implementation` gives the file in it that does the work: `plain.py` (PyTorch's
operations), `operators.py` (the compiled libraries) or `triton.py`. All of a folder have the same functions.

`GNFAST_BACKEND` in the environment overrides the choice: `auto` (default), or the name of a backend, which then runs on
every device that it serves. It is read when gnfast is imported.
"""

import importlib
import importlib.util
import os
import shutil
from types import ModuleType
from typing import NamedTuple

import torch

from gnfast.kernels.build_info import load, why_not_loaded


class Operation(NamedTuple):
    """A folder's entry in `TABLE`."""

    names: tuple[str, ...]
    """What `backends` calls it."""
    preferred: dict[str, tuple[str, ...]]
    """Device type -> backends in order of preference; other devices use "torch"."""


# An operation without `plain.py` is computed by those who call it where its backend is "torch".
TABLE = {
    "sign_bits": Operation(
        ("leaky_relu_pack", "leaky_relu_mask"), {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}
    ),
    "join": Operation(("join",), {"cpu": ("torch",), "cuda": ("triton", "torch")}),
    "batch_norm": Operation(("batch_norm",), {"cpu": ("torch",), "cuda": ("triton", "torch")}),
    "curves": Operation(("curves",), {"cpu": ("cpp", "torch"), "cuda": ("triton", "torch")}),
    "head": Operation(("head",), {"cpu": ("cpp", "torch"), "cuda": ("triton", "torch")}),
    "operands": Operation(("operands",), {"cpu": ("torch",), "cuda": ("triton", "torch")}),
    "scaled_sums": Operation(("scaled_sums",), {"cpu": ("torch",), "cuda": ("triton", "torch")}),
    "loss": Operation(("loss",), {"cpu": ("torch",), "cuda": ("triton", "torch")}),
    "mlp": Operation(("mlp",), {"cpu": ("torch",), "cuda": ("triton", "torch")}),
    "spectral": Operation(("spectral_norm",), {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}),
    "draws": Operation(("draws",), {"cpu": ("torch",), "cuda": ("triton", "torch")}),
    "winograd": Operation(("winograd_conv2d",), {"cpu": ("cpp", "torch")}),
    "norms": Operation(("norms",), {"cpu": ("cpp", "torch"), "cuda": ("triton", "torch")}),
    # These two compete where the tuner is on.
    "conv": Operation(("conv2d",), {"cuda": ("torch", "triton")}),
}
FILES = {"torch": "plain", "cpp": "operators", "cuda": "operators", "triton": "triton"}

# (operation, device type) -> its backends that run here, and (operation, backend) -> module: filled at the first calls.
CHOSEN: dict[tuple[str, str], tuple[str, ...]] = {}
LOADED: dict[tuple[str, str], ModuleType | None] = {}


def implementation(operation: str, device_type: str, backend: str | None = None) -> ModuleType | None:
    """The module that computes an operation for tensors on such a device.

    Args:
        operation: a key of `TABLE`.
        device_type: "cpu", "cuda", ...
        backend: one of `choices`; the first of them if None.

    Returns:
        None where PyTorch's own operations serve and the folder has no `plain.py`.
    """
    key = operation, backend or choices(operation, device_type)[0]
    if key not in LOADED:
        name = f"gnfast.kernels.{operation}.{FILES[key[1]]}"
        LOADED[key] = importlib.import_module(name) if importlib.util.find_spec(name) else None
    return LOADED[key]


def choices(operation: str, device_type: str) -> tuple[str, ...]:
    """The backends among which a measurement may choose, the one to use without a measurement first."""
    key = operation, device_type
    if key not in CHOSEN:
        preferred = TABLE[operation].preferred.get(device_type, ("torch",))
        available = tuple(backend for backend in preferred if _unavailable(backend) is None)
        CHOSEN[key] = (REQUEST,) if REQUEST in preferred else available
    return CHOSEN[key]


def backends() -> dict[str, dict[str, str]]:
    """Operation -> device type -> the backend in use there."""
    return {
        name: {device: choices(operation, device)[0] for device in entry.preferred}
        for operation, entry in TABLE.items()
        for name in entry.names
    }


def prepare() -> None:
    """Loads what code under torch.compile may call, which is to find constants, and what tells it of the operators."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for operation, entry in TABLE.items():
        if "cpp" in entry.preferred.get("cpu", ()):
            if load("cpp"):
                implementation(operation, "cpu", "cpp")
            for device_type in devices:
                implementation(operation, device_type)


def _requested() -> str:
    """The value of `GNFAST_BACKEND`.

    Raises:
        ValueError: it names no backend.
        RuntimeError: it names one that cannot run here.
    """
    request = os.environ.get("GNFAST_BACKEND") or "auto"
    if request not in ("auto", *FILES):
        raise ValueError(f"GNFAST_BACKEND: got {request!r}, wanted auto, {', '.join(FILES)}")
    if request != "auto" and (reason := _unavailable(request)):
        raise RuntimeError(f"GNFAST_BACKEND={request}, but that backend is unavailable: {reason}")
    return request


def _unavailable(backend: str) -> str | None:
    """Why the backend cannot run here, or None."""
    if backend == "torch":
        return None
    if backend != "triton":
        return why_not_loaded(backend)
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton compiles its launchers with gcc or clang, and neither was found"
    return None


REQUEST = _requested()
