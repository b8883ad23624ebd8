"""What every data set becomes: one uint8 tensor, in memory or mapped from a file, with its labels and a fingerprint."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from gnfast.errors import require_int
from gnfast.io.numbers import counted

_HASHED_AT_ONCE = 1 << 26


class DataError(ValueError):
    """A data set cannot be had as asked; the message names what came and what was wanted."""


def at_least(name: str, value: object, least: int) -> int:
    """The value of an argument; raises DataError where it is not an int of at least `least`."""
    return require_int(name, value, least, DataError)


class DataWarning(UserWarning):
    """A data set was loaded, but not all of what was found could be used."""


@dataclass(frozen=True)
class Request:
    """What a caller of `gnfast.data.load` asks of a data set; see there for the fields."""

    split: str = "train"
    resolution: int | None = None
    channels: int | None = None
    crop: int | Literal["square"] | None = None
    download: bool = False
    root: Path | None = None
    verify: bool = True
    cache: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.split, str) or not self.split:
            raise DataError(f"split: got {self.split!r}, wanted a name such as 'train' or 'test'")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels: got {self.channels!r}, wanted 1 (grey), 3 (RGB) or None")
        if isinstance(self.crop, str) and self.crop != "square":
            raise DataError(f"crop: got {self.crop!r}, wanted a number of pixels, 'square' or None")
        for name, least in (("resolution", 1), ("crop", 0)):
            if (value := getattr(self, name)) not in (None, "square"):
                at_least(name, value, least)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images ready to be sampled.

    Args:
        name: a short name for logs and results.
        images: (N, C, H, W) uint8 on the CPU, 0..255; N >= 1, C 1 or 3. They may be mapped from a file of the cache,
            which does not change with them.
        labels: (N,) int64 indices into `classes`, or None.
        classes: names of the classes; empty without labels.
        skipped: how many files were found but not used.
        recorded: the fingerprint where it is known already; computed when it is asked for otherwise.

    Raises:
        DataError: a tensor has another shape or dtype.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: int = 0
    recorded: str = ""

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
            raise DataError(
                f"images: got {self.images.dtype} of shape {shape}, "
                f"wanted uint8 of shape (N, C, H, W) with C 1 or 3 and nothing empty"
            )
        if self.labels is None:
            if self.classes:
                raise DataError(f"labels: got None and {len(self.classes)} classes, wanted labels or no classes")
            return
        if self.labels.dtype != torch.int64 or tuple(self.labels.shape) != shape[:1]:
            raise DataError(
                f"labels: got {self.labels.dtype} of shape {tuple(self.labels.shape)}, "
                f"wanted int64 of shape ({shape[0]},)"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(f"labels: got {low} to {high}, wanted 0 to {len(self.classes) - 1}, one for each class")

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        """One image (C, H, W), with its label where there are any, as PyTorch's loaders want it."""
        return self.images[index] if self.labels is None else (self.images[index], int(self.labels[index]))

    def __repr__(self) -> str:
        return f"ImageDataset({self})"

    def __str__(self) -> str:
        n, c, h, w = self.images.shape
        kind = f", {len(self.classes)} classes" if self.classes else ""
        left = f", {counted(self.skipped, 'file')} skipped" if self.skipped else ""
        return f"{self.name}: {n} images, {c}x{h}x{w}{kind}{left}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the prepared pixels, their shape, the labels and the class names.

        Resolution, channels and split are covered because the hash is taken after the preparation.
        """
        return self.recorded or fingerprint_of(self)


def fingerprint_of(dataset: ImageDataset, progress: bool = False) -> str:
    """The fingerprint of what `dataset` holds, recorded or not; a bar is shown for more than 1 GiB if `progress`."""
    digest = hashlib.sha256(repr((tuple(dataset.images.shape), dataset.classes)).encode())
    size = dataset.images.nbytes
    hidden = None if progress and size > 1 << 30 else True
    with tqdm(total=size, desc=f"fingerprint of {dataset.name}", unit="B", unit_scale=True, disable=hidden) as bar:
        for tensor in (dataset.images, dataset.labels):
            if tensor is None:
                continue
            content = memoryview(tensor.contiguous().numpy()).cast("B")
            for start in range(0, len(content), _HASHED_AT_ONCE):
                piece = content[start : start + _HASHED_AT_ONCE]
                digest.update(piece)
                bar.update(len(piece))
    return digest.hexdigest()
