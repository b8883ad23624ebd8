"""Image files as pixels on a canvas: decoding, and the preparation that all data sets share."""

import contextlib
import importlib.util
import io
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import stat_identity
from gnfast.data.source import Contents

Tag = TypeVar("Tag")

# Pillow's other readers are for formats that nobody trains on, and one of them starts an interpreter (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Pillow before 11.3 has none.
_FORMATS += ("AVIF",) * (importlib.util.find_spec("PIL.AvifImagePlugin") is not None)
_GREY = ("1", "L", "LA", "La")
# Where Pillow keeps what may hold an orientation.
_ORIENTED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_CROP = "the crop"
# Goes up when files become other pixels than before: 2 since their orientation counts.
_DECODING = 2

# Images under way at once: how many, and the memory of their bytes and pixels; one that takes more is alone.
_MANY = 256
_MEMORY = 1 << 28
_PIXELS = 1 << 26


def decoded_identity(path: Path) -> dict[str, Any]:
    """What identifies pixels decoded from the image files at `path`."""
    return {**stat_identity(path), "decoding": _DECODING}


def prepare(image: Image.Image, request: Request) -> np.ndarray:
    """An image as (H, W) grey or (H, W, 3) RGB uint8, cropped and resized as `request` asks.

    The crop is the square of `request.crop` pixels in the middle, or the largest there, if that is not 0 or None; then
    comes PIL's bilinear filter, to (resolution, resolution). Transparency is dropped, 16 bits are cut to their upper 8.

    Raises:
        DataError: a pixel format without a fixed range (32-bit integer or floating point), or an image smaller than
            the crop.
    """
    if image.mode in ("I", "F"):
        raise DataError(f"pixels of mode {image.mode} have no fixed range")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGB" if request.channels == 3 or (request.channels is None and image.mode not in _GREY) else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if crop := min(image.size) if request.crop == "square" else request.crop:
        if min(image.size) < crop:
            raise DataError(f"{image.width}x{image.height} is smaller than {_CROP} of {crop}x{crop}")
        # Rounded as torchvision's CenterCrop does, with which the papers' codes crop.
        left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
        image = image.crop((left, top, left + crop, top + crop))
    if (side := request.resolution) and image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
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
            canvas.add(prepare(picture, request))
        except DataError as error:
            raise DataError(f"crop: {error}") from error


def decode_into(
    canvas: Canvas,
    encoded: Iterable[tuple[str, Tag, Callable[[], bytes]]],
    total: int,
    request: Request,
    path: Path,
    what: str,
    others: Sequence[str] = (),
) -> tuple[list[Tag], Contents]:
    """Put encoded images on the canvas, in their order, prepared as `request` asks, some hundred at a time.

    Args:
        canvas: an empty one.
        encoded: of each image its name for messages, a tag, and what reads its bytes.
        total: how many there are at most.
        request: how to prepare them.
        path: where they are, for messages.
        what: which they are, for the message that none is left.
        others: name and reason of each file that was passed over before.

    Returns:
        The tags of those that could be read, and contents without labels that say how many could not, and how many
        are not as they were.

    Raises:
        DataError: they differ in size, they would become black, or none could be read.
    """
    kept, skipped, first, brightest, lost = [], list(others), "", -1, Counter[str]()
    canvas.expect(total)
    bar = tqdm(total=total, desc=f"decoding {path.name}", unit="img", disable=None if request.progress else True)
    with bar, warnings.catch_warnings():
        # Pillow warns of each odd tag; what counts is whether there are pixels.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for name, tag, result in _decoded(encoded, request):
            bar.update()
            if isinstance(result, str):
                skipped.append(f"{name} ({result})")
                continue
            pixels, has_16_bits, losses = result
            lost.update(losses)
            if canvas.size is not None and pixels.shape[:2] != canvas.size:
                raise DataError(
                    f"images of {path} differ in size: {first} is {_size(canvas.size)} and "
                    f"{name} is {_size(pixels.shape)}; pass resolution=… to resize them all"
                )
            if has_16_bits:
                brightest = max(brightest, int(pixels.max()))
            first = first or name
            canvas.add(pixels)
            kept.append(tag)
    if 0 <= brightest < 64:
        raise DataError(
            f"{path}: the values of its 16-bit images stay below {256 * (brightest + 1)} of 65536, as those of fewer "
            f"bits do, and would become black; scale them to 16 bits first"
        )
    if not kept:
        raise DataError(f"no image is left in {path} {what}{examples_of(skipped) if skipped else ': it holds no file'}")
    warning = warning_about(skipped, total + len(others), lost, len(kept), request)
    return kept, Contents(skipped=len(skipped), warning=f"{path}: {warning}" if warning else "")


