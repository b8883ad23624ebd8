"""Measures gnfast on the present GPU, in stages: `make gpu OUT=dir`, or `bash benchmarks/run_gpu.sh dir [stage …]`.

    load      loads the compiled libraries, and builds them where they do not load
    smoke     each kernel against its twin, one captured step, one captured iteration, a short training run
    headline  critic's and generator's step, whole iteration and spectral norm against the strongest baselines
    tests     the GPU tests
    rest      more networks, convolutions layer by layer, tiles, tuner, penalties, sampling, evaluation
    run N     trains for N seconds

Without a stage: load, smoke, headline. OUT then holds results.json, failures.txt and log.txt, up to date at any moment,
and at the end table.txt, which is printed. The exit status is 1 if anything failed or a bound was missed.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import sections
from benchmarks.gpu.crew import START_LIMIT, Crew
from benchmarks.gpu.record import TABLE, Record
from benchmarks.gpu.summary import summary

# The last lines of what the run prints.
LINES = 60


@dataclass(frozen=True)
class Stage:
    """Sections, the most valuable first, seconds for all of them, and how many processes run them."""

    names: Collection[str]
    limit_s: float
    size: int = 1
    beside: tuple[Collection[str], ...] = ()
    """Groups of sections, each of which a process prepares as soon as the libraries are loaded."""
    turns: bool = False
    """Whether those that were prepared measure here."""


STAGES = {
    "load": Stage(sections.LOAD, 90),
    "smoke": Stage(sections.SMOKE, 40, size=6),
    "headline": Stage(sections.HEADLINE, 170, beside=sections.COMPILED, turns=True),
    "tests": Stage(sections.TESTS, 150),
    "rest": Stage(sections.REST, 300),
    # And the seconds that it trains.
    "run": Stage(sections.RUN, 90),
}
DEFAULT = ("load", "smoke", "headline")
# For the default stages, so that a run whose libraries have to be built ends in time too.
TIME_LIMIT = 270.0
# Of the headline, for what was prepared beside it.
SPARE_S = 20.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder for what is found")
    parser.add_argument(
        "stages", nargs="*", metavar="stage", help=f"{', '.join(STAGES)} N (default: {' '.join(DEFAULT)})"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="section", help="these sections alone, of any stage")
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="S",
        help=f"seconds for all (default: {TIME_LIMIT:g} without stages, the stages' own with them)",
    )
    parser.add_argument("--dry-run", action="store_true", help="on the CPU with tiny sizes, to see that all runs")
    options = parser.parse_args(arguments)
    try:
        stages, seconds = _stages(options.stages)
        unknown = [name for name in options.only if name not in sections.SECTIONS]
        if unknown:
            raise ValueError(f"--only: got {', '.join(unknown)}, wanted some of {', '.join(sections.SECTIONS)}")
    except ValueError as error:
        parser.error(str(error))
    if not options.dry_run:
        try:
            import torch
        except ImportError as error:
            parser.error(f"{error} in {sys.executable}; put the Python that has PyTorch before it in PATH")
        if not torch.cuda.is_available():
            parser.error(
                f"PyTorch {torch.__version__} of {sys.executable} finds no CUDA device; --dry-run does without"
            )
    limit_s = options.time_limit or (math.inf if options.stages or options.only or options.dry_run else TIME_LIMIT)
    chosen = {name: STAGES[name] for name in stages}
    if options.only:
        chosen = {"only": Stage(("environment", *options.only), 0)}
    return run(options.out, chosen, limit_s, seconds, options.dry_run)


def _stages(words: list[str]) -> tuple[list[str], float]:
    """The stages, and the seconds of `run`."""
    stages, seconds, left = [], 0.0, iter(words or DEFAULT)
    for name in left:
        if name not in STAGES:
            raise ValueError(f"stage: got {name!r}, wanted one of {', '.join(STAGES)}")
        if name == "run":
            given = next(left, "nothing")
            try:
                seconds = float(given)
            except ValueError:
                wanted = "wanted the seconds that it trains, as in `run 60`"
                raise ValueError(f"stage run: got {given}, {wanted}") from None
        stages.append(name)
    return stages, seconds


def run(out: Path, chosen: dict[str, Stage], limit_s: float, seconds: float, dry_run: bool) -> int:
    """Runs stages in `limit_s` seconds, of which `run` trains `seconds`; prints the table, returns the exit status."""
    record = Record(out, dry_run=dry_run)
    job = {"device": "cpu" if dry_run else "cuda", "quick": dry_run, "out": str(out.resolve()), "seconds": seconds}
    crew = Crew(record, job | {"table": sections.__name__}, sections.SECTIONS)
    end = time.monotonic() + limit_s
    beside = [group for stage in chosen.values() for group in stage.beside]
    if dry_run:
        # Two cores have enough to do with one such process, and the groups differ in sizes alone.
        beside = beside[-1:]
    # As Ctrl-C: processes of their own sessions must not outlive this one.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, signal.default_int_handler)
    whole = False
    try:
        for name, stage in chosen.items():
            if name != "load":
                # Compiling takes longest: it begins as soon as the libraries are there.
                crew.prepare(beside)
                beside = []
            _run_stage(name, stage, crew, seconds, end)
        whole = True
    except KeyboardInterrupt:
        record.say("interrupted; what was measured is in results.json")
    finally:
        # A second signal may not keep the first one's promise from being held.
        for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(ending, signal.SIG_IGN)
        crew.close()
        lines, missed = summary(record.data)
        (out / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        record.say("\n".join(lines[-LINES:]))
    return int(record.failed or missed > 0 or not whole)


def _run_stage(name: str, stage: Stage, crew: Crew, seconds: float, end: float) -> None:
    started, dry_run = time.monotonic(), crew.job["quick"]
    limit_s = sum(crew.sections[section].limit_s for section in stage.names) + START_LIMIT
    limit_s = (stage.limit_s or limit_s) + (seconds if stage.names == sections.RUN else 0)
    limit_s = min(limit_s * (10 if dry_run else 1), end - started)
    crew.record.say(f"== {name} (at most {limit_s:.0f} s)")
    size, spare_s = 1 if dry_run else stage.size, SPARE_S if stage.turns else 0.0
    crew.run(stage.names, started + limit_s, size=size, turns=stage.turns, spare_s=spare_s)
    taken = time.monotonic() - started
    crew.record.update("stages", {name: {"seconds": round(taken, 1), "limit_s": round(limit_s, 1)}})
    crew.record.say(f"== {name}: {taken:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
