"""Which implementation of an operation runs on which device.

`GNFAST_BACKEND` in the environment overrides the choice: `auto` (default), or the name of a backend, which then runs on
every device that it serves. It is read when gnfast is imported.
"""

import os

from gnfast.kernels.build_info import load, why_not_loaded

# operation -> device type -> backends in order of preference; devices that are not listed use "torch".
TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "leaky_relu_pack": {"cpu": ("cpp", "torch"), "cuda": ("cuda", "torch")},
    "leaky_relu_mask": {"cpu": ("cpp", "torch"), "cuda": ("cuda", "torch")},
}
BACKENDS = ("torch", "cpp", "cuda")


def requested_backend() -> str:
    """The value of `GNFAST_BACKEND`.

    Raises:
        ValueError: it names no backend.
        RuntimeError: it names one that cannot run here.
    """
    request = os.environ.get("GNFAST_BACKEND") or "auto"
    if request not in ("auto", *BACKENDS):
        raise ValueError(f"GNFAST_BACKEND must be one of auto, {', '.join(BACKENDS)}; got {request!r}")
    if request not in ("auto", "torch") and not load(request):
        raise RuntimeError(f"GNFAST_BACKEND={request}, but that backend is unavailable: {why_not_loaded(request)}")
    return request


def choose(operation: str, device_type: str) -> str:
    """The backend that `operation` uses for tensors on `device_type`; raises as `requested_backend` does."""
    candidates = TABLE[operation].get(device_type, ("torch",))
    request = requested_backend()
    if request in candidates:
        return request
    return next(backend for backend in candidates if backend == "torch" or load(backend))


def backends() -> dict[str, dict[str, str]]:
    """operation -> device type -> the backend in use there."""
    return {operation: {device: choose(operation, device) for device in TABLE[operation]} for operation in TABLE}
