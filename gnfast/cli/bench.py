"""`gnfast bench [CASE …]`: what a normalised critic costs on this machine, against what else there is."""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from gnfast.bench import ceilings, duration, plots, printed_rows
from gnfast.bench.case import Case, Setup, free
from gnfast.bench.cases import CASES, NEED_A_GENERATOR
from gnfast.bench.comparison import Row, measure
from gnfast.bench.critics import SHIPPED, Network, shipped, user
from gnfast.bench.environment import environment
from gnfast.bench.mode import PRECISIONS, tuned
from gnfast.cli.common import UsageError
from gnfast.cli.options import argument, parse
from gnfast.errors import missing, unknown
from gnfast.interop.device import resolve_device
from gnfast.io.files import output_file, write_text
from gnfast.io.numbers import counted
from gnfast.kernels.compiled import notice

BENCH_HELP = """\
Measure what a gradient-normalised critic costs on this machine, against what else there is.

Every comparison is checked before it is timed: gnfast's results and the baselines' against double backward in float64.
A ratio is only formed between rows that passed. Each variant takes turns with gnfast's, so that a busy machine slows
both alike. On a GPU gnfast's is the step as a CUDA graph; called from Python it is a row of its own.

Cases: critic (its whole step), generator (the critic's part of its step), penalties (R1, WGAN-GP), spectral (spectral
normalisation of all layers), iteration (n_dis critic updates and a generator update, by the training program),
sampling; without any, all of them. `gnfast bench paper --help` is about whole trainings of the papers' presets, against
the papers' way of running them.

Baselines: a, double backward as the papers' code runs it; b, the same in channels_last and the chosen precision, with
cuDNN's search below 128 pixels; c, b with repaired second-order weight gradients; d, torch.compile of torch.func; e, c
as a CUDA graph; and the strongest, all operations of c compiled by torch.compile. On a GPU the compiled ones are CUDA
graphs too.

Examples:
  gnfast bench --quick                                        a minute: tiny batches, three rounds
  gnfast bench critic generator --critics resnet-32 cnn-32    two steps of two critics
  gnfast bench critic --dtype bfloat16 --device cuda --json critic.json --plot critic.svg
  gnfast bench critic --net mymodels:Critic --shape 3,64,64 --args "channels=64"
"""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and how."""

    cases: argument("[CASE …]", tuple[str, ...]) = ()
    """What to measure; all of it by default."""
    critics: tuple[str, ...] = ()
    """Shipped critics: cnn-32, resnet-32, cnn-48, resnet-48, resnet-128, resnet-256; by default those of 32 and 48
    pixels, on a GPU all."""
    net: str = ""
    """A critic of your own instead, module:Class or file.py:Class; modules may lie in the current folder."""
    shape: str = ""
    """The shape of one of its inputs, as 3,64,64."""
    args: str = ""
    """What its class is called with, as Python literals: "64, norm='none'"."""
    dtype: Literal["auto", *PRECISIONS] = "auto"
    """Precision of products (weights stay float32): bfloat16, by autocast, on a GPU and float32 on a CPU if auto."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    batch: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Images per step; 64 where nothing is said, and 16 from 128 pixels up."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice."""
    rounds: int = 9
    """The least number of timed rounds of each variant; gnfast's own is timed in each of them too."""
    seconds: float = 1.0
    """More rounds are timed until so many seconds have passed for a variant, up to 50."""
    compiled: bool = True
    """Include baseline d and the strongest, whose compilation takes a minute or more each per critic."""
    max_autotune: bool = False
    """Let torch.compile search for kernels too, which takes many minutes."""
    quick: bool = False
    """Batches of 4, three rounds, one small critic, no compilation, and no ratios: to see that all works."""
    json: str = ""
    """A file for the rows, with device, versions and sizes."""
    plot: str = ""
    """A picture: bars and a roofline; .png, .svg or .pdf."""


def run(words: list[str]) -> int:
    """`gnfast bench [CASE …] [--option value …]`."""
    if words[:1] == ["paper"]:
        from gnfast.cli.bench_paper import run as run_paper

        return run_paper(words[1:])
    options = parse(BenchOptions, words, "bench", help=BENCH_HELP)
    out, plot = _checked(options)
    # The profiler, which counts memory, would write its own log between the lines.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    if line := notice(device.type):
        print(f"warning: {line}")
    precision = options.dtype
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if precision == "tf32" and device.type == "cpu":
        raise UsageError("--dtype: got tf32, which CPUs do not have, wanted float32 or bfloat16")
    networks = _networks(options, device.type)
    described = environment(device)
    # Times to one digit have no floor, and small copies would be those of a cache.
    roof = None if options.quick else ceilings.measure(device, tuned(precision))
    threads = counted(described["threads"], "CPU thread")
    title = f"{described['device']}, {threads}, PyTorch {described['torch']}, {precision}"
    print(f"{title}: {roof}\n\n{printed_rows.LEGEND}" if roof else f"{title}\n\n{printed_rows.QUICK}")
    names = _names(options)
    setups = [_setup(options, network, device, precision) for network in networks]
    print(_how_much(options, networks, setups, names), flush=True)
    rows: list[Row] = []
    without, said = [], set()
    results = {"environment": described, "precision": precision, "ceilings": None, "rows": rows}
    for number, ((network, setup), name) in enumerate(itertools.product(zip(networks, setups, strict=True), names)):
        if number and roof:
            # The machine may have been busy, or its clock slow, before.
            roof = roof.best(ceilings.measure(device, tuned(precision)))
        results["ceilings"] = roof and asdict(roof)
        for case, found in _measured(name, network, setup, roof, options, said):
            rows += found
            if all(row["ours"] is None for row in found):
                without.append(f"{case.network}, {case.step}")
            if out:
                write_text(out, json.dumps(results, indent=1) + "\n")
        free()
    if plot and rows:
        plots.draw(rows, roof, plot, title)
    ours_red = any(row["variant"] == row["ours"] and row["gate"] == "red" for row in rows)
    if ours_red:
        print("\ngnfast's results differ from double backward's: see the rows with a red gate.")
    if without:
        print(f"\ngnfast has no row, for the reason above: {'; '.join(without)}.")
    return int(ours_red or bool(without) or not rows)


