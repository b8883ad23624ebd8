"""Networks that change between calls: whatever was kept of them, the numbers are those of double backward.

All of their code is known, so that their recordings are kept without a promise; some calls make one all the same.
"""

import argparse
import contextlib
import copy
import itertools
import random
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from gnfast.models import resnet
from tests.hunt import forked
from tests.hunt.tally import Hunter, Tally
from tests.oracle import PAIRS, assert_same, outputs_and_gradients

DTYPE = torch.float64
_LARGEST = 600
Chance = random.Random
_FORMATS = torch.channels_last, torch.contiguous_format
_PADDINGS = "zeros", "reflect", "replicate", "circular"

# -------------------------------------------------------------------------------- what networks consist of

POINTWISE: tuple[Callable[[], nn.Module], ...] = (
    *(nn.ReLU, lambda: nn.LeakyReLU(0.2), lambda: nn.LeakyReLU(-0.3), nn.PReLU, nn.ReLU6, nn.Identity),
    *(lambda: nn.Hardtanh(-0.7, 1.1), lambda: nn.Dropout(0.3), lambda: nn.Sequential(nn.LeakyReLU(0.6))),
    *(nn.SiLU, nn.Tanh, lambda: nn.ELU(0.7), lambda: nn.Softplus(1.5), lambda: nn.GELU(approximate="tanh")),
)
OTHERS: tuple[Callable[[Chance, int], nn.Module], ...] = (
    lambda chance, n: nn.Conv2d(n, 4, chance.choice([1, 3]), padding=1, padding_mode=chance.choice(_PADDINGS)),
    lambda chance, n: nn.Conv2d(n, 2 * n, 3, chance.choice([1, 2]), dilation=chance.choice([1, 2]), groups=n),
    lambda chance, n: nn.Conv2d(n, n, 3, padding="same", bias=False, padding_mode=chance.choice(_PADDINGS)),
    lambda chance, n: nn.ConvTranspose2d(n, 3, 2, chance.choice([1, 2])),
    lambda chance, n: chance.choice([nn.AvgPool2d, nn.MaxPool2d])(2, chance.choice([1, 2])),
    lambda chance, n: nn.AdaptiveAvgPool2d(chance.choice([1, 3])),
    lambda chance, n: nn.Upsample(scale_factor=2, mode=chance.choice(["nearest", "bilinear"])),
    lambda chance, n: chance.choice([nn.PixelShuffle, nn.PixelUnshuffle])(2),
    lambda chance, n: resnet.Block(n, 4, chance.random() < 0.5, 3),
    lambda chance, n: nn.BatchNorm2d(n, 1e-2, chance.choice([0.1, None])),
    lambda chance, n: nn.InstanceNorm2d(n, 1e-2, affine=chance.random() < 0.5),
    lambda chance, n: nn.GroupNorm(chance.choice([1, n]), n, 1e-2),
    lambda chance, n: _sequence(chance, n, chance.randrange(4)),
)


def _sequence(chance: Chance, channels: int, length: int) -> nn.Sequential:
    """Layers that fit each other, of images."""
    net, h = nn.Sequential().to(DTYPE).eval(), torch.randn(2, channels, 6, 6, dtype=DTYPE)
    for _ in range(length):
        layer = chance.choice(POINTWISE)() if chance.random() < 0.4 else chance.choice(OTHERS)(chance, h.shape[1])
        with contextlib.suppress(RuntimeError, ValueError), torch.no_grad():
            y = layer.to(DTYPE).eval()(h)
            if y[0].numel() <= _LARGEST:
                net, h = net.append(layer), y
    return net


def draw_network(chance: Chance) -> tuple[nn.Sequential, Tensor]:
    """A critic and its x."""
    x = torch.randn(3, chance.choice([1, 2, 3]), 6, 6, dtype=DTYPE)
    net = _sequence(chance, x.shape[1], chance.randint(1, 6))
    with torch.no_grad():
        entries = net(x)[0].numel()
    return net.extend([nn.Flatten(), nn.Linear(entries, 1)]).to(DTYPE).eval(), x


# -------------------------------------------------------------------------------- what happens to them


