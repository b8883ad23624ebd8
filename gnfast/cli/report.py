"""`gnfast report RUN…`: a page about a run, or one that compares several."""

from dataclasses import dataclass

from gnfast.cli.common import UsageError, parse, user_errors
from gnfast.io.files import expanded, output_file

USAGE = "usage: gnfast report RUN [RUN …] [--out FILE.html]"


@dataclass(frozen=True)
class ReportOptions:
    """Write a page about a run, or one that compares several."""

    out: str = ""
    """The file to write; RUN/report.html, or comparison.html in the folder that holds all the runs, if empty."""


def run(words: list[str]) -> int:
    """`gnfast report RUN… [--out]`."""
    first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    folders, rest = words[:first], words[first:]
    if not folders and rest[:1] not in (["-h"], ["--help"]):
        raise UsageError(f"report: which run? {USAGE}")
    options = parse(
        ReportOptions,
        rest,
        prog="gnfast report RUN [RUN …]",
        description="Write one self-contained HTML page about a run: key figures, curves, samples over time, settings, "
        "environment. Several runs are compared on one page.\n\n"
        "Examples:\n  gnfast report runs/digits\n  gnfast report runs/gn runs/sn --out gn-or-sn.html",
    )
    from gnfast.runs.run_page import write_comparison, write_report

    with user_errors():
        out = output_file(options.out) if options.out else None
        paths = [expanded(folder) for folder in folders]
        print(write_report(paths[0], out) if len(paths) == 1 else write_comparison(paths, out))
    return 0
