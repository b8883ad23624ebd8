"""A data set before its pixels are prepared: what is known of it, what identifies it, and how it is read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official, printable, stat_identity
from gnfast.io.files import cache_root


@dataclass(frozen=True)
class Contents:
    """What goes with the images that were read, in their order.

    Args:
        labels: (N,) int64 indices into `classes`, or None.
        classes: names of the classes; empty without labels.
        skipped: how many files were found but not used.
        warning: what the user should know about them; "" if nothing.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: int = 0
    warning: str = ""


def labelled(
    contents: Contents, labels: Sequence[int | None], classes: Sequence[str] | None, place: Path | str
) -> Contents:
    """Contents with the label of each image, of which all or none have one.

    Args:
        contents: without labels.
        labels: from 0 on.
        classes: their names; None: their numbers.
        place: where they are from, for messages.

    Raises:
        DataError: only a part of the images has one, or one is beyond the names.
    """
    if not (missing := labels.count(None)):
        highest = max(labels)
        names = classes or tuple(map(str, range(highest + 1)))
        if highest >= len(names):
            raise DataError(f"labels of {place}: got {highest}, wanted 0 to {len(names) - 1}, one for each class")
        return replace(contents, labels=torch.tensor(labels), classes=tuple(map(printable, names)))
    if missing < len(labels):
        raise DataError(
            f"labels of {place}: {missing} of {len(labels)} images have none, wanted all or none to have one"
        )
    return contents


@dataclass(frozen=True)
class Source:
    """Where a data set's images come from.

    Args:
        name: a short name for logs and results.
        request: what is asked of it, with the data set's own defaults filled in.
        identity: JSON values that change when the images would: an MD5, or path, size and time of change.
        read: puts the prepared images on a canvas, and returns what goes with them.
        is_quick: whether reading it takes no time worth saving.
        check: compares checksums with the published ones; returns the files that are there and have theirs, and raises
            `DataError` where one has not.
    """

    name: str
    request: Request
    identity: Mapping[str, Any]
    read: Callable[[Canvas], Contents]
    is_quick: bool = False
    check: Callable[[], list[Path]] = list


@dataclass(frozen=True, kw_only=True)
class DataSet(ABC):
    """A data set with a name. Those in the list SETS of a file in `gnfast/data/sets` are known to `load`.

    A format derives from it, with what it must know of each data set, and `open`.

    Args:
        name: for `load`, logs and results.
        description: how many images of what, their size, the source, how to get it; one line.
        splits: the names of its parts, each with what says which images are in it.
        channels, resolution, crop: of all its images where a request does not say; no resolution if not all are square.
        archive: the published file, where it is one.
        folder: what that has everything in, by which it is recognised under any name; "" if nothing.
        classes: what its labels stand for.
    """

    name: str
    description: str
    splits: Mapping[str, Any]
    channels: int = 3
    resolution: int | None = None
    crop: int = 0
    archive: Official | None = None
    folder: str = ""
    classes: tuple[str, ...] = ()

    def source(self, request: Request) -> Source:
        """What `request` asks for.

        Raises:
            DataError: an unknown split, or nothing is there; on reading, a file is missing and `download` is False, it
                has a wrong checksum (unless `verify` is False) or is damaged, or no image is left.
        """
        if request.split not in self.splits:
            wanted = ", ".join(map(repr, self.splits))
            raise DataError(f"split of {self.name}: got {request.split!r}, wanted one of {wanted}")
        # Its own values where nothing is asked for, so that asking for them changes nothing.
        crop = self.crop if request.crop is None else request.crop
        resolution = request.resolution or (None if crop else self.resolution)
        return self.open(replace(request, channels=request.channels or self.channels, resolution=resolution, crop=crop))

    @abstractmethod
    def open(self, request: Request) -> Source:
        """`source`, of a split that there is."""

    def find(
        self, request: Request, names: Sequence[str], advice: str, holds: Callable[[Path], bool], folder: str = ""
    ) -> Path:
        """What a user fetches by hand: the first that `holds` of `names` in `request.root`, and that itself.

        Without `request.root` it is looked for in the cache's `data`, in `folder` or one of the data set's name.

        Raises:
            DataError: there is none; `advice` says where to get it.
        """
        root = request.root or cache_root() / "data" / (folder or self.name)
        path = next((path for path in (*(root / name for name in names), root) if holds(path)), None)
        if path is None:
            raise DataError(f"{self.name} is not at {root / names[0]}; {advice}")
        return path


def published(files: Sequence[Official], request: Request, read: Callable[[list[Path], Canvas], Contents]) -> Source:
    """A data set in files with published checksums, of which `read` gets the paths, after they were compared."""
    # Only a file that may differ is looked at.
    identity = {
        file.name: {"md5": file.md5} if request.verify else stat_identity(file.locate(request)) for file in files
    }
    return Source(
        files[0].dataset,
        request,
        identity if len(files) > 1 else identity[files[0].name],
        lambda canvas: read([file.locate(request) for file in files], canvas),
        check=lambda: [file.check(path) for file in files if (path := file.path(request)).is_file()],
    )
