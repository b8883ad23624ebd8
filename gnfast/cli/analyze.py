"""`gnfast analyze`: what normalisation does to a critic, measured and drawn."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gnfast.analysis import subjects
from gnfast.analysis.compare import compare
from gnfast.analysis.critic_analyses import analyze
from gnfast.analysis.reproduce import Scale, reproduce
from gnfast.cli.common import UsageError
from gnfast.cli.options import argument, parse
from gnfast.engine.heads import METHODS
from gnfast.interop.device import resolve_device, use_threads
from gnfast.io.files import expanded, output_folder
from gnfast.io.rows import read_rows
from gnfast.runs.checkpoint import locate, run_of
from gnfast.runs.record import read_run

USAGE = """\
usage: gnfast analyze RUN [RUN …] [--what NAMES] [--option value …]
       gnfast analyze --net MODULE:CLASS --data SOURCE [--option value …]
       gnfast analyze --reproduce [FIGURES] [--option value …]
"""
EXAMPLES = """
Writes figures (PNG), their numbers (CSV) and index.html, which explains each and names its source.

Examples:
  gnfast analyze runs/digits
  gnfast analyze runs/digits --best
  gnfast analyze runs/digits --what gradients,singular-values --n 5000
  gnfast analyze runs/gn-0 runs/gn-1 runs/sn-0 --labels GN,GN,SN
  gnfast analyze --net my.networks:Critic --weights critic.pt --data cifar10 --method gn
  gnfast analyze --reproduce                                   the papers' figures, small, in half an hour
  gnfast analyze --reproduce loss-domains,robustness --data cifar10 --steps-factor 10
"""


@dataclass(frozen=True)
class CriticOptions:
    """Which critic, and what of it."""

    runs: argument("[RUN …]", tuple[str, ...]) = ()
    """Run folders, or RUN/checkpoints/FILE.pt; the critics of several are compared on the same axes."""
    best: bool = False
    """Take a run's checkpoint with the best Fréchet distance instead of the newest."""
    labels: str = ""
    """With several runs: what each is called, with commas between; those of one name are pooled. Their folders' names
    if empty."""
    what: str = ""
    """Some of gradients, finite-differences, lipschitz, singular-values, loss-domain, training, with commas between;
    all that apply if empty."""
    net: str = ""
    """In place of a run: module:name (or file.py:name) of a critic, or of what builds one without arguments."""
    weights: str = ""
    """With --net: a file with its state dict (.pt or .safetensors); as built if empty."""
    data: str = ""
    """Where real images come from, as for `train`; a run's own if empty."""
    fakes: str = ""
    """With --net: where generated images come from, in the same words; none if empty."""
    method: Literal["none", *METHODS] = "none"
    """With --net: its normaliser. A run's is in its settings."""
    tau: float | None = None
    """With --net: GraN's τ."""
    eps: float | None = None
    """With --net: GraN's ε."""
    n: int = 1024
    """How many images of each kind."""
    n_jacobians: int = 32
    """Of these, at how many the Jacobian of each layer is taken (`lipschitz`), which takes tens of passes."""
    out: str = ""
    """Where to: a folder. Of one run RUN/analysis (RUN/analysis-best, …), otherwise analysis, if empty."""
    seed: int = 0
    """Seed of the choice of images and of the latents."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    threads: int | None = None
    """CPU threads; 0 leaves PyTorch's choice. None takes the run's own setting."""


@dataclass(frozen=True)
class ReproduceOptions(Scale):
    """Which figures, and how large."""

    figures: argument("[FIGURES]") = ""
    """Names of figures, with commas between; all if empty."""
    jobs: int = 0
    """Runs at a time, each on one thread; as many as there are CPUs if 0."""
    out: str = "analysis"
    """Where to: a folder. Finished runs in it are not repeated."""


def run(words: list[str]) -> int:
    """`gnfast analyze RUN … | --net … | --reproduce …`."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE + EXAMPLES if words else USAGE, end="")
        if words:
            print("\n`gnfast analyze RUN --help` and `gnfast analyze --reproduce --help` list the options.")
        return 0 if words else 2
    if words[0] == "--reproduce":
        what = "Draw the papers' figures from small training runs.\n" + EXAMPLES
        return _reproduce(parse(ReproduceOptions, words[1:], "analyze --reproduce", help=what))
    what = "Draw analyses of a run's critic, or of any other.\n" + EXAMPLES
    return _critic(parse(CriticOptions, words, "analyze", help=what))


def _critic(options: CriticOptions) -> int:
    if bool(options.runs) == bool(options.net):
        raise UsageError("analyze: wanted either a run folder or --net MODULE:CLASS")
    use_threads(options.threads, _own_threads(options))
    if len(options.runs) > 1:
        return _compare(options)
    if options.labels:
        raise UsageError("analyze: --labels: wanted with several runs")
    # Before minutes of measuring.
    out = output_folder(options.out) if options.out else None
    common = {"count": options.n, "device": resolve_device(options.device), "seed": options.seed}
    if options.runs:
        run = expanded(options.runs[0])
        subject = subjects.of_run(run, best=options.best, data=options.data, **common)
        place = locate(run, options.best)
        history, out = read_rows(place.run / "metrics.jsonl"), out or place.output("analysis")
    else:
        if options.best:
            raise UsageError("analyze: --best needs a run folder, not --net")
        if not options.data:
            raise UsageError("analyze: --net needs --data, where the real images come from")
        method = None if options.method == "none" else options.method
        own = {"method": method, "tau": options.tau, "eps": options.eps, "weights": options.weights}
        subject = subjects.of_module(options.net, data=options.data, fakes=options.fakes, **own, **common)
        history, out = [], out or output_folder("analysis")
    subject = dataclasses.replace(subject, jacobians=options.n_jacobians)
    page, left_out = analyze(subject, _names(options.what), out, history, _tell)
    for line in left_out:
        print(f"left out {line}")
    print(page)
    return 0


def _own_threads(options: CriticOptions) -> int:
    """What the first run says."""
    if not options.runs:
        return 0
    return read_run(run_of(expanded(options.runs[0]))).config.threads


def _tell(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr, flush=True)


def _compare(options: CriticOptions) -> int:
    runs = [expanded(run) for run in options.runs]
    names = [run.name for run in runs]
    labels = _names(options.labels) or (names if len(set(names)) == len(names) else [str(run) for run in runs])
    if len(labels) != len(runs):
        raise UsageError(f"analyze: --labels: got {len(labels)}, wanted one for each of the {len(runs)} runs")
    folders: dict[str, list[Path]] = {}
    for label, run in zip(labels, runs, strict=True):
        folders.setdefault(label, []).append(run)
    out = output_folder(options.out or "analysis")
    given = {name: getattr(options, name) for name in ("best", "data", "n", "n_jacobians", "seed", "device")}
    compare(folders, _names(options.what), out, tell=_tell, **given)
    print(out / "index.html")
    return 0


def _reproduce(options: ReproduceOptions) -> int:
    out = output_folder(options.out)
    page, signal = reproduce(options, _names(options.figures), out, jobs=options.jobs, progress=sys.stderr.isatty())
    if signal:
        return 128 + signal
    print(page)
    return 0


def _names(text: str) -> list[str]:
    """The names in a list with commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if text and not names:
        raise ValueError(f"got the empty selection {text!r}, wanted names with commas between")
    return names
