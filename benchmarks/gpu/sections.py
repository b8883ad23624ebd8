"""All sections by name, and which belong to which stage."""

from benchmarks.gpu import headline, load, rest, smoke, tests, training
from benchmarks.gpu.compare import environment
from benchmarks.gpu.section import Section

SECTIONS: dict[str, Section] = {
    "load": Section(load.load, 75),
    "environment": Section(environment, 20),
    **smoke.SECTIONS,
    **headline.SECTIONS,
    **headline.COMPILED,
    "tests": Section(tests.all_tests, 140),
    **rest.SECTIONS,
    "training": Section(training.training, 660),
}

LOAD, TESTS, RUN = ("load", "environment"), ("tests",), ("training",)
SMOKE, HEADLINE, REST = tuple(smoke.SECTIONS), tuple(headline.SECTIONS), tuple(rest.SECTIONS)
COMPILED = headline.GROUPS
