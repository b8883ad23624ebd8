"""What PyTorch has under a second name is recorded as what it is: all public functions are called to find out."""

import functools
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import get_overridable_functions
from torch.utils._pytree import tree_map_only

import gnfast
from gnfast.plan.aliases import ALIASES
from gnfast.plan.in_place import in_place
from gnfast.plan.records import RECORDERS, records
from gnfast.plan.traced import METADATA

# They agree with a known function on all calls below, and are others, or of no use in a critic.
OTHERS = {
    "copies of views, which nobody documents": "alias detach diagonal narrow select split split_with_sizes squeeze t "
    "transpose unbind unfold unsqueeze view",
    "they take other arguments": "constant_pad_nd rrelu elu upsample_nearest2d upsample_nearest3d vsplit",
    "of values that are finite, dense, not quantised": "isin isposinf dequantize to_dense",
    "they change their tensor": "fill_ zero_ requires_grad_ share_memory_ resize_as",
}


@functools.cache
def probes():
    """Arguments by which functions of one, two and three tensors, numbers or axes can be told apart."""
    draws = torch.Generator().manual_seed(0)
    h, k, a, b = (torch.rand(shape, generator=draws) * 3 - 1 for shape in [(3, 4, 5)] * 2 + [(3, 3)] * 2)
    return [
        *[(h,), (h.abs() / 2,), (h > 0,), (h, k), (h > 0, k > 0), (h, 0.3), (h, 1), (h, -1, 1.5), (h, 2, 1)],
        *[(h, k, 0.4), ([h, k],), (a,), (a, b), (a, b[0]), (a, b, a), (a[0], b[0]), (h, 1, 2), (h, [1, 3], 1)],
        *[(h, (3, 20)), (h, (1, 1)), (h[:, None], (2, 2)), (h[:, None, None], (1, 2, 2)), (h, -1, 2, 1)],
        *[(h, 1, torch.tensor([0, 2])), (h.to(torch.complex64),), (h / 0 * (h > 0),), (h, 0.3, False)],
    ]


def outcome(function, args):
    """What a call gives, to the bit; None where it raises or gives no tensors."""
    try:
        y = function(*tree_map_only(Tensor, torch.clone, args))
    except Exception:
        return None
    parts = y if isinstance(y, (tuple, list)) else [y]
    if not parts or not all(type(t) is Tensor and t.layout == torch.strided for t in parts):
        return None
    # Adding 0 makes 0.0 of -0.0.
    bits = [(t.dtype, t.shape, (t.detach().to(torch.complex128) + 0).numpy().tobytes()) for t in parts]
    return type(y) is Tensor, bits


def outcomes(function):
    with warnings.catch_warnings(action="ignore"):
        return [outcome(function, args) for args in probes()]


def known(function):
    function = ALIASES.get(function, function)
    return function in METADATA or function in RECORDERS or in_place(function) is not None


@functools.cache
def public():
    """name: function, for those that a tensor may meet; of functions and methods of one name, the function."""
    overridable = {f for functions in get_overridable_functions().values() for f in functions}
    overridable |= {f for f in vars(torch._C._nn).values() if callable(f)}
    found = {}
    for owner in (torch, F, torch.special, torch.linalg, torch.fft, torch._C._nn, Tensor):
        for name, function in inspect.getmembers(owner, lambda f: callable(f) and f.__hash__ and f in overridable):
            if not name.startswith("_") and (owner is not Tensor or name not in found):
                found[name if owner in (torch, Tensor) else f"{owner.__name__}.{name}"] = function
    return found


def test_no_second_name_is_missing():
    functions = public()
    first = [outcomes(function) for function in functions.values() if known(function)]
    others = {name for names in OTHERS.values() for name in names.split()}
    missing = []
    for name, function in functions.items():
        if not known(function) and name.rpartition(".")[2].removesuffix("_copy") not in others:
            mine = outcomes(function)
            same = (all(m is None or m == o for m, o in zip(mine, other, strict=True)) for other in first)
            missing += [name] * (any(mine) and any(same))
    assert len(first) > 400 and not missing


def test_second_names_are_of_the_same_function():
    for second, first in ALIASES.items():
        found = [(s, f) for s, f in zip(outcomes(second), outcomes(first), strict=True) if s and f]
        assert found and all(s == f for s, f in found), second


def test_methods_and_forms_in_place_are_known_where_functions_are():
    for name, function in public().items():
        if known(function):
            for form in (name, f"{name}_"):
                method = getattr(Tensor, form, function)
                assert not callable(method) or known(method), form


class Renamed(nn.Module):
    """Second names of all kinds: of a function and a method, in place, by keyword, of two functions by one recorder."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4, dtype=torch.float64))

    def forward(self, x):
        h = torch.special.log_softmax(torch.matmul(x, other=self.weight), dim=-1).negative().divide_(2)
        h = torch.concat([torch._C._nn.silu_(h.absolute()), torch.special.expit(h)], axis=1).arctan_()
        h = (
            torch.alpha_dropout(torch.threshold(h, 0.5, 0.1), p=0.5, train=False)
            + torch.linalg.diagonal(A=h[:, :, None] * h[..., None])
            + torch.real(h).conj()
        )
        return torch.special.logsumexp(h.swapaxes(1, 2), dim=-1).clip(0.1).multiply(h.mean(1)).sum(1)


def test_a_critic_with_second_names_is_accelerated():
    net, x = Renamed(), torch.rand(3, 5, 4, dtype=torch.float64)
    assert gnfast.explain(net, x).accelerated
    results = []
    for impl in ("auto", "reference"):
        f = gnfast.normalize_gradient(net, x, impl=impl)
        results.append((f, *torch.autograd.grad(f.square().sum(), net.parameters())))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_complex_numbers_have_second_names_too():
    class Net(nn.Module):
        def forward(self, x):
            return torch.real(torch.multiply(torch.fft.fft(x), torch.fft.fft(x)).negative()).absolute().sum(1)

    assert gnfast.explain(Net(), torch.rand(2, 4)).accelerated


def test_what_pytorch_does_not_have_cannot_be_recorded():
    with pytest.raises(AttributeError, match="records: got 'sigmiod', wanted a name in torch, Tensor"):
        records("sigmiod")(lambda trace, input: input)
    before = dict(RECORDERS)
    records(None)(lambda trace, input: input)
    assert before == RECORDERS
