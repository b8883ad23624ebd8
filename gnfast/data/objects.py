"""A data set that is a Python object, as torchvision's and `datasets`' are: its images on a canvas, as files' are."""

import os
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.images import examples_of, losses, prepare, reason_of, warning_about
from gnfast.data.source import Contents, Source, labelled

# So many images are read twice, to see whether chance changes them: a flip escapes that once in 256 times.
_TWICE = 8
_NAMES = ("image", "img")


def open_object(dataset: Any, request: Request, place: Path) -> Source:
    """The images of a map-style data set, in its order.

    Nothing tells from outside whether its images are still the same. What is prepared of it belongs to `place`, and
    who comes back must read all of it again. Images that Pillow cannot decode, or that cannot be prepared, are left out
    and counted, as those of a folder are.

    Args:
        dataset: has a length, and at each index an image, (image, label, …), or a mapping with an image and perhaps a
            whole number `label`. An image is a PIL one (8 bits), a tensor (C, H, W) or (H, W) of uint8 or of floats in
            [0, 1], C 1 or 3, or an array (H, W, 3) or (H, W) of uint8. A label of -1 is none.
        request: how the images are prepared.
        place: what the preparation is for, the run's folder.

    Raises:
        DataError: it has no length, no images or no index; on reading, an item is none of these, its `__getitem__`
            fails for another reason, its images change from call to call, a part of them has labels, or none is left.
    """
    if isinstance(dataset, str | os.PathLike):
        path = os.fspath(dataset)
        raise DataError(f"dataset: got {path!r}, wanted a data set; images by a path or a name are data={path!r}")
    kind = type(dataset)
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError):
        count = -1
    if count < 0 or not hasattr(kind, "__getitem__"):
        raise DataError(
            f"dataset: got {kind.__name__}, wanted one with len(dataset) and dataset[i], not a loader or a stream"
        )
    if not count:
        raise DataError(f"dataset: got {kind.__name__} without images")
    identity = {"dataset": f"{kind.__module__}.{kind.__qualname__}", "for": str(place.absolute())}
    return Source(kind.__name__, request, identity, lambda canvas: _read(dataset, count, request, canvas))


def _read(dataset: Any, count: int, request: Request, canvas: Canvas) -> Contents:
    canvas.expect(count)
    labels, skipped, lost, first = [], [], Counter[str](), -1
    name = type(dataset).__name__
    for index in tqdm(range(count), f"reading {name}", unit="img", disable=None if request.progress else True):
        item = _item(dataset, index, request)
        if isinstance(item, str):
            skipped.append(f"dataset[{index}] ({item})")
            continue
        if index < _TWICE and not np.array_equal(item.pixels, getattr(_item(dataset, index, request), "pixels", None)):
            raise DataError(
                f"dataset[{index}]: got another image the second time: leave out random transforms, since images are "
                f"read once (flip=True mirrors them while training)"
            )
        first = index if first < 0 else first
        if canvas.size is not None and item.pixels.shape[:2] != canvas.size:
            raise DataError(f"dataset[{index}]: got an image of another size than dataset[{first}]; pass resolution=…")
        canvas.add(item.pixels)
        labels.append(item.label)
        lost.update(item.losses)
    if not labels:
        raise DataError(f"dataset: no image is left of {name}{examples_of(skipped)}")
    warning = warning_about(skipped, count, lost, len(labels), request)
    contents = Contents(skipped=len(skipped), warning=f"{name}: {warning}" if warning else "")
    return labelled(contents, labels, _classes(dataset), name)


class _Item(NamedTuple):
    """A prepared image, its label, and its `losses`."""

    pixels: np.ndarray
    label: int | None
    losses: tuple[str, ...]


def _item(dataset: Any, index: int, request: Request) -> _Item | str:
    """What is at an index, or the reason why an image there has to be left out."""
    try:
        image, label = _parts(dataset[index])
        picture, label = _picture(image), _label(label)
        try:
            # Here Pillow decodes those that it has only opened.
            return _Item(prepare(picture, request), label, losses(picture, request))
        except ValueError as error:
            return reason_of(error)
    except _ItemError as error:
        raise DataError(f"dataset[{index}]: {error}") from error
    except Exception as error:
        if _is_damage(error):
            return reason_of(error)
        raise DataError(f"dataset[{index}]: {type(error).__name__}: {error}") from error


class _ItemError(ValueError):
    """An item is not of a kind that `open_object` knows."""


def _is_damage(error: Exception) -> bool:
    """Whether Pillow says that an image is damaged; all else, as a missing file, is a mistake of the data set."""
    kinds = (OSError, SyntaxError, EOFError, Image.DecompressionBombError)
    if not isinstance(error, kinds) or getattr(error, "errno", None) is not None:
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("PIL.")


def _parts(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        known = [name for name in _NAMES if name in item]
        images = [value for value in item.values() if isinstance(value, Image.Image)]
        # Of several without such a name none is meant more than the others: the mapping itself is then refused.
        image = item[known[0]] if known else images[0] if len(images) == 1 else item
        return image, item.get("label")
    if isinstance(item, tuple | list) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _label(label: Any) -> int | None:
    """A whole number of any kind; None for anything else, and for -1."""
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or label == -1:
        return None
    if label < 0:
        raise _ItemError(f"got the label {label}, wanted 0 or more")
    return int(label)


def _picture(image: Any) -> Image.Image:
    """An image of any of the kinds as one of PIL's.

    Raises:
        _ItemError: it is of none.
    """
    if isinstance(image, Image.Image):
        if image.mode.startswith("I;16"):
            raise _ItemError("got an image of 16 bits, wanted 8")
        return image
    if isinstance(image, Tensor):
        image = _bytes(image.detach().cpu())
        image = np.ascontiguousarray(image.movedim(0, -1) if image.ndim == 3 else image)
        image = image[..., 0] if image.shape[2:] == (1,) else image
    if not isinstance(image, np.ndarray):
        raise _ItemError(f"got {type(image).__name__}, wanted a PIL image, a tensor, an array, or (image, label)")
    if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2 or not image.size:
        wanted = "a tensor (C, H, W) or an array (H, W, C), C 1 or 3, of uint8"
        raise _ItemError(f"got {image.dtype} of shape {tuple(image.shape)}, wanted {wanted}")
    return Image.fromarray(image)


def _bytes(image: Tensor) -> Tensor:
    """An image of uint8, from one of floats as ToTensor gives them."""
    if not image.is_floating_point():
        return image
    if not ((image >= 0) & (image <= 1)).all():
        low, high = float(image.min()), float(image.max())
        raise _ItemError(f"got values from {low:.4g} to {high:.4g}, wanted 0 to 1, as before any Normalize")
    return image.float().mul(255).round().to(torch.uint8)


def _classes(dataset: Any) -> tuple[str, ...] | None:
    """Names of the classes as torchvision and `datasets` keep them, of the data set within a `Subset` too."""
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping):
        names = getattr(features.get("label"), "names", None)
    is_list = isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else None
