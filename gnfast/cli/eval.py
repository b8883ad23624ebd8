"""`gnfast eval WHAT`: scores of a run, of images or of saved statistics against real images."""

import dataclasses
import json
import platform
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import gnfast
from gnfast import metrics
from gnfast.cli.common import UsageError, columns
from gnfast.cli.eval_further import SecondOpinion, divergence, similarity
from gnfast.cli.eval_subject import Subject, loaded, shape_of, subject_of
from gnfast.cli.eval_told import progress, say, told
from gnfast.cli.options import argument, parse, spelled_out
from gnfast.data import ImageDataset
from gnfast.data.registry import require_source
from gnfast.errors import first_line
from gnfast.interop.device import resolve_device
from gnfast.io.files import expanded, output_file, write_text
from gnfast.io.numbers import fixed, number
from gnfast.io.rows import plain
from gnfast.metrics import PROTOCOLS, FeatureExtractor, ImageStatistics, second_opinion
from gnfast.metrics.evaluate import image_count
from gnfast.runs import evaluations
from gnfast.runs.checkpoint import run_of
from gnfast.runs.record import WEIGHTS
from gnfast.runs.run_page import write_report

EVAL_HELP = """\
Fréchet distance (FID with Inception's official weights), Inception score and KID.

WHAT is a run folder, one of its checkpoints (RUN/checkpoints/FILE.pt), a file of `gnfast export` or a checkpoint of the
papers' code (its generator is measured), a folder or zip of images, a named data set, or an .npz of statistics. It is
measured against --data or --reference; for a run the default is the data that it was trained on. Results state how many
images of both sides were measured, the extractor, the protocol and the seed: numbers that differ in one of them cannot
be compared. Both sides must have the same channels and size: `--resolution`, `--crop` and `--channels` prepare images
of files and data sets; a generator's are measured as they are.

Examples:
  gnfast eval runs/cifar10
  gnfast eval runs/cifar10 --best
  gnfast eval runs/stl10 --n-real 10000 --n 5000
  gnfast eval runs/cifar10 --raw --n 10000 --split test --out result.json
  gnfast eval fakes.zip --data cifar10 --protocol torch
  gnfast eval cifar10 --save-stats cifar10.train.npz
  gnfast eval cifar10 --what-split test --reference cifar10.train.npz
  gnfast eval runs/digits --extractor classifier --n 2000
  gnfast eval runs/biggan --ms-ssim
"""


@dataclass(frozen=True)
class EvalOptions:
    """What is measured, against what, and how."""

    what: argument("WHAT")
    """A run folder, a file with a generator, a folder or zip of images, a named data set, or an .npz of statistics."""
    data: str = ""
    """The real images: a named data set, or a folder, zip, tar, Parquet file or LMDB; a run's own if empty."""
    split: str = ""
    """Which part of the real data; what the run is evaluated on, or `train`, if empty."""
    what_split: str = "train"
    """Which part of WHAT, where that is a named data set."""
    data_root: str = ""
    """Where a named data set's archive is kept; gnfast's cache folder if empty."""
    resolution: int = 0
    """Side in pixels to which images of files and data sets are resized; 0 leaves them as they are, or as a run has
    them."""
    crop: int | Literal["square"] | None = None
    """Side in pixels of the square in the middle that is cut out first, or `square` for the largest; what the data set
    or the run has if None."""
    channels: Literal[0, 1, 3] = 0
    """1 makes images of files and data sets grey, 3 makes grey ones RGB; 0 leaves them, or as a run has them."""
    reference: str = ""
    """Statistics instead of real images: an .npz by --save-stats, pytorch-fid or the papers' code."""
    extractor: str = ""
    """`inception`, `classifier`, `pixels-8x8` (needs no weights), or MODULE:FUNCTION; the run's, that of --reference,
    or `inception`, if empty. MODULE is imported, so it must be given here: one that only a run or file names is
    refused."""
    protocol: Literal["", *PROTOCOLS] = ""
    """How images are prepared for Inception (docs/evaluation.md); the run's, or `tf`, if empty."""
    extractor_weights: str = ""
    """Path of Inception's weights; the run's, or the official ones, cached or downloaded, if empty."""
    n: int = 0
    """How many images to measure; what the run says (its --n-fake), or all that there are, if 0."""
    n_real: int = 0
    """How many real images they are measured against, evenly spread; all if 0, or what the run says of its own data."""
    seed: int | None = None
    """Seed of the latent vectors and of KID's subsets; that of the run's own scores, or 0, if None."""
    weights: Literal["", *WEIGHTS] = ""
    """The moving average of a run's generator (that, or what a file has, if empty), or the generator itself; --ema and
    --raw are short for them."""
    best: bool = False
    """Measure the run's checkpoint with the best Fréchet distance, not the newest, as GN-GAN and PGN-GAN report it."""
    bn: Literal["batch", "running", "run"] = "run"
    """A run's batch-norm statistics: each batch's own, running ones, or what the run samples with."""
    kid_subsets: int = 100
    """Random subsets of 1000 images for KID; 0 for none."""
    ms_ssim: bool = False
    """Also how alike the images of one class are (MS-SSIM of 100 pairs of each class), of a class-conditional run."""
    neural_divergence: int = 0
    """Also train a critic for so many updates to tell real images from a generator's, and say how well it does; none
    if 0. With --split test the real images are ones that the generator has not seen."""
    via: Literal["", second_opinion.LIBRARY] = ""
    """Also compute FID, IS and KID of the same images by this library, where it is installed; needs the protocol tf."""
    out: str = ""
    """A JSON file for the result."""
    save_stats: str = ""
    """An .npz file for the statistics of what was measured; with it, real images are optional."""
    batch: int = 128
    """How many images at a time; a run's `batch_g` instead for a run."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    threads: int | None = None
    """CPU threads; 0 leaves PyTorch's choice. Another number can change the last bits of the results. None takes the
    run's own setting."""

    @property
    def how(self) -> dict[str, Any]:
        """How images are measured, with as many features of each side as KID needs."""
        keep = metrics.KEEP if self.kid_subsets else 0
        return {"batch_size": self.batch, "keep": keep, "progress": progress()}


