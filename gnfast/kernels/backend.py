"""Which implementation of an operation runs on which device.

`GNFAST_BACKEND` in the environment overrides the choice: `auto` (default), or the name of a backend, which then runs on
every device that it serves. It is read when gnfast is imported.
"""

import importlib.util
import os
import shutil

import torch

from gnfast.kernels.build_info import why_not_loaded

# operation -> device type -> backends in order of preference; devices that are not listed use "torch".
TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "leaky_relu_pack": {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")},
    "leaky_relu_mask": {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")},
    "join": {"cpu": ("torch",), "cuda": ("triton", "torch")},
    "head": {"cpu": ("torch",), "cuda": ("triton", "torch")},
    "mlp": {"cpu": ("torch",), "cuda": ("triton", "torch")},
    "spectral_norm": {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")},
    "winograd_conv2d": {"cpu": ("cpp", "torch")},
    "conv2d": {"cuda": ("torch", "triton")},
}
BACKENDS = ("torch", "cpp", "cuda", "triton")


def requested_backend() -> str:
    """The value of `GNFAST_BACKEND`.

    Raises:
        ValueError: it names no backend.
        RuntimeError: it names one that cannot run here.
    """
    request = os.environ.get("GNFAST_BACKEND") or "auto"
    if request not in ("auto", *BACKENDS):
        raise ValueError(f"GNFAST_BACKEND must be one of auto, {', '.join(BACKENDS)}; got {request!r}")
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


def choose(operation: str, device_type: str) -> str:
    """The backend that `operation` uses for tensors on `device_type`; raises as `requested_backend` does."""
    return choices(operation, device_type)[0]


def choices(operation: str, device_type: str) -> tuple[str, ...]:
    """The backends among which a measurement may choose, the one to use without a measurement first."""
    candidates = TABLE[operation].get(device_type, ("torch",))
    request = requested_backend()
    if request in candidates:
        return (request,)
    return tuple(backend for backend in candidates if _unavailable(backend) is None)


def backends() -> dict[str, dict[str, str]]:
    """operation -> device type -> the backend in use there."""
    return {operation: {device: choose(operation, device) for device in TABLE[operation]} for operation in TABLE}
