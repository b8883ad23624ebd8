"""`load`: one door to all data sets. A new one is a file with a loader, and a line in the table below."""

import os
from collections.abc import Callable
from pathlib import Path

from gnfast.data import cifar10, digits
from gnfast.data.dataset import DataError, ImageDataset, Request
from gnfast.data.images import load_images

_LOADERS: dict[str, Callable[[Request], ImageDataset]] = {
    "digits": digits.load_digits,
    "cifar10": cifar10.load_cifar10,
}


def registered() -> dict[str, str]:
    """The names that `load` knows, each with a line that describes it."""
    return {name: loader.__doc__.partition("\n")[0] for name, loader in _LOADERS.items()}


def load(
    source: str | os.PathLike,
    *,
    split: str = "train",
    resolution: int | None = None,
    channels: int | None = None,
    download: bool = False,
    root: str | os.PathLike | None = None,
    verify: bool = True,
    progress: bool = True,
) -> ImageDataset:
    """A data set, by its name or from a path.

    Args:
        source: a registered name (`registered()` lists them), or the path of an image folder, zip or tar (plain or
            compressed), or of CIFAR-10's official archive. A name goes before a path; write ./digits for a folder.
        split: "train", "test", or another split that the data set has.
        resolution: side in pixels to which images are resized (PIL, bilinear); None keeps their size.
        channels: 1 or 3; None takes what the images have.
        download: fetch a registered data set that is not there yet.
        root: where a registered data set's archive is or will be kept: a folder, or the archive itself.
        verify: whether a registered archive must have its published checksum.
        progress: show bars on a terminal.

    Returns:
        The data set, in memory, in a fixed order.

    Raises:
        DataError: anything above is not as wanted, or the data are missing, damaged or not images.
    """
    root = None if root is None else Path(root).expanduser()
    request = Request(split, resolution, channels, download, root, verify, progress)
    if isinstance(source, str) and source in _LOADERS:
        return _LOADERS[source](request)
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise DataError(f"source must be a registered name ({', '.join(_LOADERS)}) or a path, got {source!r}")
    path = Path(source).expanduser()
    if not path.exists():
        names = ", ".join(_LOADERS)
        raise DataError(f"source {str(source)!r} is neither a registered data set ({names}) nor a path that exists")
    if cifar10.is_archive(path):
        return cifar10.load_archive(path, request)
    return load_images(path, request)
