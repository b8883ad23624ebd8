"""Choosing among implementations by measurement: numbers first, then time, and the choice is remembered.

`GNFAST_AUTOTUNE=1` in the environment turns it on; without it, and whenever a CUDA graph is being captured without a
remembered choice, the default runs. Choices are kept in gnfast's cache, `gnfast.io.files.cache_root()`, one file per
device and version of what compiles the kernels.
"""

import contextlib
import functools
import importlib.util
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnfast.io.files import cache_root, write_text

Candidate = Callable[[], object]
View = Callable[[object], object]

ROUNDS = 15
CALLS_PER_ROUND = 5


def choose_fastest(
    key: Sequence[object],
    candidates: Mapping[str, Candidate],
    device: torch.device,
    tolerance: float,
    view: View | None = None,
    reference: Candidate | None = None,
) -> str:
    """The name of the candidate to use, the first one unless another gives the same numbers and is faster beyond noise.

    Args:
        key: what the choice depends on: operation, shapes, dtypes; strings and numbers.
        candidates: name → call with the arguments at hand, which returns tensors and changes none of its arguments. The
            first is the default.
        device: where they run.
        tolerance: largest ‖difference‖ / ‖right result‖ per tensor.
        view: what of a result is compared; the result itself if None.
        reference: what gives the right numbers where the default may not, or may fail; the default if None.
    """
    default = next(iter(candidates))
    if not enabled():
        return default
    text = json.dumps(list(key), default=str)
    path = cache_file(device)
    choices = _loaded(path)
    if choices.get(text) in candidates:
        return choices[text]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return default
    choices[text] = _measured(candidates, device, tolerance, view or (lambda result: result), reference)
    _save(path, choices)
    return choices[text]


def enabled() -> bool:
    """Whether `GNFAST_AUTOTUNE` asks for it."""
    return os.environ.get("GNFAST_AUTOTUNE", "0") not in ("", "0")


def cache_file(device: torch.device) -> Path:
    """Where the choices for a device are kept."""
    return cache_root() / _file_name(device)


@functools.cache
def _file_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else "none"
    parts = [name, f"torch-{torch.__version__}", f"cuda-{torch.version.cuda}", f"triton-{triton}"]
    safe = "_".join("".join(c if c.isalnum() or c in ".+-" else "-" for c in part) for part in parts)
    return f"tuning_{safe}.json"


def _measured(
    candidates: Mapping[str, Candidate],
    device: torch.device,
    tolerance: float,
    view: View,
    reference: Candidate | None,
) -> str:
    default = next(iter(candidates))
    expected = _tensors(view((reference or candidates[default])()))
    right = [] if reference else [default]
    for name in [name for name in candidates if name not in right]:
        # A configuration that a device cannot launch is not a candidate there.
        with contextlib.suppress(Exception):
            if _agree(_tensors(view(candidates[name]())), expected, tolerance):
                right.append(name)
    if len(right) < 2:
        return right[0] if right else default
    times: dict[str, list[float]] = {name: [] for name in right}
    for _ in range(ROUNDS):
        for name in right:
            times[name].append(_seconds(candidates[name], device))
    best = min(right, key=lambda name: statistics.median(times[name]))
    if default not in right:
        return best
    low = statistics.quantiles(times[default], n=4)[0]
    return best if statistics.quantiles(times[best], n=4)[2] < low else default


def _agree(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> bool:
    if len(actual) != len(expected):
        return False
    for left, right in zip(actual, expected, strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            return False
        if not right.is_floating_point():
            if not torch.equal(left, right):
                return False
            continue
        # Not all in float64: these may be the largest tensors of a network.
        wide = torch.promote_types(right.dtype, torch.float32)
        error, size = (
            torch.linalg.vector_norm(t, dtype=torch.float64).item() for t in (left.to(wide) - right.to(wide), right)
        )
        if not error <= tolerance * size or not math.isfinite(error):
            return False
    return True


def _seconds(call: Candidate, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(CALLS_PER_ROUND):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / CALLS_PER_ROUND
    begin = time.perf_counter()
    for _ in range(CALLS_PER_ROUND):
        call()
    return (time.perf_counter() - begin) / CALLS_PER_ROUND


def _tensors(result: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


@functools.cache
def _loaded(path: Path) -> dict[str, str]:
    try:
        choices = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return choices if isinstance(choices, dict) else {}


def _save(path: Path, choices: Mapping[str, str]) -> None:
    """A folder that cannot be written only means measuring again next time."""
    with contextlib.suppress(OSError):
        # With what another process has added since.
        together = {**_loaded.__wrapped__(path), **choices}
        write_text(path, json.dumps(together, indent=1, sort_keys=True))
