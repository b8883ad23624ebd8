"""Data sets in numbered files: which these are, and which of them hold a split, as their names or folders say."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gnfast.data.dataset import DataError
from gnfast.data.files import walk_files
from gnfast.data.folder import SPLITS, is_image, split_folders

# train-00000-of-00002, imagenet-train-000000, part-0.
_NUMBER = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


def files_in(path: Path, endings: tuple[str, ...]) -> list[str]:
    """The files of a folder with one of these endings; none where there are image files, which go before."""
    found = []
    for file in walk_files(path):
        if is_image(file):
            return []
        # Those that begin with a dot are the operating system's.
        if file.lower().endswith(endings) and not PurePosixPath(file).name.startswith("."):
            found.append(file)
    return found


def of_split(path: Path, files: Sequence[str], split: str) -> list[str]:
    """The files that hold a split, in the order in which they came.

    Args:
        path: where they are, for messages.
        files: names relative to it, at least one.
        split: "train" is all of them where no name has a split.

    Raises:
        DataError: no file is of that split, or they lie in several folders, which may be different data sets.
    """
    wanted = SPLITS.get(split.casefold(), split)
    for name_of in (_stem, _folder):
        names = {file: name_of(file) for file in files}
        known = split_folders(set(names.values()))
        if known:
            splits = {file: known.get(name, name) for file, name in names.items()}
            chosen = [file for file in files if splits[file] == wanted]
            break
    else:
        splits, chosen = dict.fromkeys(files, "train"), list(files) if wanted == "train" else []
    if not chosen:
        there = ", ".join(map(repr, sorted(set(splits.values()))[:20]))
        raise DataError(f"split of {path}: got {split!r}, wanted one of {there}")
    places = sorted({str(PurePosixPath(file).parent) for file in chosen})
    if len(places) > 1:
        raise DataError(f"{path} has files in more than one folder ({', '.join(places[:3])}): pass the path of one")
    return chosen


def _stem(file: str) -> str:
    return _NUMBER.sub("", PurePosixPath(file).name.partition(".")[0])


def _folder(file: str) -> str:
    return PurePosixPath(file).parent.name
