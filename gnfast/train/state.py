"""Algorithm 1 of GN-GAN (Wu et al., ICCV 2021): a critic update, a generator update, and all that they depend on."""

import contextlib
import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnfast import CapturedStep, InputError, grouped_batch_norm, rewrite, value_and_grad_norm
from gnfast.config.config import Config
from gnfast.data import Batches, ImageDataset
from gnfast.data.augment import Shifts, apply_shifts, draw_shifts
from gnfast.engine.rescale import rescaling
from gnfast.interop.device import moved, pinned
from gnfast.losses import LOSSES, domain_scaled
from gnfast.steps.captured import CaptureError
from gnfast.steps.memory import reuse_memory
from gnfast.train.ema import Ema
from gnfast.train.networks import DTYPES, FORMATS, build_networks, merged, normalized
from gnfast.train.parallel import ALONE, Group, synchronise_batch_norm
from gnfast.train.regularizers import clip_weights_, gradient_penalty, scaled_parameters


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the step and what to look at.

    Attributes:
        step: the generator update in which it did.
    """

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class State:
    """Networks, optimisers, averages and random states of one run.

    Args:
        config: the settings.
        dataset: the real images.
        device: where the networks live.
        group: the processes that share the work.
    """

    def __init__(self, config: Config, dataset: ImageDataset, device: torch.device, group: Group = ALONE):
        self.config = config
        self.device = device
        self.group = group
        self.format = FORMATS[config.memory_format]
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.loss = domain_scaled(LOSSES[config.loss], config.alpha)
        to = {"device": device, "dtype": self.dtype, "memory_format": self.format}
        self.generator, self.critic = (net.to(**to) for net in build_networks(config))
        self.ema = Ema(self.generator, config.ema_decay, config.ema_start)
        if group.world > 1 and config.sync_bn:
            self.generator = synchronise_batch_norm(self.generator, device)
        self.normalized = normalized(self.critic, config)
        self.generate = merged(self.generator, config)
        self.optim_d = _optimizer(config, self.critic, config.lr_d, device)
        self.optim_g = _optimizer(config, self.generator, config.lr_g, device)
        self.captured = CapturedStep(self._updates, device) if _can_be_captured(config, device, group) else None
        self._prepare_optimizers()
        # Disabled, they hand everything through.
        self.scaler_d, self.scaler_g = (
            torch.amp.GradScaler(device.type, enabled=config.precision == "float16") for _ in range(2)
        )
        self.batches = Batches(
            dataset,
            config.batch_d,
            seed=config.seed,
            flip=config.flip,
            device=device,
            rank=group.rank,
            world=group.world,
        )
        # Drawn on the CPU, so that a seed means the same on every device.
        self.noise = torch.Generator().manual_seed(config.seed + 1)
        self.fixed = self.latents(config.n_samples, torch.Generator().manual_seed(config.seed + 2))
        self.first_norms = {name: p.detach().norm().item() for name, p in self.critic.named_parameters()}
        self.step = 0
        self.pending: list[Tensor] = []
        # On a GPU one large launch is faster than several small ones. Rounding differs from one by one.
        self.generates_ahead = device.type == "cuda" and config.n_dis > 1 and _counts_only_batches(self.generator)
        # What the updates of a step take instead of drawing it.
        self._drawn: deque[list[Tensor | None]] = deque()

    def latents(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Inputs of the generator on the device: (count, z_dim) and (count,) labels; see `latents`."""
        z, y = latents(self.config, count, generator)
        return moved(z.to(self.dtype), self.device), None if y is None else moved(y, self.device)

    def rates(self, step: int) -> tuple[float, float]:
        """Learning rates of the critic's and of the generator's updates after `step` steps."""
        rate = 1 - step / self.config.steps if self.config.lr_decay == "linear" else 1.0
        return self.config.lr_d * rate, self.config.lr_g * rate

    def update(self) -> None:
        """One step of Algorithm 1: `n_dis` critic updates, one generator update, the moving average."""
        for optimizer, rate in zip((self.optim_d, self.optim_g), self.rates(self.step), strict=True):
            _set_rate(optimizer, rate)
        if self.captured is not None and self.step + 1 == self.config.ema_start:
            # Until now the graph copied the generator; from here on it averages.
            self.captured.reset()
        with reuse_memory(self.device):
            losses = self._updates() if self.captured is None else self._captured_updates()
        self.step += 1
        # Kept on the device: reading a loss at every step would make a GPU wait for Python.
        self.pending.append(losses)

    def critic_update(self) -> Tensor:
        """Returns the critic's losses, one for each of `loss_names` but the last."""
        real, labels, *draws = self._take(self._draw_critic)
        self.optim_d.zero_grad(set_to_none=True)
        total = torch.zeros(len(self.loss_names) - 1, dtype=self.dtype, device=self.device)
        with self._rescaled(real, labels):
            for part in self._parts(real.to(self.dtype), labels, *draws):
                losses = self._critic_losses(*part)
                self.scaler_d.scale(losses.sum() / self.config.accumulate).backward()
                total += losses.detach() / self.config.accumulate
        self._apply(self.optim_d, self.scaler_d, self.critic)
        if self.config.weight_clip:
            clip_weights_(self.critic, self.config.weight_clip)
        return total

    def generator_update(self) -> Tensor:
        """Returns the generator's loss, (1,)."""
        self.optim_g.zero_grad(set_to_none=True)
        total = torch.zeros(1, dtype=self.dtype, device=self.device)
        # With frozen weights the critic needs two passes instead of four.
        with _frozen(self.critic):
            for part_z, part_y in self._parts(*self._take(self._draw_generator)):
                with self._autocast():
                    fake = self.generate(*_present(part_z, part_y))
                    scores = self.normalized(*_present(fake.contiguous(memory_format=self.format), part_y))
                loss = self.loss.generator(scores.to(self.dtype))
                self.scaler_g.scale(loss / self.config.accumulate).backward()
                total += loss.detach() / self.config.accumulate
        self._apply(self.optim_g, self.scaler_g, self.generator)
        return total

    @property
    def loss_names(self) -> tuple[str, ...]:
        """What `pending` and metrics.jsonl hold."""
        extra = {"loss_penalty": self.config.penalty != "none", "loss_consistency": self.config.consistency > 0}
        return ("loss_real", "loss_fake", *(name for name, used in extra.items() if used), "loss_generator")

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
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optim_d": self.optim_d.state_dict(),
            "optim_g": self.optim_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
            "scaler_g": self.scaler_g.state_dict(),
            "batches": self.batches.state_dict(),
            "noise": self.noise.get_state(),
            "pending": list(self.pending),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            InputError: it is not of such networks, optimisers or data; the message says what differs.
        """
        own = self.state_dict()
        for name in ("step", "generator", "critic", "ema", "batches", "noise"):
            require_like(name, own[name], state.get(name))
        _require_rows(state.get("pending"), len(self.loss_names))
        kept = {name: _kept(name, getattr(self, name), state.get(name)) for name in ("optim_d", "optim_g")}
        self.step = state["step"]
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        self.ema.module.load_state_dict(state["ema"])
        for name, values in kept.items():
            # Rates and the like are the settings', which are the same.
            groups = own[name]["param_groups"]
            getattr(self, name).load_state_dict({"state": values, "param_groups": groups})
        self._prepare_optimizers()
        # Checkpoints of versions without loss scaling have none.
        self.scaler_d.load_state_dict(state.get("scaler_d", {}))
        self.scaler_g.load_state_dict(state.get("scaler_g", {}))
        self.batches.load_state_dict(state["batches"])
        self.noise.set_state(state["noise"])
        self.pending = [row.to(self.device) for row in state["pending"]]

    def _critic_losses(
        self,
        real: Tensor,
        labels: Tensor | None,
        fake: Tensor | None,
        z: Tensor,
        y: Tensor | None,
        place: Tensor | None,
        *shifts: Tensor | None,
    ) -> Tensor:
        config = self.config
        fake = self._fakes(z, y) if fake is None else fake
        with self._autocast():
            images, classes = [real, fake], [labels, y]
            if shifts[0] is not None:
                images.append(apply_shifts(real, Shifts(*shifts)))
                classes.append(labels)
            batch = torch.cat(images).contiguous(memory_format=self.format)
            scores = self.normalized(*_present(batch, None if y is None else torch.cat(classes))).to(self.dtype)
        score_real, score_fake, *score_moved = scores.split(len(real))
        losses = [self.loss.critic_real(score_real), self.loss.critic_fake(score_fake)]
        if place is not None:

            def grad_norm(points: Tensor) -> Tensor:
                points = points.contiguous(memory_format=self.format)
                options = {"impl": config.impl, "rewrite": config.rewrite}
                return value_and_grad_norm(self.critic, *_present(points, labels), **options)[1].to(self.dtype)

            with self._autocast():
                penalty = gradient_penalty(config.penalty, config.k_gp, grad_norm, real, fake, place)
            losses.append(config.penalty_weight * penalty)
        if score_moved:
            losses.append(config.consistency * (score_moved[0] - score_real).square().mean())
        return torch.stack(losses)

    def _updates(self, *drawn: list[Tensor | None]) -> Tensor:
        """A step, on the device alone where everything was drawn before; the mean losses of its updates."""
        if self.generates_ahead:
            drawn = self._with_fakes(drawn or self._draw_all())
        self._drawn = deque(drawn)
        critic_losses = [self.critic_update() for _ in range(self.config.n_dis)]
        losses = torch.cat([torch.stack(critic_losses).mean(0), self.generator_update()])
        self.ema.update(self.generator, self.step + 1)
        return losses

    def _with_fakes(self, drawn: Sequence[list[Tensor | None]]) -> list[list[Tensor | None]]:
        """What was drawn, with the generated images of all critic updates from one forward in larger convolutions."""
        *critics, last = drawn
        z, y = (
            None if parts[0] is None else torch.cat(parts) for parts in zip(*(d[3:5] for d in critics), strict=True)
        )
        with grouped_batch_norm(self.generator, len(critics) * self.config.accumulate):
            fakes = self._fakes(z, y).chunk(len(critics))
        return [*([*d[:2], fake, *d[3:]] for d, fake in zip(critics, fakes, strict=True)), last]

    @torch.no_grad()
    def _fakes(self, z: Tensor, y: Tensor | None) -> Tensor:
        with self._autocast():
            return self.generate(*_present(z, y)).to(self.dtype)

    def _captured_updates(self) -> Tensor:
        drawn = self._draw_all()
        try:
            return self.captured(*drawn)
        except CaptureError as error:
            # Nothing of the step has been computed: recording a graph does not run it.
            warnings.warn(f"training goes on without CUDA graphs: {error} ({error.__cause__})", stacklevel=3)
            self.captured = None
            self._prepare_optimizers()
            on_device = [[None if part is None else moved(part, self.device) for part in parts] for parts in drawn]
            return self._updates(*on_device)

    def _draw_all(self) -> list[list[Tensor | None]]:
        """What the updates of one step would draw, in their order."""
        return [*(self._draw_critic() for _ in range(self.config.n_dis)), self._draw_generator()]

    def _take(self, draw: Callable[[], list[Tensor | None]]) -> list[Tensor | None]:
        return self._drawn.popleft() if self._drawn else draw()

    def _draw_generator(self) -> list[Tensor | None]:
        return [self._handed_over(tensor) for tensor in latents(self.config, self.config.batch_g, self.noise)]

    def _draw_critic(self) -> list[Tensor | None]:
        """This process's share of what a critic update takes: (B, …) tensors, None where it has no use for one.

        In the order of `_critic_losses`: images and labels, a place for generated images, z, y, places on lines, and
        the parts of `Shifts`.
        """
        config = self.config
        real, labels = next(self.batches)
        z, y = latents(config, config.batch_d, self.noise)
        place = torch.rand(config.batch_d, generator=self.noise) if config.penalty != "none" else None
        shifts: tuple[Tensor | None, ...] = (None, None, None)
        if config.consistency:
            shifts = draw_shifts(config.batch_d, config.resolution, config.resolution, self.noise)
        drawn = [self._handed_over(tensor) for tensor in (z, y, place, *shifts)]
        return [real, labels if config.classes else None, None, *drawn]

    def _prepare_optimizers(self) -> None:
        """Steps and rates where a captured step wants them, on the device, or where others do."""
        captured = self.captured is not None
        for optimizer in (self.optim_d, self.optim_g):
            for group in optimizer.param_groups:
                group["capturable"] = captured
                group["lr"] = torch.tensor(float(group["lr"]), device=self.device) if captured else float(group["lr"])
            for state in optimizer.state.values():
                if captured:
                    state["step"] = state["step"].to(self.device, torch.float32)
        if captured:
            self.captured.reset()

    def _parts(self, *tensors: Tensor | None) -> Iterator[list[Tensor | None]]:
        """Tensors (B, …) in `accumulate` parts that follow each other."""
        count = self.config.accumulate
        cut = [[None] * count if tensor is None else tensor.chunk(count) for tensor in tensors]
        yield from map(list, zip(*cut, strict=True))

    def _handed_over(self, drawn: Tensor | None) -> Tensor | None:
        """This process's share of what was drawn on the CPU, where its update takes it."""
        if drawn is None:
            return None
        share = self.group.share(drawn)
        if share.is_floating_point():
            share = share.to(self.dtype)
        # A captured step copies its inputs to where its graph reads them: one copy, from here.
        return moved(share, self.device) if self.captured is None else pinned(share, self.device)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.config.precision not in ("bfloat16", "float16"):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.config.precision])

    def _rescaled(self, images: Tensor, labels: Tensor | None) -> contextlib.AbstractContextManager:
        if self.config.rescale == "none":
            return contextlib.nullcontext()
        norm = self.first_norms if self.config.rescale == "initial" else None
        factors, _ = rescaling(self.critic, *_present(images[:1].to(self.dtype), _first(labels)), norm=norm)
        return scaled_parameters(self.critic, factors)

    def _apply(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, net: nn.Module) -> None:
        self.group.average_gradients(net.parameters())
        scaler.step(optimizer)
        scaler.update()


