"""Networks, optimisers, averages and random states of a run: made from its settings, saved, and taken over again."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gnfast import CapturedStep, InputError, grouped_batch_norm
from gnfast.config.config import Config
from gnfast.config.precision import resolved
from gnfast.data import Batches, ImageDataset
from gnfast.data.augment import draw_shifts
from gnfast.interop.device import moved, pinned
from gnfast.losses import LOSSES, domain_scaled, in_pytorch
from gnfast.steps.captured import CaptureError
from gnfast.steps.memory import reuse_memory
from gnfast.train.draws import CriticDraw, Draw, Latents, latents, move_all
from gnfast.train.ema import Ema
from gnfast.train.networks import FORMATS, build_networks, merged, normalized
from gnfast.train.optimizers import optimizer_for, prepare, set_rate
from gnfast.train.parallel import ALONE, Group, synchronise_batch_norm
from gnfast.train.restore import moments, require_like
from gnfast.train.step import algorithm_1


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the step and what to look at.

    Attributes:
        step: the generator update in which it did.
    """

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class State:
    """All that the next step of a run depends on.

    Args:
        config: the settings.
        dataset: the real images.
        device: where the networks live.
        group: the processes that share the work.
    """

    def __init__(self, config: Config, dataset: ImageDataset, device: torch.device, group: Group = ALONE):
        self.config, self.device, self.group = config, device, group
        self.format = FORMATS[config.memory_format]
        self.precision = resolved(config.precision, device)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        loss = domain_scaled(LOSSES[config.loss], config.alpha)
        self.loss = in_pytorch(loss) if config.impl == "reference" else loss
        to = {"device": device, "dtype": self.dtype, "memory_format": self.format}
        self.generator, self.critic = (net.to(**to) for net in build_networks(config))
        self.ema = Ema(self.generator, config.ema_decay, config.ema_start)
        if group.world > 1 and config.sync_bn:
            self.generator, self.critic = (synchronise_batch_norm(n, device) for n in (self.generator, self.critic))
        self.normalized = normalized(self.critic, config)
        self.generate = merged(self.generator, config)
        self.optim_d = optimizer_for(config, self.critic, config.lr_d, device)
        self.optim_g = optimizer_for(config, self.generator, config.lr_g, device)
        # Disabled, they hand everything through.
        self.scaler_d, self.scaler_g = (
            torch.amp.GradScaler(device.type, enabled=config.precision == "float16") for _ in range(2)
        )
        self.captured = CapturedStep(self._updates, device) if self._can_be_captured() else None
        self._prepare_optimizers()
        images = {"seed": config.seed, "flip": config.flip, "device": device}
        self.batches = Batches(dataset, config.batch_d, **images, rank=group.rank, world=group.world)
        self.noise = torch.Generator().manual_seed(config.seed + 1)
        self.fixed = self.latents(config.n_samples, torch.Generator().manual_seed(config.seed + 2))
        self.first_norms = {name: p.detach().norm().item() for name, p in self.critic.named_parameters()}
        self.step = 0
        self.pending: list[Tensor] = []
        # On a GPU one large launch is faster than several small ones. Rounding differs from one by one.
        self.generates_ahead = device.type == "cuda" and config.n_dis > 1 and _counts_only_batches(self.generator)

    def latents(self, count: int, noise: torch.Generator) -> Latents:
        """`count` inputs of the generator, on the device."""
        z, y = latents(count, self.config.z_dim, self.config.classes, noise)
        return move_all(Latents(z.to(self.dtype), y), lambda tensor: moved(tensor, self.device))

    def draws(self) -> Iterator[Draw]:
        """What the updates of one step take, this process's share: a `CriticDraw` for each of the critic's, `Latents`.

        Each is drawn when it is asked for.
        """
        of_inputs = self.config.z_dim, self.config.classes, self.noise
        size, side = self.config.batch_d, self.config.resolution
        for _ in range(self.config.n_dis):
            real, labels = next(self.batches)
            drawn = (
                latents(size, *of_inputs),
                torch.rand(size, generator=self.noise) if self.config.penalty != "none" else None,
                draw_shifts(size, side, side, self.noise) if self.config.consistency else None,
            )
            yield CriticDraw(real, labels if self.config.classes else None, *move_all(drawn, self._share))
        yield move_all(latents(self.config.batch_g, *of_inputs), self._share)

    def rates(self, step: int) -> tuple[float, float]:
        """Learning rates of the critic's and of the generator's updates after `step` steps."""
        c, rate = self.config, 1.0
        if c.lr_decay == "linear" and step > c.lr_decay_start:
            end = c.lr_decay_end or c.steps
            rate = (end - step) / (end - c.lr_decay_start)
        return c.lr_d * rate, c.lr_g * rate

    def update(self) -> None:
        """One step of Algorithm 1: `n_dis` critic updates, one generator update, the moving average."""
        for optimizer, rate in zip((self.optim_d, self.optim_g), self.rates(self.step), strict=True):
            set_rate(optimizer, rate)
        if self.captured is not None and self.step + 1 == self.config.ema_start:
            # Until now the graph copied the generator; from here on it averages.
            self.captured.reset()
        with reuse_memory(self.device):
            losses = algorithm_1(self, self.draws()) if self.captured is None else self._captured_updates()
        self.step += 1
        # Kept on the device: reading a loss at every step would make a GPU wait for Python.
        self.pending.append(losses)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """What `pending` and metrics.jsonl hold."""
        c = self.config
        settings = "consistency", "orthonormal", "auxiliary"
        used = {"penalty": c.penalty != "none", **{name: getattr(c, name) > 0 for name in settings}}
        further = (f"loss_{name}" for name, is_used in used.items() if is_used)
        of_generator = ("loss_generator", "loss_auxiliary_generator")[: 1 + used["auxiliary"]]
        return ("loss_real", "loss_fake", *further, *of_generator)

    def take_losses(self) -> dict[str, float]:
        """Means of the losses since the last call, over all processes.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        losses = self.group.mean(torch.stack(self.pending)).double().cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            step = self.step - len(losses) + row + 1
            raise NonFiniteLossError(
                step,
                f"step {step}: {self.loss_names[column]} is {losses[row, column].item()}. "
                "Look at metrics.jsonl and the sample grids before that step; lower --lr-d and --lr-g, or repeat with "
                "--impl reference in another --run-dir to see whether the engine is to blame.",
            )
        self.pending = []
        return dict(zip(self.loss_names, losses.mean(0).tolist(), strict=True))

    def generators(self) -> dict[str, nn.Module]:
        """The raw and the averaged generator, for sampling by this process alone."""
        raw = self.generator
        if self.group.world > 1:
            # Synchronised batch norm would wait for the other processes.
            raw = copy.deepcopy(self.ema.module)
            raw.load_state_dict(self.generator.state_dict())
        return {"raw": raw, "ema": self.ema.module}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as a checkpoint holds it."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {"step": self.step, **parts, "noise": self.noise.get_state(), "pending": list(self.pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            InputError: it is not of such networks, optimisers or data; the message says what differs.
        """
        own, parts = self.state_dict(), self._parts()
        for name in ("step", "generator", "critic", "ema", "batches", "noise", "pending"):
            require_like(name, own[name], state.get(name))
        for row in state["pending"]:
            require_like("a row of pending", torch.zeros(len(self.loss_names), dtype=self.dtype), row)
        for name in ("optim_d", "optim_g"):
            # Rates and the like are the settings', which are the same.
            kept = {"state": moments(name, parts[name], state.get(name)), "param_groups": own[name]["param_groups"]}
            state = state | {name: kept}
        # Checkpoints of versions without loss scaling have none.
        state = {"scaler_d": {}, "scaler_g": {}} | state
        for name, part in parts.items():
            part.load_state_dict(state[name])
        self._prepare_optimizers()
        self.step = state["step"]
        self.noise.set_state(state["noise"])
        self.pending = [row.to(self.device) for row in state["pending"]]

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own, by its name in a checkpoint."""
        names = ("generator", "critic", "optim_d", "optim_g", "scaler_d", "scaler_g", "batches")
        return {**{name: getattr(self, name) for name in names}, "ema": self.ema.module}

    def _can_be_captured(self) -> bool:
        """Whether a step is the same sequence of kernels every time, without a word from Python."""
        waits = self.config.rescale != "none" or self.config.precision == "float16" or self.group.world > 1
        return self.config.cuda_graph and self.device.type == "cuda" and not waits

    def _updates(self, *drawn: Draw) -> Tensor:
        """A step on the device alone."""
        return algorithm_1(self, drawn)

    def _captured_updates(self) -> Tensor:
        drawn = list(self.draws())
        try:
            return self.captured(*drawn)
        except CaptureError as error:
            # Nothing of the step has been computed: recording a graph does not run it.
            warnings.warn(f"training goes on without CUDA graphs: {error} ({error.__cause__})", stacklevel=3)
            self.captured = None
            self._prepare_optimizers()
            return algorithm_1(self, move_all(drawn, lambda tensor: moved(tensor, self.device)))

    def _prepare_optimizers(self) -> None:
        for optimizer in (self.optim_d, self.optim_g):
            prepare(optimizer, self.device, captured=self.captured is not None)
        if self.captured is not None:
            self.captured.reset()

    def _share(self, drawn: Tensor) -> Tensor:
        """This process's share of what was drawn on the CPU, where its update takes it."""
        share = self.group.share(drawn)
        if share.is_floating_point():
            share = share.to(self.dtype)
        # A captured step copies its inputs to where its graph reads them: one copy, from here.
        return moved(share, self.device) if self.captured is None else pinned(share, self.device)


def _counts_only_batches(generator: nn.Module) -> bool:
    """Whether one forward may stand for several, each batch with its own statistics."""
    try:
        with grouped_batch_norm(generator, 1):
            return True
    except InputError:
        return False
