"""`gnfast reproduce`: from a file to a page, on small images, for one table or figure of each paper."""

import json
from pathlib import Path

import pytest

from gnfast.cli import main
from gnfast.config.papers import items
from gnfast.reproduce.scores import Measured, ordered_pairs
from gnfast.runs.record import best, points, read_run
from tests.cli.commands import fails

SMALL = [
    *("--data", "digits", "--scale", "0.00002", "--set"),
    *("resolution=32", "batch_d=4", "batch_g=4", "n_fake=20", "width=0.03", "probe_every=1", "device=cpu"),
]
"""Runs of a few steps."""


def reproduce(out, *words):
    assert main(["reproduce", *words, *SMALL, "--out", str(out), "--processes", "1"]) == 0
    (folder,) = out.iterdir()
    return folder
