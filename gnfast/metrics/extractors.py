"""`load_extractor`: one door to all feature extractors, by name or as a function of the user's."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnfast.data import ImageDataset
from gnfast.errors import warn_user
from gnfast.io.files import cache_root, expanded
from gnfast.io.objects import load_object
from gnfast.metrics.classifier import load_classifier
from gnfast.metrics.features import INCEPTION, FeatureExtractor, as_pair, called, describe, is_matrix
from gnfast.metrics.inception import FEATURES, LOGITS, build_inception
from gnfast.metrics.protocols import Protocol, find_protocol
from gnfast.metrics.weights import is_official, load_weights

_CLASSIFIER = "A small classifier trained on the labelled real images on the spot: 64 features."
PIXELS = "pixels-8x8"
_EXTRACTORS = {
    INCEPTION: "The Inception network of 2015 that FID, IS and KID are defined by: 2048 features, 1008 logits.",
    "digits-classifier": _CLASSIFIER,
    "classifier": _CLASSIFIER,
    PIXELS: "The mean colours of 8x8 fields of each image: layout and colours, no weights, no labels and no detail.",
}


def registered_extractors() -> dict[str, str]:
    """The names that `load_extractor` knows, each with a line that describes it."""
    return dict(_EXTRACTORS)


def load_extractor(
    spec: str | Callable[[Tensor], Any],
    dataset: ImageDataset | None = None,
    *,
    protocol: str = "tf",
    weights: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> FeatureExtractor:
    """A feature extractor for images like those of `dataset`.

    Args:
        spec: a registered name, or a function, itself or as "module:function": (N, C, H, W) uint8 on `device` -> (N, D)
            floats, or a pair of them and (N, K) logits. What it measures is not kept on disk.
        dataset: the real images; the classifier is trained on them, a function is tried on the first two, and
            Inception does without.
        protocol: how images are prepared for Inception, a name of `PROTOCOLS`; others see the images as they are.
        weights: path of the Inception network's weights; None finds or downloads the official ones.
        cache_dir: where trained extractors are kept; None is extractors in the cache folder.
        device: where features are computed.
        progress: show bars on a terminal.

    Raises:
        ValueError: `spec` or `protocol` is unknown, `spec` cannot be imported or gives no (N, D) floats, the weights
            cannot be had, or the data set is missing or does not suit it.
    """
    device, preparation = torch.device(device), find_protocol(protocol)
    if spec == INCEPTION:
        return _inception(preparation, weights, device, progress)
    function = spec if callable(spec) else None
    if function is not None:
        spec = called(function)
    elif spec not in _EXTRACTORS:
        function = load_object(spec, "extractor", f"{', '.join(_EXTRACTORS)}, or module:function")
    if spec == PIXELS:
        # Of another number of channels there is another number of features.
        channels = 3 if dataset is None else dataset.images.shape[1]
        return FeatureExtractor(PIXELS, 64 * channels, _fields, device)
    if dataset is None:
        raise ValueError(f"extractor {spec}: got no data set, wanted one of real images")
    if function is not None:
        return _own(spec, function, dataset, device)
    folder = cache_root() / "extractors" if cache_dir is None else expanded(cache_dir)
    return load_classifier(dataset, folder, device, progress)


def _fields(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N, 64 · C) float32 in [0, 1]."""
    return F.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)


def _own(spec: str, function: Callable[[Tensor], Any], dataset: ImageDataset, device: torch.device) -> FeatureExtractor:
    if isinstance(function, nn.Module) and any(module.training for module in function.modules()):
        line = f"extractor {spec}: a module in training mode, whose dropout and batch norm act as in training"
        warn_user(f"{line}; .eval() measures without", UserWarning)
    sample = dataset.images[:2].to(device)
    with torch.no_grad():
        result = function(sample)
    features, logits = as_pair(result)
    if not is_matrix(features, len(sample)) or (logits is not None and not is_matrix(logits, len(sample))):
        raise ValueError(
            f"extractor {spec}: got {describe(result)}, wanted floats of shape ({len(sample)}, D), or a pair of them "
            f"and logits ({len(sample)}, K)"
        )
    classes = None if logits is None else logits.shape[1]
    return FeatureExtractor(spec, features.shape[1], function, device, classes=classes)


def _inception(
    protocol: Protocol, weights: str | os.PathLike | None, device: torch.device, progress: bool
) -> FeatureExtractor:
    state, checksum = load_weights(weights, progress=progress)
    net = build_inception(state).to(device)

    def features_and_logits(images: Tensor) -> tuple[Tensor, Tensor]:
        with _full_precision():
            return net(protocol.prepare(images).contiguous(memory_format=torch.channels_last))

    name = INCEPTION if is_official(checksum) else f"{INCEPTION}-{checksum[:8]}"
    return FeatureExtractor(name, FEATURES, features_and_logits, device, checksum, classes=LOGITS, protocol=protocol)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions in float32 proper: PyTorch lets GPUs round their inputs to TF32's 10 bits by default."""
    # Both of cuDNN's, since some of PyTorch's code asks for one setting and refuses to choose between two.
    places = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.mkldnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
