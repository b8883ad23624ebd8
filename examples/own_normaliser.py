"""A normaliser of your own: any function of the logit f and the norm n of its input gradient.

    python examples/own_normaliser.py

The line that changes is `method=`. A function is enough, and autograd differentiates it. A `gnfast.Head` states its two
derivatives as well, and autograd is not needed for it. This one is f̂ = f / √(n² + f²), a smooth cousin of GN's
f / (n + |f|), with values in (-1, 1) and ‖∇ₓf̂‖ = n³ / (n² + f²)^1.5 ≤ 1 for piecewise-linear critics.
"""

import argparse

import torch
from torch import nn

import gnfast


def smooth(f, n):
    """f / √(n² + f²); elementwise, f (B, 1), n of a shape that broadcasts with it, both float32 or wider."""
    return f / torch.hypot(f, n)


def partials(f, n):
    """(∂f̂/∂f, ∂f̂/∂n)."""
    cube = torch.hypot(f, n) ** 3
    return n**2 / cube, -f * n / cube


head = gnfast.Head("smooth", smooth, partials)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(32 * 64, 1)]
    critic = nn.Sequential(*layers).to(device).double()
    x = torch.randn(16, 3, 16, 16, device=device, dtype=torch.float64)

    gradients = {}
    for name, options in {
        "function": {"method": smooth},
        "head": {"method": head},  # the line that changes
        "double backward": {"method": smooth, "impl": "reference"},
    }.items():
        f_hat, norm = gnfast.normalize_gradient(critic, x, return_grad_norm=True, **options)
        critic.zero_grad()
        torch.relu(1 - f_hat).mean().backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in critic.parameters()])
    exact = gradients.pop("double backward")
    errors = {name: ((gradient - exact).norm() / exact.norm()).item() for name, gradient in gradients.items()}
    print(f"f̂ from {f_hat.min():.3f} to {f_hat.max():.3f}, ‖∇f̂‖ at most {norm.max():.3f}")
    print("weight gradients differ from double backward's by", *(f"{e:.0e} ({name})" for name, e in errors.items()))
