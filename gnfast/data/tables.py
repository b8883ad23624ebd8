"""Data sets of Hugging Face's `datasets` on disk (`save_to_disk`), and Parquet files with a column of images."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from gnfast.data import arrow_reader
from gnfast.data.apart import content_of, said_by
from gnfast.data.archive import ENTRY_BYTES
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import open_source, printable, short_name
from gnfast.data.images import decode_into, decoded_identity
from gnfast.data.parts import files_in, of_split
from gnfast.data.source import Contents, Source, labelled

_PARQUET, _MAGIC = ".parquet", b"PAR1"
_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_DESCRIPTION_BYTES = 1 << 26


def is_saved(path: Path) -> bool:
    """Whether `path` is a folder that `save_to_disk` wrote: of one split, or with a folder for each."""
    return (path / _DICT).is_file() or ((path / _STATE).is_file() and (path / _INFO).is_file())


def is_parquet(path: Path) -> bool:
    """Whether `path` is a Parquet file, or a folder of them."""
    if path.is_dir():
        return bool(files_in(path, (_PARQUET,)))
    with open_source(path) as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_saved(path: Path, request: Request) -> Source:
    """The images of a folder that `save_to_disk` wrote, in their order.

    Args:
        path: the folder; of one split it is "train", and what it says itself.
        request: what is asked.

    Raises:
        DataError: no such split, or the folder is damaged; on reading, as `open_parquet`.
    """
    name, folder = printable(path.resolve().name), path
    if (path / _DICT).is_file():
        splits = _said(path / _DICT).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise DataError(f"{path / _DICT} is damaged: it names no splits")
        _require_split(path, request.split, splits)
        folder = path / _inside(path / _DICT, request.split)
    state = _said(folder / _STATE)
    if folder == path:
        own = state.get("_split")
        _require_split(path, request.split, ["train", *({own} - {"train"} if isinstance(own, str) else ())])
    found = state.get("_data_files")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found) or state.get("_indices_files"):
        raise DataError(f"{folder / _STATE} is damaged, or of an old version of datasets: load it and save it again")
    files = [_inside(folder / _STATE, row.get("filename")) for row in found]
    return _source(name, folder, files, request)


def open_parquet(path: Path, request: Request) -> Source:
    """The images in a column of a Parquet file, or of all that lie in a folder, in the order of their names.

    A column holds images where `datasets` says so, else where it is binary, or a struct with binary `bytes`. Labels are
    the one column of classes (`ClassLabel`), else integers called `label`. Files of several splits have them in their
    names (train-00000-of-00002.parquet) or folders.

    Reading raises:
        DataError: the package pyarrow is not there; a file is damaged; no column holds images, or several that are not
            called `image`; a part of the images has labels; or no image is left.
    """
    name = short_name(path.resolve())
    if not path.is_dir():
        _require_split(path, request.split, ["train"])
        return _source(name, path.parent, [path.name], request, path)
    return _source(name, path, of_split(path, files_in(path, (_PARQUET,)), request.split), request)


def _source(name: str, folder: Path, files: list[str], request: Request, path: Path | None = None) -> Source:
    path = path or folder
    return Source(name, request, decoded_identity(path), lambda canvas: _read(path, folder, files, request, canvas))


def _read(path: Path, folder: Path, files: list[str], request: Request, canvas: Canvas) -> Contents:
    if not files:
        raise DataError(f"no image is left in {path} for split {request.split!r}: it holds no file")
    for file in files:
        open_source(folder / file).close()
    words = [folder, ENTRY_BYTES, *files]
    with closing(said_by(arrow_reader.__file__, words, path, "Arrow or Parquet", "pyarrow")) as said:
        total, classes, warning = next(said)
        rows = ((name, label, content_of(content)) for name, label, content in said)
        kept, contents = decode_into(canvas, rows, total, request, path, f"for split {request.split!r}")
    if warning:
        contents = replace(contents, warning="; ".join(filter(None, (f"{path}: {warning}", contents.warning))))
    return labelled(contents, kept, classes, path)


def _require_split(path: Path, split: str, splits: list[str]) -> None:
    if split not in splits:
        raise DataError(f"split of {path}: got {split!r}, wanted one of {', '.join(map(repr, splits[:20]))}")


def _inside(place: Path, name: Any) -> str:
    """The name of a file or folder, as one of `datasets`' descriptions has it, which must lie next to that."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise DataError(f"{place} is damaged: it names {name!r}, wanted a file next to it")
    return name


def _said(path: Path) -> dict[str, Any]:
    try:
        with open_source(path) as file:
            content = file.read(_DESCRIPTION_BYTES + 1)
        if len(content) > _DESCRIPTION_BYTES:
            raise ValueError(f"more than {_DESCRIPTION_BYTES >> 20} MiB")
        said = json.loads(content)
        if not isinstance(said, dict):
            raise ValueError("no object")
        return said
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
