"""STL-10 in its official binary archive, read as a stream: its unlabeled part alone is 2.8 GB."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch

from gnfast.data.archive import clear_errors, stream_members
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official, stat_identity
from gnfast.data.images import add_arrays
from gnfast.data.source import Contents, DataSet, Source, published

_BYTES = 3 * 96 * 96
_AT_ONCE = 500


class Stl10(DataSet):
    """The data set. Each split has the number of its images; the first label is 1."""

    def open(self, request: Request) -> Source:
        """`request.root` is the archive or its folder, or the folder stl10_binary that it unpacks to."""
        root = request.root
        for folder in () if root is None else (root, root / self.folder):
            if (folder / "train_X.bin").is_file():
                return Source(self.name, request, stat_identity(folder), partial(_read, self, folder, request))
        return published([self.archive], request, lambda paths, canvas: _read(self, paths[0], request, canvas))


def _read(stl10: Stl10, path: Path, request: Request, canvas: Canvas) -> Contents:
    pictures, numbers = f"{request.split}_X.bin", f"{request.split}_y.bin"
    labels, count = None, stl10.splits[request.split]
    canvas.expect(count)
    both = (pictures, numbers)
    with clear_errors(path):
        for name, file in stream_members(path, lambda name: PurePosixPath(name).name in both, request.progress):
            where = f"{path}:{name}"
            if name.endswith(numbers):
                labels = np.frombuffer(file.read(count + 1), np.uint8)
            elif canvas.count:
                raise DataError(f"{path} holds {pictures} more than once")
            else:
                for images in _images(file, where):
                    if canvas.count + len(images) > count:
                        raise DataError(f"{where} holds more than {count} images")
                    add_arrays(canvas, images, request)
    if not canvas.count:
        raise DataError(f"{path} has no {stl10.folder}/{pictures}: it is not the official archive of stl10")
    if request.split == "unlabeled":
        return Contents()
    if labels is None or len(labels) != canvas.count:
        raise DataError(f"{path}: {numbers}: wanted a label for each of the {canvas.count} images")
    low, high, most = labels.min(), labels.max(), len(stl10.classes)
    if not 1 <= low <= high <= most:
        raise DataError(f"{path}: {numbers}: got labels from {low} to {high}, wanted 1 to {most}")
    return Contents(torch.from_numpy(labels.astype(np.int64) - 1), stl10.classes)


def _images(file: IO[bytes], where: str) -> Iterator[np.ndarray]:
    """Some hundred images at a time, (n, 3, 96, 96) uint8."""
    while content := file.read(_AT_ONCE * _BYTES):
        if len(content) % _BYTES:
            raise DataError(f"{where}: it ends within an image, wanted a whole number of {_BYTES} bytes each")
        # Each channel is stored column by column.
        yield np.frombuffer(content, np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)


SETS = [
    Stl10(
        name="stl10",
        description='113,000 photographs, 96x96, RGB, most of them in the split "unlabeled" (Coates et al., 2011); '
        "2.6 GB.",
        splits={"train": 5_000, "test": 8_000, "unlabeled": 100_000},
        resolution=96,
        folder="stl10_binary",
        archive=Official(
            dataset="stl10",
            name="stl10_binary.tar.gz",
            url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            md5="91f7769df0f17e558f3565bffb0c7dfb",
            size="2.6 GB",
        ),
        classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    )
]
