"""Keys of the papers' checkpoints as gnfast's networks have them: rules for `re.sub`, taken in turn, for each network.

A key that no rule knows keeps its name, for `gnfast.train.published` to report.
"""

import math
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

_CONDITIONAL_NORM: Rules = ((r"\.bn(\d)\.", r".norm\1."), (r"\.batchnorm2d\.", ".norm."))
# The CNN and the ResNets have gnfast's keys already; the ResNets have no `blocks` in the critic.
GNGAN_GENERATOR: Rules = ((r"^output_layer\.", "output."), *_CONDITIONAL_NORM)
GNGAN_CRITIC: Rules = ((r"^blocks\.", "model."),)
MIMICRY_GENERATOR: Rules = (
    (r"^l1\.", "linear."),
    (r"^b\d+\.", "output.0."),
    (r"^c\d+\.", "output.2."),
    (r"^block(\d+)\.", lambda match: f"blocks.{int(match[1]) - 2}."),
    (r"\.b1\.", ".residual.0."),
    (r"\.c1\.", ".residual.3."),
    (r"\.b2\.", ".residual.4."),
    (r"\.c2\.", ".residual.6."),
    (r"\.c_sc\.", ".shortcut.1."),
)
MIMICRY_CRITIC: Rules = (
    (r"^l\d+\.", "linear."),
    (r"^block1\.c_sc\.", "model.0.shortcut.1."),
    (r"^block(\d+)\.", lambda match: f"model.{int(match[1]) - 1}."),
    (r"\.c1\.", ".residual.0."),
    (r"\.c2\.", ".residual.2."),
    (r"\.c_sc\.", ".shortcut.0."),
)
_PARAMETRIZED: Rules = (
    (r"\.weight_orig$", ".parametrizations.weight.original"),
    (r"\.weight_([uv])$", r".parametrizations.weight.0._\1"),
)


def renamed(state: State, rules: Rules) -> State:
    """Each key under every rule in turn."""
    result = {}
    for key, value in state.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        result[key] = value
    return result


def parametrized(state: State) -> State:
    """Keys of the older `torch.nn.utils.spectral_norm` as the parametrization has them; u and v of length 1."""
    result = renamed(state, _PARAMETRIZED)
    for key, value in result.items():
        if re.search(r"\.parametrizations\.weight\.0\._[uv]$", key) and value.ndim == 1 and value.is_floating_point():
            result[key] = F.normalize(value, dim=0)
    return result


def faster_generator(state: State) -> State:
    """One sequence: linear, reshape, blocks with attention among them, batch norm, ReLU, convolution, tanh."""
    blocks, attention = _places(state, r"shortcut\."), _places(state, "gamma")
    if blocks:
        end = max(blocks + attention)
        names = {index: f"blocks.{count}" for count, index in enumerate(blocks)}
        names |= dict.fromkeys(attention, "attention") | {end + 1: "output.0", end + 3: "output.2"}
    else:
        names = {index: f"main.{index - 2}" for index in _places(state)}
    rules = [
        _placed(names | {0: "linear"}),
        (r"^shared_embedding\.", "shared."),
        (r"^(blocks\.\d+)\.main(\d?)\.", r"\1.residual\2."),
        *_CONDITIONAL_NORM,
    ]
    return renamed(state, rules)


def faster_critic(state: State) -> State:
    """One sequence of blocks or convolutions, each layer in a wrapper with its scale; in the ResNet with the linear."""
    state = _unscaled(state)
    places = _places(state)
    sequence = "model" if _places(state, r"shortcut\.") else "main"
    names = {index: f"{sequence}.{index}" for index in places}
    if "linear.weight" not in state:
        names |= dict.fromkeys(places[-1:], "linear")
    return renamed(state, [_placed(names), (r"^(model\.\d+)\.main\.", r"\1.residual.")])


def _places(state: State, key: str = "") -> list[int]:
    """The layers of a sequence named `main` or `blocks` with keys that begin like this, by their numbers."""
    found = (re.match(rf"(?:main|blocks)\.(\d+)\.{key}", name) for name in state)
    return sorted({int(match[1]) for match in found if match})


def _placed(names: dict[int, str]) -> tuple[str, Callable[[re.Match], str]]:
    """The rule by which layers of such a sequence get new names."""
    return r"^(?:main|blocks)\.(\d+)(?=\.)", lambda match: names.get(int(match[1]), match[0])


def _unscaled(state: State) -> State:
    """The weights as they are stored, with the scales of all layers gathered in the last; the logits stay.

    With these activations a critic is homogeneous in its weights and (each layer's bias with all scales up to there)
    biases, so that it does not matter where the scales are. Attention is not: before it, they are gathered in the block
    that it follows, and the biases after it keep them.
    """
    scales = {
        key.removesuffix(".module.weight_scale"): scale
        for key, scale in state.items()
        if key.endswith(".weight_scale") and scale.numel() == 1
    }
    # Sorted by the numbers in their names, layers are in their order.
    places = sorted(scales, key=_numbers)
    heads = [place for place in ("linear", "embedding") if place in scales] or places[-1:]
    body = [place for place in places if place not in heads]
    attended = next((_numbers(key)[0] for key in state if re.fullmatch(r"main\.\d+\.gamma", key)), 0)
    early = [place for place in body if _numbers(place)[:1] < [attended]]
    before = _product(scales, early)
    # A block's shortcut ends, like its residual branch, with all scales up to there.
    ends = [*early[-1:], *(place for place in early if place.startswith(f"main.{attended - 1}.shortcut."))]
    factors = dict.fromkeys(ends, before)
    late = _product(scales, [place for place in body if place not in early])
    factors |= {place: late * scales[place] for place in heads}
    result = {}
    for key, value in state.items():
        place, _, kind = key.rpartition(".module.")
        if place in scales and kind.endswith("_raw"):
            bias = before if kind == "bias_raw" and place not in early else 1
            result[f"{place}.{kind.removesuffix('_raw')}"] = value * factors.get(place, 1) * bias
        elif place not in scales or kind not in ("weight_scale", "weight_norm", "bias_scale", "bias_norm"):
            result[key] = value
    return result


def _numbers(key: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", key)]


def _product(scales: State, places: list[str]) -> Tensor:
    """The factor that layers in sequence put on a signal; a shortcut is brought to the scale of its residual branch."""
    factors = [scales[place] for place in places if ".shortcut." not in place]
    return math.prod(factors, start=torch.ones((), dtype=torch.float64))