def _of(chance: Chance, net: nn.Module, *kinds: type[nn.Module]) -> nn.Module:
    """One of the network's modules; of these exact kinds, if any are given. IndexError if there is none."""
    return chance.choice([module for module in net.modules() if not kinds or type(module) in kinds])


def _parameter(chance: Chance, net: nn.Module) -> tuple[nn.Module, str, nn.Parameter]:
    return chance.choice([(m, n, p) for m in net.modules() for n, p in m.named_parameters(recurse=False)])


def _place(chance: Chance, net: nn.Module) -> tuple[nn.Sequential, str]:
    """A pointwise layer's: where another may stand."""
    kinds = nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Hardtanh, nn.SiLU, nn.Tanh, nn.ELU, nn.Softplus
    owners = [module for module in net.modules() if type(module) is nn.Sequential]
    return chance.choice([(m, name) for m in owners for name, child in m._modules.items() if type(child) in kinds])


def _another_parameter(chance: Chance, net: nn.Module) -> None:
    module, name, parameter = _parameter(chance, net)
    setattr(module, name, nn.Parameter(torch.randn_like(parameter)))


def _other_data(chance: Chance, net: nn.Module) -> None:
    parameter = _parameter(chance, net)[2]
    parameter.data = torch.randn_like(parameter)


def _shared(chance: Chance, net: nn.Module) -> None:
    (module, name, one), (_, _, other) = _parameter(chance, net), _parameter(chance, net)
    if one.shape == other.shape:
        setattr(module, name, other)


def _frozen(chance: Chance, net: nn.Module) -> None:
    parameter = _parameter(chance, net)[2]
    parameter.requires_grad_(not parameter.requires_grad)


def _moved(chance: Chance, net: nn.Module) -> None:
    """A layer to another place, by the same name."""
    (owner, name), other = _place(chance, net), _of(chance, net, nn.Sequential)
    if other is not net and name not in other._modules:
        other.add_module(name, owner._modules.pop(name))


def _put(chance: Chance, net: nn.Module) -> None:
    owner, name = _place(chance, net)
    owner._modules[name] = chance.choice(POINTWISE)().to(DTYPE).eval()


def _twice(chance: Chance, net: nn.Module) -> None:
    (owner, name), (other, place) = _place(chance, net), _place(chance, net)
    owner._modules[name] = other._modules[place]


def _own_forward(chance: Chance, net: nn.Module) -> None:
    module = _of(chance, net, nn.Conv2d, nn.Linear, nn.ReLU, nn.LeakyReLU, nn.Sequential)
    module.forward = lambda x: 2 * type(module).forward(module, x)


def _ran_once(chance: Chance, net: nn.Module) -> None:
    """A hook that goes when it has run."""
    handle = _of(chance, net).register_forward_hook(lambda module, args, y: (handle.remove(), 1.7 * y)[1])


def _parametrized(chance: Chance, net: nn.Module) -> None:
    layer = _of(chance, net, nn.Conv2d, nn.Linear)
    chance.choice([parametrizations.weight_norm, lambda layer: parametrizations.spectral_norm(layer).eval()])(layer)


def _plain_again(chance: Chance, net: nn.Module) -> None:
    for module in net.modules():
        module._forward_hooks.clear(), module._forward_pre_hooks.clear(), module.__dict__.pop("forward", None)
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")


def _pruned(chance: Chance, net: nn.Module) -> None:
    layer = _of(chance, net, nn.Conv2d, nn.Linear)
    prune.remove(prune.random_unstructured(layer, "weight", 0.4), "weight")


def _values(chance: Chance, net: nn.Module) -> None:
    net.load_state_dict({name: 0.5 * torch.randn_like(value) for name, value in net.state_dict().items()})


