"""`load`: one door to all data sets. A new one is a file with a function that opens it, and a line in `_OPEN`."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath

from gnfast.data import cifar10, cifar100, databases, stl10
from gnfast.data.archive import first_member
from gnfast.data.cache import prepared
from gnfast.data.celeba import open_celeba
from gnfast.data.celebahq import open_celebahq
from gnfast.data.dataset import DataError, ImageDataset, Request
from gnfast.data.digits import open_digits
from gnfast.data.fashion_mnist import open_fashion_mnist
from gnfast.data.files import open_source
from gnfast.data.folder import open_images
from gnfast.data.lsun import OPEN as LSUN
from gnfast.data.mnist import open_mnist
from gnfast.data.source import Source
from gnfast.io.files import expanded

_OPEN: dict[str, Callable[[Request], Source]] = {
    "digits": open_digits,
    "mnist": open_mnist,
    "fashion-mnist": open_fashion_mnist,
    "cifar10": cifar10.open_cifar10,
    "cifar100": cifar100.open_cifar100,
    "stl10": stl10.open_stl10,
    "celeba": open_celeba,
    "celebahq": open_celebahq,
    **LSUN,
}
# Official archives are recognised by the folder that all is in, whatever their name and checksum.
_BY_FOLDER = {
    cifar10.FOLDER: cifar10.open_cifar10,
    cifar100.FOLDER: cifar100.open_cifar100,
    stl10.FOLDER: stl10.open_stl10,
}


def registered() -> dict[str, str]:
    """The names that `load` knows, each with a line that describes it."""
    return {name: opener.__doc__.partition("\n")[0] for name, opener in _OPEN.items()}


def load(
    source: str | os.PathLike,
    *,
    split: str = "train",
    resolution: int | None = None,
    channels: int | None = None,
    crop: int | None = None,
    download: bool = False,
    root: str | os.PathLike | None = None,
    verify: bool = True,
    cache: bool = True,
    progress: bool = True,
) -> ImageDataset:
    """A data set, by its name or from a path.

    Args:
        source: a registered name (`registered()` lists them), or the path of an image folder, zip or tar (plain or
            compressed), of an LMDB of images, or of the official archive of CIFAR-10, CIFAR-100 or STL-10. A name goes
            before a path; write ./digits for a folder.
        split: "train", "test", or another split that the data set has.
        resolution: side in pixels to which images are resized (PIL, bilinear); None keeps their size.
        channels: 1 or 3; None takes what the images have, 3 where some are in colour.
        crop: side in pixels of the square in the middle that is cut out before that; 0 is none, None what the data
            set's description says (178 for celeba, none for all others).
        download: fetch a registered data set that is not there yet.
        root: where a registered data set's archive is or will be kept: a folder, or the archive itself.
        verify: whether a registered archive must have its published checksum.
        cache: keep the prepared images on disk (`gnfast.data.cache`), and take them from there the next time.
        progress: show bars on a terminal.

    Returns:
        The data set in a fixed order, in memory or mapped from the cache. What is in the cache of an archive whose
        checksum is published is used without looking at the archive again.

    Raises:
        DataError: anything above is not as wanted, or the data are missing, damaged or not images, or there is no room.
        InputError: nobody knows the home folder that a path's ~, or the cache, refers to.
    """
    request = Request(
        split=split,
        resolution=resolution,
        channels=channels,
        crop=crop,
        download=download,
        root=None if root is None else expanded(root),
        verify=verify,
        cache=cache,
        progress=progress,
    )
    return prepared(find(source, request))


def find(source: str | os.PathLike, request: Request) -> Source:
    """What `load` reads, by a name or from a path, before anything is read.

    Raises:
        DataError: there is no such source, or no such split of it.
    """
    if isinstance(source, str) and source in _OPEN:
        return _OPEN[source](request)
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise DataError(f"source must be a registered name ({', '.join(_OPEN)}) or a path, got {source!r}")
    path = expanded(source)
    if not path.exists():
        names = ", ".join(_OPEN)
        raise DataError(f"source {str(source)!r} is neither a registered data set ({names}) nor a path that exists")
    if not path.is_dir():
        open_source(path).close()
    if databases.is_database(path):
        return databases.open_database(path, request)
    top = PurePosixPath(first_member(path)).parts[:1] if path.is_file() else ()
    if top and top[0] in _BY_FOLDER:
        return _BY_FOLDER[top[0]](replace(request, root=path))
    return open_images(path, request)