def run(words: list[str]) -> int:
    """`gnfast eval WHAT [--data … | --reference …]`."""
    usage = "what? usage: gnfast eval RUN|FOLDER|NPZ|ZIP [--data NAME | --reference NPZ] [--n N]"
    options = parse(EvalOptions, spelled_out(words), "eval", help=EVAL_HELP, usage=usage)
    if options.data and options.reference:
        raise UsageError("--data and --reference: got both, wanted one")
    # Before hours of measuring.
    places = {name: str(output_file(path)) for name in ("out", "save_stats") if (path := getattr(options, name))}
    options = dataclasses.replace(options, **places)
    if options.data:
        require_source(options.data, "--data")
    result, scores = _evaluate(options)
    table = _table(scores, result)
    try:
        if options.out:
            # Before anything is printed: whoever reads it may have gone.
            write_text(Path(options.out), json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        folder = run_of(expanded(options.what))
        if scores and (folder / "config.json").exists():
            _keep(folder, result | {"scores": str(scores)})
    finally:
        print("\n".join(filter(None, [options.save_stats, options.out, table])))
    if line := result.get("average"):
        warnings.warn(line, stacklevel=1)
    return 0


def _keep(folder: Path, result: dict[str, Any]) -> None:
    """Adds a result to those of a run, and to its page."""
    try:
        evaluations.add(folder, result)
        say(f"also in {folder / evaluations.FILE} and {write_report(folder)}")
    except Exception as error:  # A page about the run must not cost its scores.
        say(f"warning: not added to the run's page: {first_line(error)}")


def _evaluate(options: EvalOptions) -> tuple[dict[str, Any], metrics.Scores | None]:
    """Measures; returns what goes into the JSON file, and the scores where there is something to compare with."""
    device = resolve_device(options.device)
    subject = subject_of(options, device)
    real = ImageStatistics.load(expanded(options.reference)) if options.reference else None
    spec = _extractor_name(options, subject, real)
    images = None if real else _real_images(options, subject)
    if not (real or images or options.save_stats):
        raise ValueError(f"--data or --reference: got neither, and {options.what} has no real images of its own")
    if options.n_real and not images:
        raise ValueError(f"--n-real: got {options.n_real}, but there are no real images to choose from")
    if images or real:
        _require_alike(options, subject, images or real)
    if real and subject.draws and (options.resolution or options.channels or options.crop):
        say("warning: --resolution, --crop and --channels have no effect: what a generator draws is measured as it is")
    # Before what takes longer, since they may refuse the images' size.
    other = SecondOpinion(options, subject, images) if options.via else None
    further = similarity(options, subject) | divergence(options, subject, images, device)
    extractor = _extractor(spec, options, subject, images, device) if subject.measure or images else None
    if options.protocol and extractor and not extractor.protocol:
        say(f"warning: --protocol has no effect: {extractor.name} sees images as they are")
    shown = other.heard(extractor) if other else extractor
    if real and extractor:
        metrics.require_comparable(real.origin, metrics.origin(extractor))
    n = image_count("n_real", options.n_real or subject.settings.get("n_real") or None, images) if images else None
    say(_what_is_measured(options, subject, extractor, images, n))
    if images:
        seen = told(extractor, f"images of {images.name}", n)
        real = metrics.reference_statistics(images, seen, n=n, **options.how)
    started = time.perf_counter()
    fake = subject.known or subject.measure(told(shown, subject.what, subject.count))
    speed = fake.features.count / (time.perf_counter() - started) if subject.measure else None
    if options.save_stats:
        fake.save(options.save_stats)
    result = {"measured": options.what, **subject.facts, **({"shape": fake.shape} if fake.shape else {})}
    scores, timing = None, {}
    if real is None:
        result |= {"extractor": fake.extractor, "protocol": fake.protocol, "n": fake.features.count}
    else:
        details = extractor.details if extractor else None
        scores = metrics.compare(real, fake, kid_subsets=options.kid_subsets, seed=subject.seed, details=details)
        result |= {"against": options.reference or images.name, **scores.as_dict()}
        timing = dict(scores.timing)
    if other:
        further |= other.scores(n, _weights(options, subject), device, progress())
    result |= further
    if extractor and extractor.fingerprint:
        result["extractor_sha256"] = extractor.fingerprint
    if speed:
        timing["images_per_second"] = speed
    versions = {"gnfast": gnfast.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**result, "device": str(device), "timing": timing, "versions": versions}, scores


def _what_is_measured(
    options: EvalOptions,
    subject: Subject,
    extractor: FeatureExtractor | None,
    images: ImageDataset | None,
    n: int | None,
) -> str:
    """How many, in which features, against what: before it takes minutes."""
    known = {"extractor": subject.known.extractor} if subject.known else {}
    origin = known | (metrics.origin(extractor) if extractor else {})
    features = f"in features of {origin.get('extractor') or 'an unknown extractor'}"
    features += f", protocol {origin['protocol']}" if origin.get("protocol") else ""
    against = f"{n} images of {images.name}" if images else options.reference
    counted = f"{'an unknown number of' if subject.count is None else subject.count} {subject.what}"
    return f"measuring {counted} {features}" + (f"; against {against}" if against else "")


def _table(scores: metrics.Scores | None, result: dict[str, Any]) -> str:
    """The scores, below them the facts, below them the speed."""
    above = {"average", "distance", "distance_name", "is_mean", "is_std", "kid_mean", "kid_std", "ms_ssim"}
    above |= {"device", "timing", "versions"}
    rows = [*scores.rows()] if scores else []
    rows += [("intra-class MS-SSIM", fixed(result["ms_ssim"]))] if "ms_ssim" in result else []
    rows += [(key, _shown(value)) for key, value in result.items() if key not in above and value is not None]
    return columns([*rows, *((key.replace("_", " "), number(value, 3)) for key, value in result["timing"].items())])


def _shown(value: Any) -> str:
    return fixed(value) if isinstance(value, float) else plain(value)


def _real_images(options: EvalOptions, subject: Subject) -> ImageDataset | None:
    if subject.real:
        return subject.real()
    return loaded(options.data, options.split or "train", options) if options.data else None


def _require_alike(options: EvalOptions, subject: Subject, real: ImageDataset | ImageStatistics) -> None:
    """That both sides are of one size, as far as that is known: before what takes long."""
    given = isinstance(real, ImageStatistics)
    came = real.shape if given else shape_of(real)
    if None in (came, subject.shape) or came == subject.shape:
        return
    side = f"--reference: got {options.reference}, of {came}" if given else f"real images: got {came} of {real.name}"
    if subject.draws:
        wanted = f"which the generator of {options.what} draws, whatever --resolution and --channels say"
    else:
        wanted = f"as those of {options.what} are; --resolution, --crop and --channels prepare images"
    raise ValueError(f"{side}, wanted {subject.shape}, {wanted}")


def _extractor_name(options: EvalOptions, subject: Subject, reference: ImageStatistics | None) -> str:
    known = subject.settings.get("extractor") or (reference and reference.extractor) or "inception"
    if ":" in known and not options.extractor and not (subject.known and options.reference):
        raise ValueError(
            f"--extractor: {known!r} names code to import, which is taken from the command line alone; repeat it there "
            "if you trust it"
        )
    if reference and reference.extractor and subject.measure:
        spec, measured = options.extractor or known, reference.extractor
        # Of Inception with other weights, and of a classifier, the name says more.
        if ":" not in spec and f"-{spec}-" not in f"-{measured}-":
            raise ValueError(f"--extractor: got {spec}, wanted {measured}, by which {options.reference} was measured")
        if ":" not in measured and measured.endswith("-classifier"):
            raise ValueError(
                f"--reference: got {options.reference} of a classifier, wanted --data in place: its images"
            )
    return options.extractor or known


def _extractor(
    spec: str, options: EvalOptions, subject: Subject, real: ImageDataset | None, device: torch.device
) -> FeatureExtractor:
    # A classifier is trained on real images only; others may be tried on any.
    dataset = subject.images if real is None and spec != "classifier" else real
    return metrics.load_extractor(
        spec,
        dataset,
        protocol=options.protocol or subject.settings.get("protocol") or "tf",
        weights=_weights(options, subject),
        device=device,
        progress=progress(),
    )


def _weights(options: EvalOptions, subject: Subject) -> str | None:
    return options.extractor_weights or subject.settings.get("extractor_weights") or None