def _batch_statistics(chance: Chance, net: nn.Module) -> None:
    """Batch norms in training mode, or no longer."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(chance.random() < 0.7)


def _attribute(chance: Chance, net: nn.Module) -> None:
    kind, name, values = chance.choice(
        [
            (nn.LeakyReLU, "negative_slope", (0.3, 1, True, 0.0)),
            (nn.Conv2d, "padding_mode", _PADDINGS),
            (nn.ReLU, "__class__", (nn.Identity,)),
            (nn.Identity, "__class__", (nn.ReLU,)),
            (nn.Conv2d, "bias", (None,)),
            (nn.ELU, "alpha", (0.4, 1.75)),
            (nn.Softplus, "beta", (0.5, 3)),
            (nn.BatchNorm2d, "eps", (1e-2, 0.3)),
            (nn.InstanceNorm2d, "weight", (None,)),
            (nn.GroupNorm, "eps", (1e-2, 0.3)),
        ]
    )
    module = _of(chance, net, kind)
    if kind is nn.Identity:
        module.inplace = False
    setattr(module, name, chance.choice(values))


CHANGES: dict[str, Callable[[Chance, nn.Module], object]] = {
    "nothing": lambda chance, net: None,
    "a parameter": _another_parameter,
    "data of a parameter": _other_data,
    "all values": _values,
    "a shared parameter": _shared,
    "one frozen or not": _frozen,
    "all frozen or none": lambda chance, net: net.requires_grad_(chance.random() < 0.5),
    "an attribute": _attribute,
    "statistics of the batch": _batch_statistics,
    "a moved layer": _moved,
    "another layer": _put,
    "a layer twice": _twice,
    "a hook": lambda chance, net: _of(chance, net).register_forward_hook(lambda module, args, y: 1.5 * y),
    "a hook that runs once": _ran_once,
    "a forward of its own": _own_forward,
    "a parametrization": _parametrized,
    "pruning": _pruned,
    "plain again": _plain_again,
    "the memory format": lambda chance, net: net.to(memory_format=chance.choice(_FORMATS)),
    "a copy": lambda chance, net: copy.deepcopy(net),
}


# -------------------------------------------------------------------------------- a trial


def trial(seed: int, told: bool = False) -> str:
    """What was wrong, or "": calls in turns with changes, each like the last ones or not."""
    chance = Chance(seed)
    torch.manual_seed(seed)
    net, x = draw_network(chance)
    for _ in range(chance.randint(4, 12)):
        function, size = chance.choice([*PAIRS]), chance.choice([3, 3, 3, 2])
        options = {"rewrite": chance.random() < 0.9, "static": chance.random() < 0.3}
        for _ in range(chance.choice([1, 2, 3, 5])):
            given = torch.randn_like(x[:size])
            try:
                _compare(*PAIRS[function], net, given, options)
            except AssertionError as error:
                return str(error)
        name = chance.choice([*CHANGES])
        # It may not be possible: no such layer, a weight that is computed.
        with contextlib.suppress(IndexError, KeyError, RuntimeError, TypeError, ValueError):
            changed = CHANGES[name](chance, net)
            net = changed if name == "a copy" else net
            if name == "a hook that runs once":
                PAIRS[function][0](net, given.requires_grad_(), **options)
        if told:
            print(f"{name}: {net}")
    return ""


def _compare(fast: Callable, slow: Callable, net: nn.Module, x: Tensor, options: dict[str, bool]) -> None:
    try:
        expected = outputs_and_gradients(slow, net, x)
    except (RuntimeError, ValueError):
        # A layer that writes in place where PyTorch does not let it, a shape that no longer fits.
        return
    if not all(t is None or t.isfinite().all() for t in expected.values()):
        return
    actual = outputs_and_gradients(fast, net, x, **options)
    try:
        assert_same(actual, expected, 1e-8)
    except AssertionError as error:
        try:
            for _ in range(8):
                assert_same(outputs_and_gradients(slow, net, x + 1e-9 * torch.randn_like(x)), expected, 1e-5)
        except AssertionError:
            # On a kink: the mean over places of an instance norm, say, is 0 but for rounding.
            return
        raise error


def _judged(seed: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trial(seed)


def _hunt(tally: Tally, seed: int, options: argparse.Namespace) -> None:
    seeds = itertools.takewhile(lambda _: tally.goes_on(), itertools.count(seed))
    for number, verdict in forked.trials(_judged, seeds, 60.0):
        if reason := verdict.how if isinstance(verdict, forked.Died) else verdict:
            tally.fail(f"--seed {number}", reason)
        else:
            tally.add("right")


def _repeat(seed: int, options: argparse.Namespace) -> bool:
    """Tries it again and prints what happened to the network."""
    reason = trial(seed, told=True)
    print(reason or "right")
    return bool(reason)


HUNTER = Hunter(_hunt, _repeat)