def _checked(options: BenchOptions) -> list[Path | None]:
    """Where to write rows and plot, after all that could be wrong with the options but what they name."""
    for name in options.cases:
        if name not in CASES:
            raise UsageError(unknown("case", name, CASES))
    for name in ("rounds", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name}: got {value}, wanted at least 1")
    if options.quick and options.plot:
        raise UsageError("--plot: got --quick with it, whose times are not worth a picture; wanted one of the two")
    if not 0 <= options.seconds < float("inf"):
        raise UsageError(f"--seconds: got {options.seconds}, wanted 0 or more")
    places = [output_file(name) if name else None for name in (options.json, options.plot)]
    for path in filter(None, places):
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist")
    return places


def _measured(
    name: str, network: Network, setup: Setup, roof: ceilings.Ceilings | None, options: BenchOptions, said: set[str]
) -> Iterator[tuple[Case, list[Row]]]:
    """Measures and prints a case, or several of one name; of each the rows with times. `said`: notes that have been."""
    seconds, rounds = _rounds(options)
    try:
        for case in CASES[name](network, setup):
            print()
            # A critic that falls back does so in every case.
            notes = [note for note in case.notes if note not in said]
            said.update(notes)
            rows = measure(replace(case, notes=notes), roof, seconds, least=rounds)
            found, shown = itertools.tee(map(printed_rows.quick, rows) if options.quick else rows)
            for line in printed_rows.lines(shown, case.variants):
                print(line, flush=True)
            yield case, [row for row in found if "note" not in row]
    except ImportError as error:
        print(f"\nnote: {missing(name, error.name)}")


def _networks(options: BenchOptions, kind: str) -> list[Network]:
    if options.net:
        return [user(options.net, options.shape, options.args)]
    small = [name for name, (_, resolution) in SHIPPED.items() if resolution <= 48]
    default = ["CNN 32"] if options.quick else SHIPPED if kind == "cuda" else small
    return [shipped(name) for name in options.critics or default]


def _names(options: BenchOptions) -> list[str]:
    """What is measured of each network; says what was asked for and needs a generator that there is not."""
    names = list(options.cases or CASES)
    if options.net:
        for name in set(options.cases) & set(NEED_A_GENERATOR):
            print(f"\nnote: {name} needs a generator, which --net does not have")
        names = [name for name in names if name not in NEED_A_GENERATOR]
    return names


def _how_much(options: BenchOptions, networks: list[Network], setups: list[Setup], names: list[str]) -> str:
    """What is going to be measured, and about how long it takes."""
    seconds, rounds = _rounds(options)
    pairs = zip(networks, setups, strict=True)
    about = duration.said(sum(duration.about_s(*pair, names, rounds, seconds) for pair in pairs))
    critics = f"{len(networks)} critics" if len(networks) > 1 else networks[0].name
    lines = [f"\n{counted(len(names), 'case')} of {critics}, {about} here: {', '.join(names)}."]
    if not options.quick:
        compiled = ", --no-compiled (torch.compile takes a minute or more for a row)" * options.compiled
        lines.append(f"Less of it: name cases, --critics, a smaller --batch, --rounds 3 --seconds 0{compiled}.")
    return "\n".join([*lines, *(f"note: {note}" for network in networks for note in network.notes)])


def _rounds(options: BenchOptions) -> tuple[float, int]:
    """The seconds and the rounds of a row, at least."""
    return (0.0, 3) if options.quick else (options.seconds, options.rounds)


def _setup(options: BenchOptions, network: Network, device: torch.device, precision: str) -> Setup:
    batch = options.batch or (4 if options.quick else 64 if max(network.shape) < 128 else 16)
    return Setup(
        device,
        precision,
        batch,
        graphs=device.type == "cuda",
        compiled=options.compiled and not options.quick,
        search=options.max_autotune,
        layout=torch.contiguous_format if network.contiguous else torch.channels_last,
    )
