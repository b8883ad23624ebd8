"""Random critics: programs of small steps that every engine of gradients must agree on.

What their layers chose is written down, so that a counterexample prints as the list of its steps.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.random_curves import COUPLED, PRODUCTS, SMOOTH
from tests.random_layers import (
    CLASSES,
    DTYPE,
    OPERATIONS,
    PAIRS,
    RUNNERS,
    SAVES_INPUT,
    SAVES_NOTHING,
    VIEWS,
    Choices,
    Inapplicable,
    Weights,
)

# Entries per sample that a step may produce, so that thousands of networks take a minute.
LARGEST = 480


@dataclass(frozen=True)
class Step:
    """%output = name(%inputs, arguments), with the weights of step `owner`."""

    name: str
    inputs: tuple[int, ...]
    output: int
    owner: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [f"%{value}" for value in self.inputs]
        shown += [f"{name}={getattr(value, '__name__', value)!s}" for name, value in self.arguments.items()]
        shared = f"  # weights of %{self.owner}" if self.owner != self.output else ""
        return f"%{self.output} = {self.name}({', '.join(shown)}){shared}"


class Critic(nn.Module):
    """A drawn program with its weights: x (B, ...), labels (B,) and another tensor (B,) ↦ one logit per sample."""

    def __init__(self, shape: tuple[int, ...], training: bool, seed: int) -> None:
        super().__init__()
        self.shape, self.seed = shape, seed
        self.steps: list[Step] = []
        self.weights = nn.ModuleDict()
        self.last_uses: list[list[int]] = []
        self.train(training)

    def close(self) -> None:
        """Notes after which step each tensor is let go, as the locals of a handwritten forward would be."""
        last = {}
        for place, step in enumerate(self.steps):
            last.update(dict.fromkeys((*step.inputs, step.output), place))
        last.pop(self.steps[-1].output)
        self.last_uses = [[value for value, at in last.items() if at == place] for place in range(len(self.steps))]

    def forward(self, x: Tensor, labels: Tensor, given: Tensor | None = None) -> Tensor:
        values = {0: x}
        for step, last in zip(self.steps, self.last_uses, strict=True):
            weights = self.weights[str(step.owner)]
            weights.labels, weights.given = labels, given
            run, choices = RUNNERS[step.name], Choices(made=step.arguments)
            values[step.output] = run(choices, weights, *(values[i] for i in step.inputs))
            for value in last:
                del values[value]
        return values[step.output]

    def __repr__(self) -> str:
        head = f"x {self.shape}, {'train' if self.training else 'eval'}, seed {self.seed}"
        return "\n    ".join([f"Critic({head}):", *map(str, self.steps)]) + "\n"


class _Program:
    """A critic while it is drawn: what is alive, what shares memory, what autograd has saved."""

    def __init__(self, chance: random.Random, critic: Critic, x: Tensor, labels: Tensor, given: Tensor) -> None:
        self.chance, self.critic, self.labels, self.given = chance, critic, labels, given
        self.values = {0: x}
        self.group = {0: 0}
        self.alive = [0]
        self.saved = {0}

    def append(self, name: str, inputs: Sequence[int], owner: Step | None = None) -> bool:
        """Draws and runs a step; False where it does not apply."""
        given = [self.values[i] for i in inputs]
        output = max(self.values) + 1
        weights = Weights().train(self.critic.training) if owner is None else self.critic.weights[str(owner.owner)]
        weights.labels, weights.given = self.labels, self.given
        group = self.group[inputs[0]]
        writable = group not in self.saved and group not in [self.group[i] for i in inputs[1:]]
        writable &= not any(stride == 0 for stride, n in zip(given[0].stride(), given[0].shape, strict=True) if n > 1)
        choices = Choices(self.chance, writable=writable) if owner is None else Choices(made=owner.arguments)
        try:
            with torch.no_grad():
                result = RUNNERS[name](choices, weights, *given)
        except Inapplicable:
            return False
        fits = 2 <= result.dim() <= 5 and 0 < result[0].numel() <= LARGEST
        if name not in ENDS and not fits:
            return False
        step = Step(name, tuple(inputs), output, owner.owner if owner else output, choices.made)
        if owner is None:
            self.critic.weights[str(output)] = weights
        self.critic.steps.append(step)
        written = step.arguments.get("inplace", False)
        shares = name in VIEWS or result.untyped_storage().data_ptr() == given[0].untyped_storage().data_ptr()
        self.values[output] = result
        self.group[output] = group if shares else output
        if written:
            # Autograd and the recorder want no other view of it from now on.
            self.alive = [value for value in self.alive if self.group[value] != group]
        self.alive.append(output)
        if name in ("unfold", "part"):
            # Nothing may be written into entries that overlap, and into one of several parts.
            self.saved.add(self.group[output])
        if name not in SAVES_NOTHING:
            self.saved.update(self.group[value] for value in inputs)
            if name not in SAVES_INPUT:
                self.saved.add(self.group[output])
        return True


class Family(NamedTuple):
    """What to draw critics from; operations that count for more are there several times."""

    dims: tuple[int, ...]
    """Numbers of axes behind the channels."""
    names: Sequence[str]
    """Operations of one tensor."""
    pairs: Sequence[str] = tuple(PAIRS)
    """Of two."""
    end: str = "logit"
    """The last step."""


ENDS = "logit", "smooth_logit", "logit_map"
_ANY = [name for name in OPERATIONS if name != "cast" and not name.startswith("plain")]
_BENT = ["activation"] * 3
_SMOOTH = [*SMOOTH, *["curve"] * 5]
_ALL_PAIRS = *PAIRS, *[*PRODUCTS] * 3
FAMILIES: dict[str, Family] = {
    "images": Family((2,), [*_ANY, *["conv"] * 6, *["avg_pool", "interpolate"] * 2, *_BENT]),
    "sequences": Family((1,), [*_ANY, *["conv", "conv_transpose"] * 3, *_BENT]),
    "volumes": Family((3,), [*_ANY, *["conv", "conv_transpose"] * 3, *_BENT]),
    "vectors": Family((0,), [*_ANY, *["linear"] * 6, *_BENT]),
    "rewrites": Family(
        (2,), ["conv", "avg_pool", "activation", *["plain_conv"] * 5, *["plain_pool", "plain_upsample"] * 3]
    ),
    "choices": Family(
        (0, 1, 2), ["conv", "linear", "max_pool", "adaptive_pool", *["choose", "group_sort", "bound"] * 3]
    ),
    "shapes": Family(
        (1, 2, 3),
        ["linear", "matmul", "reshape", "permute", "index", "part", "rearrange", "reordered", "stacked", "activation"],
    ),
    "in place": Family(
        (0, 1, 2), ["conv", "linear", *["number", "shift", "scale", "layout", "reshape", "permute"] * 2, *_BENT]
    ),
    "mixed": Family((0, 1, 2, 3), _ANY),
    "casts": Family((0, 1, 2), ["conv", "linear", "scale", "matmul", *["cast"] * 3, *_BENT]),
    "smooth": Family((0, 1, 2), ["conv", "linear", "matmul", *_ANY, *_SMOOTH * 3], _ALL_PAIRS, "smooth_logit"),
    "coupled": Family(
        (0, 1, 2, 3), [*["conv", "linear"] * 3, "curve", *_BENT, *_ANY, *[*COUPLED] * 4], _ALL_PAIRS, "smooth_logit"
    ),
    "maps": Family(
        (0, 1, 2), [*["conv", "linear"] * 3, *_BENT, *_ANY, "curve", "normed", "mixed"], _ALL_PAIRS, "logit_map"
    ),
    "modern": Family((1, 2), ["plain_conv", "linear", "curve", "avg_pool", *COUPLED], _ALL_PAIRS, "smooth_logit"),
}


def draw_critic(
    chance: random.Random, family: Family, *, spoil: bool = False, longest: int = 9
) -> tuple[Critic, Tensor, Tensor]:
    """A critic in float64 with x and labels for it.

    Args:
        chance: draws every choice and the seed of the weights.
        family: what to draw from; `FAMILIES` has some.
        spoil: put one step that the passes cannot do among the others.
        longest: as many steps at most.
    """
    dims, batch, channels = chance.choice(family.dims), chance.randint(1, 4), chance.randint(1, 4)
    sizes = [chance.randint(3, 7) if dims < 3 else chance.randint(2, 4) for _ in range(dims)]
    shape = (batch, channels * (1 if dims else 2), *sizes)
    seed = chance.randrange(1 << 16)
    torch.default_generator.manual_seed(seed)
    x = torch.randn(shape, dtype=DTYPE)
    labels = torch.randint(CLASSES, (batch,))
    critic = Critic(shape, chance.choice([True, False]), seed)
    program = _Program(chance, critic, x, labels, torch.ones(batch, dtype=DTYPE))
    length = chance.randint(2, longest)
    spoiled_at = chance.randrange(length) if spoil else None
    for place in range(length):
        newest = program.alive[-1]
        current = newest if chance.random() < 0.75 else chance.choice(program.alive)
        if place == spoiled_at:
            program.append("spoiled", [current])
            continue
        kind = chance.choice(["one", "one", "one", "pair", "again"])
        if kind == "pair" and _append_pair(chance, program, current, family.pairs):
            continue
        if kind == "again" and _append_again(chance, program):
            continue
        for _ in range(3):
            if program.append(chance.choice(family.names), [current]):
                break
    # What no step has read must count, or the program would have idle steps.
    read = {value for step in critic.steps for value in step.inputs}
    leaves = [value for value in program.alive if value not in read] or [program.alive[-1]]
    if len(program.alive) > len(leaves) and chance.random() < 0.5:
        leaves.append(chance.choice([value for value in program.alive if value not in leaves]))
    if not program.append(family.end, leaves):
        program.append("logit", leaves)
    critic.close()
    return critic, x, labels


def _pairs_with(name: str, h: Tensor, other: Tensor) -> bool:
    if h.dim() != other.dim() or h.dim() < 2 or other is h:
        return False
    if name == "resized":
        return 3 <= h.dim() <= 5
    if name == "concatenate":
        return h.shape[2:] == other.shape[2:]
    if name in ("add", "extremum") and h.shape != other.shape:
        return all(m in (n, 1) for n, m in zip(h.shape[1:], other.shape[1:], strict=True))
    return h.shape == other.shape and h.dim() < 5


def _append_pair(chance: random.Random, program: _Program, current: int, names: Sequence[str]) -> bool:
    h = program.values[current]
    options = [
        (name, other) for other in program.alive for name in names if _pairs_with(name, h, program.values[other])
    ]
    if not options:
        return False
    name, other = chance.choice(options)
    return program.append(name, [current, other])


def _append_again(chance: random.Random, program: _Program) -> bool:
    """A step that has weights once more, on another tensor of the same shape."""
    options = []
    for step in program.critic.steps:
        if len(step.inputs) > 1 or step.arguments.get("inplace") or step.name in ("spoiled", *ENDS):
            continue
        if next(program.critic.weights[str(step.owner)].parameters(), None) is None:
            continue
        # Shapes do not change in place, so that of the input is what it was.
        shape = program.values[step.inputs[0]].shape
        options += [(step, value) for value in program.alive if program.values[value].shape == shape]
    if not options:
        return False
    step, value = chance.choice(options)
    return program.append(step.name, [value], owner=step)
