"""Spectral normalisation: one call for the whole critic, in place of PyTorch's parametrization on each layer.

    python examples/spectral_norm.py

The line that changes takes the place of the loop over layers. Buffers, keys and updates are PyTorch's, so a run may be
continued with either: here each critic loads the other's checkpoint and goes on. Checkpoints of the older
`torch.nn.utils.spectral_norm` load as well. Under GN too: GradientNorm(spectral_norm_(critic)).
"""

import argparse
from itertools import cycle, islice

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

import gnfast


def make_critic(by_gnfast):
    torch.manual_seed(0)
    critic = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.1)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 1)),
    )
    if by_gnfast:
        return gnfast.spectral_norm_(critic)  # the line that changes
    for layer in critic:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrizations.spectral_norm(layer)
    return critic


def train(critic, batches, device):
    """Real digits against noise, by the hinge loss; the last loss."""
    critic.to(device)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.9))
    torch.manual_seed(1)
    for real in batches:
        fake = torch.rand(real.shape) * 2 - 1
        loss = torch.relu(1 - critic(real.to(device))).mean() + torch.relu(1 + critic(fake.to(device))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
    batches = list(islice(cycle(DataLoader(images, batch_size=64, drop_last=True)), options.steps))
    critics = {"PyTorch": make_critic(False), "gnfast": make_critic(True)}
    first = {name: train(critic, batches, options.device) for name, critic in critics.items()}
    checkpoints = {name: critic.state_dict() for name, critic in critics.items()}
    swapped = {"gnfast": make_critic(True), "PyTorch": make_critic(False)}
    for (name, critic), checkpoint in zip(swapped.items(), checkpoints.values(), strict=True):
        print(f"{name} goes on from the other's checkpoint:", critic.load_state_dict(checkpoint))
    second = {name: train(critic, batches, options.device) for name, critic in swapped.items()}
    print(f"loss after {options.steps} steps:", *(f"{loss:.6f} ({name})" for name, loss in first.items()))
    print(f"after {options.steps} more:", *(f"{loss:.6f} ({name})" for name, loss in second.items()))
