"""CIFAR-10 and CIFAR-100 in their archives of Python pickles, read without unpacking and without trusting them."""

import io
import pickle
import pickletools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gnfast.data.archive import open_entries
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official
from gnfast.data.images import add_arrays
from gnfast.data.source import Contents, Source

# The largest batch is CIFAR-100's for training.
_BATCH_BYTES = 200 << 20


@dataclass(frozen=True)
class Layout:
    """What differs between the two.

    Args:
        archive: the published file.
        folder: the folder within it.
        batches: the files in that folder for each split.
        labels: the key of a batch's labels.
        classes: what the labels stand for.
    """

    archive: Official
    folder: str
    batches: dict[str, tuple[str, ...]]
    labels: str
    classes: tuple[str, ...]


def open_cifar(layout: Layout, request: Request) -> Source:
    """One of the two from its archive, which `request.root` is or has in it; by default it is in the cache folder.

    Raises:
        DataError: an unknown split; on reading, the archive is not there and `download` is False, its checksum is wrong
            (unless `verify` is False), or a batch is missing or malformed.
    """
    archive = layout.archive
    if request.split not in layout.batches:
        raise DataError(f"split must be 'train' or 'test' for {archive.dataset}, got {request.split!r}")
    request = request.filled(channels=3, resolution=32)
    identity = archive.identity(request)
    return Source(
        archive.dataset,
        request,
        identity,
        lambda canvas: _read(layout, request, canvas),
        check=lambda: archive.check_if_there(request),
    )


def _read(layout: Layout, request: Request, canvas: Canvas) -> Contents:
    path = layout.archive.checked(request)
    names = [f"{layout.folder}/{batch}" for batch in layout.batches[request.split]]
    with open_entries(path, names.__contains__, request.progress) as entries:
        content = {entry.name: entry.read(_BATCH_BYTES) for entry in entries if entry.name in names}
    if missing := [name for name in names if name not in content]:
        raise DataError(
            f"{path} has no {', '.join(missing)}: it is not the official archive of {layout.archive.dataset}"
        )
    batches = [_batch(content.pop(name), f"{path}:{name}", layout) for name in names]
    canvas.expect(sum(len(data) for data, _ in batches))
    for data, _ in batches:
        add_arrays(canvas, data.reshape(-1, 3, 32, 32), request)
    return Contents(torch.cat([labels for _, labels in batches]), layout.classes)


def _batch(content: bytes, where: str, layout: Layout) -> tuple[np.ndarray, torch.Tensor]:
    """One batch: (n, 3072) uint8 and its labels (n,) int64."""
    try:
        # A pickle can hold nearly any damage, and an unpickler raise nearly anything.
        _check_steps(content)
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    data, labels = (batch.get("data"), batch.get(layout.labels)) if type(batch) is dict else (None, None)
    pixels = data.pixels() if isinstance(data, _Array) else None
    if pixels is None:
        raise DataError(f"{where}: 'data' must be a uint8 array of shape (n, 3072)")
    count = len(layout.classes)
    numbers = type(labels) is list and len(labels) == len(pixels) and all(type(label) is int for label in labels)
    if not numbers or not all(0 <= label < count for label in labels):
        raise DataError(f"{where}: {layout.labels!r} must be a list of {len(pixels)} ints from 0 to {count - 1}")
    return pixels, torch.tensor(labels, dtype=torch.int64)


class _Inert:
    """Stands for a name of numpy in a pickle: it keeps what it is given, and does nothing with it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type(_Inert):
    """Stands for a dtype."""


class _Array(_Inert):
    """Stands for an array."""

    def pixels(self) -> np.ndarray | None:
        """(n, 3072) uint8, n >= 1, or None where it is another array or none."""
        match self.state:
            case (1, (int(count), 3072), _Type(arguments=("u1", *_)), 0, str() | bytes() as raw):
                # Python 2 had no bytes; its strings are read as latin1, which keeps every byte.
                content = raw if isinstance(raw, bytes) else raw.encode("latin1", "replace")
                if len(content) == count * 3072 > 0:
                    return np.frombuffer(content, np.uint8).reshape(count, 3072)
        return None


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}

# What dictionaries, lists, numbers, strings and arrays are made of.
_STEPS = re.compile(
    r"PROTO|FRAME|STOP|MARK|POP|POP_MARK|DUP|MEMOIZE|(|BIN|LONG_BIN)(PUT|GET)|NONE|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG1?|"
    r"(|BIN|SHORT_BIN)(STRING|UNICODE)|(SHORT_)?BINBYTES|(EMPTY_)?(DICT|LIST|TUPLE)|TUPLE[123]|APPENDS?|SETITEMS?|"
    r"GLOBAL|STACK_GLOBAL|REDUCE|BUILD"
)
# CIFAR-100 takes 250,000 steps, and a dozen tuples.
_MOST_STEPS = 2_000_000
_MOST_TUPLES = 1000


def _check_steps(content: bytes) -> None:
    """Look at all steps of a pickle before one is taken: a few of them may ask for any amount of memory.

    Raises:
        pickle.UnpicklingError: it takes other steps, or more of them, than CIFAR needs.
        ValueError: it is no pickle.
    """
    tuples = 0
    for number, (step, argument, _) in enumerate(pickletools.genops(content)):
        if not _STEPS.fullmatch(step.name):
            raise pickle.UnpicklingError(f"it takes the step {step.name}, which CIFAR does not need")
        # A place in the memo is memory up to there, and hashing deeply nested tuples overflows the stack.
        tuples += step.name.startswith("TUPLE")
        is_far = step.name.endswith("PUT") and argument > _MOST_STEPS
        if number > _MOST_STEPS or tuples > _MOST_TUPLES or is_far:
            raise pickle.UnpicklingError("it takes more steps than CIFAR needs")


class _Unpickler(pickle.Unpickler):
    """Admits the three names that an array's pickle needs, for each of which something inert stands."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR does not need") from None
