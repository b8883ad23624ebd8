"""What `gnfast eval` measures: a generator, images, or statistics that a file holds."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gnfast import metrics
from gnfast.cli.eval_told import progress
from gnfast.config.config import as_json
from gnfast.data import ImageDataset, load, registered, to_uint8
from gnfast.data.registry import require_source
from gnfast.interop.device import use_threads
from gnfast.io.files import expanded
from gnfast.metrics import FeatureExtractor, ImageStatistics
from gnfast.metrics.evaluate import image_count
from gnfast.runs.average import copied
from gnfast.runs.checkpoint import locate
from gnfast.runs.published import published
from gnfast.train.evaluate import load_split, of_classes, sampler, samples_with_batch_statistics, scores_seed
from gnfast.train.export import snapshot

if TYPE_CHECKING:
    from gnfast.cli.eval import EvalOptions


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        facts: what the result says about it.
        settings: those that options leave to it: `extractor`, `protocol`, `extractor_weights`.
        known: its statistics where they come from a file.
        measure: extractor to statistics, where it is images.
        count, what: how many images are measured, None where a file does not say, and what they are.
        images: some of them, which tell the real images' size.
        real: loads the real images that it is measured against by default, where there are such.
        similarity: the intra-class MS-SSIM, where it is a class-conditional generator.
        draws: images of a generator, count to (count, C, H, W), and the largest count.
        seed: of all that is drawn.
    """

    facts: dict[str, Any]
    settings: dict[str, Any]
    known: ImageStatistics | None = None
    measure: Callable[[FeatureExtractor], ImageStatistics] | None = None
    count: int | None = None
    what: str = "images"
    images: ImageDataset | None = None
    real: Callable[[], ImageDataset] | None = None
    similarity: Callable[[], float] | None = None
    draws: tuple[Callable[[int], torch.Tensor], int] | None = None
    seed: int = 0

    @property
    def shape(self) -> str | None:
        """Channels, height and width, as statistics have them; None where a file does not say."""
        return self.known.shape if self.known else shape_of(self.images)


def subject_of(options: "EvalOptions", device: torch.device) -> Subject:
    path, seed = expanded(options.what), options.seed or 0
    if options.best and not (path / "config.json").exists():
        raise ValueError(f"--best: got {options.what}, wanted a run folder, which keeps its best checkpoint")
    if path.suffix == ".npz":
        if options.save_stats or options.n:
            raise ValueError(f"--save-stats and --n: {path} holds statistics already, wanted a run or images")
        known = ImageStatistics.load(path)
        return Subject(
            {},
            {"extractor": known.extractor, "protocol": known.protocol},
            known=known,
            count=known.features.count,
            seed=seed,
        )
    if (path / "config.json").exists() or path.suffix in (".safetensors", ".pt", ".pth"):
        return _run(path, options, device)
    if runs := sorted(found.parent.name for found in path.glob("*/config.json")):
        named = ", ".join([*runs[:5], *["…"] * (len(runs) > 5)])
        raise ValueError(f"{options.what} is a folder of runs; name one: {named}")
    use_threads(options.threads, 0)
    require_source(options.what, "WHAT")
    images = loaded(options.what, options.what_split, options)
    count = image_count("n", options.n or None, images)
    measure = functools.partial(metrics.dataset_statistics, images, n=count, **options.how)
    return Subject({}, {}, measure=measure, count=count, what=f"images of {images.name}", images=images, seed=seed)


def _run(path: Path, options: "EvalOptions", device: torch.device) -> Subject:
    saved = snapshot(path, options.weights or None, options.best)
    config = saved.config
    use_threads(options.threads, config.threads)
    generator, count = saved.build().to(device), options.n or config.n_fake
    statistics = config.sample_bn if options.bn == "run" else options.bn
    seed = scores_seed(config.seed) if options.seed is None else options.seed
    images = partial(sampler, generator, config.z_dim, config.classes, config.batch_g)

    def measure(extractor: FeatureExtractor) -> ImageStatistics:
        draw = images(seed, samples_with_batch_statistics(statistics, extractor))
        how = options.how | {"batch_size": config.batch_g}
        return metrics.generated_statistics(draw, count, extractor, **how)

    def alike() -> float:
        draw = of_classes(generator, config.z_dim, seed, statistics == "batch")
        return metrics.intra_class_ms_ssim(draw, config.classes, pairs=metrics.PAIRS, batch_size=config.batch_g)

    def reals() -> ImageDataset:
        if not (options.data or real.data in registered() or expanded(real.data).exists()):
            raise ValueError(f"{path} was trained on {real.data!r}, which is not there: say --data")
        # Of an exported file another user may have been told, and of other splits and sizes nobody.
        told = place is not None and real == config and split in (config.split, config.eval_split)
        return load_split(real, split, progress(), told)

    settings = as_json(config)
    if settings["extractor"] == "none":
        settings["extractor"] = ""
    if options.data or options.split:
        settings["n_real"] = 0
    # Real images are prepared as they were for the run, whichever they are.
    split = options.split or ("train" if options.data else settings["eval_split"] or config.split)
    names = ("data", "data_root", "resolution", "channels")
    asked = {name: value for name in names if (value := getattr(options, name))}
    real = dataclasses.replace(config, **asked, crop=config.crop if options.crop is None else options.crop)
    place = locate(path, options.best)
    facts = {"checkpoint": place.name if place else "", "step": saved.about["step"], "weights": saved.weights}
    average = saved.unmoved or (copied(settings, saved.about["step"]) if saved.weights == "ema" else "")
    facts |= {"batch_norm": statistics, "average": average}
    facts["published"] = published(saved.about["preset"], settings, real.data)
    return Subject(
        {name: fact for name, fact in facts.items() if fact != ""},
        settings,
        measure=measure,
        count=count,
        what="generated images",
        images=ImageDataset("samples", to_uint8(images(0, True)(2)).cpu()),
        real=reals if real.data else None,
        similarity=alike if config.classes else None,
        draws=(images(seed, statistics == "batch"), config.batch_g),
        seed=seed,
    )


def shape_of(images: ImageDataset) -> str:
    return "x".join(map(str, images.images.shape[1:]))


def loaded(source: str, split: str, options: "EvalOptions") -> ImageDataset:
    return load(
        source,
        split=split,
        resolution=options.resolution or None,
        channels=options.channels or None,
        crop=options.crop,
        root=options.data_root or None,
        progress=progress(),
    )
