"""Image files as pixels on a canvas: decoding, and the preparation that all data sets share."""

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request

Tag = TypeVar("Tag")

# Pillow's other readers are for formats that nobody trains on, and one of them starts an interpreter (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_GREY = ("1", "L", "LA", "La")

_CHUNK = 256
# Bytes of an encoded image above which decoding it outside the interpreter's lock outweighs handing it to a thread.
_THREADS_ABOVE = 8192


def prepare(image: Image.Image, request: Request) -> np.ndarray:
    """An image as (H, W) grey or (H, W, 3) RGB uint8, cropped and resized as `request` asks.

    The crop is the square of `request.crop` pixels in the middle, if that is not 0 or None; then comes PIL's bilinear
    filter, to (resolution, resolution). Transparency is dropped, 16-bit grey is cut to its upper 8 bits.

    Raises:
        ValueError: a pixel format without a fixed range (32-bit integer or floating point), or an image smaller than
            the crop.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGB" if request.channels == 3 or (request.channels is None and image.mode not in _GREY) else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if crop := request.crop:
        if min(image.size) < crop:
            raise ValueError(f"{image.width}x{image.height} is smaller than the crop of {crop}x{crop}")
        # Rounded as torchvision's CenterCrop does, with which the papers' codes crop.
        left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
        image = image.crop((left, top, left + crop, top + crop))
    resolution = request.resolution
    if resolution is not None and image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    # np.asarray(image) is a third slower for thumbnails.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, *[3] * (mode == "RGB"))


def add_arrays(canvas: Canvas, images: np.ndarray, request: Request) -> None:
    """Put (n, C, H, W) uint8 on the canvas, prepared as `request` asks.

    Raises:
        DataError: they are smaller than the crop.
    """
    _, channels, height, width = images.shape
    is_ready = request.resolution in (None, height) and height == width and not request.crop
    if is_ready and request.channels in (None, channels):
        canvas.extend(images)
        return
    for image in images:
        picture = Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        try:
            array = prepare(picture, request)
        except ValueError as error:
            raise DataError(f"crop: {error}") from error
        canvas.add(array)


def decode_into(
    canvas: Canvas,
    encoded: Iterable[tuple[str, Tag, Callable[[], bytes]]],
    request: Request,
    bar: tqdm,
    path: Path,
) -> tuple[list[Tag], list[str]]:
    """Put encoded images on the canvas, in their order, prepared as `request` asks, some hundred at a time.

    Args:
        canvas: expects as many as there are.
        encoded: of each image its name for messages, a tag, and what reads its bytes.
        request: how to prepare them.
        bar: moves by one with each.
        path: where they are, for messages.

    Returns:
        The tags of those that could be read, and name and reason for each of the others.

    Raises:
        DataError: they differ in size, or none could be read.
    """
    kept, skipped, first = [], [], ""
    for name, tag, result in _decoded(encoded, request):
        bar.update()
        if isinstance(result, str):
            skipped.append(f"{name} ({result})")
            continue
        if canvas.size is not None and result.shape[:2] != canvas.size:
            raise DataError(
                f"images of {path} differ in size: {first} is {_size(canvas.size)} and "
                f"{name} is {_size(result.shape)}; pass resolution=… to resize them all"
            )
        first = first or name
        canvas.add(result)
        kept.append(tag)
    return kept, skipped


def decoding_bar(path: Path, total: int, request: Request) -> tqdm:
    """The progress bar of `decode_into`, on a terminal."""
    return tqdm(total=total, desc=f"decoding {path.name}", unit="img", disable=None if request.progress else True)


def skipped_files(skipped: list[str]) -> str:
    """The first few of what was skipped, for messages."""
    more = f", and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f": {', '.join(skipped[:3])}{more}" if skipped else ": it holds no file"


def _decoded(
    encoded: Iterable[tuple[str, Tag, Callable[[], bytes]]], request: Request
) -> Iterator[tuple[str, Tag, np.ndarray | str]]:
    """Each image's name, tag, and pixels or the reason why it has none."""

    def decode(data: bytes | str) -> np.ndarray | str:
        if isinstance(data, str):
            return data
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return prepare(image, request)
        except UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # Pillow's readers raise nearly anything on damaged data.
            return f"unreadable: {error}"

    encoded = iter(encoded)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(encoded, _CHUNK)):
            names, tags = [name for name, _, _ in chunk], [tag for _, tag, _ in chunk]
            data = [_read(read) for _, _, read in chunk]
            # The bytes of a compressed archive are let go as they are decoded.
            del chunk
            threads = sum(map(len, data)) > _THREADS_ABOVE * len(data)
            yield from zip(names, tags, (pool.map if threads else map)(decode, data), strict=True)


def _read(read: Callable[[], bytes]) -> bytes | str:
    try:
        return read()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