def latents(config: Config, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Inputs of a run's generator: (count, z_dim) from N(0, I), and (count,) uniform labels or None without classes."""
    z = torch.randn(count, config.z_dim, generator=generator)
    y = torch.randint(config.classes, (count,), generator=generator) if config.classes else None
    return z, y


@torch.no_grad()
def sample(generator: nn.Module, z: Tensor, y: Tensor | None = None, *, batch_statistics: bool = True) -> Tensor:
    """Images of a generator, which is left as it was; merged (`gnfast.rewrite`) where that saves products.

    Args:
        generator: latent vectors, and labels where it takes them, to images.
        z: (B, z_dim) latent vectors.
        y: (B,) labels, or None.
        batch_statistics: batch norm uses this batch's statistics, as the papers' code does, instead of running ones.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    was_training = generator.training
    kept = [buffer.clone() for buffer in generator.buffers()]
    generator.train(batch_statistics)
    with reuse_memory(z.device):
        images = rewrite(generator)(*_present(z, y))
    generator.train(was_training)
    for buffer, value in zip(generator.buffers(), kept, strict=True):
        buffer.copy_(value)
    return images


def require_like(name: str, own: Any, got: Any) -> None:
    """That a part of a checkpoint has the kinds, keys and shapes of our own.

    Raises:
        InputError: it has not; the message names the first difference.
    """
    if isinstance(own, Tensor):
        what = f"{tuple(own.shape)} of {own.dtype}"
        if not isinstance(got, Tensor) or (got.shape, got.dtype) != (own.shape, own.dtype):
            there = f"{tuple(got.shape)} of {got.dtype}" if isinstance(got, Tensor) else type(got).__name__
            raise InputError(f"{name} is {there}, want {what}")
    elif isinstance(own, dict):
        keys = got.keys() if isinstance(got, dict) else set()
        if keys != own.keys():
            odd = sorted(map(str, own.keys() ^ keys))[0]
            raise InputError(f"{name} {'lacks' if odd in own else 'has an unknown'} {odd[:100]!r}")
        for key, value in own.items():
            require_like(f"{name}.{key}", value, got[key])
    elif type(got) is not type(own):
        raise InputError(f"{name} is of type {type(got).__name__}, want {type(own).__name__}")


def _require_rows(pending: Any, columns: int) -> None:
    rows = pending if isinstance(pending, list) else [None]
    if not all(isinstance(row, Tensor) and row.is_floating_point() and row.shape == (columns,) for row in rows):
        raise InputError(f"pending must be a list of rows of {columns} losses")


def _kept(name: str, optimizer: torch.optim.Optimizer, saved: Any) -> dict[int, dict[str, Tensor]]:
    """What an optimiser remembers of each weight, laid out in memory like the weight: fused kernels take that on trust.

    Raises:
        InputError: it is of another optimiser, or of other weights.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {"exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"square_avg"}
    entries = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(entries, dict) or not all(type(i) is int and 0 <= i < len(weights) for i in entries):
        raise InputError(f"{name} is not of {len(weights)} weights")
    kept = {}
    for index, entry in entries.items():
        weight, place = weights[index], f"{name}[{index}]"
        if not isinstance(entry, dict) or entry.keys() != {"step", *moments}:
            raise InputError(f"{place} must have {', '.join(sorted(moments))} and step: another optimiser's?")
        require_like(f"{place}.step", torch.tensor(0.0), entry["step"])
        for moment in moments:
            require_like(f"{place}.{moment}", weight.detach(), entry[moment])
        kept[index] = {
            key: torch.empty_like(weight.detach()).copy_(value) if key in moments else value
            for key, value in entry.items()
        }
    return kept


def _optimizer(config: Config, net: nn.Module, rate: float, device: torch.device) -> torch.optim.Optimizer:
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(net.parameters(), rate)
    # One kernel for all weights where PyTorch has it; the same formula as the plain one.
    return torch.optim.Adam(net.parameters(), rate, config.betas, fused=device.type in ("cpu", "cuda"))


@contextlib.contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """Without gradients for the weights; they have them again also after a step that could not be captured."""
    net.requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _counts_only_batches(generator: nn.Module) -> bool:
    """Whether one forward may stand for several, each batch with its own statistics."""
    try:
        with grouped_batch_norm(generator, 1):
            return True
    except InputError:
        return False


def _can_be_captured(config: Config, device: torch.device, group: Group) -> bool:
    """Whether a step is the same sequence of kernels every time, without a word from Python."""
    waits = config.rescale != "none" or config.precision == "float16" or group.world > 1
    return config.cuda_graph and device.type == "cuda" and not waits


def _present(images: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    """The arguments of a network: labels only where there are any."""
    return (images,) if labels is None else (images, labels)


def _first(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels[:1]
