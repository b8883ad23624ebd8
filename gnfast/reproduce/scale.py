"""How large the runs of a paper's table are: at full size as the paper has them, or smaller in every respect."""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gnfast.config.config import Config, require_kinds
from gnfast.data.registry import SETS
from gnfast.errors import unknown

# What is counted in steps and shrinks with their number, and intervals, of which a run has at most so many.
_STEPS = ("steps", "ema_start", "lr_decay_start", "lr_decay_end")
_INTERVALS = ("sample_every", "eval_every", "probe_every", "checkpoint_every")
POINTS = 10
# What `--set` may not say, and what says it.
_FOLLOWS = {"run_dir": "--out", "seed": "--seeds", "classes": "the images"}
# Enough for a Fréchet distance in a small classifier's features.
LEAST_FAKE = 500


@dataclass(frozen=True)
class Scale:
    """How large, on which images, and what else differs from the paper.

    Attributes:
        factor: on steps and the number of generated images that are measured; hidden channels shrink by its root, and
            the moving average remembers as much of the run as before.
        data: from the name of a data set to where its images are.
        stand_in: a data set that takes the place of every other; empty for none.
        options: settings of every run, which go before all others.
    """

    factor: float = 1.0
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stand_in: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether the runs are the paper's."""
        return self.name == "full"

    @property
    def name(self) -> str:
        """A folder's name: runs of another scale are other runs."""
        parts = [] if self.factor == 1 else [f"scale={self.factor:g}"]
        parts += [self.stand_in] if self.stand_in else []
        parts += [f"{name}={value}" for name, value in self.options.items() if name not in ("device", "threads")]
        name = ",".join(parts).replace("/", "-")
        # Images may lie in a folder called `full`, `.` or `..`.
        return f"data={name}" if name and name.strip(".") in ("", "full") else name or "full"

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings of a run that replace those of its configuration."""
        found: dict[str, Any] = {"extractor": "inception"}
        if self.factor != 1:
            found = {name: self._count(getattr(config, name)) for name in _STEPS}
            least = -(-found["steps"] // POINTS)
            found |= {name: max(self._count(getattr(config, name)), least) for name in _INTERVALS}
            # Losses are curves; the rest is a few points.
            found |= {"log_every": max(1, min(config.log_every, least)), "tensorboard": False}
            found["n_fake"] = min(config.n_fake, max(LEAST_FAKE, round(config.n_fake * self.factor)))
            found["n_real"] = 0
            found["width"] = max(round(config.width * self.factor**0.5, 4), 1e-4)
            found["ema_decay"] = max(0.0, 1 - (1 - config.ema_decay) / self.factor) if config.ema_decay else 0.0
            found["extractor"] = "classifier"
        if self.stand_in:
            found |= {"data": self.stand_in, "split": "train", "crop": None, "eval_split": "", "validation_split": ""}
            found["n_real"] = 0
            found["extractor"] = "classifier"
        elif (name := config.data or "imagenet") in self.data:
            found["data"] = self.data[name]
        return found | dict(self.options)

    def _count(self, steps: int) -> int:
        return max(1, round(steps * self.factor)) if steps else 0


def scale_of(factor: float, data: Sequence[str], options: Sequence[str]) -> Scale:
    """A scale from words of the command line.

    Args:
        factor: in (0, 1].
        data: `NAME=PATH` for the images of a named data set, or `NAME` for one that stands in for all.
        options: `name=value`, settings of every run.

    Raises:
        ValueError: a word that is not one; the message begins with the option.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"--scale: got {factor}, wanted a number above 0, at most 1")
    places = _once("--data", (word.split("=", 1) for word in data if "=" in word))
    for name in places:
        if name not in (known := [*SETS, "imagenet"]):
            raise ValueError(f"--data: {unknown('data set', name, known)}")
    stand_ins = [word for word in data if "=" not in word]
    if len(stand_ins) > 1 or (stand_ins and places) or "" in (*stand_ins, *places.values()):
        raise ValueError(f"--data: got {', '.join(data)}, wanted NAME=PATH for some data sets, or one NAME for all")
    settings = _once("--set", map(_setting, options))
    for name in settings.keys() & _FOLLOWS:
        raise ValueError(f"--set: got {name}, which follows from {_FOLLOWS[name]}")
    require_kinds(settings)
    return Scale(factor, places, stand_ins[0] if stand_ins else "", settings)


def _once(option: str, pairs: Iterable[Sequence[Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{option}: got {name} twice")
        found[name] = value
    return found


def _setting(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"--set: got {word!r}, wanted NAME=VALUE, e.g. width=0.125")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return name.replace("-", "_"), tuple(value) if isinstance(value, list) else value
