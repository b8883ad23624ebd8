"""A critic of your own: what gnfast will do with it, and what to change where it falls back to double backward.

    python examples/own_critic.py

The critic has StyleGAN2's "fused" activation in the form that many repositories copied: a custom autograd Function.
No recording can see what is in one, so gnfast takes exact double backward, with one warning that names the place; the
line that changes says the same in PyTorch's operations. `explain` says in sentences what is in the way, `trace` lists
every operation and its cost, and `strict=True` turns a fallback into an error.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import gnfast


class FusedLeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias):
        ctx.save_for_backward(x, bias)
        return F.leaky_relu(x + bias.view(-1, 1, 1), 0.2) * 2**0.5

    @staticmethod
    def backward(ctx, grad):
        x, bias = ctx.saved_tensors
        grad_x = torch.where(x + bias.view(-1, 1, 1) > 0, grad, 0.2 * grad) * 2**0.5
        return grad_x, grad_x.sum((0, 2, 3))


class Critic(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Conv2d(16, 32, 4, 2, 1, bias=False)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(32))
        self.out = nn.Linear(32 * 8 * 8, 1)

    def act(self, x, bias):
        if self.fused:
            return FusedLeakyReLU.apply(x, bias)
        return F.leaky_relu(x + bias.view(-1, 1, 1), 0.2) * 2**0.5  # the line that changes

    def forward(self, x):
        h = self.act(self.conv1(x), self.bias1)
        h = self.act(self.conv2(h), self.bias2)
        return self.out(h.flatten(1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device

    torch.manual_seed(0)
    before, after = Critic(fused=True).to(device), Critic(fused=False).to(device)
    after.load_state_dict(before.state_dict())
    x = torch.randn(8, 3, 16, 16, device=device)
    print(f"before: {gnfast.explain(before, x)}\n\nafter: {gnfast.trace(after, x)}\n")
    expected = gnfast.normalize_gradient(before, x)
    error = (gnfast.normalize_gradient(after, x, strict=True) - expected).norm() / expected.norm()
    print(f"f̂ is the same up to {error:.0e}, in float32")
