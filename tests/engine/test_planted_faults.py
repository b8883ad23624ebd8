"""Faults that are planted into curved operations and into the order of the passes: random critics show each of them."""

import functools
import itertools

import pytest
import torch
from torch import Tensor, nn

from gnfast.engine import ways
from gnfast.plan import plan as plans
from gnfast.plan.curved import CurvedCall
from gnfast.plan.ops.attention import Attention
from gnfast.plan.ops.curves import Elementwise
from gnfast.plan.ops.factors import Contraction
from gnfast.plan.ops.norms import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from gnfast.plan.ops.products import Product
from gnfast.plan.ops.softmax import Softmax
from gnfast.plan.orders import Schedule
from gnfast.plan.tracing import _plan
from tests.engine.test_random_networks import compare, draw
from tests.engine.test_six_passes import NETWORKS
from tests.oracle import assert_matches_double_backward

KINDS = (Attention, BatchNorm, Contraction, CurvedCall, Elementwise, GroupNorm, LayerNorm, Product, RMSNorm, Softmax)


@pytest.fixture(scope="module")
def drawn():
    """Random critics that agree with double backward, by the kinds of operations in them."""
    found = {}
    run = ways.four_passes

    def noting(plan, *args):
        ops.update(type(node.op) for node in plan.nodes if node.op.curved)
        return run(plan, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, "four_passes", noting)
        for case in itertools.chain(*(itertools.islice(draw(family), 45) for family in ("coupled", "modern"))):
            ops = set()
            compare(case)
            for kind in ops:
                found.setdefault(kind, []).append(case)
    return found


def scaled(method):
    """A method whose results are wrong by a thousandth."""

    def wrong(parts):
        return parts * 1.001 if isinstance(parts, Tensor) else parts and type(parts)(map(wrong, parts))

    return lambda *args: wrong(method(*args))


@pytest.mark.parametrize("method", ["pullback", "pushforward", "second"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_derivative_is_seen(kind, method, drawn, monkeypatch):
    monkeypatch.setattr(kind, method, scaled(getattr(kind, method)))
    with pytest.raises(AssertionError, match="differs by"):
        for case in drawn[kind]:
            compare(case)


def without(parts, index):
    """Flags with one turned off, or a set or dict without one entry; None where that changes nothing."""
    if isinstance(parts, tuple):
        fewer = tuple(part and place != index for place, part in enumerate(parts))
    else:
        kept = [part for place, part in enumerate(sorted(parts)) if place != index]
        fewer = {part: parts[part] for part in kept} if isinstance(parts, dict) else frozenset(kept)
    return None if fewer == parts else fewer


class Coupled(nn.Module):
    """Batch norm in training mode and a gate, between layers."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3), nn.Linear(80, 1)

    def forward(self, x):
        h = torch.relu(self.norm(self.first(x)))
        return self.last((self.second(h) * h[:, :, 1:-1, 1:-1].sigmoid()).flatten(1))


CRITICS = {**{name: NETWORKS[name] for name in ("silu", "gated", "residual", "curved map")}, "coupled": Coupled}


def differs(critic, name, function):
    """Whether what the passes make of a critic is wrong or impossible with another function in place of orders' own."""
    torch.manual_seed(0)
    net, x = CRITICS[critic]().double(), torch.randn(3, 3, 6, 7, dtype=torch.float64)
    _plan.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, name, function)
        try:
            assert_matches_double_backward(net, x)
        except (AssertionError, KeyError, TypeError, AttributeError, RuntimeError):
            return True
        finally:
            _plan.cache_clear()
    return False


@pytest.mark.parametrize("field", Schedule._fields)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_schedule_with_too_little_is_seen(critic, field):
    found = []

    def faulty(plan, needs_x, index=None):
        schedule = right(plan, needs_x)
        found.append((plan, getattr(schedule, field)))
        fewer = None if index is None else without(getattr(schedule, field), index)
        return schedule if fewer is None else schedule._replace(**{field: fewer})

    right = plans.schedule
    assert not differs(critic, "schedule", faulty)
    plan, parts = max(found, key=lambda pair: len(pair[1]))
    # The last layer takes no cotangent for ones. A curved node gives the μ of all its inputs.
    last = [node.output == plan.output and node.op.takes_ones for node in plan.nodes]
    affine = {value for node in plan.nodes if not node.op.curved for value in node.inputs}
    for index, part in enumerate(parts if isinstance(parts, tuple) else sorted(parts)):
        needless = (field == "cotangents" and last[index]) or (field == "adjoints" and part not in affine)
        if without(parts, index) is not None and not needless:
            assert differs(critic, "schedule", functools.partial(faulty, index=index)), (field, part)


@pytest.mark.parametrize("critic", CRITICS)
def test_what_is_not_proportional_is_not_taken_for_it(critic):
    apart = set()

    def faulty(nodes, *args, more=frozenset()):
        values = right(nodes, *args)
        apart.update({value for node in nodes for value in (*node.inputs, *node.outputs)} - values)
        return values | more

    right = plans.proportional
    assert not differs(critic, "proportional", faulty)
    assert len(apart) > 3
    for value in {*apart}:
        assert differs(critic, "proportional", functools.partial(faulty, more=frozenset({value}))), value
