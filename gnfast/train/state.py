"""Networks, optimisers, averages and random states of a run: made from its settings, saved, and taken over again."""

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gnfast import InputError, grouped_batch_norm
from gnfast.config.config import Config
from gnfast.config.precision import resolved
from gnfast.data import Batches, ImageDataset, StepOrder
from gnfast.data.augment import draw_shifts
from gnfast.interop.device import moved
from gnfast.losses import LOSSES, domain_scaled, in_pytorch
from gnfast.steps.captured import CaptureError
from gnfast.steps.memory import reuse_memory
from gnfast.train.device_draws import DeviceDraws
from gnfast.train.draws import CriticDraw, Draw, Latents, latents, move_all
from gnfast.train.ema import Ema
from gnfast.train.networks import FORMATS, build_networks, merged, normalized
from gnfast.train.optimizers import decay, optimizer_for, prepare, set_rate
from gnfast.train.parallel import ALONE, CapturedTogether, Group, synchronise_batch_norm
from gnfast.train.restore import assembled, moments, require_like, settings_of
from gnfast.train.ring import LossRing, between, means
from gnfast.train.step import algorithm_1


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
        self.captured = CapturedTogether(self._graphed, device, group) if self._can_be_captured() else None
        self._prepare_optimizers()
        images = {"seed": config.seed, "flip": config.flip, "device": device, "rank": group.rank, "world": group.world}
        # On a CPU a step draws as it always did; on a GPU it draws itself, so that a graph can hold it.
        order = StepOrder(len(dataset), config.seed, config.n_dis, config.batch_d) if self._draws_itself() else None
        self.batches = Batches(dataset, config.batch_d, **images, order=order)
        self.device_draws = DeviceDraws(config, self.batches, self.dtype, group) if order else None
        self.noise = torch.Generator().manual_seed(config.seed + 1)
        self.fixed = self.latents(config.n_samples, torch.Generator().manual_seed(config.seed + 2))
        self.first_norms = {name: p.detach().norm().item() for name, p in self.critic.named_parameters()}
        self.step = self.logged = 0
        start, end = config.lr_decay_start, config.lr_decay_end or config.steps
        self.schedule = (start, end) if config.lr_decay == "linear" and start < end else None
        # The step as the device knows it: what changes from step to step in a CUDA graph follows from it.
        self.clock = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = self._ring(config.log_every)
        self._known: tuple[Any, dict[str, Any]] | None = None
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

    def rates(self, step: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Learning rates of the critic's and of the generator's updates after `step` steps."""
        factor = decay(step, *self.schedule) if self.schedule else 1.0
        return self.config.lr_d * factor, self.config.lr_g * factor

    def update(self) -> None:
        """One step of Algorithm 1: `n_dis` critic updates, one generator update, the moving average."""
        if self.captured is not None and self.step + 1 == self.config.ema_start:
            # Until now the graph copied the generator; from here on it averages.
            self.captured.reset()
        given = self.draws() if self.device_draws is None else self.device_draws.given()
        with reuse_memory(self.device):
            if self.captured is None:
                self._iterate(given)
            else:
                self._captured_iteration(given)
        self.step += 1

    def _graphed(self, *given: Any) -> None:
        """What a graph holds."""
        self._iterate(given)

    def _iterate(self, given: Iterable[Any]) -> None:
        """A step that tells the host nothing, from what the host has drawn for it."""
        self._set_rates()
        draws = given if self.device_draws is None else self.device_draws(self.clock, given)
        self.losses.write(self.clock, algorithm_1(self, draws))
        self.clock += 1

    def _set_rates(self) -> None:
        if self.captured is None:
            rates = self.rates(self.step)
        elif self.schedule:
            # From the clock, so that the graph follows it.
            rates = self.rates(self.clock)
        else:
            return
        for optimizer, rate in zip((self.optim_d, self.optim_g), rates, strict=True):
            set_rate(optimizer, rate)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """What `pending` and metrics.jsonl hold."""
        c = self.config
        settings = "consistency", "orthonormal", "auxiliary"
        used = {"penalty": c.penalty != "none", **{name: getattr(c, name) > 0 for name in settings}}
        further = (f"loss_{name}" for name, is_used in used.items() if is_used)
        of_generator = ("loss_generator", "loss_auxiliary_generator")[: 1 + used["auxiliary"]]
        return ("loss_real", "loss_fake", *further, *of_generator)

    @property
    def pending(self) -> list[Tensor]:
        """The losses of the steps since the last row of the log, one tensor for each step; `log_every` at most."""
        return [row.clone() for row in between(self.losses.values, self.logged, self.step)]

    def take_losses(self) -> dict[str, float]:
        """Means of `pending`, over all processes, which is empty from now on.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        found = means(self.loss_names, self.group.mean(between(self.losses.values, self.logged, self.step)), self.step)
        self.logged = self.step
        return found

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
        return assembled(self._on_device(), self.small())

    def tensors(self) -> dict[str, Any]:
        """The part of it that lives on the device, in nests that are the same ones until a tensor is replaced."""
        # Optimisers make theirs in the first step.
        form = len(self.optim_d.state), len(self.optim_g.state)
        if self._known is None or self._known[0] != form:
            self._known = form, self._on_device()
        return self._known[1]

    def networks(self) -> dict[str, dict[str, Tensor]]:
        """The states of all networks."""
        networks = {"generator": self.generator, "critic": self.critic, "ema": self.ema.module}
        return {name: net.state_dict() for name, net in networks.items()}

    def small(self) -> dict[str, Any]:
        """The part of it that the host keeps."""
        optimizers = {"optim_d": self.optim_d, "optim_g": self.optim_g}
        return {
            "step": self.step,
            "logged": self.logged,
            "batches": self._place(self.step) or self.batches.state_dict(),
            "noise": self.noise.get_state(),
            "scaler_d": self.scaler_d.state_dict(),
            "scaler_g": self.scaler_g.state_dict(),
            "groups": {name: [settings_of(group) for group in o.param_groups] for name, o in optimizers.items()},
        }

    def _on_device(self) -> dict[str, Any]:
        optimizers = {"optim_d": self.optim_d.state_dict(), "optim_g": self.optim_g.state_dict()}
        return {**self.networks(), **optimizers, "losses": self.losses.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            InputError: it is not of such networks, optimisers or data; the message says what differs.
        """
        own, parts = self.state_dict(), self._parts()
        require_like("step", own["step"], state.get("step"))
        if place := self._place(state["step"]):
            state = state | {"batches": place}
        elif isinstance(state.get("batches"), dict) and state["batches"].keys() == {"number"}:
            # A GPU has come so far, in an order of its own.
            state = state | {"batches": own["batches"]}
        for name in ("generator", "critic", "ema", "batches", "noise", "pending"):
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
        self.clock.fill_(self.step)
        self.noise.set_state(state["noise"])
        self.logged = self.step - len(state["pending"])
        self.losses = self._ring(self.config.log_every + len(state["pending"]))
        for step, row in enumerate(state["pending"], self.logged):
            self.losses.put(step, row)
        self._known = None

    def _place(self, step: int) -> dict[str, int] | None:
        """Where the batches are after a step that draws itself."""
        return None if self.device_draws is None else {"number": step * self.config.n_dis}

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own, by its name in a checkpoint."""
        names = ("generator", "critic", "optim_d", "optim_g", "scaler_d", "scaler_g", "batches")
        return {**{name: getattr(self, name) for name in names}, "ema": self.ema.module}

    def _draws_itself(self) -> bool:
        return self.device.type == "cuda"

    def _can_be_captured(self) -> bool:
        """Whether a step is the same sequence of kernels every time, without a word from Python."""
        waits = self.config.rescale != "none" or self.config.precision == "float16"
        return self.config.cuda_graph and self.device.type == "cuda" and not waits

    def _ring(self, rows: int) -> LossRing:
        return LossRing(self.loss_names, rows, torch.zeros((), dtype=self.dtype, device=self.device))

    def _captured_iteration(self, given: Iterable[Any]) -> None:
        given = list(given)
        try:
            self.captured(*given)
        except CaptureError as error:
            # Nothing of the step has been computed: recording a graph does not run it.
            reason = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
            warnings.warn(f"training goes on without CUDA graphs: {reason}", stacklevel=3)
            self.captured = None
            self._prepare_optimizers()
            self._iterate(move_all(given, lambda tensor: moved(tensor, self.device)))

    def _prepare_optimizers(self) -> None:
        for optimizer in (self.optim_d, self.optim_g):
            prepare(optimizer, self.device, captured=self.captured is not None)
        if self.captured is not None:
            self.captured.reset()
        self._known = None

    def _share(self, drawn: Tensor) -> Tensor:
        """This process's share of what was drawn on the CPU, where its update takes it."""
        share = self.group.share(drawn)
        return moved(share.to(self.dtype) if share.is_floating_point() else share, self.device)


def _counts_only_batches(generator: nn.Module) -> bool:
    """Whether one forward may stand for several, each batch with its own statistics."""
    try:
        with grouped_batch_norm(generator, 1):
            return True
    except InputError:
        return False
