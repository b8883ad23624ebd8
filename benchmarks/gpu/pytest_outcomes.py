"""A pytest plugin that writes each outcome, and each failure with its traceback, to files as it happens."""

import os

# Environment variables that name the files.
OUTCOMES, FAILED = "GNFAST_TEST_OUTCOMES", "GNFAST_TEST_FAILURES"


def pytest_runtest_logreport(report) -> None:
    # Under xdist the controller hears of every test, of those too whose process was lost.
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.failed or report.when == "call" or (report.when == "setup" and report.skipped):
        _append(OUTCOMES, f"{report.outcome} {report.nodeid}")
    if report.failed:
        _append(FAILED, f"== {report.nodeid}, {report.when}\n{report.longreprtext}\n")


def pytest_collectreport(report) -> None:
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        _append(OUTCOMES, f"failed {report.nodeid}")
        _append(FAILED, f"== {report.nodeid}, on collection\n{report.longreprtext}\n")


def _append(variable: str, text: str) -> None:
    if path := os.environ.get(variable):
        with open(path, "a", encoding="utf-8", errors="replace") as file:
            file.write(f"{text}\n")
