"""Images from the generator of a finished or running run."""

import json
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from gnfast.data import to_uint8
from gnfast.train import checkpoint
from gnfast.train.config import from_json
from gnfast.train.logs import grid
from gnfast.train.networks import build_networks, resolve_device
from gnfast.train.state import sample


def sample_run(
    run_dir: Path,
    *,
    count: int = 64,
    out: Path | None = None,
    weights: Literal["ema", "raw"] = "ema",
    seed: int = 0,
    batch_norm: Literal["batch", "running", "run"] = "run",
    device: str = "auto",
) -> Path:
    """Draws images from a run's newest checkpoint, in batches of the run's `batch_g`.

    Args:
        run_dir: the run folder.
        count: how many images, at least 1.
        out: FILE.png for one grid, anything else for a folder of 000000.png, …; RUN/sample-WEIGHTS.png if None.
        weights: the moving average of the generator, or the generator itself.
        seed: seed of the latent vectors.
        batch_norm: each batch's own statistics, running ones, or as the run's config says.
        device: where to compute.

    Returns:
        The file or folder written.

    Raises:
        ValueError: `count` below 1.
        RunError: no run folder, or no readable checkpoint in it.
    """
    if count < 1:
        raise ValueError(f"--n: got {count}, want at least 1")
    record = run_dir / "config.json"
    if not record.exists():
        raise checkpoint.RunError(f"{run_dir} is not a run folder (no config.json)")
    config = from_json(json.loads(record.read_text(encoding="utf-8"))["config"])
    saved = checkpoint.load_newest(run_dir / "checkpoints")
    if saved is None:
        raise checkpoint.RunError(f"{run_dir} has no checkpoint yet")
    where = resolve_device(device)
    generator, _ = build_networks(config)
    generator.load_state_dict(saved["state"]["generator" if weights == "raw" else "ema"])
    generator.to(where)
    statistics = config.sample_bn if batch_norm == "run" else batch_norm
    noise = torch.Generator().manual_seed(seed)
    batches = []
    # Whole batches even for the last one: its statistics must be those of a full batch.
    for _ in range(-(-count // config.batch_g)):
        z = torch.randn(config.batch_g, config.z_dim, generator=noise).to(where)
        batches.append(to_uint8(sample(generator, z, batch_statistics=statistics == "batch")).cpu())
    images = torch.cat(batches)[:count]
    out = out or run_dir / f"sample-{weights}.png"
    if out.suffix.lower() == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        grid(images).save(out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(pixels.contiguous().numpy()).save(out / f"{index:06d}.png")
    return out
