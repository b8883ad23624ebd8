"""A folder or archive of image files as a data set, and the preparation that all data sets share."""

import io
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from gnfast.data.archive import Entry, open_entries
from gnfast.data.dataset import DataError, DataWarning, ImageDataset, Request

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
# Pillow's other readers are for formats that nobody trains on, and one of them starts an interpreter (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_GREY = ("1", "L", "LA", "La")
_SPLITS = ("train", "test", "val", "valid", "validation", "unlabeled")

_CHUNK = 256
# Bytes of an encoded image above which decoding it outside the interpreter's lock outweighs handing it to a thread.
_THREADS_ABOVE = 8192


def load_images(path: Path, request: Request) -> ImageDataset:
    """The images of a folder, zip or tar, ordered by their path.

    Args:
        path: what holds them: directly, in class folders, or in split folders (train, test, …) that hold either.
            Folders that everything lies in are passed over; at least two class folders make labels.
        request: split, resolution, channels and progress; the number of channels is 1 by default where all images are
            grey, else 3. Transparency is dropped, 16-bit grey is cut to its upper 8 bits.

    Raises:
        DataError: no image is left, the split is not there, images differ in size and no resolution is asked for, or
            the archive is damaged.
    """
    with open_entries(path, _is_image, request.progress) as entries:
        entries = [entry for entry in entries if not _is_hidden(entry.name)]
        skipped = [f"{entry.name} (not an image)" for entry in entries if not _is_image(entry.name)]
        found = _select_split(path, [entry for entry in entries if _is_image(entry.name)], request.split)
        total = len(entries)
        # The bytes of a compressed archive are let go as they are decoded.
        entries = None
        arrays, kept = [], []
        hidden = None if request.progress else True
        with tqdm(total=len(found), desc=f"decoding {path.name}", unit="img", disable=hidden) as bar:
            for parts, result in _decoded(found, request):
                bar.update()
                if isinstance(result, str):
                    skipped.append(f"{'/'.join(parts)} ({result})")
                    continue
                if arrays and result.shape[:2] != arrays[0].shape[:2]:
                    raise DataError(
                        f"images of {path} differ in size: {'/'.join(kept[0])} is {_size(arrays[0])} and "
                        f"{'/'.join(parts)} is {_size(result)}; pass resolution=… to resize them all"
                    )
                arrays.append(result)
                kept.append(parts)
    if not arrays:
        raise DataError(f"no image is left in {path}{_summary(skipped)}")
    if skipped:
        message = f"{path}: {len(skipped)} of {total} files skipped{_summary(skipped)}"
        warnings.warn(message, DataWarning, stacklevel=3)
    labels, classes = _labels(kept)
    name = path.resolve().name
    if not path.is_dir():
        name = re.sub(r"(\.tar)?\.(zip|tar|tgz|tbz2|txz|gz|bz2|xz)$", "", name)
    return ImageDataset(name, pack(arrays, request.channels), labels, classes, len(skipped))


def prepare(image: Image.Image, channels: int | None, resolution: int | None) -> np.ndarray:
    """An image as (H, W) grey or (H, W, 3) RGB uint8, resized to (resolution, resolution) with PIL's bilinear filter.

    Raises:
        ValueError: a pixel format without a fixed range (32-bit integer or floating point).
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGB" if channels == 3 or (channels is None and image.mode not in _GREY) else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if resolution is not None and image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    # np.asarray(image) is a third slower for thumbnails.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, *[3] * (mode == "RGB"))


def pack(arrays: list[np.ndarray], channels: int | None) -> Tensor:
    """Prepared images as one (N, C, H, W) uint8 tensor; empties `arrays`, so that there is little more than one copy.

    C is `channels`, or where that is None 1 when all images are grey and 3 when one is not.
    """
    if channels is None:
        channels = 1 if all(array.ndim == 2 for array in arrays) else 3
    out = np.empty((len(arrays), channels, *arrays[0].shape[:2]), np.uint8)
    for i in reversed(range(len(arrays))):
        array = arrays.pop()
        out[i] = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(out)


def _decoded(found: list, request: Request) -> Iterator[tuple[tuple[str, ...], np.ndarray | str]]:
    """Each image's path and its pixels, or the reason why it has none."""

    def decode(data: bytes | str) -> np.ndarray | str:
        if isinstance(data, str):
            return data
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return prepare(image, request.channels, request.resolution)
        except UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # Pillow's readers raise nearly anything on damaged data.
            return f"unreadable: {error}"

    found.reverse()
    pending = iter(lambda: found.pop() if found else None, None)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(pending, _CHUNK)):
            paths = [parts for parts, _ in chunk]
            data = [_read(entry) for _, entry in chunk]
            del chunk
            threads = sum(map(len, data)) > _THREADS_ABOVE * len(data)
            yield from zip(paths, (pool.map if threads else map)(decode, data), strict=True)


def _read(entry: Entry) -> bytes | str:
    try:
        return entry.read()
    except OSError as error:
        return f"unreadable: {error.strerror}"


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


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_hidden(name: str) -> bool:
    """Whether a file is the operating system's: .DS_Store, __MACOSX/._x.png and the like."""
    return any(part.startswith(".") or part == "__MACOSX" for part in _parts(name))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _summary(skipped: list[str]) -> str:
    more = f", and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f": {', '.join(skipped[:3])}{more}" if skipped else ": it holds no file"
