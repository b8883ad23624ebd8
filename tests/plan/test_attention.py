"""Attention written out by two products becomes one node, where it is attention, with double backward's numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from tests.engine.test_engine import Called
from tests.oracle import assert_matches_double_backward


def of_images(net, x):
    """As SAGAN and BigGAN write it: keys and values pooled, the softmax transposed."""
    h = net.conv(x)
    q, k, v = h[:, :2].flatten(2), F.max_pool2d(h[:, 2:4], 2).flatten(2), F.max_pool2d(h[:, 4:7], 2).flatten(2)
    weights = F.softmax(torch.bmm(q.transpose(1, 2), k), -1)
    return net.linear(torch.bmm(v, weights.transpose(1, 2)).flatten(1))


def of_heads(net, x):
    q, k, v = net.conv(x).flatten(2).mT[..., :6].unflatten(2, (2, 3)).transpose(1, 2).repeat(1, 1, 1, 3).chunk(3, -1)
    return net.linear(((q @ k.transpose(-2, -1) / 3**0.5).softmax(-1) @ v).transpose(1, 2).flatten(1)[:, :60])


def over_the_first_axis(net, x):
    """The keys come first."""
    h = net.conv(x).flatten(2)
    weights = torch.einsum("bcn,bcm->bnm", h, h[..., :5]).mul(0.3).softmax(1)
    return net.linear(torch.einsum("bnm,bcn->bmc", weights, h.sin()).flatten(1).repeat(1, 2)[:, :60])


def read_twice(net, x):
    h = net.conv(x).flatten(2)
    weights = (h.mT @ h).softmax(-1)
    return net.linear((h @ weights).flatten(1)[:, :60]) + weights.square().mean((1, 2))[:, None]


def not_of_keys(net, x):
    """The second product is with the other axis: not attention."""
    h = net.conv(x).flatten(2)
    return net.linear((h @ (h.mT @ h).softmax(-1)).flatten(1)[:, :60])


def networks(function):
    return Called(function, conv=nn.Conv2d(3, 8, 3, padding=1), linear=nn.Linear(60, 1)).double()


@pytest.mark.parametrize(
    ("function", "fused"),
    [(of_images, 1), (of_heads, 1), (over_the_first_axis, 1), (read_twice, 0), (not_of_keys, 0)],
)
def test_attention_written_out(function, fused):
    net, x = networks(function), torch.randn(3, 3, 5, 4, dtype=torch.float64)
    labels = [node.op.label() for node in gnfast.trace(net, x).nodes]
    assert labels.count("attention") == fused and sum("softmax" in label for label in labels) == 1 - fused
    assert_matches_double_backward(net, x)
    assert_matches_double_backward(net, x, rewrite=False)
