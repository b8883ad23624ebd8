"""WebDataset: tars in which files of one name are a sample, `000.jpg` its image and `000.cls` its class."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from gnfast.data.archive import Entry, EntryError, first_files, open_entries
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import short_name
from gnfast.data.folder import is_image
from gnfast.data.images import decode_into, decoded_identity
from gnfast.data.parts import files_in, of_split
from gnfast.data.source import Contents, Source, labelled

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_CLASS = ".cls"
_DIGITS = re.compile(rb"\s*(\d{1,5})\s*")


def is_sharded(path: Path) -> bool:
    """Whether `path` is a folder of tars, or a tar that begins with an image and its `.cls`.

    Something else of the image's name will do where neither lies in a folder: folders may be classes and splits. A
    compressed tar is not looked into: it would have to be unpacked for that.
    """
    if path.is_dir():
        return bool(files_in(path, _TARS))
    names = first_files(path, 16)
    first = [name for name in names if _parts(name)[0] == _parts(names[0])[0]]
    others = [name for name in first if not is_image(name)]
    is_flat = "/" not in _parts(first[0])[0].removeprefix("./") if first else False
    return len(others) < len(first) and any(is_flat or name.lower().endswith(_CLASS) for name in others)


def open_shards(path: Path, request: Request) -> Source:
    """The images of one shard, or of all in a folder, in the order of their names.

    Labels are the whole numbers in `.cls`. Of a sample's images, as `0.jpg` and `0.mask.png`, that is taken whose name
    says no more than the sample's. Shards of several splits have them in their names (faces-train-000.tar) or folders.

    Raises:
        DataError: no such split; on reading, a shard is damaged, it is not clear which image of a sample is meant, a
            part of the images has labels, or no image is left.
    """
    if path.is_dir():
        shards = [path / file for file in of_split(path, files_in(path, _TARS), request.split)]
    else:
        of_split(path, [path.resolve().name], request.split)
        shards = [path]
    name = short_name(path.resolve())
    return Source(name, request, decoded_identity(path), lambda canvas: _read(path, shards, request, canvas))


def _read(path: Path, shards: list[Path], request: Request, canvas: Canvas) -> Contents:
    kinds: defaultdict[str, int] = defaultdict(int)
    others = []
    for shard in shards:
        for key, sample in _samples(shard, request):
            found = [_kind(entry) for entry in sample if is_image(entry.name)]
            if len(set(found)) < len(found):
                raise DataError(f"{shard}: the sample {key!r} has two images of one kind, wanted one")
            others += [] if found else [f"{shard.name}/{key} (no image)"]
            for kind in found:
                kinds[kind] += 1
    # The shortest is the name of the sample alone.
    chosen = min(kinds, default="")
    listed = ", ".join(repr(kind or "image") for kind in sorted(kinds)[:20])
    if chosen and len(kinds) > 1:
        raise DataError(f"{path}: samples have several images ({listed}), and it is not clear which are meant")
    kept, contents = decode_into(
        canvas, _images(shards, chosen, request), kinds[chosen], request, path, "for a data set", others
    )
    if len(kinds) > 1:
        said = f"{path}: of the images in a sample, {listed}, 'image' is taken"
        contents = replace(contents, warning="; ".join(filter(None, (said, contents.warning))))
    return labelled(contents, kept, None, path)


def _images(shards: list[Path], kind: str, request: Request) -> Iterator[tuple[str, int | None, Callable[[], bytes]]]:
    """Name, label and what reads the bytes of each image, while its shard is open."""
    for shard in shards:
        for _, sample in _samples(shard, request):
            label = next((entry for entry in sample if entry.name.lower().endswith(_CLASS)), None)
            for entry in sample:
                if is_image(entry.name) and _kind(entry) == kind:
                    yield f"{shard.name}/{entry.name}", label and _label(shard, label), entry.read


def _samples(shard: Path, request: Request) -> Iterator[tuple[str, list[Entry]]]:
    """The samples of a shard by their names, each with its files, which can be read until the next is asked for."""
    found: defaultdict[str, list[Entry]] = defaultdict(list)
    with open_entries(shard, _is_read, request.progress) as entries:
        for entry in entries:
            found[_parts(entry.name)[0]].append(entry)
        yield from found.items()


def _is_read(name: str) -> bool:
    return is_image(name) or name.lower().endswith(_CLASS)


def _label(shard: Path, entry: Entry) -> int:
    try:
        content = entry.read()
    except EntryError as error:
        raise DataError(f"{shard}: {entry.name}: {error}, wanted a class in digits") from error
    if not (number := _DIGITS.fullmatch(content)):
        raise DataError(f"{shard}: {entry.name}: got {content[:20]!r}, wanted a class in digits, below 100000")
    return int(number[1])


def _parts(name: str) -> tuple[str, str]:
    """A file's name as WebDataset divides it: the sample's with its folders, and from the first dot on what it is."""
    folder, slash, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return folder + slash + stem, kind.lower()


def _kind(entry: Entry) -> str:
    """Which of a sample's images it is: "" of `0.jpg`, "mask" of `0.mask.png`."""
    return _parts(entry.name)[1].rpartition(".")[0]
