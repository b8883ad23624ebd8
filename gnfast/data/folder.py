"""A folder, zip or tar of image files as a data set, with or without folders for splits and classes."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gnfast.data.archive import Entry, open_entries
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import stat_identity
from gnfast.data.images import decode_into, decoding_bar, skipped_files
from gnfast.data.source import Contents, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_SPLITS = ("train", "test", "val", "valid", "validation", "unlabeled")


def open_images(path: Path, request: Request) -> Source:
    """The images of a folder, zip or tar, ordered by their path.

    Args:
        path: what holds them: directly, in class folders, or in split folders (train, test, …) that hold either.
            Folders that everything lies in are passed over; at least two class folders make labels.
        request: what is asked; the number of channels is 1 by default where all images are grey, else 3.

    Reading raises:
        DataError: no image is left, the split is not there, images differ in size and no resolution is asked for, or
            the archive is damaged.
    """
    name = path.resolve().name
    if not path.is_dir():
        name = re.sub(r"(\.tar)?\.(zip|tar|tgz|tbz2|txz|gz|bz2|xz)$", "", name)
    return Source(name, request, stat_identity(path), lambda canvas: _read(path, request, canvas))


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and not one of the operating system's (.DS_Store, __MACOSX/._x.png)."""
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)


def _read(path: Path, request: Request, canvas: Canvas) -> Contents:
    with open_entries(path, is_image, request.progress) as entries:
        entries = [entry for entry in entries if not _is_hidden(entry.name)]
        others = [f"{entry.name} (not an image)" for entry in entries if not is_image(entry.name)]
        found = _select_split(path, [entry for entry in entries if is_image(entry.name)], request.split)
        total = len(entries)
        entries = None
        canvas.expect(len(found))
        with decoding_bar(path, len(found), request) as bar:
            kept, unreadable = decode_into(canvas, _taken(found), request, bar, path)
    skipped = others + unreadable
    if not kept:
        raise DataError(f"no image is left in {path}{skipped_files(skipped)}")
    warning = f"{path}: {len(skipped)} of {total} files skipped{skipped_files(skipped)}" if skipped else ""
    return Contents(*_labels(kept), len(skipped), warning)


def _taken(found: list[tuple[tuple[str, ...], Entry]]) -> Iterator:
    """The entries for `decode_into`, which leave the list, so that the bytes of a compressed archive are let go."""
    found.reverse()
    while found:
        parts, entry = found.pop()
        yield "/".join(parts), parts, entry.read


def _select_split(path: Path, entries: list[Entry], split: str) -> list[tuple[tuple[str, ...], Entry]]:
    """The entries of one split, each with its path below the split's folder (or below what everything lies in)."""
    found = [(_parts(entry.name), entry) for entry in entries]
    while True:
        tops = {parts[0] if len(parts) > 1 else None for parts, _ in found}
        if tops and tops <= set(_SPLITS):
            if split not in tops:
                there = ", ".join(repr(top) for top in sorted(tops))
                raise DataError(f"split must be one of those in {path} ({there}), got {split!r}")
            return [(parts[1:], entry) for parts, entry in found if parts[0] == split]
        if len(tops) != 1 or None in tops:
            break
        found = [(parts[1:], entry) for parts, entry in found]
    if split != "train":
        raise DataError(f"split must be 'train' for {path}, which has no folder for each split, got {split!r}")
    return found


def _labels(paths: list[tuple[str, ...]]) -> tuple[Tensor | None, tuple[str, ...]]:
    classes = sorted({parts[0] for parts in paths})
    if len(classes) < 2 or any(len(parts) < 2 for parts in paths):
        return None, ()
    index = {name: i for i, name in enumerate(classes)}
    return torch.tensor([index[parts[0]] for parts in paths]), tuple(classes)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in _parts(name))
