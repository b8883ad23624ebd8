"""CIFAR-10 and CIFAR-100 in their archives of Python pickles, read without unpacking and without trusting them."""

import io
import pickle
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
        content = {entry.name: entry.read() for entry in entries if entry.name in names}
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
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    data, labels = (batch.get("data"), batch.get(layout.labels)) if type(batch) is dict else (None, None)
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{where}: 'data' must be a uint8 array of shape (n, 3072)")
    count = len(layout.classes)
    numbers = type(labels) is list and len(labels) == len(data) and all(type(label) is int for label in labels)
    if not numbers or not all(0 <= label < count for label in labels):
        raise DataError(f"{where}: {layout.labels!r} must be a list of {len(data)} ints from 0 to {count - 1}")
    return data, torch.tensor(labels, dtype=torch.int64)


# It has lived in numpy.core.multiarray and in numpy._core.multiarray; an array knows it in either.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    """Admits the three names that an array's pickle needs, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR does not need") from None
