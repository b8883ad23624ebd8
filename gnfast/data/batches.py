"""Endless shuffled batches from memory, whose place in the data can be saved and restored to the bit."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnfast.data.dataset import DataError, ImageDataset


def to_float(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """(…) uint8 0..255 as float32 in [-1, 1] on `device`: v / 127.5 - 1, the papers' preparation.

    Raises:
        DataError: `images` is not uint8.
    """
    if images.dtype != torch.uint8:
        raise DataError(f"images must be uint8, got {images.dtype}")
    if torch.device(device).type == "cuda" and not images.is_cuda:
        images = images.pin_memory()
    return images.to(device, non_blocking=True).to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Floating (…) in [-1, 1] as uint8, rounded and clamped: the inverse of `to_float`.

    Raises:
        DataError: `images` is not floating point.
    """
    if not images.is_floating_point():
        raise DataError(f"images must be floating point in [-1, 1], got {images.dtype}")
    return images.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) on the CPU with each image mirrored left to right with probability ½, drawn from `generator`."""
    mirrored = torch.rand(images.shape[0], generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


class ShuffledIndices:
    """The indices 0..size-1 in a new random order each epoch, without end; a batch may straddle epochs.

    Args:
        size: how many there are, >= 1.
        seed: of the instance's own generator, 0..2³²-1; the global one is not touched.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = _at_least_one("size", size)
        self._generator = _generator(seed)
        self._epoch = -1
        self._start_epoch()

    @property
    def epoch(self) -> int:
        """How many epochs came before the next index."""
        return self._epoch + (self._position == self.size)

    def next_batch(self, batch_size: int) -> Tensor:
        """(batch_size,) int64."""
        wanted = _at_least_one("batch_size", batch_size)
        pieces = []
        while wanted:
            if self._position == self.size:
                self._start_epoch()
            piece = self._order[self._position : self._position + wanted]
            self._position += len(piece)
            wanted -= len(piece)
            pieces.append(piece)
        return torch.cat(pieces)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Where it stands: ints, and the generator's state (uint8) at the epoch's start, which gives the order."""
        return {
            "size": self.size,
            "epoch": self._epoch,
            "position": self._position,
            "generator": self._epoch_state.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: `state` is of another size, or not such a state.
        """
        _check_keys(state, ("size", "epoch", "position", "generator"))
        if state["size"] != self.size:
            raise DataError(f"state is of a data set with {state['size']} images, this one has {self.size}")
        if not 0 <= state["position"] <= self.size:
            raise DataError(f"state['position'] must be from 0 to {self.size}, got {state['position']}")
        self._generator.set_state(state["generator"].cpu())
        self._epoch = state["epoch"] - 1
        self._start_epoch()
        self._position = state["position"]

    def _start_epoch(self) -> None:
        self._epoch_state = self._generator.get_state()
        self._order = torch.randperm(self.size, generator=self._generator)
        self._position = 0
        self._epoch += 1


class Batch(NamedTuple):
    """(B, C, H, W) images, and (B,) int64 labels or None."""

    images: Tensor
    labels: Tensor | None


class Batches:
    """Endless shuffled batches of a data set's images: `next(batches)`, or a for loop that one leaves.

    Args:
        dataset: the images; they stay on the CPU and travel as uint8.
        batch_size: images in a batch, >= 1.
        seed: of the order and of the flips, which draw from generators of their own.
        flip: mirror each image left to right with probability ½.
        device: where batches go.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        seed: int = 0,
        flip: bool = False,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rank, self.world = rank, world
        self.dataset = dataset
        self.batch_size = _at_least_one("batch_size", batch_size)
        self.flip = flip
        self.device = torch.device(device)
        self.indices = ShuffledIndices(len(dataset), seed)
        # Seeded by a draw, so that flips and order are not the same numbers.
        self._flips = _generator(int(torch.randint(2**31, (), generator=_generator(seed))))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.next_batch()

    def next_batch(self, batch_size: int | None = None) -> Batch:
        """(batch_size, C, H, W) float32 in [-1, 1] on the device; `batch_size` None is the instance's own."""
        chosen = self.indices.next_batch(self.batch_size if batch_size is None else batch_size)
        images = self.dataset.images[chosen]
        if self.flip:
            images = random_flip(images, self._flips)
        labels = self.dataset.labels
        if labels is not None:
            labels = labels[chosen].chunk(self.world)[self.rank].to(self.device)
        return Batch(to_float(images.chunk(self.world)[self.rank], self.device), labels)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Tensors and ints only, so that a checkpoint with it loads with `weights_only=True`."""
        return {**self.indices.state_dict(), "flips": self._flips.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the very next batch after `state` was taken.

        Raises:
            DataError: `state` is of a data set of another size, or not such a state.
        """
        _check_keys(state, ("flips",))
        self.indices.load_state_dict(state)
        self._flips.set_state(state["flips"].cpu())


def _generator(seed: int) -> torch.Generator:
    # Torch's CPU generator uses 32 bits of its seed: a wider one would silently be another's twin.
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise DataError(f"seed must be an int from 0 to 2**32 - 1, got {seed!r}")
    return torch.Generator().manual_seed(seed)


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{name} must be an int of at least 1, got {value!r}")
    return value


def _check_keys(state: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if missing := [key for key in keys if key not in state]:
        raise DataError(f"state must be what state_dict() gave, but it lacks {', '.join(missing)}")
