"""`gnfast sweep FILE`: train a grid of runs, several at once, and tabulate their scores."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from gnfast.cli.common import columns
from gnfast.cli.options import argument, parse
from gnfast.io.files import output_folder
from gnfast.io.numbers import counted

HELP = """\
Train every run of a sweep file, several at once, and tabulate their scores (docs/sweeps.md describes the file).

Each run has its own folder in OUT; the table goes to OUT/table.md, table.csv, runs.csv, figure.svg and report.html.
Repeating the command skips the runs that have finished and continues the others; Ctrl-C stops them after a checkpoint.

Examples:
  gnfast sweep examples/sweeps/digits.toml --dry-run
  gnfast sweep examples/sweeps/digits.toml
  gnfast sweep examples/sweeps/digits.toml --table
"""


@dataclass(frozen=True)
class SweepOptions:
    """Which sweep, and what to do of it."""

    file: argument("FILE")
    """A sweep file (.toml)."""
    dry_run: bool = False
    """List the runs and their commands, and do nothing."""
    table: bool = False
    """Tabulate what there is, and train nothing."""
    retry: bool = False
    """Train runs that diverged (a loss became NaN) again, too."""
    out: str = ""
    """Folder of the runs and the tables, instead of the file's."""
    extractor: str = ""
    """The feature extractor of all runs, instead of the file's; MODULE:FUNCTION may come from here alone."""


def run(words: list[str]) -> int:
    """`gnfast sweep FILE [--dry-run --table --retry --out]`."""
    usage = "which file? usage: gnfast sweep FILE.toml [--dry-run] [--table] [--retry] [--out FOLDER]"
    options = parse(SweepOptions, words, "sweep", help=HELP, usage=usage)
    from gnfast.runs.launch import require_own_folder, run_sweep
    from gnfast.runs.sweep_file import load_sweep

    out = output_folder(options.out) if options.out else None
    sweep = load_sweep(Path(options.file), out, options.extractor)
    require_own_folder(sweep)
    if options.dry_run:
        for case in sweep.cases:
            print(shlex.join(["gnfast", *case.words()]))
        where = f" on {', '.join(sweep.devices)}" if sweep.devices else ""
        runs = counted(len(sweep.cases), "run")
        print(f"{runs} in {sweep.out}, {sweep.processes} at a time{where}; nothing was started.")
        return 0
    from gnfast.runs.sweep_page import write_results
    from gnfast.runs.sweep_results import collect, notes, rows

    signal = 0 if options.table else run_sweep(sweep, retry=options.retry, progress=sys.stderr.isatty())
    results = collect(sweep)
    path = write_results(results)
    print(columns(rows(results)))
    print("\n".join(notes(results)))
    print(f"report: {path}")
    if signal:
        return 128 + signal
    return 0 if options.table or all(run.state.status == "finished" for run in results.runs) else 1
