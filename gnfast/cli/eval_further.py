"""What `gnfast eval` measures besides, where it is asked to."""

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnfast import metrics
from gnfast.data import ImageDataset
from gnfast.metrics import FeatureExtractor, second_opinion
from gnfast.metrics.evaluate import image_count
from gnfast.metrics.weights import load_weights

if TYPE_CHECKING:
    from gnfast.cli.eval import EvalOptions, Subject


def similarity(options: "EvalOptions", subject: "Subject") -> dict[str, Any]:
    """How alike the images of a class are, if that is asked for."""
    if not options.ms_ssim:
        return {}
    if subject.similarity is None:
        raise ValueError(f"--ms-ssim: got {options.what}, wanted a class-conditional generator")
    return {"ms_ssim": subject.similarity(), "ms_ssim_pairs_per_class": metrics.PAIRS}


def divergence(
    options: "EvalOptions", subject: "Subject", real: ImageDataset | None, device: torch.device
) -> dict[str, Any]:
    """What a critic trained afresh makes of the images, if that is asked for."""
    if not options.neural_divergence:
        return {}
    if subject.draws is None or real is None:
        raise ValueError(f"--neural-divergence: got {options.what}, wanted a generator, and real images")
    how = {"steps": options.neural_divergence, "seed": subject.seed, "device": device}
    found = metrics.neural_divergence(real.images, subject.draws[0], batch_size=subject.draws[1], **how)
    return {"neural_divergence": found, "neural_divergence_steps": options.neural_divergence}


class SecondOpinion:
    """The scores of the very images that are measured, by the library that `--via` names.

    Args:
        options, subject: of the command.
        real: the images that it is measured against, if it is images.

    Raises:
        ValueError: it is no comparison of images by Inception, or the library cannot be imported.
    """

    def __init__(self, options: "EvalOptions", subject: "Subject", real: ImageDataset | None):
        if subject.measure is None or real is None:
            raise ValueError("--via: got statistics, wanted images of both sides")
        self._library, self._options, self._real = second_opinion.library(), options, real
        self._fake: list[Tensor] = []

    def heard(self, extractor: FeatureExtractor) -> FeatureExtractor:
        """The extractor, of which this hears what images it is shown."""
        protocol = extractor.protocol and extractor.protocol.name
        if protocol != "tf":
            raise ValueError(f"--via: got {extractor.name} and protocol {protocol}, wanted Inception and protocol tf")

        def function(images: Tensor) -> Any:
            self._fake.append(images.cpu())
            return extractor.function(images)

        return dataclasses.replace(extractor, function=function)

    def scores(self, n_real: int | None, weights: str | None, device: torch.device, progress: bool) -> dict[str, Any]:
        """What it says, once all have been shown; of as many real images, and with the weights, that we have taken."""
        total = image_count("--n-real", n_real, self._real)
        places = torch.arange(total) * len(self._real) // total
        state, _ = load_weights(weights, progress=progress)
        how = {"kid_subsets": self._options.kid_subsets, "batch_size": self._options.batch}
        given = (self._real.images, places), torch.cat(self._fake), state
        return second_opinion.scores(self._library, *given, **how, device=device, progress=progress)
