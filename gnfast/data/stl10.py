"""STL-10 in its official binary archive, read as a stream: its unlabeled part alone is 2.8 GB."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch

from gnfast.data.archive import clear_errors, stream_members
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official, stat_identity
from gnfast.data.images import add_arrays
from gnfast.data.source import Contents, Source

ARCHIVE = Official(
    dataset="stl10",
    name="stl10_binary.tar.gz",
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    size="2.6 GB",
)
FOLDER = "stl10_binary"
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
# Images in each split.
SPLITS = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
_BYTES = 3 * 96 * 96
_AT_ONCE = 500


def open_stl10(request: Request) -> Source:
    """113,000 photographs, 96x96, RGB, most of them in the split "unlabeled" (Coates et al., 2011); 2.6 GB.

    `request.root` is the archive or its folder, or the folder stl10_binary that it unpacks to.

    Raises:
        DataError: an unknown split; on reading, the archive is not there and `download` is False, its checksum is wrong
            (unless `verify` is False), or it is damaged.
    """
    if request.split not in SPLITS:
        raise DataError(f"split must be 'train', 'test' or 'unlabeled' for stl10, got {request.split!r}")
    request = request.filled(channels=3, resolution=96)
    unpacked = _unpacked(request.root)
    identity = stat_identity(unpacked) if unpacked else ARCHIVE.identity(request)
    return Source(
        "stl10",
        request,
        identity,
        lambda canvas: _read(unpacked or ARCHIVE.checked(request), request, canvas),
        check=lambda: [] if unpacked else ARCHIVE.check_if_there(request),
    )


def _unpacked(root: Path | None) -> Path | None:
    """The folder that the archive unpacks to, where `root` is or has it."""
    folders = () if root is None else (root, root / FOLDER)
    return next((folder for folder in folders if (folder / "train_X.bin").is_file()), None)


def _read(path: Path, request: Request, canvas: Canvas) -> Contents:
    pictures, numbers = f"{request.split}_X.bin", f"{request.split}_y.bin"
    labels = None
    canvas.expect(SPLITS[request.split])
    both = (pictures, numbers)
    with clear_errors(path):
        for name, file in stream_members(path, lambda name: PurePosixPath(name).name in both, request.progress):
            where = f"{path}:{name}"
            if name.endswith(numbers):
                labels = _labels(file.read(SPLITS[request.split] + 1), where)
            elif canvas.count:
                raise DataError(f"{path} holds {pictures} more than once")
            else:
                for images in _images(file, where):
                    if canvas.count + len(images) > SPLITS[request.split]:
                        raise DataError(f"{where} holds more than {SPLITS[request.split]} images")
                    add_arrays(canvas, images, request)
    if not canvas.count:
        raise DataError(f"{path} has no {FOLDER}/{pictures}: it is not the official archive of stl10")
    if request.split == "unlabeled":
        return Contents()
    if labels is None or len(labels) != canvas.count:
        raise DataError(f"{path}: {numbers} must have a label for each of the {canvas.count} images")
    return Contents(labels, CLASSES)


def _images(file: IO[bytes], where: str) -> Iterator[np.ndarray]:
    """Some hundred images at a time, (n, 3, 96, 96) uint8."""
    while content := file.read(_AT_ONCE * _BYTES):
        if len(content) % _BYTES:
            raise DataError(f"{where} must be a whole number of images of {_BYTES} bytes, it ends within one")
        # Each channel is stored column by column.
        yield np.frombuffer(content, np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)


def _labels(content: bytes, where: str) -> torch.Tensor:
    numbers = np.frombuffer(content, np.uint8)
    if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= len(CLASSES):
        raise DataError(f"{where}: labels must be from 1 to 10, got {numbers.min()} to {numbers.max()}")
    return torch.from_numpy(numbers.astype(np.int64) - 1)
