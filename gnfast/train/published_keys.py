"""Keys of the papers' checkpoints as gnfast's networks have them: one function for each code and network.

A key that is not known keeps its name, for `gnfast.train.published` to report.
"""

import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

_SEQUENCE = re.compile(r"(?:main|blocks)\.(\d+)\.(.+)")
_MIMICRY_GENERATOR = {
    "b1": "residual.0",
    "c1": "residual.3",
    "b2": "residual.4",
    "c2": "residual.6",
    "c_sc": "shortcut.1",
}
_MIMICRY_CRITIC = {"c1": "residual.0", "c2": "residual.2", "c_sc": "shortcut.0"}


def gngan_generator(state: State) -> State:
    """The CNN and the ResNets have gnfast's keys already."""
    rules = [
        (r"^output_layer\.", "output."),
        (r"\.bn(\d)\.", r".norm\1."),
        (r"\.batchnorm2d\.", ".norm."),
    ]
    return _renamed(state, rules)


def gngan_critic(state: State) -> State:
    # The ResNets have no `blocks` in the critic.
    return _renamed(state, [(r"^blocks\.", "model.")])


def faster_generator(state: State) -> State:
    """One sequence: linear, reshape, blocks with attention among them, batch norm, ReLU, convolution, tanh."""
    layers = _layers(state)
    blocks = [index for index, keys in layers.items() if any(key.startswith("shortcut.") for key in keys)]
    names = {0: "linear"}
    if blocks:
        attention = [index for index, keys in layers.items() if "gamma" in keys]
        end = max(blocks + attention)
        names |= {index: f"blocks.{count}" for count, index in enumerate(sorted(blocks))}
        names |= dict.fromkeys(attention, "attention") | {end + 1: "output.0", end + 3: "output.2"}
    else:
        names |= {index: f"main.{index - 2}" for index in layers if index >= 2}
    rules = [
        (r"^shared_embedding\.", "shared."),
        (r"^(blocks\.\d+)\.main(\d?)\.", r"\1.residual\2."),
        (r"\.bn(\d)\.", r".norm\1."),
        (r"\.batchnorm2d\.", ".norm."),
    ]
    return _renamed(_placed(state, names), rules)


def faster_critic(state: State) -> State:
    """One sequence of blocks or convolutions, each layer in a wrapper with its scale; in the ResNet with the linear."""
    state = _unscaled(state)
    layers = _layers(state)
    blocks = any(key.startswith("shortcut.") for keys in layers.values() for key in keys)
    names = {index: f"model.{index}" if blocks else f"main.{index}" for index in layers}
    if "linear.weight" not in state and layers:
        names[max(layers)] = "linear"
    return _renamed(_placed(state, names), [(r"^(model\.\d+)\.main\.", r"\1.residual.")])


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
    factor = torch.ones((), dtype=torch.float64)
    for place in places:
        if ".shortcut." not in place:
            factor = factor * scales[place]
    return factor


def mimicry_generator(state: State) -> State:
    rules = [
        (r"^l1\.", "linear."),
        (r"^b\d+\.", "output.0."),
        (r"^c\d+\.", "output.2."),
        *((rf"^block(\d+)\.{old}\.", rf"blocks.<\1-2>.{new}.") for old, new in _MIMICRY_GENERATOR.items()),
    ]
    return _renamed(state, rules)


def mimicry_critic(state: State) -> State:
    rules = [
        (r"^l\d+\.", "linear."),
        (r"^block1\.c_sc\.", "model.0.shortcut.1."),
        *((rf"^block(\d+)\.{old}\.", rf"model.<\1-1>.{new}.") for old, new in _MIMICRY_CRITIC.items()),
    ]
    return _renamed(state, rules)


def _renamed(state: State, rules: Iterable[tuple[str, str]]) -> State:
    """Each key under every rule in turn; <a-b> in a replacement stands for the difference."""
    rules = list(rules)
    result = {}
    for key, value in state.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        result[re.sub(r"<(\d+)-(\d+)>", lambda match: str(int(match[1]) - int(match[2])), key)] = value
    return result


def _layers(state: State) -> dict[int, set[str]]:
    """The keys of a sequence named `main` or `blocks`, by index."""
    layers: dict[int, set[str]] = {}
    for key in state:
        if match := _SEQUENCE.fullmatch(key):
            layers.setdefault(int(match[1]), set()).add(match[2])
    return layers


def _placed(state: State, names: dict[int, str]) -> State:
    """The layers of a sequence under new names."""
    result = {}
    for key, value in state.items():
        match = _SEQUENCE.fullmatch(key)
        known = match is not None and int(match[1]) in names
        result[f"{names[int(match[1])]}.{match[2]}" if known else key] = value
    return result


def parametrized(state: State) -> State:
    """Keys of the older `torch.nn.utils.spectral_norm` as the parametrization has them; u and v of length 1."""
    rules = [
        (r"\.weight_orig$", ".parametrizations.weight.original"),
        (r"\.weight_([uv])$", r".parametrizations.weight.0._\1"),
    ]
    renamed = _renamed(state, rules)
    return {
        key: F.normalize(value, dim=0) if _is_singular_vector(key, value) else value for key, value in renamed.items()
    }


def _is_singular_vector(key: str, value: Tensor) -> bool:
    return (
        re.search(r"\.parametrizations\.weight\.0\._[uv]$", key) is not None
        and value.ndim == 1
        and value.is_floating_point()
    )
