"""Images from a generator: that of a run, finished or not, or that of an exported file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gnfast.data import to_uint8
from gnfast.interop.device import resolve_device, use_threads
from gnfast.io.files import make_folder
from gnfast.runs.checkpoint import locate
from gnfast.train.export import Weights, snapshot
from gnfast.train.logs import PICTURES, as_picture, grid, save_picture
from gnfast.train.networks import sample

# Images from one end of a latent walk to the other, both included.
WALK = 10
_OTHER_PICTURES = {".bmp", ".gif", ".pdf", ".svg", ".tif", ".tiff", ".webp"}


def sample_run(
    source: Path,
    *,
    count: int = 64,
    out: Path | None = None,
    weights: Weights | None = None,
    best: bool = False,
    seed: int = 0,
    batch_norm: Literal["batch", "running", "run"] = "run",
    classes: Sequence[int] = (),
    interpolate: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> Path:
    """Draws images from a generator, in batches of its run's `batch_g`.

    Args:
        source, weights, best: as in `gnfast.train.export.snapshot`.
        count: how many images, at least 1.
        out: FILE.png or FILE.jpg for one grid, anything else for a folder of 000000.png, …; if None,
            sample-WEIGHTS.png in the run folder (sample-WEIGHTS-best.png, …, of another checkpoint than the newest), or
            the file's name with .png.
        seed: seed of the latent vectors.
        batch_norm: each batch's own statistics, running ones, or as the run's config says.
        classes: labels that the images take in turn, of a class-conditional generator; all of them if empty.
        interpolate: instead of `count` images, this many rows of 10, each a walk from one latent vector to another.
        device: where to compute.
        threads: CPU threads; the run's own setting if None, PyTorch's choice if 0.

    Returns:
        The file or folder written.

    Raises:
        ValueError: `count` below 1, `interpolate` or `threads` below 0, or classes that the generator does not have.
        RunError: no run and no exported file, or no readable checkpoint in the run.
    """
    if count < 1:
        raise ValueError(f"--n: got {count}, wanted at least 1")
    if interpolate < 0:
        raise ValueError(f"--interpolate: got {interpolate}, wanted 0 or more rows")
    taken, noise = snapshot(source, weights, best), torch.Generator().manual_seed(seed)
    config, where = taken.config, resolve_device(device)
    use_threads(threads, config.threads)
    labels = torch.tensor(_labels(classes, config.classes), dtype=torch.int64)
    generator = taken.build().to(where)
    statistics = config.sample_bn if batch_norm == "run" else batch_norm
    walk = _walks(interpolate, config.z_dim, noise)
    count = len(walk) or count
    batches = []
    # Whole batches even for the last one: its statistics must be those of a full batch.
    for start in range(0, count, config.batch_g):
        z = walk[start : start + config.batch_g]
        z = torch.cat([z, torch.randn(config.batch_g - len(z), config.z_dim, generator=noise)])
        turn = torch.arange(start, start + config.batch_g) // (WALK if interpolate else 1)
        y = labels[turn % len(labels)].to(where) if len(labels) else None
        batches.append(to_uint8(sample(generator, z.to(where), y, batch_statistics=statistics == "batch")).cpu())
    images = torch.cat(batches)[:count]
    if line := taken.unmoved:
        warnings.warn(line, stacklevel=2)
    return _write(images, out or _place(source, best, taken.weights), WALK if interpolate else len(labels) or None)


def is_picture(out: str | Path) -> bool:
    """Whether a path is that of one picture, not of a folder.

    Raises:
        ValueError: it has the ending of pictures that are not written.
    """
    ending = Path(out).suffix.lower()
    if ending in _OTHER_PICTURES:
        raise ValueError(f"--out: got {str(out)!r}, wanted FILE.png or FILE.jpg, or a folder for one PNG per image")
    return ending in PICTURES


def _place(source: Path, best: bool, weights: Weights) -> Path:
    place = locate(source, best)
    return place.output(f"sample-{weights}.png") if place else source.with_suffix(".png")


def _labels(wanted: Sequence[int], classes: int) -> list[int]:
    """The labels to take in turn; none for an unconditional generator."""
    if wanted and not classes:
        raise ValueError("--classes: this generator is not class-conditional")
    wrong = [label for label in wanted if not 0 <= label < classes]
    if wrong:
        raise ValueError(f"--classes: got {' '.join(map(str, wrong))}, wanted numbers from 0 to {classes - 1}")
    return list(wanted or range(classes))


def _walks(rows: int, z_dim: int, noise: torch.Generator) -> Tensor:
    """(rows · WALK, z_dim): along great arcs, since a straight line leads through vectors that N(0, I) hardly gives."""
    a, b = torch.randn(2, rows, 1, z_dim, generator=noise)
    angle = torch.arccos(nn.functional.cosine_similarity(a, b, dim=-1)).unsqueeze(-1)
    part = torch.linspace(0, 1, WALK)[:, None]
    return ((torch.sin((1 - part) * angle) * a + torch.sin(part * angle) * b) / torch.sin(angle)).flatten(0, 1)


def _write(images: Tensor, out: Path, columns: int | None) -> Path:
    if is_picture(out):
        save_picture(grid(images, columns), out)
        return out
    make_folder(out)
    for index, image in enumerate(images):
        as_picture(image).save(out / f"{index:06d}.png")
    return out
