"""Choices of the tuner as a file: the user's own in the cache, and tables that ship with gnfast.

    {"device": "NVIDIA H200", "torch": "2.11.0", "cudnn": "9.17", "triton": "3.6", "date": "2026-11-29",
     "choices": {"[[\\"conv2d\\", true], [[128, 3, 32, 32], …]]": ["128x64x64", 0.81], …}}

A choice is a name and its time over the default's, null where the default failed. Its key is [operation, place], JSON
in a string. The place has whole shapes, the batch too: a choice holds for what was measured and for nothing else.

`tuned/sm_90.json` ships for devices of compute capability 9.0, once it was measured (docs/gpu.md). It counts with the
minor versions of Triton and cuDNN that it was measured with, for these are what was compared: another Triton compiles
other kernels, and another cuDNN is another rival. PyTorch's own version is there to be known.
"""

import datetime
import functools
import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gnfast.errors import warn_user
from gnfast.io.files import write_text

Key = tuple[tuple[object, ...], tuple[object, ...]]
Choice = tuple[str, float | None]
Shipped = Mapping[tuple[object, ...], Mapping[tuple[object, ...], str]]
"""place ↦ operation ↦ name."""

FOLDER = Path(__file__).parent / "tuned"
_RIVALS = ("triton", "cudnn")


def text_of(key: Key) -> str:
    """A key as it stands in a file."""
    return json.dumps(key, default=str)


def read(path: Path) -> dict[str, Any]:
    """A file's content, its "choices" as text ↦ `Choice`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        choices = {text: _choice(*pair) for text, pair in found["choices"].items()}
        return {**{name: str(found[name]) for name in ("device", "date", *versions())}, "choices": choices}
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"not a file of choices ({type(error).__name__}: {error})") from error


def write(path: Path, choices: Mapping[str, Choice], device: torch.device) -> None:
    """Replaces a file by one with these choices, measured here and today."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = {"device": device_name(device), **versions(), "date": today}
    write_text(path, json.dumps(head | {"choices": dict(sorted(choices.items()))}, indent=1) + "\n")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def versions() -> dict[str, str]:
    """Of what is compared: PyTorch's in full, the others' major and minor."""
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else "none"
    cudnn = torch.backends.cudnn.version()
    # 91002 is 9.10.2, 8902 is 8.9.2.
    major, rest = divmod(cudnn or 0, 10_000 if (cudnn or 0) >= 90_000 else 1000)
    short = {"cudnn": f"{major}.{rest // 100}" if cudnn else "none", "triton": ".".join(triton.split(".")[:2])}
    return {"torch": str(torch.__version__)} | short


def file_name(device: torch.device) -> str:
    """What a table that ships for such a device is called."""
    if device.type != "cuda":
        return f"{device.type}.json"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}.json"


@functools.cache
def shipped(device: torch.device) -> Shipped | None:
    """The choices other than the default that ship for a device; None where there are none that count here."""
    return _shipped(device)[0]


def status(device: torch.device) -> str:
    """In a line, what ships for a device."""
    return _shipped(device)[1]


@functools.cache
def _shipped(device: torch.device) -> tuple[Shipped | None, str]:
    path = FOLDER / file_name(device)
    if not path.exists():
        return None, "no table"
    try:
        table = read(path)
        choices = _by_place(table["choices"])
    except (OSError, RecursionError, TypeError, ValueError) as error:
        warn_user(f"{path}: {error}; kernels run in their default configurations")
        return None, f"{path.name}, which cannot be read"
    here = versions()
    if other := [f"{name} {table[name]}, here {here[name]}" for name in _RIVALS if table[name] != here[name]]:
        return None, f"{path.name}, not used: measured with {'; '.join(other)}"
    return choices, f"{path.name}, measured on {table['date']} on {table['device']}"


def _by_place(choices: Mapping[str, Choice]) -> Shipped:
    found: dict[tuple[object, ...], dict[tuple[object, ...], str]] = {}
    for text, (name, ratio) in choices.items():
        key = _key(json.loads(text))
        if not (isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, tuple) for part in key)):
            raise ValueError(f"got the key {text}, wanted [operation, place]")
        # Where the default won, nothing has to be looked up.
        if ratio != 1.0:
            found.setdefault(key[1], {})[key[0]] = name
    return found


def _key(value: object) -> object:
    if isinstance(value, list):
        return tuple(map(_key, value))
    if isinstance(value, str) and value.startswith("torch."):
        value = getattr(torch, value.removeprefix("torch."), value)
        if not isinstance(value, torch.dtype):
            raise ValueError(f"got {value!r} in a key, wanted a dtype")
    return value


def _choice(name: object, ratio: object) -> Choice:
    if not isinstance(name, str) or not (ratio is None or isinstance(ratio, float)):
        raise TypeError(f"got the choice {name!r}, {ratio!r}, wanted a name and a ratio")
    return name, ratio
