"""Prepared pixels kept on disk: decoded, cropped and resized once, and mapped into memory from then on.

Two files for each preparation, in `cache_root()/prepared`: NAME-SPLIT-SIZE-KEY.bin has the pixels, (N, C, H, W) uint8
in C order, and from the next multiple of 8 bytes on the labels, int64; NAME-SPLIT-SIZE-KEY.json describes them, and is
written last. KEY comes from what identifies the source and from how it is prepared.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, DataWarning, ImageDataset, fingerprint_of
from gnfast.data.draft import ReadyError, alone, clear_about_room, finish, folder, labels_at, new_draft
from gnfast.data.files import open_source
from gnfast.data.source import Source
from gnfast.errors import warn_user
from gnfast.io.files import is_abandoned, write_text

_FORMAT = 1
# What every description must have.
_KINDS = {
    **dict.fromkeys(("name", "split", "warning", "fingerprint"), str),
    **dict.fromkeys(("shape", "classes"), list),
    **dict.fromkeys(("format", "skipped", "modified_ns"), int),
    "crop": (int, str),
    "labels": bool,
}
# Only damage makes a description larger.
_DESCRIPTION_BYTES = 1 << 26
# Less than this is prepared in memory, and kept only if that took longer than opening a file is worth.
_SMALL_BYTES = 16 << 20
_WORTH_SECONDS = 1.0


@dataclass(frozen=True)
class Entry:
    """A preparation in the cache.

    Args:
        path: of its description, a JSON file; the pixels are next to it.
        header: what the description holds.
        nbytes: of both files.
    """

    path: Path
    header: dict[str, Any]
    nbytes: int

    @property
    def data(self) -> Path:
        """The file with pixels and labels."""
        return self.path.with_suffix(".bin")

    def remove(self) -> None:
        """Delete it; what is mapped already stays readable."""
        # Without its description an entry does not exist.
        self.path.unlink(missing_ok=True)
        self.data.unlink(missing_ok=True)


def entries() -> list[Entry]:
    """What is in the cache, by name; entries whose description cannot be read are left out."""
    found = []
    for path in sorted(folder().glob("*.json")):
        with contextlib.suppress(DataError, OSError):
            header = _header(path)
            found.append(Entry(path, header, path.stat().st_size + path.with_suffix(".bin").stat().st_size))
    return found


def leftovers() -> list[Path]:
    """Files in the cache that belong to no entry: damaged, or of a preparation that was killed."""
    known = {path for entry in entries() for path in (entry.path, entry.data)}
    others = [path for path in folder().glob("*") if path.is_file() and path not in known]
    return sorted(path for path in others if path.suffix != ".part" or is_abandoned(path))


def entry_of(source: Source) -> Entry | None:
    """The entry that `prepared` would open for `source`, or None where there is none yet."""
    path = _path(source)
    return next((entry for entry in entries() if entry.path == path), None)


def prepared(source: Source) -> ImageDataset:
    """The images of `source` as it asks for them, from the cache or read and then kept there.

    What is small and quick to read is not kept. A damaged entry is prepared again, with a warning.

    Raises:
        DataError: what reading `source` raises, or there is no room for the prepared pixels.
    """
    if not source.request.cache or source.is_quick:
        return _prepare(source, None)
    path = _path(source)
    try:
        return _open(path, source.request.progress)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except DataError as error:
        warn_user(f"{path} is damaged and prepared again: {error}", DataWarning)
        path.unlink(missing_ok=True)
    try:
        return _prepare(source, path)
    except ReadyError:
        return _open(path, source.request.progress)


def verify(entry: Entry, progress: bool = True) -> None:
    """Compare an entry's content with the fingerprint that it was kept with.

    Raises:
        DataError: they differ, or the entry is damaged otherwise.
    """
    try:
        _compare(_mapped(entry.path, entry.header), entry.header, progress)
    except (DataError, OSError) as error:
        raise DataError(f"{entry.data} is damaged: {error}; it is prepared again when it is needed") from error


def _path(source: Source) -> Path:
    """Where the description of `source` as it is asked for is or would be."""
    key = hashlib.sha256(json.dumps(_description(source), sort_keys=True).encode()).hexdigest()[:16]
    name = f"{source.name or 'images'}-{source.request.split}-{source.request.resolution or 'full'}"
    name = re.sub(r"[^\w.-]", "_", name)
    return folder() / f"{name}-{key}.json"


def _description(source: Source) -> dict[str, Any]:
    """What the prepared pixels depend on."""
    request = source.request
    asked = {"split": request.split, "resolution": request.resolution, "channels": request.channels}
    return {"format": _FORMAT, "name": source.name, "source": dict(source.identity), **asked, "crop": request.crop or 0}


def _prepare(source: Source, path: Path | None) -> ImageDataset:
    """The images of `source`, read, and kept at `path` if they are worth it; in memory alone where there is no path."""
    with contextlib.ExitStack() as stack:
        drafts: list[np.memmap] = []

        def new(nbytes: int) -> np.memmap:
            if not drafts:
                stack.enter_context(alone(path))
            drafts.append(stack.enter_context(new_draft(path, nbytes)))
            return drafts[-1]

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            nbytes = math.prod(shape)
            in_memory = path is None or nbytes < _SMALL_BYTES
            return np.empty(shape, np.uint8) if in_memory else new(nbytes).reshape(shape)

        start = time.monotonic()
        canvas = Canvas(allocate)
        try:
            contents = source.read(canvas)
        except MemoryError as error:
            raise DataError(f"{source.name}: the images do not fit into memory ({error})") from error
        if contents.warning:
            warn_user(contents.warning, DataWarning)
        pixels = torch.from_numpy(canvas.pixels)
        dataset = ImageDataset(source.name, pixels, contents.labels, contents.classes, contents.skipped)
        if not drafts:
            if path is None or time.monotonic() - start < _WORTH_SECONDS:
                return dataset
            new(dataset.images.nbytes)[:] = canvas.pixels.reshape(-1)
        header = {
            **_description(source),
            "shape": list(dataset.images.shape),
            "classes": list(dataset.classes),
            "labels": dataset.labels is not None,
            "skipped": dataset.skipped,
            "warning": contents.warning,
            "fingerprint": fingerprint_of(dataset, source.request.progress),
        }
        finish(drafts[-1], dataset)
        os.replace(drafts[-1].filename, path.with_suffix(".bin"))
        # Until its description is there, the entry does not exist, and its pixels are for nobody.
        stack.callback(lambda: path.exists() or path.with_suffix(".bin").unlink(missing_ok=True))
        with clear_about_room(dataset.images.nbytes):
            _write_header(path, header)
    return _mapped(path, header)


def _open(path: Path, progress: bool) -> ImageDataset:
    """The entry described by `path`.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is not what its description says.
    """
    header = _header(path)
    dataset = _mapped(path, header)
    if path.with_suffix(".bin").stat().st_mtime_ns != header["modified_ns"]:
        # Copied, restored or changed since: only the content can tell.
        _compare(dataset, header, progress)
        with contextlib.suppress(OSError):
            _write_header(path, header)
    if header["warning"]:
        warn_user(header["warning"], DataWarning)
    return dataset


def _compare(dataset: ImageDataset, header: dict[str, Any], progress: bool) -> None:
    got = fingerprint_of(dataset, progress)
    if got != header["fingerprint"]:
        raise DataError(f"expected the fingerprint {header['fingerprint']}, got {got}")


def _header(path: Path) -> dict[str, Any]:
    try:
        with open_source(path) as file:
            content = file.read(_DESCRIPTION_BYTES + 1)
        if len(content) > _DESCRIPTION_BYTES:
            raise ValueError(f"more than {_DESCRIPTION_BYTES >> 20} MiB")
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"its description is not JSON ({error})") from error
    is_whole = isinstance(header, dict) and all(isinstance(header.get(key), kind) for key, kind in _KINDS.items())
    if not is_whole or header["format"] != _FORMAT or len(header["shape"]) != 4:
        raise DataError("its description is incomplete")
    if not all(type(size) is int and size > 0 for size in header["shape"]):
        raise DataError(f"its description has the shape {header['shape']}")
    if not all(isinstance(name, str) for name in header["classes"]):
        raise DataError("its description has classes that are not names")
    return header


def _write_header(path: Path, header: dict[str, Any]) -> None:
    header = header | {"modified_ns": path.with_suffix(".bin").stat().st_mtime_ns}
    write_text(path, json.dumps(header, indent=2) + "\n")


def _mapped(path: Path, header: dict[str, Any]) -> ImageDataset:
    shape, count = header["shape"], header["shape"][0]
    data = path.with_suffix(".bin")
    nbytes = math.prod(shape)
    wanted = labels_at(nbytes) + 8 * count * header["labels"]
    try:
        with open_source(data) as file:
            got = os.fstat(file.fileno()).st_size
            if got != wanted:
                raise DataError(f"{data.name} should have {wanted} bytes and has {got}")
            content = _map(file.fileno(), wanted)
    except FileNotFoundError as error:
        raise DataError(f"{data.name} is not there") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        pixels = torch.frombuffer(content, dtype=torch.uint8, count=nbytes).view(shape)
    labels = None
    if header["labels"]:
        labels = torch.from_numpy(np.frombuffer(content, "<i8", count, labels_at(nbytes)).astype(np.int64))
    classes = tuple(header["classes"])
    return ImageDataset(header["name"], pixels, labels, classes, header["skipped"], header["fingerprint"])


def _map(descriptor: int, nbytes: int) -> mmap.mmap:
    # Private: an in-place operation changes the copy of a page in this process, not the file. Without reservation,
    # since the file may be larger than memory; some systems refuse even so, and then there is only reading.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return mmap.mmap(descriptor, nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError:
        return mmap.mmap(descriptor, nbytes, prot=mmap.PROT_READ)
