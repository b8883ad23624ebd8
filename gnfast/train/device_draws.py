"""What chance decides in a step, drawn on the device from the seed and the step's number (`gnfast.kernels.draws`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.config.config import Config
from gnfast.data import Batch, Batches
from gnfast.data.augment import shifts_from
from gnfast.errors import InputError
from gnfast.kernels import draws
from gnfast.kernels.draws import Purpose, Rows
from gnfast.train.draws import CriticDraw, Draw, Latents, parts
from gnfast.train.networks import FORMATS
from gnfast.train.parallel import ALONE, Group


class DeviceDraws:
    """Draws as `State.draws` does, on the device, so that a CUDA graph of a step can hold them.

    Called with the number of a step it gives what that step takes, this process's share. It has no state, and other
    processes draw other parts of the same batches: resumed runs, and those of several processes, see the same numbers.
    Nothing is copied from the host, or waits for the device.

    Args:
        config: the settings.
        batches: of the data set. If it is resident, its images are drawn here too. If it is not, and `batches` was made
            with the `StepOrder` of these settings, it hands out the same images with the same flips.
        dtype: of images, latents and places.
        group: the processes that share the work.
    """

    def __init__(self, config: Config, batches: Batches, dtype: torch.dtype, group: Group = ALONE) -> None:
        self.config, self.batches, self.dtype = config, batches, dtype
        size, last = config.batch_d // group.world, config.batch_g // group.world
        self.of_critic = Rows(config.n_dis, config.batch_d, group.rank * size, size)
        self.of_generator = Rows(1, config.batch_g, group.rank * last, last)
        self.sizes = torch.full((2, 1), config.resolution, device=batches.device)

    def given(self) -> list[Batch]:
        """What the host must bring for the next step: the images of a data set that is not resident."""
        return [] if self.batches.resident else [next(self.batches) for _ in range(self.config.n_dis)]

    @torch.no_grad()
    def __call__(self, step: Tensor, given: Sequence[tuple[Tensor, Tensor | None]] = ()) -> list[Draw]:
        """A `CriticDraw` for each of the critic's updates, and the generator's `Latents`.

        Args:
            step: (1,) int64 on the device, how many steps came before.
            given: images and labels for each of the critic's updates, as `batches` hands them out, where the data set
                is not resident.

        Raises:
            InputError: `given` is there where it is not wanted, or not where it is.
        """
        c, rows = self.config, self.of_critic
        wanted = 0 if self.batches.resident else c.n_dis
        if len(given) != wanted:
            raise InputError(f"given: got {len(given)} batches, wanted {wanted}")
        place = shifts = real = labels = None
        if c.penalty != "none":
            place = draws.uniform(c.seed, step, Purpose.PLACE, rows)[0].to(self.dtype)
        if c.consistency:
            shifts = shifts_from(draws.uniform(c.seed, step, Purpose.SHIFTS, rows, 3), self.sizes)
        if self.batches.resident:
            real, labels = self._real(step)
        whole = CriticDraw(real, labels, self._latents(step, Purpose.CRITIC_LATENTS, rows), place, shifts)
        critics = parts(whole, c.n_dis)
        if given:
            pairs = zip(critics, given, strict=True)
            critics = (draw._replace(real=x, labels=y if c.classes else None) for draw, (x, y) in pairs)
        return [*critics, self._latents(step, Purpose.GENERATOR_LATENTS, self.of_generator)]

    def _latents(self, step: Tensor, purpose: Purpose, rows: Rows) -> Latents:
        c = self.config
        return Latents(*draws.latents(c.seed, step, purpose, rows, c.z_dim, c.classes, self.dtype))

    def _real(self, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of all the critic's updates, one after the other."""
        c, data = self.config, self.batches
        how = {"flip": c.flip, "dtype": self.dtype, "memory_format": FORMATS[c.memory_format]}
        return draws.real_batch(data.images, data.labels if c.classes else None, c.seed, step, self.of_critic, **how)
