"""A sample of the hostile files that scores are computed from; `make hunt` tries them all."""

import functools

import pytest

from tests import hostile_scores
from tests.hostile_files import HOSTILE, attack

SAMPLE = [
    *(
        "npz-negative",
        "npz-complex",
        "npz-mu-objects",
        "npz-n-objects",
        "npz-bomb",
        "npz-header-code",
        "npz-header-bomb",
    ),
    *("npz-claims-terabytes", "npz-extractor-surrogate", "npz-pipe", "npz-flipped", "npz-sparse"),
    *("export-width-huge", "export-scores-deep", "export-tensor-eighth", "export-extractor-code", "export-endless"),
    *("export-header-beyond", "export-cut-out", "published-code-system", "published-dtype-crafted", "published-meta"),
    *("published-numbers-10e12", "published-state-of-laughs", "published-record-bomb", "published-pipe"),
    *("run-extractor-code", "run-step-text"),
]


@functools.cache
def by_kind():
    import gnfast.cli.eval
    import gnfast.cli.export
    import gnfast.cli.sample
    import gnfast.config.presets
    import gnfast.metrics
    import gnfast.train.sample  # noqa: F401

    return {hostile.kind: hostile for hostile in HOSTILE}


@pytest.mark.parametrize("kind", SAMPLE)
def test_hostile_files_are_refused(kind):
    outcome = attack(by_kind()[kind], seed=0)
    assert not outcome.faults, outcome.output
    # A crafted dtype beside the weights is of no consequence: they are taken, and it is not.
    assert outcome.status == (0 if kind == "published-dtype-crafted" else 2), outcome.output
    assert len(outcome.output.splitlines()) <= 1 + outcome.output.count("gnfast: warning: "), outcome.output


def test_there_are_many():
    kinds = [hostile.kind for hostile in hostile_scores.MADE]
    assert len(kinds) == len(set(kinds)) >= 250
