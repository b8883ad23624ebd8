"""`load`: one door to all data sets. Those with a name are in the files of `gnfast/data/sets`, and found there."""

import importlib
import os
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from gnfast.data import databases, sets, shards, tables
from gnfast.data.archive import first_file
from gnfast.data.cache import prepared
from gnfast.data.dataset import DataError, ImageDataset, Request
from gnfast.data.files import open_source
from gnfast.data.folder import open_images
from gnfast.data.source import DataSet, Source
from gnfast.io.files import expanded

_MODULES = [importlib.import_module(f"{sets.__name__}.{found.name}") for found in pkgutil.iter_modules(sets.__path__)]
SETS: dict[str, DataSet] = {known.name: known for module in _MODULES for known in module.SETS}

# How a path that holds no plain image files is recognised, and what opens it.
_FORMATS: tuple[tuple[Callable[[Path], bool], Callable[[Path, Request], Source]], ...] = (
    (databases.is_database, databases.open_database),
    (tables.is_saved, tables.open_saved),
    (shards.is_sharded, shards.open_shards),
    (tables.is_parquet, tables.open_parquet),
)


def registered() -> dict[str, str]:
    """The names that `load` knows, each with a line that describes it."""
    return {name: SETS[name].description for name in sorted(SETS)}


def load(
    source: str | os.PathLike,
    *,
    split: str = "train",
    resolution: int | None = None,
    channels: int | None = None,
    crop: int | Literal["square"] | None = None,
    download: bool = False,
    root: str | os.PathLike | None = None,
    verify: bool = True,
    cache: bool = True,
    progress: bool = True,
) -> ImageDataset:
    """A data set, by its name or from a path.

    Args:
        source: a registered name (`registered()` lists them), or the path of an image folder, zip or tar (plain or
            compressed), of an LMDB of images, of what `datasets` saved, of Parquet files, of WebDataset's shards, or of
            the official archive of CIFAR-10, CIFAR-100 or STL-10. A name goes before a path; write ./digits for a
            folder.
        split: "train", "test", or another split that the data set has.
        resolution: side in pixels to which images are resized (PIL, bilinear); None keeps their size.
        channels: 1 or 3; None takes what the images have, 3 where some are in colour.
        crop: side in pixels of the square in the middle that is cut out before that, or "square" for the largest that
            there is; 0 is none, None what the data set's description says (178 for celeba, none for all others). Where
            it is None, a warning says how many of the images of a path are stretched to a square.
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


def require_source(source: str | os.PathLike, argument: str = "source") -> None:
    """That `source` is a registered name or a path that exists.

    Args:
        argument: what the error's message begins with.

    Raises:
        DataError: it is neither.
    """
    if isinstance(source, str) and source in SETS:
        return
    names = ", ".join(sorted(SETS))
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise DataError(f"{argument}: got {source!r}, wanted a path or one of {names}")
    if not expanded(source).exists():
        if os.sep in str(source):
            raise DataError(f"{argument}: got {str(source)!r}, which does not exist")
        raise DataError(f"{argument}: got {str(source)!r}, wanted a path that exists or one of {names}")


def find(source: str | os.PathLike, request: Request) -> Source:
    """What `load` reads, by a name or from a path, before anything is read.

    Raises:
        DataError: there is no such source, or no such split of it.
    """
    require_source(source)
    if isinstance(source, str) and source in SETS:
        return SETS[source].source(request)
    path = expanded(source)
    if not path.is_dir():
        open_source(path).close()
    if opened := next((opens for holds, opens in _FORMATS if holds(path)), None):
        return opened(path, request)
    top = PurePosixPath(first_file(path)).parts[:1] if path.is_file() else ()
    # Official archives are recognised by the folder that all is in, whatever their name and checksum.
    if official := next((known for known in SETS.values() if top == (known.folder,)), None):
        return official.source(replace(request, root=path))
    return open_images(path, request)
