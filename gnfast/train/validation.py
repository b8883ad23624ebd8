"""The critic's loss on images that it is not trained on, and on those that it is (SN-GAN, Fig. 15a)."""

import torch
from torch import nn

from gnfast.config.config import Config
from gnfast.data import ImageDataset, to_float
from gnfast.train.evaluate import load_split
from gnfast.train.networks import sample
from gnfast.train.state import State
from gnfast.train.step import scores_of

IMAGES = 10_000
"""At most so many of each: CIFAR-10's test images."""


def load_validation(config: Config, dataset: ImageDataset, progress: bool) -> ImageDataset | None:
    """The split that `validation_split` names, or None.

    Raises:
        ValueError: there is no such split, or it has other classes than the training images where labels count.
    """
    if not config.validation_split:
        return None
    found = load_split(config, config.validation_split, progress)
    if config.classes and found.classes != dataset.classes:
        raise ValueError(f"--validation-split: {config.validation_split!r} has other classes than --split")
    return found


@torch.no_grad()
def critic_losses(state: State, validation: ImageDataset) -> dict[str, float]:
    """The mean of the GAN loss's two terms, added up, on images of each set and generated ones; nothing of it changes.

    Both sets are measured in the same way: with the same weights, in the mode and the batches of training, from the
    same latents at every step, at as many images where they have as many.

    Returns:
        `loss_critic_training` and `loss_critic_validation`.
    """
    sets = {"training": state.batches.dataset, "validation": validation}
    generator = state.generators()["raw"]
    return {f"loss_critic_{name}": _critic_loss(state, generator, dataset) for name, dataset in sets.items()}


def _critic_loss(state: State, generator: nn.Module, dataset: ImageDataset) -> float:
    config, noise = state.config, torch.Generator().manual_seed(state.config.seed + 5)
    # A training forward moves power iterations and the statistics of batch norm.
    kept = [buffer.clone() for buffer in state.critic.buffers()]
    chosen, total = torch.randperm(len(dataset.images), generator=noise)[:IMAGES], 0.0
    for part in chosen.split(config.batch_d // config.accumulate):
        real = to_float(dataset.images[part], state.device).to(state.dtype)
        z, y = state.latents(len(part), noise)
        labels = None if y is None else dataset.labels[part].to(state.device)
        scores = scores_of(state, (real, labels), (sample(generator, z, y), y))
        total += len(part) * state.loss.critic_terms(scores, len(part)).double().sum()
    for buffer, value in zip(state.critic.buffers(), kept, strict=True):
        buffer.copy_(value)
    return float(total / len(chosen))
