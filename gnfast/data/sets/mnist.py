"""MNIST and the data sets in its format: four gzipped idx files, for images and labels of two splits."""

import gzip
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gnfast.data.archive import clear_errors
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official, open_source
from gnfast.data.images import add_arrays
from gnfast.data.source import Contents, DataSet, Source, published

# More images than in any data set of this format, and what is read of them at once.
_MOST = 10_000_000
_AT_ONCE = 1 << 24


class Idx(DataSet):
    """A data set in this format. Each split has two `Official`s, of its images and of its labels."""

    def open(self, request: Request) -> Source:
        """`request.root` is the folder with the files."""
        if request.root is not None and request.root.is_file():
            raise DataError(f"root: got the file {request.root}, wanted the folder with the four files of {self.name}")
        return published(self.splits[request.split], request, partial(_read, self.classes, request))


def _read(classes: tuple[str, ...], request: Request, paths: list[Path], canvas: Canvas) -> Contents:
    labels = np.concatenate([piece for _, piece in _pieces(paths[1], 1)])
    for count, images in _pieces(paths[0], 3):
        if len(labels) != count or labels.max() >= len(classes):
            raise DataError(f"{paths[1]}: wanted a label below {len(classes)} for each of the {count} images")
        canvas.expect(count)
        add_arrays(canvas, images[:, None], request)
    return Contents(torch.from_numpy(labels.astype(np.int64)), classes)


def _pieces(path: Path, dims: int) -> Iterator[tuple[int, np.ndarray]]:
    """What an idx file holds, (n, …) uint8, some at a time, each with the number of all; the last if the file is whole.

    Such a file is two zeros, 8 for bytes, the number of dimensions, each of these in 4 bytes, and the data.
    """
    with clear_errors(path), open_source(path) as raw, gzip.open(raw) as file:
        start = file.read(4 + 4 * dims)
        if start[:4] != bytes((0, 0, 8, dims)):
            raise DataError(f"{path} is not an idx file of unsigned bytes in {dims} dimensions")
        if len(start) < 4 + 4 * dims:
            raise DataError(f"{path} is truncated or damaged: it ends within its header")
        shape = np.frombuffer(start, ">u4", dims, 4).tolist()
        count, size = shape[0], math.prod(shape[1:])
        if not 0 < count <= _MOST or not 0 < size <= _AT_ONCE:
            raise DataError(f"{path} has the shape {shape}, wanted 1 to {_MOST} entries of at most {_AT_ONCE} bytes")
        step = _AT_ONCE // size
        for first in range(0, count, step):
            wanted = min(step, count - first) * size
            content = file.read(wanted)
            is_last = first + step >= count
            if len(content) != wanted or (is_last and file.read(1)):
                more = "more" if len(content) == wanted else first * size + len(content)
                raise DataError(f"{path} is truncated or damaged: it says {shape}, and holds {more} bytes")
            yield count, np.frombuffer(content, np.uint8).reshape(-1, *shape[1:])


def _splits(dataset: str, url: str, size: str, md5s: tuple[str, str, str, str]) -> dict[str, tuple[Official, ...]]:
    """The files from their common address and the MD5 of each."""
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    files = [Official(dataset, name, url + name, md5, size, dataset) for name, md5 in zip(names, md5s, strict=True)]
    return {"train": tuple(files[:2]), "test": tuple(files[2:])}


_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

SETS = [
    Idx(
        name="mnist",
        description="70,000 handwritten digits, 28x28, grey (LeCun et al., 1998); 12 MB.",
        splits=_splits(
            "mnist",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "12 MB in four files",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        channels=1,
        resolution=28,
        classes=tuple("0123456789"),
    ),
    Idx(
        name="fashion-mnist",
        description="70,000 pictures of clothes, 28x28, grey (Xiao et al., 2017); 31 MB.",
        splits=_splits(
            "fashion-mnist",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "31 MB in four files",
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        channels=1,
        resolution=28,
        classes=_CLOTHES,
    ),
]