def warning_about(skipped: list[str], files: int, lost: Mapping[str, int], count: int, request: Request) -> str:
    """What the user should know of images that are left out, or not as they were: `lost` counts what `losses` gives."""
    said = [f"{len(skipped)} of {files} files skipped{examples_of(skipped)}"] if skipped else []
    if stretched := lost.get("shape"):
        said.append(
            f"{stretched} of {count} images are not square and are stretched to "
            f"{request.resolution}x{request.resolution}; --crop square (crop='square') takes the largest square in the "
            "middle of each instead"
        )
    if transparent := lost.get("transparency"):
        said.append(
            f"{transparent} of {count} images lose their transparency, and the colours below it show, often black or "
            "white; if that matters, put them on a background first"
        )
    return "; ".join(said)


def losses(image: Image.Image, request: Request) -> tuple[str, ...]:
    """What an image loses though nobody has said that it is meant: its "shape", its "transparency"."""
    stretches = request.crop is None and bool(request.resolution) and image.width != image.height
    if image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA")
    transparent = "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255
    return ("shape",) * stretches + ("transparency",) * transparent


def examples_of(skipped: list[str]) -> str:
    """The first of what is left out, each a name and a reason, to put behind a sentence about it."""
    small = any(_CROP in reason for reason in skipped)
    more = f", and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    advice = "; --crop square (crop='square') would take what is smaller, too" if small else ""
    return f": {', '.join(skipped[:3])}{more}{advice}"


class _Pixels(NamedTuple):
    """An image as it is wanted, whether it had 16 bits, and its `losses`."""

    pixels: np.ndarray
    has_16_bits: bool
    losses: tuple[str, ...]


def _decoded(
    encoded: Iterable[tuple[str, Tag, Callable[[], bytes]]], request: Request
) -> Iterator[tuple[str, Tag, _Pixels | str]]:
    """Each image's name, tag, and its pixels with whether they had 16 bits, or the reason why it has none."""
    waiting: deque[tuple[str, Tag, Future[_Pixels | str], int]] = deque()
    memory = 0
    with ThreadPoolExecutor() as pool:
        try:
            for name, tag, read in encoded:
                image, needs = _opened(read)
                while waiting and (len(waiting) == _MANY or memory + needs > _MEMORY):
                    *first, future, taken = waiting.popleft()
                    yield *first, future.result()
                    memory -= taken
                waiting.append((name, tag, pool.submit(_pixels, [image], request), needs))
                memory += needs
                # What waits for its turn must not be held from here as well.
                del image, read
            while waiting:
                *first, future, _ = waiting.popleft()
                yield *first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _opened(read: Callable[[], bytes]) -> tuple[Image.Image | str, int]:
    """An image of which only the header has been read, and how many bytes it will take; or why there is none, and 0."""
    try:
        data = read()
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data.
        return reason_of(error), 0
    if image.width * image.height > _PIXELS:
        return f"unreadable: {image.width}x{image.height} is larger than {_PIXELS >> 20} megapixels", 0
    return image, len(data) + 4 * image.width * image.height


def _pixels(images: list[Image.Image | str], request: Request) -> _Pixels | str:
    """The pixels of the one image in the list, which is taken out, so that each step may let go of the last one's."""
    if isinstance(images[0], str):
        return images[0]
    try:
        has_16_bits = images[0].mode.startswith("I;16") or any(";16" in str(tile.args) for tile in images[0].tile)
        images[0].load()
        # Asking Pillow takes as long as decoding a small image.
        if images[0].format == "TIFF" or not _ORIENTED.isdisjoint(images[0].info):
            # Damaged metadata do not make the pixels worse.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(images[0], in_place=True)
        lost = losses(images[0], request)
        return _Pixels(prepare(images.pop(), request), has_16_bits, lost)
    except Exception as error:
        return reason_of(error)


def reason_of(error: Exception) -> str:
    """Why an image has no pixels, where reading it raised this."""
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    said = str(getattr(error, "strerror", None) or error)
    return f"unreadable: {' '.join(said.split()) or type(error).__name__}"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
