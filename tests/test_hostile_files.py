"""A sample of the hostile files that `make hunt` tries, and what must not happen."""

import pytest

from tests import hostile_files

# Those that show something within a second; the bombs that take longer are left to the hunt.
DATA = [
    *("image-damaged", "image-huge-header", "image-exif", "image-tiff-loop", "links", "links-exponential"),
    *("not-a-file", "not-a-file-inside", "zip-damaged", "zip-bomb", "tar-damaged-inside", "tar-extended-headers"),
    *("xz-dictionary", "cifar-pickle", "idx", "lmdb-pages", "lmdb-content", "cache-verify"),
    *("table-damaged", "table-bomb", "table-content", "shards-damaged"),
]
SCORES = [
    *("npz-negative", "npz-complex", "npz-mu-objects", "npz-n-objects", "npz-bomb", "npz-header-code"),
    *("npz-header-bomb", "npz-claims-terabytes", "npz-extractor-surrogate", "npz-pipe", "npz-flipped", "npz-sparse"),
    *("export-width-huge", "export-scores-deep", "export-tensor-eighth", "export-extractor-code", "export-endless"),
    *("export-header-beyond", "export-cut-out", "published-code-system", "published-dtype-crafted", "published-meta"),
    *("published-numbers-10e12", "published-state-of-laughs", "published-record-bomb", "published-pipe"),
    *("run-extractor-code", "run-step-text"),
]


@pytest.fixture(scope="module")
def outcomes():
    return hostile_files.outcomes(*DATA, *SCORES)


@pytest.mark.parametrize("kind", [*DATA, *SCORES])
def test_hostile_files_do_no_harm(outcomes, kind):
    """No death by a signal, no hang, no traceback, no gigabyte of memory, and no code of the file's."""
    assert outcomes[kind].faults == [], outcomes[kind].output
    assert outcomes[kind].status in (0, 2)


@pytest.mark.parametrize("kind", SCORES)
def test_what_is_no_measure_is_refused_in_one_line(outcomes, kind):
    status, output = outcomes[kind].status, outcomes[kind].output
    # A crafted dtype beside the weights is of no consequence: they are taken, and it is not.
    assert status == (0 if kind == "published-dtype-crafted" else 2), output
    assert len(output.splitlines()) <= 1 + output.count("warning: "), output


def test_there_are_many_of_one_name_each():
    kinds = [hostile.kind for hostile in hostile_files.every()]
    assert len(kinds) == len(set(kinds)) >= 750
