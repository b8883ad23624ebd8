"""MNIST and the data sets in its format: four gzipped idx files, for images and labels of two splits."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch

from gnfast.data.archive import clear_errors
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official
from gnfast.data.images import add_arrays
from gnfast.data.source import Contents, Source

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
        images, labels = _array(paths[0], 3), _array(paths[1], 1)
        if len(labels) != len(images) or not len(images) or labels.max() >= len(classes):
            raise DataError(f"{paths[1]} must have a label below {len(classes)} for each of the {len(images)} images")
        canvas.expect(len(images))
        add_arrays(canvas, images[:, None], request)
        return Contents(torch.from_numpy(labels.astype(np.int64)), classes)

    return Source(
        dataset, request, identity, read, check=lambda: [path for file in pair for path in file.check_if_there(request)]
    )


def _array(path: Path, dims: int) -> np.ndarray:
    """The unsigned bytes of an idx file: two zeros, 8 for the type, the number of dimensions, each in 4 bytes, data."""
    with clear_errors(path), gzip.open(path) as file:
        content = file.read()
    if content[:4] != bytes((0, 0, 8, dims)):
        raise DataError(f"{path} is not an idx file of unsigned bytes in {dims} dimensions")
    start = 4 + 4 * dims
    if len(content) < start:
        raise DataError(f"{path} is truncated or damaged: it ends within its header")
    shape, data = np.frombuffer(content, ">u4", dims, 4).tolist(), content[start:]
    if len(data) != math.prod(shape):
        raise DataError(f"{path} is truncated or damaged: it says {shape}, and holds {len(data)} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)
