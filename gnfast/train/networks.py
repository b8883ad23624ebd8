"""The networks of a run as its settings describe them: built, initialised, normalised, merged."""

import torch
from torch import Tensor, nn

from gnfast import GradientNorm, models, rewrite, spectral_norm_
from gnfast.config.config import Config
from gnfast.config.networks import arguments
from gnfast.models import initialise_, weight_norm_
from gnfast.spectral import LAYERS
from gnfast.steps.memory import reuse_memory

DTYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
_REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def build_networks(config: Config) -> models.Pair:
    """The generator and the critic that `config` describes, initialised from its seed; global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator, critic = models.build(config.model, **arguments(config))
        for net in (generator, critic):
            initialise_(net, config.init)
        initialise_(critic, config.init_d)
        if config.spectral_norm:
            _normalize_spectrally(critic, config)
        if config.weight_norm != "none":
            weight_norm_(critic, config.weight_norm, config.learn_scale)
        return generator, critic


def outlines(config: Config) -> models.Pair:
    """The networks that `config` describes, of shapes alone: it may come from a file, and ask for networks of any size.

    Raises:
        ValueError: there are no such networks.
    """
    try:
        with torch.device("meta"):
            return build_networks(config)
    except (ArithmeticError, RuntimeError, TypeError) as error:
        raise ValueError(f"there are no such networks ({str(error).partition(chr(10))[0][:200]})") from error


def require_fit(config: Config, **weights: dict[str, Tensor]) -> None:
    """That weights are those of the networks that settings describe, before these take memory.

    Args:
        config: the settings.
        weights: state dicts by `generator` or `critic`.

    Raises:
        ValueError: they are not, or there are no such networks; the message names the first difference.
    """
    networks = dict(zip(("generator", "critic"), outlines(config), strict=True))
    for name, state in weights.items():
        if wrong := mismatches(state, networks[name].state_dict()):
            raise ValueError(f"{name}: the file {'; '.join(wrong[:3])}")


def mismatches(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """What keeps a state from being one with the keys, shapes and real numbers of `wanted`, a line for each key."""
    lines = []
    for key in sorted(wanted.keys() | state.keys()):
        if key not in wanted:
            lines.append(f"has {key}")
        elif key not in state:
            lines.append(f"lacks {key}")
        elif state[key].shape != wanted[key].shape:
            lines.append(f"has {key} of {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}")
        elif state[key].dtype not in (_REAL if wanted[key].is_floating_point() else {*_REAL, wanted[key].dtype}):
            lines.append(f"has {key} in {state[key].dtype} instead of {wanted[key].dtype}")
    return lines


def _normalize_spectrally(critic: nn.Module, config: Config) -> None:
    """Puts spectral normalisation on every layer; the keys of the state are the same either way."""
    if config.impl == "auto":
        options = {"learn_scale": config.learn_scale, "stable_rank": config.stable_rank}
        spectral_norm_(critic, coeff=config.k_sn, **options)
        return
    for module in critic.modules():
        if isinstance(module, LAYERS):
            nn.utils.parametrizations.spectral_norm(module)


def merged(net: nn.Module, config: Config) -> nn.Module:
    """The network with its convolutions merged into what is next to them, where the run does that."""
    return rewrite(net) if config.rewrite and config.impl == "auto" else net


def normalized(critic: nn.Module, config: Config) -> nn.Module:
    """The critic with the normaliser that `config` names."""
    if config.method == "none":
        return merged(critic, config)
    options = {"method": config.method, "tau": config.tau, "eps": config.eps}
    return GradientNorm(critic, **options, impl=config.impl, rewrite=config.rewrite)


def present(images: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    """The arguments of a network: labels only where there are any."""
    return (images,) if labels is None else (images, labels)


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
        images = rewrite(generator)(*present(z, y))
    generator.train(was_training)
    for buffer, value in zip(generator.buffers(), kept, strict=True):
        buffer.copy_(value)
    return images
