"""What the settings of a run ask of each other."""

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gnfast.engine.heads import METHODS
from gnfast.metrics.extractors import registered_extractors
from gnfast.models import REGISTRY

if TYPE_CHECKING:
    from gnfast.config.config import Config


# Settings that others make use of: whether they do, and what to set so that they do.
_USES: dict[str, tuple[Callable[["Config"], bool], str]] = {
    "k_sn": (lambda c: c.spectral_norm, "--spectral-norm"),
    "penalty_weight": (lambda c: c.penalty != "none", "--penalty"),
    "k_gp": (lambda c: c.penalty == "1-gp", "--penalty 1-gp"),
    "betas": (lambda c: c.optimizer == "adam", "--optimizer adam"),
    "adam_eps": (lambda c: c.optimizer == "adam", "--optimizer adam"),
}


def without_effect(config: "Config", usual: "Config") -> Iterator[tuple[str, str]]:
    """The settings that differ from the usual ones but that no other uses, and what to set so that one does."""
    for name, (used, setting) in _USES.items():
        if getattr(config, name) != getattr(usual, name) and not used(config):
            yield name, setting


def together(config: "Config") -> Iterator[tuple[str, bool, str]]:
    """The name of a setting, whether it is as the others want it, and how that is; one after the other."""
    for name in ("batch_d", "batch_g"):
        multiple = getattr(config, name) % config.accumulate == 0
        yield name, multiple, f"a multiple of --accumulate {config.accumulate}"
    for name in ("tau", "eps"):
        takers = [method for method, head in METHODS.items() if name in inspect.signature(head).parameters]
        taken = getattr(config, name) is None or config.method in takers
        yield name, taken, f"none, except with --method {' or '.join(takers)}"
    as_it_is, rescales = config.rescale == "none", config.method in ("gn", "gn0")
    yield "rescale", as_it_is or rescales, "none, except with --method gn or gn0"
    homogeneous = config.norm_d == "none" and config.activation in ("default", "relu", "leaky-relu")
    yield "rescale", as_it_is or homogeneous, "none with --norm-d or a curved --activation"
    # They look at the critic before its normalisation, whose scale rescaling changes.
    further = config.penalty != "none" or config.orthonormal or config.auxiliary
    yield "rescale", as_it_is or not further, "none with --penalty, --orthonormal or --auxiliary"
    alone = config.method == config.penalty == "none"
    yield "norm_d", config.norm_d != "batch" or alone, "none or layer with --method or --penalty: batches mix samples"
    yield "weight_norm", config.weight_norm == "none" or not config.spectral_norm, "none with --spectral-norm"
    scaled = config.spectral_norm or config.weight_norm in ("unit", "frobenius")
    yield "learn_scale", scaled or not config.learn_scale, "false, except with a spectral, unit or Frobenius norm"
    plain = config.k_sn == 1 and not config.learn_scale and not config.stable_rank
    knows = config.impl == "auto" or not config.spectral_norm or plain
    yield "impl", knows, "auto with --k-sn, --learn-scale or --stable-rank, which PyTorch's spectral norm does not know"
    yield "stable_rank", config.spectral_norm or not config.stable_rank, "0 without --spectral-norm"
    widens = REGISTRY[config.model].last_width
    yield "last_width", widens or config.last_width == 1, "1 with a --model that has no last convolution to widen alone"
    for name in ("lr_decay_start", "lr_decay_end"):
        yield name, config.lr_decay != "none" or not getattr(config, name), "0 without --lr-decay"
    late = config.lr_decay_end >= config.steps
    yield "lr_decay_end", late or not config.lr_decay_end, f"0, or at least --steps {config.steps}"
    classifies = REGISTRY[config.model].classifier
    yield "auxiliary", classifies or not config.auxiliary, "0 with a --model that has no classifier"
    yield "auxiliary", config.classes > 0 or not config.auxiliary, "0 without --classes"
    known = ("auto", "none", *registered_extractors())
    has = config.extractor in known or ":" in config.extractor
    yield "extractor", has, f"one of {', '.join(known)}, or module:function"
    for name in ("weight_clip", "orthonormal"):
        normalized = config.spectral_norm or config.weight_norm != "none"
        yield name, not (normalized and getattr(config, name)), "0 with --spectral-norm or --weight-norm"
