"""What a run is scored with where its settings leave that open, and how a run says it."""

import dataclasses
from pathlib import Path

import torch

from gnfast.config.config import AUTO, Config
from gnfast.data import ImageDataset
from gnfast.io.objects import load_object
from gnfast.metrics import FeatureExtractor
from gnfast.metrics.features import INCEPTION
from gnfast.metrics.weights import found, require_weights
from gnfast.runs.checkpoint import RunError
from gnfast.runs.record import read_settings
from gnfast.train.parallel import Group

# Images that a CPU makes for a score where nobody has asked for one.
FEW = 5000


def with_extractor(config: Config, dataset: ImageDataset, device: torch.device, folder: Path, group: Group) -> Config:
    """The settings with an extractor in place of `auto`: that of the run in `folder`, if it has been scored before.

    On two CPU cores 50,000 images take Inception an hour, and GN-GAN's ResNet some twenty to make: there a
    classifier is the choice, and a few images. A run that is shorter than the interval between scores is a look, which
    a score before its first step would only delay.
    """
    if config.extractor != AUTO:
        return config
    extractor = group.of_leader(_before(folder) or _chosen(config, dataset, device))
    few = device.type == "cpu" and extractor == "classifier"
    return dataclasses.replace(config, extractor=extractor, n_fake=min(config.n_fake, FEW) if few else config.n_fake)


def require_extractor(extractor: str, weights: str, progress: bool) -> None:
    """That the extractor that a run's settings name can be had: a user's function, Inception's weights.

    Raises:
        ValueError: it cannot.
    """
    if ":" in extractor:
        load_object(extractor, "extractor")
    if extractor == INCEPTION:
        require_weights(weights, progress=progress)


def as_told(extractor: FeatureExtractor | None, labelled: bool, n_fake: int, eval_every: int, steps: int) -> str:
    """One line on what a run is scored with, and how to get FID where it is something else."""
    every = f"at step 0, every {eval_every} steps and at the end" if eval_every else "before and after training"
    if extractor is None:
        few = f" (it ends before step {eval_every}, --eval-every)" if steps < eval_every else ""
        rough = "classifier or pixels-8x8" if labelled else "pixels-8x8"
        return f"scores: none while it trains{few}; --extractor inception gives FID, {rough} a distance without weights"
    if extractor.name == INCEPTION:
        return f"scores: FID of {n_fake} images {every}"
    right = extractor.details.get("held_out_accuracy")
    name = extractor.name + (f" (right on {right:.0%} of held-out images)" if right is not None else "")
    instead = f"Fréchet distance of {n_fake} images in features of {name} {every}, not FID"
    return f"scores: {instead}; for FID: --extractor inception, whose weights `gnfast weights` finds"


def _before(folder: Path) -> str:
    """The extractor of the run that a folder has already; its scores would not compare with another's."""
    try:
        known = str(read_settings(folder)[1].get("extractor", "none"))
    except (OSError, RunError):
        return ""
    # A name of code to import is taken from the command line alone.
    return "" if known in ("none", AUTO) or ":" in known else known


def _chosen(config: Config, dataset: ImageDataset, device: torch.device) -> str:
    if config.steps < config.eval_every:
        return "none"
    if config.extractor_weights or (device.type == "cuda" and found()):
        return INCEPTION
    classes = 0 if dataset.labels is None else len(dataset.classes)
    return "classifier" if classes > 1 and len(dataset) >= 10 else "none"
