"""A folder, zip or tar of image files as a data set, with or without folders for splits and classes."""

import re
from collections import defaultdict
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from gnfast.data.archive import Entry, open_entries
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import short_name
from gnfast.data.images import decode_into, decoded_identity
from gnfast.data.source import Contents, Source

_KINDS = ".png .apng .jpg .jpeg .jpe .jfif .webp .avif .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm"
_SUFFIXES = tuple(_KINDS.split())
# Names of folders that hold a split, in any case, and the split.
SPLITS = {name: name for name in ("train", "test", "val", "valid", "validation", "unlabeled")}
SPLITS |= {"training": "train", "testing": "test", "unlabelled": "unlabeled"}
_WORDS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])")


def open_images(path: Path, request: Request) -> Source:
    """The images of a folder, zip or tar, ordered by their path.

    Args:
        path: what holds them: directly, in class folders, or in split folders (train, test, …) that hold either, and
            then what lies beside them is skipped. Folders that everything lies in are passed over; at least two class
            folders make labels.
        request: what is asked; the number of channels is 1 by default where all images are grey, else 3.

    Reading raises:
        DataError: no image is left, the split is not there or cannot be told from a class, images differ in size and
            no resolution is asked for, or the archive is damaged.
    """
    name = short_name(path.resolve())
    return Source(name, request, decoded_identity(path), lambda canvas: _read(path, request, canvas))


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and not one of the operating system's (.DS_Store, __MACOSX/._x.png)."""
    return name.lower().endswith(_SUFFIXES) and not _is_hidden(name)


def _read(path: Path, request: Request, canvas: Canvas) -> Contents:
    with open_entries(path, is_image, request.progress) as entries:
        entries = [entry for entry in entries if not _is_hidden(entry.name)]
        others = [f"{entry.name} (not an image)" for entry in entries if not is_image(entry.name)]
        images = [(_parts(entry.name), entry) for entry in entries if is_image(entry.name)]
        found, beside = _select_split(path, images, request.split)
        others += [f"{'/'.join(parts)} (beside the folders of the splits)" for parts, _ in beside]
        encoded = ((entry.name, parts, entry.read) for parts, entry in found)
        kept, contents = decode_into(canvas, encoded, len(found), request, path, "for a data set", others)
    return replace(contents, **_labels(kept))


_Found = list[tuple[tuple[str, ...], Entry]]


def _select_split(path: Path, images: _Found, split: str) -> tuple[_Found, _Found]:
    """The images of one split, each with its path below the split's folder, and those that belong to no split.

    Without folders for splits, all images, with their paths below what everything lies in.
    """
    wanted = SPLITS.get(split.casefold(), split)
    below: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts, _ in images:
        for depth in range(len(parts) - 1):
            below[parts[:depth]].add(parts[depth])
    divided = _divided(path, below)
    if divided is None:
        if wanted != "train":
            raise DataError(f"split of {path}: got {split!r}, wanted 'train': it has no folder for each split")
        places = {parts[:-1] for parts, _ in images}
        depth = len(list(takewhile(lambda names: len(set(names)) == 1, zip(*places, strict=False))))
        return [(parts[depth:], entry) for parts, entry in images], []
    named = split_folders(below[divided])
    folders = {split: name for name, split in sorted(named.items())}
    if len(named) != len(folders):
        raise DataError(f"{path} has more than one folder for a split: {', '.join(sorted(named))}")
    if wanted not in folders:
        there = ", ".join(map(repr, sorted(folders.values())))
        raise DataError(f"split of {path}: got {split!r}, wanted one of {there}")
    tops = {(*divided, name) for name in named}
    depth = len(divided) + 1
    chosen = [(parts[depth:], entry) for parts, entry in images if parts[:depth] == (*divided, folders[wanted])]
    return chosen, [(parts, entry) for parts, entry in images if parts[:depth] not in tops]


def _divided(path: Path, below: defaultdict[tuple[str, ...], set[str]]) -> tuple[str, ...] | None:
    """The folder that holds the splits' folders, or None; `below` has the names of the folders in each folder."""
    # One name may be a class: "train" is one of Pascal's.
    divided = [folder for folder in sorted(below) if len(set(split_folders(below[folder]).values())) > 1]
    divided = [folder for folder in divided if not any(folder[: len(top)] == top for top in divided if top != folder)]
    if len(divided) > 1:
        names = ", ".join("/".join(folder) or "." for folder in divided[:3])
        raise DataError(f"{path} has folders for splits in more than one place ({names}): pass the path of one")
    if divided:
        return divided[0]
    folder: tuple[str, ...] = ()
    while not split_folders(below[folder]) and len(below[folder]) == 1:
        folder += tuple(below[folder])
    named = split_folders(below[folder])
    if not named or (len(below[folder]) > 1 and "train" in named.values()):
        return None
    if len(below[folder]) > 1:
        raise DataError(
            f"{path} has the folders {', '.join(sorted(below[folder]))}: is {min(named)!r} a split or a class? "
            f"Rename it, or pass the path of the folder that is meant"
        )
    return folder


def split_folders(names: set[str]) -> dict[str, str]:
    """Those of the folders beside one another that stand for splits: name to split."""
    exact = {name: SPLITS[name.casefold()] for name in names if name.casefold() in SPLITS}
    # train2017 and val2017, trainA and testA, seg_train and seg_test: only together, as a class may be a bullet_train.
    words = {name: [word for word in map(str.casefold, _WORDS.split(name)) if word in SPLITS] for name in names}
    loose = {name: SPLITS[found[0]] for name, found in words.items() if len(found) == 1}
    return loose if len(set(loose.values())) > 1 and 2 * len(loose) >= len(names) else exact


def _labels(paths: list[tuple[str, ...]]) -> dict[str, Any]:
    """Labels and classes from the folders that images lie in, where all lie in one and there are several."""
    classes = sorted({parts[0] for parts in paths})
    if len(classes) < 2 or any(len(parts) < 2 for parts in paths):
        return {}
    index = {name: i for i, name in enumerate(classes)}
    return {"labels": torch.tensor([index[parts[0]] for parts in paths]), "classes": tuple(classes)}


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in _parts(name))
