"""Lightning: the critic is a GradientNorm inside the LightningModule, all else as in Lightning's own GAN examples.

    python examples/lightning_module.py

The line that changes wraps the critic. It is a submodule like any other: checkpoints keep the keys of the critic, and
the Trainer puts DDP around the whole module, which is where it must be. `toggle_optimizer` freezes the critic
while the generator learns: gnfast then needs two passes instead of four. As for every GAN, several devices want
Trainer(strategy="ddp_find_unused_parameters_true"), and latents a seed of their own in each process.
"""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import gnfast


class GAN(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            *(nn.Linear(32, 32 * 2 * 2), nn.Unflatten(1, (32, 2, 2)), nn.ReLU()),
            *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()),
        )
        critic = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.1)),
            *(nn.Flatten(), nn.Linear(32 * 4 * 4, 1)),
        )
        self.critic = gnfast.GradientNorm(critic)  # the line that changes

    def training_step(self, real):
        optim_g, optim_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 32, device=self.device))

        self.toggle_optimizer(optim_d)
        loss_d = torch.relu(1 - self.critic(real)).mean() + torch.relu(1 + self.critic(fake.detach())).mean()
        optim_d.zero_grad()
        self.manual_backward(loss_d)
        optim_d.step()
        self.untoggle_optimizer(optim_d)

        self.toggle_optimizer(optim_g)
        loss_g = -self.critic(fake).mean()
        optim_g.zero_grad()
        self.manual_backward(loss_g)
        optim_g.step()
        self.untoggle_optimizer(optim_g)
        self.log_dict({"critic's loss": loss_d, "generator's loss": loss_g})

    def configure_optimizers(self):
        networks = self.generator, self.critic
        return [torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.0, 0.9)) for net in networks]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    gan = GAN()
    images = torch.Tensor(load_digits().images)[:, None] / 8 - 1
    # Lightning counts the steps of both optimisers.
    limits = {"max_steps": 2 * options.steps, "max_epochs": -1}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator=options.device, **limits, **quiet)
    trainer.fit(gan, DataLoader(images, batch_size=64, drop_last=True))
    print(*(f"{name} {value:.4f}" for name, value in trainer.callback_metrics.items()), sep=", ")
