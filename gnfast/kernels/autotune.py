"""Choosing among implementations by measurement: numbers first, then time, and the choice is remembered.

`GNFAST_AUTOTUNE=1` in the environment turns it on: what counts then is measured here, and kept in gnfast's cache,
`gnfast.io.files.cache_root()`, one file per device and versions of what is compared. While a CUDA graph is captured,
the default stands for a choice that is not there. Where the variable is not set, the table that ships for the device
counts (`tuning_table.py`), and without one the default does, as with `GNFAST_AUTOTUNE=0`.
"""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnfast.io.files import cache_root
from gnfast.kernels.tuning_table import Choice, Key, Shipped, device_name, read, shipped, text_of, versions, write

Candidate = Callable[[], object]
View = Callable[[object], object]

ROUNDS = 15
CALLS_PER_ROUND = 5


def choose_fastest(
    key: Key,
    candidates: Mapping[str, Candidate],
    device: torch.device,
    tolerance: float,
    view: View | None = None,
    reference: Candidate | None = None,
) -> str:
    """The name of the candidate to use, the first one unless another gives the same numbers and is faster beyond noise.

    Args:
        key: what the choice depends on: the operation, and shapes, dtypes and the like; strings, numbers and tuples.
        candidates: name → call with the arguments at hand, which returns tensors and changes none of its arguments. The
            first is the default.
        device: where they run.
        tolerance: largest ‖difference‖ / ‖right result‖ per tensor.
        view: what of a result is compared; the result itself if None.
        reference: what gives the right numbers where the default may not, or may fail; the default if None.
    """
    default = next(iter(candidates))
    if not enabled():
        operation, place = key
        name = (table(device) or {}).get(place, {}).get(operation)
        return name if name in candidates else default
    text, path = text_of(key), cache_file(device)
    choices = _loaded(path)
    if text not in choices or choices[text][0] not in candidates:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return default
        choices[text] = _measured(candidates, device, tolerance, view or (lambda result: result), reference)
        _save(path, choices, device)
    return choices[text][0]


def enabled() -> bool:
    """Whether `GNFAST_AUTOTUNE` asks for measurements."""
    return os.environ.get("GNFAST_AUTOTUNE", "0") not in ("", "0")


def table(device: torch.device) -> Shipped | None:
    """What ships for a device, as `tuning_table.shipped` has it; None too where `GNFAST_AUTOTUNE` is set."""
    choices = shipped(device)
    return None if choices is None or os.environ.get("GNFAST_AUTOTUNE") else choices


def cache_file(device: torch.device) -> Path:
    """Where the choices for a device are kept."""
    return cache_root() / _file_name(device)


@functools.cache
def _file_name(device: torch.device) -> str:
    parts = [device_name(device), f"cuda-{torch.version.cuda}", *(f"{name}-{v}" for name, v in versions().items())]
    safe = "_".join("".join(c if c.isalnum() or c in ".+-" else "-" for c in part) for part in parts)
    return f"tuning_{safe}.json"


def _measured(
    candidates: Mapping[str, Candidate],
    device: torch.device,
    tolerance: float,
    view: View,
    reference: Candidate | None,
) -> Choice:
    # 5 ms, for all who measure nothing.
    import statistics

    default = next(iter(candidates))
    expected = _tensors(view((reference or candidates[default])()))
    right = [] if reference else [default]
    for name in [name for name in candidates if name not in right]:
        # A configuration that a device cannot launch is not a candidate there.
        with contextlib.suppress(Exception):
            if _agree(_tensors(view(candidates[name]())), expected, tolerance):
                right.append(name)
    if len(right) < 2:
        return (right[0], None) if right and right[0] != default else (default, 1.0)
    times: dict[str, list[float]] = {name: [] for name in right}
    for _ in range(ROUNDS):
        for name in right:
            times[name].append(_seconds(candidates[name], device))
    medians = {name: statistics.median(times[name]) for name in right}
    best = min(right, key=medians.__getitem__)
    if default not in right:
        return best, None
    low = statistics.quantiles(times[default], n=4)[0]
    if statistics.quantiles(times[best], n=4)[2] < low:
        return best, round(medians[best] / medians[default], 4)
    return default, 1.0


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
def _loaded(path: Path) -> dict[str, Choice]:
    try:
        return read(path)["choices"]
    except (OSError, ValueError):
        return {}


def _save(path: Path, choices: Mapping[str, Choice], device: torch.device) -> None:
    """A folder that cannot be written only means measuring again next time."""
    with contextlib.suppress(OSError):
        # With what another process has added since.
        write(path, {**_loaded.__wrapped__(path), **choices}, device)
