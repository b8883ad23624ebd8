"""Endless shuffled batches on a device, whose place in the data can be saved and restored to the bit."""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gnfast.data.dataset import DataError, ImageDataset, at_least
from gnfast.data.order import StepOrder
from gnfast.interop.device import moved


def to_float(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """(…) uint8 0..255 as float32 in [-1, 1] on `device`: v / 127.5 - 1, the papers' preparation.

    Raises:
        DataError: `images` is not uint8.
    """
    if images.dtype != torch.uint8:
        raise DataError(f"images: got {images.dtype}, wanted uint8")
    # PyTorch's CUDA kernel would multiply by the rounded inverse of a number, and differ from a CPU in the last bit.
    return moved(images, device).to(torch.float32).div_(torch.full((), 127.5, device=device)).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Floating (…) in [-1, 1] as uint8, rounded and clamped: the inverse of `to_float`.

    Raises:
        DataError: `images` is not floating point.
    """
    if not images.is_floating_point():
        raise DataError(f"images: got {images.dtype}, wanted floating point in [-1, 1]")
    return images.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) with each image mirrored left to right with probability ½.

    `generator` is the CPU's wherever the images are, so that a seed means the same on every device.
    """
    return _mirror(images, torch.rand(len(images), generator=generator) < 0.5)


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """The images, mirrored where `mirrored`, on the CPU, is true."""
    # Choosing whole images copies memory; torch.where goes byte by byte and takes four times as long on a CPU.
    chosen = torch.arange(len(images)) + len(images) * mirrored
    return torch.cat([images, images.flip(-1)]).index_select(0, moved(chosen, images.device))


class ShuffledIndices:
    """The indices 0..size-1 in a new random order each epoch, without end; a batch may straddle epochs.

    Args:
        size: how many there are, >= 1.
        seed: of the instance's own generator, 0..2³²-1; the global one is not touched.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = at_least("size", size, 1)
        self._generator = _generator(seed)
        self._epoch = -1
        self._start_epoch()

    @property
    def epoch(self) -> int:
        """How many epochs came before the next index."""
        return self._epoch + (self._position == self.size)

    def next_batch(self, batch_size: int) -> Tensor:
        """(batch_size,) int64."""
        wanted = at_least("batch_size", batch_size, 1)
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
        generator = self._epoch_state.clone()
        return {"size": self.size, "epoch": self._epoch, "position": self._position, "generator": generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: `state` is of another size, or not such a state.
        """
        _check_keys(state, ("size", "epoch", "position", "generator"))
        if state["size"] != self.size:
            raise DataError(f"state is of a data set with {state['size']} images, this one has {self.size}")
        if not 0 <= state["position"] <= self.size:
            raise DataError(f"state['position']: got {state['position']}, wanted 0 to {self.size}")
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
    """Some images and their labels.

    Attributes:
        images: (b, C, H, W) float32 in [-1, 1].
        labels: (b,) int64, or None where the data set has none.
    """

    images: Tensor
    labels: Tensor | None


_Gathered = tuple[Tensor, Tensor | None, torch.cuda.Event | None]
"""Images (b, C, H, W) as uint8, labels (b,), and when both will have arrived on the device; None is now."""


class Batches:
    """Endless shuffled batches of a data set: `next(batches)`, or a for loop that one leaves.

    Images travel as uint8 and become floating point on the device. Where the data set fits, all of it is moved there at
    the start; where it does not, a thread gathers the next few batches from memory or from the cache's file while the
    device computes. The numbers are the same either way, on every device, and for any number of processes.

    Args:
        dataset: the images.
        batch_size: images in a batch over all processes, >= 1 and a multiple of `world`.
        seed: of the order and of the flips, which draw from generators of their own.
        flip: mirror each image left to right with probability ½.
        device: where batches go.
        rank: which of the processes this is, 0..world-1: it gets the rank-th of `world` equal parts of every batch.
        world: how many processes share the batches.
        resident: whether the data set is moved to the device as a whole; "auto" does so if it takes at most a quarter
            of the memory that is free there. On a CPU it stays where it is, and "auto" asks whether it takes at most
            half of the machine's memory.
        prefetch: how many batches a thread prepares ahead where the data set is not resident; without a thread if 0.
        order: what decides which images come and which are mirrored; generators of the instance's own if None.

    Raises:
        DataError: an argument is not as wanted.
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
        resident: bool | Literal["auto"] = "auto",
        prefetch: int = 2,
        order: StepOrder | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.flip = flip
        self.device = torch.device(device)
        self.rank, self.world = at_least("rank", rank, 0), at_least("world", world, 1)
        if rank >= world:
            raise DataError(f"rank: got {rank}, wanted less than world, which is {world}")
        if batch_size % world:
            raise DataError(f"batch_size: got {batch_size}, wanted a multiple of world, which is {world}")
        if resident not in (True, False, "auto"):
            raise DataError(f"resident: got {resident!r}, wanted True, False or 'auto'")
        if order is not None and (order.size, order.batch_size) != (len(dataset), batch_size):
            raise DataError(
                f"order: got one of {order.size} images in batches of {order.batch_size}, "
                f"wanted {len(dataset)} in batches of {batch_size}"
            )
        self.prefetch = at_least("prefetch", prefetch, 0)
        self.order = order
        self.resident = _fits(dataset.images, self.device) if resident == "auto" else resident
        self.indices = ShuffledIndices(len(dataset), seed)
        # Seeded by a draw, so that flips and order are not the same numbers.
        self._flips = _generator(int(torch.randint(2**31, (), generator=_generator(seed))))
        # All of the data set, where it stays.
        home = self.device if self.resident else "cpu"
        self.images = dataset.images.to(home)
        self.labels = None if dataset.labels is None else dataset.labels.to(home)
        # Of each batch that is on its way: the state before it was drawn, which of it is mirrored, and the images.
        self._ahead: deque[tuple[dict[str, Tensor | int], Tensor | None, Future[_Gathered]]] = deque()
        self._thread = None if self.resident or not prefetch else ThreadPoolExecutor(1, "gnfast-batches")
        self._stream = torch.cuda.Stream(self.device) if self._thread and self.device.type == "cuda" else None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.next_batch()

    def next_batch(self) -> Batch:
        """This process's part of the next batch: batch_size / world images."""
        if self._thread is None:
            chosen, mirrored = self._draw()
            images, labels, copied = self._gather(chosen)
        else:
            while len(self._ahead) <= self.prefetch:
                state = self._state()
                chosen, mirrored = self._draw()
                self._ahead.append((state, mirrored, self._thread.submit(self._gather, chosen)))
            _, mirrored, future = self._ahead.popleft()
            images, labels, copied = future.result()
        if copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(copied)
            for tensor in (images, labels):
                if tensor is not None:
                    # Allocated on the other stream, which may not have the memory back before this one is done.
                    tensor.record_stream(stream)
        if mirrored is not None:
            images = _mirror(images, mirrored)
        return Batch(to_float(images, self.device), labels)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Tensors and ints only, so that a checkpoint with it loads with `weights_only=True`.

        It does not depend on the device, the number of processes, or what is prefetched.
        """
        return self._ahead[0][0] if self._ahead else self._state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the very next batch after `state` was taken.

        Raises:
            DataError: `state` is of a data set of another size, or not such a state.
        """
        if self.order is not None:
            _check_keys(state, ("number",))
            self.order.number = at_least("state['number']", state["number"], 0)
        else:
            _check_keys(state, ("flips",))
            self.indices.load_state_dict(state)
            self._flips.set_state(state["flips"].cpu())
        self._ahead.clear()

    def _state(self) -> dict[str, Tensor | int]:
        if self.order is not None:
            return {"number": self.order.number}
        return {**self.indices.state_dict(), "flips": self._flips.get_state()}

    def _draw(self) -> tuple[Tensor, Tensor | None]:
        """This process's part of what is drawn for all: which images come next, and which of them are mirrored."""
        share = self.batch_size // self.world
        part = slice(self.rank * share, (self.rank + 1) * share)
        if self.order is not None:
            chosen, mirrored = self.order.next_batch()
            return chosen[part], mirrored[part] if self.flip else None
        chosen = self.indices.next_batch(self.batch_size)[part]
        mirrored = torch.rand(self.batch_size, generator=self._flips)[part] < 0.5 if self.flip else None
        return chosen, mirrored

    def _gather(self, chosen: Tensor) -> _Gathered:
        if self._stream is None:
            chosen = moved(chosen, self.images.device)
            return moved(self.images.index_select(0, chosen), self.device), self._pick(chosen), None
        pinned = torch.empty((len(chosen), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(self.images, 0, chosen, out=pinned)
        # A stream of its own, so that the copy does not wait for the device's work.
        with torch.cuda.stream(self._stream):
            images = pinned.to(self.device, non_blocking=True)
            return images, self._pick(chosen), self._stream.record_event()

    def _pick(self, chosen: Tensor) -> Tensor | None:
        return None if self.labels is None else moved(self.labels.index_select(0, chosen), self.device)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type == "cuda":
        return images.nbytes <= torch.cuda.mem_get_info(device)[0] / 4
    return images.nbytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def _generator(seed: int) -> torch.Generator:
    # Torch's CPU generator uses 32 bits of its seed: a wider one would silently be another's twin.
    if at_least("seed", seed, 0) >= 2**32:
        raise DataError(f"seed: got {seed}, wanted at most 2**32 - 1")
    return torch.Generator().manual_seed(seed)


def _check_keys(state: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if missing := [key for key in keys if key not in state]:
        raise DataError(f"state: got one that lacks {', '.join(missing)}, wanted what state_dict() gave")
