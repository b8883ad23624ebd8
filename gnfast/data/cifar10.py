"""CIFAR-10 in its official archive of Python pickles, read without unpacking and without trusting them."""

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from gnfast.data.archive import first_member, open_entries
from gnfast.data.dataset import DataError, ImageDataset, Request
from gnfast.data.files import cache_root, download, md5_of
from gnfast.data.images import pack, prepare

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE = "cifar-10-python.tar.gz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_FOLDER = "cifar-10-batches-py"


def load_cifar10(request: Request) -> ImageDataset:
    """60,000 photographs in ten classes, 32x32, RGB (Krizhevsky, 2009); 170 MB.

    `request.root` is the archive or the folder it is (or will be) in, by default the cache folder.

    Raises:
        DataError: the archive is not there and `download` is False, its checksum is wrong, or it is damaged.
    """
    root = request.root or cache_root() / "data"
    path = root if root.is_file() else root / ARCHIVE
    if not path.is_file():
        if not request.download:
            raise DataError(
                f"cifar10 is not at {path}; pass download=True (170 MB from {URL}), or root=… with the archive's path"
            )
        download(URL, path, MD5, progress=request.progress)
    return load_archive(path, request)


def is_archive(path: Path) -> bool:
    """Whether `path` is CIFAR-10's official archive, whatever its name and its checksum."""
    return path.is_file() and PurePosixPath(first_member(path)).parts[:1] == (_FOLDER,)


def load_archive(path: Path, request: Request) -> ImageDataset:
    """CIFAR-10 from its archive at `path`.

    Raises:
        DataError: a wrong checksum (unless `request.verify` is False), an unknown split, a missing or malformed batch.
    """
    if request.split not in BATCHES:
        raise DataError(f"split must be 'train' or 'test' for cifar10, got {request.split!r}")
    if request.verify and (got := md5_of(path)) != MD5:
        raise DataError(
            f"{path}: wrong checksum, expected MD5 {MD5}, got {got}; "
            f"download it again, or pass verify=False if it is meant to differ"
        )
    names = [f"{_FOLDER}/{batch}" for batch in BATCHES[request.split]]
    with open_entries(path, names.__contains__, request.progress) as entries:
        content = {entry.name: entry.read() for entry in entries if entry.name in names}
    if missing := [name for name in names if name not in content]:
        raise DataError(f"{path} has no {', '.join(missing)}: it is not CIFAR-10's official archive")
    batches = [_batch(content.pop(name), f"{path}:{name}") for name in names]
    images = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32)
    labels = torch.cat([labels for _, labels in batches])
    if request.resolution in (None, 32) and request.channels in (None, 3):
        tensor = torch.from_numpy(images)
    else:
        arrays = [
            prepare(Image.fromarray(image), request.channels, request.resolution)
            for image in np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        ]
        tensor = pack(arrays, request.channels)
    return ImageDataset("cifar10", tensor, labels, CLASSES)


def _batch(content: bytes, where: str) -> tuple[np.ndarray, torch.Tensor]:
    """One batch: (n, 3072) uint8 and its labels (n,) int64."""
    try:
        # A pickle can hold nearly any damage, and an unpickler raise nearly anything.
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    data, labels = (batch.get("data"), batch.get("labels")) if type(batch) is dict else (None, None)
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{where}: 'data' must be a uint8 array of shape (n, 3072)")
    numbers = type(labels) is list and len(labels) == len(data) and all(type(label) is int for label in labels)
    if not numbers or not all(0 <= label < 10 for label in labels):
        raise DataError(f"{where}: 'labels' must be a list of {len(data)} ints from 0 to 9")
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
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10 does not need") from None
