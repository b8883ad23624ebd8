"""What gnfast computes: the function of the papers' code, by double backward, and gnfast's, on one critic.

    python examples/double_backward.py

The line that changes: where `normalize_gradient` comes from. gn_gan_before.py takes the one of this file.
"""

import argparse

import torch
from torch import nn

import gnfast


def normalize_gradient(net_D, x, **kwargs):
    """f̂ = f / (‖∇ₓf‖ + |f|) as the papers' code has it: PyTorch differentiates a gradient (create_graph=True)."""
    x.requires_grad_(True)
    f = net_D(x, **kwargs)
    grad = torch.autograd.grad(f, [x], torch.ones_like(f), create_graph=True, retain_graph=True)[0]
    grad_norm = torch.norm(torch.flatten(grad, start_dim=1), p=2, dim=1)
    grad_norm = grad_norm.view(-1, *[1 for _ in range(len(f.shape) - 1)])
    return f / (grad_norm + torch.abs(f))


def weight_gradients(function, critic, x):
    critic.zero_grad()
    f_hat = function(critic, x.clone())
    torch.relu(1 - f_hat).mean().backward()
    return f_hat.detach(), torch.cat([p.grad.flatten() for p in critic.parameters()])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * 64, 1)]
    critic = nn.Sequential(*layers).to(device).double()
    x = torch.randn(16, 3, 16, 16, device=device, dtype=torch.float64)

    by_hand = weight_gradients(normalize_gradient, critic, x)
    by_gnfast = weight_gradients(gnfast.normalize_gradient, critic, x)  # the line that changes
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(by_gnfast, by_hand, strict=True)]
    print(gnfast.trace(critic, x))
    print("the same up to {:.0e} (f̂) and {:.0e} (gradients of the weights), in float64".format(*errors))
