"""GAN training in plain PyTorch: autograd's double backward, torch's optimisers, nothing of gnfast but its networks.

What `gnfast.train.State` has to agree with, loss by loss. Images, latents and augmentations come from the State's own
sources, in the order in which the papers' code uses them.
"""

import copy

import torch
from torch.nn import functional as F


def normalized(critic, x, *labels):
    """GN (eq. 11 of the paper), as its code computes it."""
    x = x.detach().requires_grad_() if not x.requires_grad else x
    f = critic(x, *labels)
    (g,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    return f / (g.flatten(1).norm(dim=1)[:, None] + f.abs())


def plain(critic, x, *labels):
    return critic(x, *labels)


def losses_of_steps(state, steps, *, score, real_loss, fake_loss, generator_loss, extra=None, classified=0):
    """The losses (steps, 3 or more) of `steps` updates from where `state` stands; state's batches and noise move on.

    Args:
        state: a fresh `State`; its networks are copied, its data and random sources used.
        steps: generator updates.
        score: (critic, images, *labels) to scores (B, 1).
        real_loss, fake_loss, generator_loss: of scores.
        extra: (critic, real, fake, score_real) to further losses of the critic, a list of scalars.
        classified: factor of the critic's classification loss on real images; a tenth of it is the generator's.
    """
    c = state.config
    generator, critic = copy.deepcopy(state.generator), copy.deepcopy(state.critic)
    make = torch.optim.Adam if c.optimizer == "adam" else torch.optim.RMSprop
    options = {"betas": c.betas, "eps": c.adam_eps} if c.optimizer == "adam" else {}
    optim_d = make(critic.parameters(), c.lr_d, **options)
    optim_g = make(generator.parameters(), c.lr_g, **options)
    rows = []
    for step in range(steps):
        rate = min(1, 1 - (step - c.lr_decay_start) / (c.steps - c.lr_decay_start)) if c.lr_decay == "linear" else 1
        optim_d.param_groups[0]["lr"], optim_g.param_groups[0]["lr"] = c.lr_d * rate, c.lr_g * rate
        row = []
        for _ in range(c.n_dis):
            real, labels = next(state.batches)
            real = real.to(state.dtype)
            z, y = state.latents(c.batch_d, state.noise)
            with torch.no_grad():
                fake = generator(*present(z, y))
            both = None if y is None else torch.cat([labels, y])
            score_real, score_fake = score(critic, *present(torch.cat([real, fake]), both)).chunk(2)
            losses = [real_loss(score_real), fake_loss(score_fake)]
            if extra is not None:
                losses += extra(critic, real, fake, score_real)
            if classified:
                losses += [classified * F.cross_entropy(critic.classify(real), labels)]
            optim_d.zero_grad()
            sum(losses).backward()
            optim_d.step()
            if c.weight_clip:
                for name, parameter in critic.named_parameters():
                    if name.endswith("weight"):
                        parameter.data.clamp_(-c.weight_clip, c.weight_clip)
            row.append(torch.stack(losses).detach())
        z, y = state.latents(c.batch_g, state.noise)
        fake = generator(*present(z, y))
        losses = [generator_loss(score(critic, *present(fake, y)))]
        if classified:
            losses += [0.1 * classified * F.cross_entropy(critic.classify(fake), y)]
        optim_g.zero_grad()
        sum(losses).backward()
        optim_g.step()
        rows.append(torch.cat([torch.stack(row).mean(0), torch.stack(losses).detach()]))
    return torch.stack(rows)


def present(x, labels):
    return (x,) if labels is None else (x, labels)


NON_SATURATING = {
    "real_loss": lambda f: F.binary_cross_entropy_with_logits(f, torch.ones_like(f)),
    "fake_loss": lambda f: F.binary_cross_entropy_with_logits(f, torch.zeros_like(f)),
    "generator_loss": lambda f: F.binary_cross_entropy_with_logits(f, torch.ones_like(f)),
}
HINGE = {
    "real_loss": lambda f: F.relu(1 - f).mean(),
    "fake_loss": lambda f: F.relu(1 + f).mean(),
    "generator_loss": lambda f: -f.mean(),
}
WASSERSTEIN = {
    "real_loss": lambda f: -f.mean(),
    "fake_loss": lambda f: f.mean(),
    "generator_loss": lambda f: -f.mean(),
}
