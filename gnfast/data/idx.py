"""MNIST and the data sets in its format: four gzipped idx files, for images and labels of two splits."""

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch

from gnfast.data.archive import clear_errors
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official, open_source
from gnfast.data.images import add_arrays
from gnfast.data.source import Contents, Source

# More images than in any data set of this format, and what is read of them at once.
_MOST = 10_000_000
_AT_ONCE = 1 << 24
# For each split the files of its images and of its labels.
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def official_files(dataset: str, url: str, size: str, md5s: dict[str, str]) -> dict[str, tuple[Official, Official]]:
    """The published files of each split, from their common address and each one's MD5."""
    return {
        split: tuple(Official(dataset, name, url + name, md5s[name], size, dataset) for name in names)
        for split, names in FILES.items()
    }


def open_idx(files: dict[str, tuple[Official, Official]], classes: tuple[str, ...], request: Request) -> Source:
    """A data set from its idx files, which are in the folder `request.root`, or in the cache's.

    Raises:
        DataError: an unknown split; on reading, a file is not there and `download` is False, its checksum is wrong
            (unless `verify` is False), or it is damaged.
    """
    dataset = files["train"][0].dataset
    if request.split not in files:
        raise DataError(f"split must be 'train' or 'test' for {dataset}, got {request.split!r}")
    if request.root is not None and request.root.is_file():
        raise DataError(f"root must be the folder with the four files of {dataset}, got the file {request.root}")
    request = request.filled(channels=1, resolution=28)
    pair = files[request.split]
    identity = {file.name: file.identity(request) for file in pair}

    def read(canvas: Canvas) -> Contents:
        paths = [file.checked(request) for file in pair]
        with _array(paths[1], 1) as (_, content):
            labels = np.concatenate(list(content))
        with _array(paths[0], 3) as (shape, content):
            count = shape[0]
            if len(labels) != count or labels.max() >= len(classes):
                raise DataError(f"{paths[1]} must have a label below {len(classes)} for each of the {count} images")
            canvas.expect(count)
            for images in content:
                add_arrays(canvas, images[:, None], request)
        return Contents(torch.from_numpy(labels.astype(np.int64)), classes)

    return Source(
        dataset, request, identity, read, check=lambda: [path for file in pair for path in file.check_if_there(request)]
    )


@contextmanager
def _array(path: Path, dims: int) -> Iterator[tuple[list[int], Iterator[np.ndarray]]]:
    """Shape and content of an idx file: two zeros, 8 for bytes, the number of dimensions, each in 4 bytes, data.

    The content comes in pieces along the first dimension, the last one only if the file is whole.
    """
    with clear_errors(path), open_source(path) as raw, gzip.open(raw) as file:
        start = file.read(4 + 4 * dims)
        if start[:4] != bytes((0, 0, 8, dims)):
            raise DataError(f"{path} is not an idx file of unsigned bytes in {dims} dimensions")
        if len(start) < 4 + 4 * dims:
            raise DataError(f"{path} is truncated or damaged: it ends within its header")
        shape = np.frombuffer(start, ">u4", dims, 4).tolist()
        if not 0 < shape[0] <= _MOST or not 0 < math.prod(shape[1:]) <= _AT_ONCE:
            raise DataError(f"{path} has the shape {shape}, wanted 1 to {_MOST} entries of at most {_AT_ONCE} bytes")
        yield shape, _pieces(file, path, shape)


def _pieces(file: IO[bytes], path: Path, shape: list[int]) -> Iterator[np.ndarray]:
    """(n, …) uint8, some at a time."""
    count, size = shape[0], math.prod(shape[1:])
    step = _AT_ONCE // size
    for first in range(0, count, step):
        wanted = min(step, count - first) * size
        content = file.read(wanted)
        is_last = first + step >= count
        if len(content) != wanted or (is_last and file.read(1)):
            more = "more" if len(content) == wanted else first * size + len(content)
            raise DataError(f"{path} is truncated or damaged: it says {shape}, and holds {more} bytes")
        yield np.frombuffer(content, np.uint8).reshape(-1, *shape[1:])
