"""`gnfast reproduce NAME …`: redo the tables and figures of the papers, at full size or smaller."""

import os
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from gnfast.cli.common import UsageError, columns
from gnfast.cli.options import argument, parse
from gnfast.config.papers import PAPERS, Item, items
from gnfast.errors import unknown
from gnfast.io.files import output_folder

HELP = """\
Train what a paper's table or figure consists of, and write a page with measured numbers beside the published ones.

Without a name, every table and figure with its state, runs and estimated hours on one GPU. Runs go to OUT/SCALE/runs,
each once, whichever tables ask for it; pages to OUT/SCALE/NAME/index.html. Repeating the command skips the runs that
have finished and continues the others. docs/papers.md has the list and says what is assumed.

Examples:
  gnfast reproduce
  gnfast reproduce sngan-table2 --dry-run
  gnfast reproduce gngan-table3 --devices cuda:0 cuda:1
  gnfast reproduce lipschitz-table3 --only CIFAR-10 --scale 0.015 --data cifar10=cifar10.tar.xz --seeds 3
  gnfast reproduce gngan-table3 --data digits --scale 0.001 --set batch_d=16 batch_g=16
"""
FOOTER = """\
Runs are with the paper's number of seeds; --seeds sets another. –: nothing to train, or ImageNet's images are needed:
--data imagenet=PATH. NAME --dry-run says what is assumed."""


# Of seeds and processes; more would not fit into memory.
MOST = 10_000


@dataclass(frozen=True)
class ReproduceOptions:
    """Which tables and figures, how large, and where."""

    names: argument("NAME", tuple[str, ...]) = ()
    """Tables and figures, as `gnfast reproduce` lists them, or a paper's part of their names, as `sngan`."""
    scale: float = 1.0
    """Factor on steps and measured images; channels shrink by its root, and scores come from a small classifier."""
    seeds: int = 0
    """Runs of each cell; the paper's number, or 1 below full size, if 0."""
    only: tuple[str, ...] = ()
    """Train only rows and columns whose names have one of these in them."""
    data: tuple[str, ...] = ()
    """NAME=PATH: where a data set's images are; or NAME alone: a data set that stands in for all others."""
    set: tuple[str, ...] = ()
    """Settings of every run, as NAME=VALUE: width=0.125 steps=1500."""
    devices: tuple[str, ...] = ()
    """Where runs go, in turn: cuda:0 cuda:1; where each would go by itself if empty."""
    processes: int = 0
    """Runs at once; one per device, or on CPUs one per core, if 0."""
    out: str = "runs/papers"
    """Folder of the runs and pages."""
    dry_run: bool = False
    """List the runs and the estimate, and do nothing."""
    table: bool = False
    """Write the pages of what there is, and train nothing."""
    retry: bool = False
    """Train runs that diverged (a loss became NaN) again, too."""


def run(words: list[str]) -> int:
    """`gnfast reproduce [NAME …]`."""
    options = parse(ReproduceOptions, words, "reproduce", help=HELP)
    from gnfast.reproduce import Plan, reproduce
    from gnfast.reproduce.runs import asked_for
    from gnfast.reproduce.scale import scale_of

    scale = scale_of(options.scale, options.data, options.set)
    for name in ("seeds", "processes"):
        if not 0 <= (count := getattr(options, name)) <= MOST:
            raise UsageError(f"--{name}: got {count}, wanted 0 to {MOST}")
    processes = options.processes or len(options.devices) or _at_once()
    out = Path(options.out) if options.dry_run or not options.names else output_folder(options.out)
    plan = Plan(scale, options.seeds, out, options.only, processes, options.devices)
    if not options.names:
        print(listing(plan))
        return 0
    chosen = chosen_items(options.names)
    for part in options.only:
        if not any(asked_for(cell, part) for item in chosen for cell in item.cells):
            raise UsageError(f"--only: got {part!r}, wanted a part of the name of a row or column (see --dry-run)")
    if options.dry_run:
        return _dry_run(chosen, plan)
    progress = sys.stderr.isatty()
    pages, status = reproduce(chosen, plan, train=not options.table, retry=options.retry, progress=progress)
    print("\n".join(f"page: {page}" for page in pages))
    return status


def chosen_items(names: tuple[str, ...]) -> list[Item]:
    """The items with these names, or whose names begin with them.

    Raises:
        UsageError: a name that none has.
    """
    known, found = items(), {}
    for name in names:
        part = [name] if name in known else [one for one in known if one.startswith(f"{name}-")]
        if not part:
            raise UsageError(unknown("table or figure", name, known))
        found |= {one: known[one] for one in part}
    return list(found.values())


def listing(plan) -> str:
    """Every item: its name, what it shows, its state, how many runs it needs and their hours on one GPU."""
    from gnfast.reproduce.hours import gpu_hours

    rows = [("name", "what", "state", "runs", "GPU hours")]
    titles = {}
    for item in items().values():
        titles.setdefault(item.paper, len(rows))
        cases = {case.name: case for one in plan.cells(item) for case in one.cases}.values()
        hours = f"{gpu_hours(cases):.1f}" if cases else "–"
        rows.append((item.name, item.title, item.state, str(len(cases) or "–"), hours))
    lines = columns(rows).splitlines()
    for paper, place in reversed(titles.items()):
        lines[place:place] = ["", f"{paper}: {PAPERS[paper]}"]
    return "\n".join([*lines, "", FOOTER])


def _dry_run(chosen: list[Item], plan) -> int:
    from gnfast.reproduce.hours import gpu_hours

    for item in chosen:
        cells = plan.cells(item)
        cases = {case.name: case for one in cells for case in one.cases}.values()
        print(f"{item.name}: {item.paper}, {item.item}: {item.title} ({item.state})")
        print(f"{textwrap.fill(item.note, 120)}\n" if item.note else "")
        for case in cases:
            print(shlex.join(["gnfast", *case.words()]))
        for one in cells:
            if one.left_out:
                print(f"not run: {one.cell.row}, {one.cell.column}: {one.left_out}")
        print(f"{len(cases)} runs, about {gpu_hours(cases):.1f} hours on one GPU; nothing was started.\n")
    return 0


def _at_once() -> int:
    """One run on a GPU, which it fills; on CPUs one per core, which small runs fill best."""
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1
