"""Algorithm 1 of GN-GAN (Wu et al., ICCV 2021): a critic update, a generator update, and all that they depend on."""

from typing import Any

import torch
from torch import Tensor, nn

from gnfast import GradientNorm, models, rewrite, spectral_norm_
from gnfast.data import Batches, ImageDataset
from gnfast.losses import LOSSES
from gnfast.spectral import LAYERS
from gnfast.train.config import Config
from gnfast.train.ema import Ema

LOSS_NAMES = ("loss_real", "loss_fake", "loss_generator")
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the step and what to look at."""


class State:
    """Networks, optimisers, averages and random states of one run.

    Args:
        config: the settings.
        dataset: the real images.
        device: where the networks live.
    """

    def __init__(self, config: Config, dataset: ImageDataset, device: torch.device):
        self.config = config
        self.device = device
        self.format = FORMATS[config.memory_format]
        self.loss = LOSSES[config.loss]
        generator, critic = build_networks(config)
        self.generator = generator.to(device=device, memory_format=self.format)
        self.critic = critic.to(device=device, memory_format=self.format)
        self.normalized = _normalized(self.critic, config)
        self.generate = _merged(self.generator, config)
        self.ema = Ema(self.generator, config.ema_decay, config.ema_start)
        # One kernel for all weights where PyTorch has it; the same formula as the plain one.
        fused = device.type in ("cpu", "cuda")
        self.optim_d = torch.optim.Adam(self.critic.parameters(), config.lr_d, config.betas, fused=fused)
        self.optim_g = torch.optim.Adam(self.generator.parameters(), config.lr_g, config.betas, fused=fused)
        self.batches = Batches(dataset, config.batch_d, seed=config.seed, flip=config.flip, device=device)
        # Latents are drawn on the CPU, so that a seed means the same on every device.
        self.noise = torch.Generator().manual_seed(config.seed + 1)
        self.fixed_z = self.latents(config.n_samples, torch.Generator().manual_seed(config.seed + 2))
        self.step = 0
        self.pending: list[Tensor] = []

    def latents(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(count, z_dim) float32 from N(0, I), from the run's own random state unless another is given."""
        z = torch.randn(count, self.config.z_dim, generator=generator or self.noise)
        return z.to(self.device, non_blocking=True)

    def update(self) -> None:
        """One step of Algorithm 1: `n_dis` critic updates, one generator update, the moving average."""
        rate = 1 - self.step / self.config.steps if self.config.lr_decay == "linear" else 1.0
        _set_rate(self.optim_d, self.config.lr_d * rate)
        _set_rate(self.optim_g, self.config.lr_g * rate)
        critic_losses = [self.critic_update() for _ in range(self.config.n_dis)]
        generator_loss = self.generator_update()
        self.step += 1
        self.ema.update(self.generator, self.step)
        # Kept on the device: reading a loss at every step would make a GPU wait for Python.
        self.pending.append(torch.cat([torch.stack(critic_losses).mean(0), generator_loss]))

    def critic_update(self) -> Tensor:
        """Returns the two parts of the critic's loss, (2,)."""
        real = next(self.batches)
        with torch.no_grad():
            fake = self.generate(self.latents(self.config.batch_d))
        images = torch.cat([real, fake]).contiguous(memory_format=self.format)
        score_real, score_fake = self.normalized(images).split([len(real), len(fake)])
        parts = torch.stack([self.loss.critic_real(score_real), self.loss.critic_fake(score_fake)])
        self.optim_d.zero_grad(set_to_none=True)
        parts.sum().backward()
        self.optim_d.step()
        return parts.detach()

    def generator_update(self) -> Tensor:
        """Returns the generator's loss, (1,)."""
        # With frozen weights the critic needs two passes instead of four.
        self.critic.requires_grad_(False)
        fake = self.generate(self.latents(self.config.batch_g))
        loss = self.loss.generator(self.normalized(fake.contiguous(memory_format=self.format)))
        self.optim_g.zero_grad(set_to_none=True)
        loss.backward()
        self.optim_g.step()
        self.critic.requires_grad_(True)
        return loss.detach().reshape(1)

    def take_losses(self) -> dict[str, float]:
        """Means of the losses since the last call.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        losses = torch.stack(self.pending).double().cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise NonFiniteLossError(
                f"step {self.step - len(losses) + row + 1}: {LOSS_NAMES[column]} is {losses[row, column].item()}. "
                "Look at metrics.jsonl and the sample grids before that step; lower --lr-d and --lr-g, or repeat with "
                "--impl reference in another --run-dir to see whether the engine is to blame."
            )
        self.pending = []
        return dict(zip(LOSS_NAMES, losses.mean(0).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optim_d": self.optim_d.state_dict(),
            "optim_g": self.optim_g.state_dict(),
            "batches": self.batches.state_dict(),
            "noise": self.noise.get_state(),
            "pending": self.pending,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.step = state["step"]
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        self.ema.module.load_state_dict(state["ema"])
        self.optim_d.load_state_dict(state["optim_d"])
        self.optim_g.load_state_dict(state["optim_g"])
        self.batches.load_state_dict(state["batches"])
        self.noise.set_state(state["noise"])
        self.pending = [row.to(self.device) for row in state["pending"]]


def build_networks(config: Config) -> models.Pair:
    """The generator and the critic that `config` describes, initialised from its seed; global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator, critic = models.build(
            config.model,
            resolution=config.resolution,
            channels=config.channels,
            z_dim=config.z_dim,
            width=config.width,
        )
        if config.spectral_norm:
            _normalize_weights(critic, config)
        return generator, critic


def _normalize_weights(critic: nn.Module, config: Config) -> None:
    """Puts spectral normalisation on every layer; the keys of the state are the same either way."""
    if config.impl == "auto":
        spectral_norm_(critic, coeff=config.k_sn, learn_scale=config.learn_scale)
        return
    if config.k_sn != 1 or config.learn_scale:
        raise ValueError("--impl: PyTorch's spectral norm knows neither --k-sn nor --learn-scale; take auto")
    for module in critic.modules():
        if isinstance(module, LAYERS):
            nn.utils.parametrizations.spectral_norm(module)


def _merged(net: nn.Module, config: Config) -> nn.Module:
    return rewrite(net) if config.rewrite and config.impl == "auto" else net


def _normalized(critic: nn.Module, config: Config) -> nn.Module:
    """The critic with the normaliser that `config` names."""
    if config.method == "none":
        return _merged(critic, config)
    options = {"method": config.method, "tau": config.tau, "eps": config.eps}
    return GradientNorm(critic, **options, impl=config.impl, rewrite=config.rewrite)


@torch.no_grad()
def sample(generator: nn.Module, z: Tensor, batch_statistics: bool = True) -> Tensor:
    """Images of a generator, which is left as it was.

    Args:
        generator: latent vectors to images.
        z: (B, z_dim) latent vectors.
        batch_statistics: batch norm uses this batch's statistics, as the papers' code does, instead of running ones.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    was_training = generator.training
    kept = [buffer.clone() for buffer in generator.buffers()]
    generator.train(batch_statistics)
    images = generator(z)
    generator.train(was_training)
    for buffer, value in zip(generator.buffers(), kept, strict=True):
        buffer.copy_(value)
    return images


def resolve_device(name: str) -> torch.device:
    """`auto` to a GPU where there is one, any other name to that device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: got {name!r}, want auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: got {name!r}, but this PyTorch ({torch.__version__}) sees no CUDA device")
    return device


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
