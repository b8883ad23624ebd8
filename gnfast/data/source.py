"""A data set before its pixels are prepared: what identifies it, and how it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import Request


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
