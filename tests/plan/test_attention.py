"""Attention written out by two products becomes one node, where it is attention, with double backward's numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast.plan.op import Context
from gnfast.plan.ops.attention import Attention
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


def in_three(net, x):
    """As timm writes it."""
    q, k, v = net.packed(x.flatten(2).mT).reshape(len(x), 20, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
    return net.linear(F.scaled_dot_product_attention(q, k, v)[:, :, :10].flatten(1))


def in_chunks(net, x):
    """Keys first, of one head, whose softmax is written out."""
    k, q, v = net.packed(x.flatten(2).mT).chunk(3, -1)
    return net.linear(((q @ k.mT * 0.3).softmax(-1) @ v)[:, :10].flatten(1))


def read_besides(net, x):
    q, k, v = net.packed(x.flatten(2).mT).unflatten(-1, (3, 6)).unbind(2)
    return net.linear((F.scaled_dot_product_attention(q, k, v, is_causal=True) + v.tanh())[:, :10].flatten(1))


def of_one_part(net, x):
    q, k, _ = net.packed(x.flatten(2).mT).chunk(3, -1)
    return net.linear(F.scaled_dot_product_attention(q, k, k)[:, :10].flatten(1))


def of_two_layers(net, x):
    q, k, _ = net.packed(x.flatten(2).mT).chunk(3, -1)
    return net.linear(
        F.scaled_dot_product_attention(q, k, net.packed(x.flatten(2).mT.sin())[..., 12:])[:, :10].flatten(1)
    )


def of_images_in_three(net, x):
    q, k, v = net.conv(x)[:, :6].flatten(2).mT.chunk(3, -1)
    return net.linear(F.scaled_dot_product_attention(q, k, v).repeat(1, 2, 1)[:, :30].flatten(1))


def networks(function):
    layers = {"conv": nn.Conv2d(3, 8, 3, padding=1), "packed": nn.Linear(3, 18), "linear": nn.Linear(60, 1)}
    return Called(function, **layers).double()


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


@pytest.mark.parametrize(
    ("function", "packed"),
    [(in_three, 1), (in_chunks, 1), (read_besides, 1), (of_one_part, 0), (of_two_layers, 0), (of_images_in_three, 0)],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_of_one_layers_output(function, packed, batch):
    net, x = networks(function), torch.randn(batch, 3, 5, 4, dtype=torch.float64)
    nodes = gnfast.trace(net, x).nodes
    assert [len(node.inputs) for node in nodes if isinstance(node.op, Attention)] == [1 if packed else 3]
    assert_matches_double_backward(net, x)
    assert_matches_double_backward(net, x, rewrite=False)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_views_that_state_the_batch(tokens, batch):
    """Tokens come first, as in sequences: of one sample, or of one token, either axis might be the batch's."""

    def forward(called, x):
        parts = called.packed(x).transpose(0, 1).chunk(3, -1)
        q, k, v = (part.reshape(tokens, len(x), 3, 2).permute(1, 2, 0, 3) for part in parts)
        return F.scaled_dot_product_attention(q, k, v).flatten(1).tanh().sum(1)

    critic = Called(forward, packed=nn.Linear(5, 18)).double()
    assert_matches_double_backward(critic, torch.randn(batch, tokens, 5, dtype=torch.float64))


@pytest.mark.parametrize(("tokens", "left_out"), [(0, 0), (3, 3)])
def test_no_keys(tokens, left_out):
    """Of none the values' mean is 0, as in PyTorch."""

    def forward(called, x):
        q, k, v = called.packed(x).chunk(3, -1)
        attended = F.scaled_dot_product_attention(q, k[:, left_out:], v[:, left_out:])
        return (attended + q.tanh()).sum((1, 2))

    critic = Called(forward, packed=nn.Linear(5, 18)).double()
    assert_matches_double_backward(critic, torch.randn(2, tokens, 5, dtype=torch.float64))


@pytest.mark.parametrize("tokens", [3, 5])
def test_weights_no_larger_than_the_output_are_kept(tokens):
    """An output has four numbers per head and token."""
    net = nn.MultiheadAttention(8, 2, batch_first=True).double()
    critic = Called(lambda called, x: called.net(x, x, x, need_weights=False)[0].flatten(1).tanh().sum(1), net=net)
    x = torch.randn(2, tokens, 8, dtype=torch.float64)
    (node,) = (node for node in gnfast.trace(critic, x).nodes if isinstance(node.op, Attention))
    _, kept = node.op.forward(Context(), torch.randn(2, tokens, 24))
    assert (kept is not None) == (tokens == 3) == (node.op.mask_bits == 48)
    assert_matches_double_backward(critic, x)
