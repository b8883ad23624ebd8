"""What maps images to the vectors that a distance is measured in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnfast.data import to_uint8
from gnfast.errors import InputError
from gnfast.metrics.protocols import Protocol

# The name of the extractor with the official weights; a distance in other features is not FID.
INCEPTION = "inception"


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A function from images to features, with a name for results.

    Args:
        name: how results call it.
        dim: D, the length of a feature vector.
        function: (N, C, H, W) uint8 -> (N, D) floating point, or where `classes` is given a pair of that and (N, K).
            With a protocol that does not quantise it must take float32 in [-1, 1] too.
        device: where `function` wants its images.
        fingerprint: identifies the function's weights, so that statistics may be cached on disk; None when unknown.
        details: figures about it, for logs (the classifier's "held_out_accuracy", a fraction).
        classes: K, the number of logits that the function gives besides the features; None for features alone.
        protocol: how images are prepared, where there is a choice.
    """

    name: str
    dim: int
    function: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
    device: torch.device | str = "cpu"
    fingerprint: str | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    classes: int | None = None
    protocol: Protocol | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: (N, C, H, W), any device: uint8, or floating point in [-1, 1], which is rounded to uint8 unless the
                protocol says otherwise.

        Returns:
            (N, D) floating point, without a graph.

        Raises:
            ValueError: `images` is not of such a dtype, range and shape, or the function gives anything but what its
                extractor says.
        """
        return self.features_and_logits(images)[0]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, D) and logits (N, K), or None where there are none; arguments as for a call."""
        with torch.no_grad():
            result = self.function(self._pixels(images))
        features, logits = (result, None) if self.classes is None else as_pair(result)
        for what, value, width in (("floats", features, self.dim), ("logits", logits, self.classes)):
            if width is not None and not (is_matrix(value, len(images)) and value.shape[1] == width):
                raise ValueError(
                    f"extractor {self.name}: got {describe(value)}, wanted {what} of shape ({len(images)}, {width})"
                )
        return features, logits

    def _pixels(self, images: Tensor) -> Tensor:
        is_float = images.is_floating_point()
        if images.dim() != 4 or not (is_float or images.dtype == torch.uint8):
            raise ValueError(
                f"images: got {images.dtype} of shape {tuple(images.shape)}, "
                f"wanted uint8, or floating point in [-1, 1], of shape (N, C, H, W)"
            )
        images = images.to(self.device)
        if is_float and not images.abs().max() <= 1.001:
            raise ValueError(f"images: got {images.min():.4g} to {images.max():.4g}, wanted floating point in [-1, 1]")
        if self.protocol is not None:
            return self.protocol.pixels(images)
        return to_uint8(images) if is_float else images


def require_extractor(extractor: object) -> None:
    """Raises InputError where `extractor` is not a `FeatureExtractor`."""
    if not isinstance(extractor, FeatureExtractor):
        got = called(extractor) if callable(extractor) else repr(extractor)
        raise InputError(f"extractor: got {got}, wanted what load_extractor makes of it, with dataset= the real images")


def called(function: Callable[..., Any]) -> str:
    """A function's "module:name", for results; of an object that can be called, that of its class."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def is_matrix(value: object, count: int) -> bool:
    """Whether `value` is a floating-point tensor of shape (count, D) with D >= 1."""
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return is_float and value.dim() == 2 and len(value) == count and value.shape[1] > 0


def as_pair(result: object) -> tuple[object, object]:
    """Features and logits of what a function gave; None for logits that it did not give."""
    return result if isinstance(result, tuple) and len(result) == 2 else (result, None)


def describe(value: object) -> str:
    """What came instead, for messages."""
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
