"""Hostile files: a sample of what `make hunt` tries, and what must not happen."""

import json
from pathlib import Path

import pytest

from tests.hostile_files import HOSTILE
from tests.processes import run_python

# Those that show something within a second; the bombs that take longer are left to the hunt.
SAMPLE = [
    "image-damaged",
    "image-huge-header",
    "image-exif",
    "image-tiff-loop",
    "links",
    "links-exponential",
    "not-a-file",
    "not-a-file-inside",
    "zip-damaged",
    "zip-bomb",
    "tar-damaged-inside",
    "tar-extended-headers",
    "xz-dictionary",
    "cifar-pickle",
    "idx",
    "lmdb-pages",
    "lmdb-content",
    "cache-verify",
]


@pytest.fixture(scope="module")
def outcomes():
    """What the command did with one file of each kind."""
    root = Path(__file__).parents[2]
    result = run_python("-m", "tests.hostile_files", *SAMPLE, cwd=root, OMP_NUM_THREADS="1")
    assert not result.stderr, result.stderr
    return {outcome["kind"]: outcome for outcome in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("kind", SAMPLE)
def test_hostile_files_do_no_harm(outcomes, kind):
    """No death by a signal, no hang, no traceback, no gigabyte of memory, and no code of the file's."""
    assert outcomes[kind]["faults"] == [], outcomes[kind]["output"]
    assert outcomes[kind]["status"] in (0, 2)


def test_kinds_have_one_name_each():
    kinds = [hostile.kind for hostile in HOSTILE]
    assert len(kinds) == len(set(kinds)) >= 30
