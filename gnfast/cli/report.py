"""`gnfast report RUN…`: a page about a run, or one that compares several."""

from dataclasses import dataclass
from pathlib import Path

from gnfast.cli.common import UsageError
from gnfast.cli.options import argument, parse
from gnfast.io.files import expanded, output_file

HELP = """\
Write one self-contained HTML page about a run: key figures, curves, samples over time, settings, environment. Several
runs are compared on one page.

Examples:
  gnfast report runs/digits
  gnfast report runs/gn runs/sn --out gn-or-sn.html
"""


@dataclass(frozen=True)
class ReportOptions:
    """Which runs, and where to."""

    runs: argument("RUN [RUN …]", tuple[str, ...]) = ()
    """Run folders."""
    out: str = ""
    """The file to write; RUN/report.html, or comparison.html in the folder that holds all the runs, if empty."""


def run(words: list[str]) -> int:
    """`gnfast report RUN… [--out]`."""
    options = parse(ReportOptions, words, "report", help=HELP)
    if not options.runs:
        raise UsageError("report: which run? usage: gnfast report RUN [RUN …] [--out FILE.html]")
    from gnfast.runs.comparison_page import write_comparison
    from gnfast.runs.run_page import write_report

    out = output_file(options.out) if options.out else None
    paths = [expanded(folder) for folder in options.runs]
    page = write_report(paths[0], out) if len(paths) == 1 else write_comparison(paths, out)
    print(page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page)
    return 0
