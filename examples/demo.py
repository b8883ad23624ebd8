"""Trains the `digits` preset, and shows what came of it: a picture, two distances, and what a critic step costs.

Run it with `make demo`, or with `python examples/demo.py` where gnfast[train] is installed. Run again, it takes the
finished run from its folder.
"""

import argparse
import dataclasses
import sys
import time
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from gnfast import normalize_gradient
from gnfast.bench.clock import interleaved_ms
from gnfast.bench.gate import relative_error
from gnfast.config.config import Config
from gnfast.data import ImageDataset, load, to_float, to_uint8
from gnfast.losses import LOSSES
from gnfast.runs import checkpoint
from gnfast.train import PRESETS, RunError, train
from gnfast.train.logs import grid
from gnfast.train.networks import FORMATS, build_networks, sample

COLUMNS = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="the run folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="generator updates (default: the preset's)")
    options = parser.parse_args()
    config = dataclasses.replace(PRESETS["digits"].config, run_dir=str(options.run_dir), device="cpu")
    if options.steps:
        config = dataclasses.replace(config, steps=options.steps)

    started = time.perf_counter()
    try:
        outcome = train("digits", config, progress=sys.stderr.isatty())
    except RunError as error:
        print(f"{error}; or delete that folder", file=sys.stderr)
        return 2
    if not outcome.finished:
        return 128 + outcome.signal
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    before, after = outcome.distances[0], outcome.distances[-1]
    dataset = load(config.data, resolution=config.resolution, channels=config.channels, progress=False)
    saved = checkpoint.load_newest(options.run_dir / "checkpoints")["state"]
    generator, critic = build_networks(config)
    generator.load_state_dict(saved["ema"])
    critic.load_state_dict(saved["critic"])
    fake = sample(generator, torch.randn(config.batch_g, config.z_dim, generator=torch.Generator().manual_seed(0)))
    picture = options.run_dir / "demo.png"
    draw(dataset, to_uint8(fake)).save(picture)

    if outcome.trained:
        threads = torch.get_num_threads()
        print(f"\ntraining: {outcome.trained} steps in {minutes} min {seconds} s on {threads} CPU threads")
    print(
        f"Fréchet distance in features of {after['extractor']}, {after['n_real']} real and {after['n_fake']} generated "
        f"digits: {before['distance_ema']:.2f} before, {after['distance_ema']:.2f} after"
    )
    compare_critic_steps(config, critic, dataset, fake)
    print(f"picture: {picture}")
    return 0


def draw(dataset: ImageDataset, fake: torch.Tensor) -> Image.Image:
    """Two rows of real images over five rows of generated ones, none of them selected."""
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[: 2 * COLUMNS]
    parts = [("real", dataset.images[chosen]), ("generated", fake[: 5 * COLUMNS])]
    sheets = [(name, grid(images, columns=COLUMNS, scale=4)) for name, images in parts]
    line = 28
    page = Image.new("L", (sheets[0][1].width, sum(sheet.height + line for _, sheet in sheets)), 255)
    pen, font, top = ImageDraw.Draw(page), ImageFont.load_default(size=18), 0
    for name, sheet in sheets:
        pen.text((4, top + 3), name, fill=90, font=font)
        page.paste(sheet, (0, top + line))
        top += line + sheet.height
    return page


def compare_critic_steps(config: Config, critic: torch.nn.Module, dataset: ImageDataset, fake: torch.Tensor) -> None:
    """Times normalisation, loss and backward of one critic update, by four passes and by double backward in turn."""
    layout = FORMATS[config.memory_format]
    critic.to(memory_format=layout)
    images = torch.cat([to_float(dataset.images[: config.batch_d]), fake[: config.batch_d]])
    images = images.contiguous(memory_format=layout)
    loss = LOSSES[config.loss]

    def step(impl: str) -> None:
        critic.zero_grad(set_to_none=True)
        real_part, fake_part = normalize_gradient(critic, images, impl=impl).split(config.batch_d)
        loss.critic(real_part, fake_part).backward()

    steps = {impl: partial(step, impl) for impl in ("auto", "reference")}
    gradients = {}
    for impl, call in steps.items():
        call()
        gradients[impl] = torch.cat([parameter.grad.flatten() for parameter in critic.parameters()])
    error, rounds = relative_error(gradients["auto"], gradients["reference"]), 40
    fast, slow = (times["median_ms"] for times in interleaved_ms(steps, rounds, warmup=5).values())
    print(
        f"critic step, {len(images)} images, float32, {config.memory_format}, medians of {rounds}: "
        f"{fast:.1f} ms in four passes, {slow:.1f} ms by double backward, ratio {fast / slow:.2f} "
        f"(weight gradients differ by {error:.0e})"
    )


if __name__ == "__main__":
    sys.exit(main())
