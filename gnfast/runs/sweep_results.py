"""What a sweep found: mean and standard deviation over seeds per combination."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gnfast.io.numbers import number, with_spread
from gnfast.runs.checkpoint import RunError
from gnfast.runs.launch import State, read_record, state_of
from gnfast.runs.record import (
    HIGHER_IS_BETTER,
    Record,
    beside,
    best,
    last,
    main_score,
    measure_of,
    read_run,
    score_names,
)
from gnfast.runs.scored import averages, scale, score_title
from gnfast.runs.sweep_file import Case, Sweep, shown

# Runs with these states count in means: a run that diverged has scores of the checkpoints before.
ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Run:
    """A run of the sweep with what its folder holds.

    Attributes:
        case, state: what it is, and how far.
        record: None where there is no run yet.
        best, last: (step, value) of its score; None where there is none.
        beside: the other scores at the step of the best.
    """

    case: Case
    state: State
    record: Record | None
    best: tuple[int, float] | None
    last: tuple[int, float] | None
    beside: dict[str, float]


@dataclass(frozen=True)
class Combination:
    """The runs that differ in nothing but their seed.

    Attributes:
        labels: what they have in common, per axis.
        runs: all of them.
        best, last: the scores of those that ended.
        beside: their other scores at the steps of the best.
    """

    labels: dict[str, Any]
    runs: list[Run]
    best: list[float]
    last: list[float]
    beside: dict[str, list[float]]

    def name(self, without: str = "") -> str:
        """`A, SN, k_sn 0.5`; one axis may be left out."""
        labels = [(axis, label) for axis, label in self.labels.items() if axis != without]
        return ", ".join(v if isinstance(v, str) else f"{axis} {shown(v)}" for axis, v in labels) or "all"

    @property
    def states(self) -> Counter[str]:
        """How many runs are in which state."""
        return Counter(run.state.status for run in self.runs)

    @property
    def count(self) -> str:
        """`3`, or `1 of 3, 1 diverged` where not all have finished."""
        finished, total = self.states["finished"], self.states.total()
        if finished == total:
            return str(finished)
        others = [f"{self.states[s]} {s}" for s in ("diverged", "failed", "stopped", "waiting") if self.states[s]]
        return ", ".join([f"{finished} of {total}", *others])


@dataclass(frozen=True)
class Results:
    """A sweep with its results so far.

    Attributes:
        sweep: the sweep.
        score: the key of metrics.jsonl that the tables show; empty if no run has a score.
        others: the scores that they show at the step of its best value.
        runs: all runs, in the sweep's order.
        combinations: the rows of the table, in the sweep's order.
    """

    sweep: Sweep
    score: str
    others: list[str]
    runs: list[Run]
    combinations: list[Combination]


def collect(sweep: Sweep) -> Results:
    """Reads the run folders of a sweep."""
    ends = read_record(sweep.out)
    records = [_record(case) for case in sweep.cases]
    score = sweep.score or main_score(row for record in records if record for row in record.rows)
    runs = []
    groups: dict[tuple[str, ...], list[Run]] = {}
    for case, record in zip(sweep.cases, records, strict=True):
        rows = record.rows if record else []
        found = (best(rows, score), last(rows, score), beside(rows, score))
        runs.append(Run(case, state_of(case, ends), record, *found))
        groups.setdefault(tuple(map(str, case.combination)), []).append(runs[-1])
    others = list(dict.fromkeys(other for run in runs for other in run.beside))
    combinations = []
    for group in groups.values():
        ended = [run for run in group if run.state.status in ENDED]
        bests = [run.best[1] for run in ended if run.best]
        lasts = [run.last[1] for run in ended if run.last]
        besides = {other: [run.beside[other] for run in ended if other in run.beside] for other in others}
        combinations.append(Combination(dict(group[0].case.combination), group, bests, lasts, besides))
    return Results(sweep, score, others, runs, combinations)


def rows(results: Results) -> list[tuple[str, ...]]:
    """The table as text, its head first: axes, runs, best and last score (mean ± standard deviation over seeds).

    Beside the best score it has the others at the same step.
    """
    score = title(results, results.score) if results.score else "score"
    others = [f"{title(results, other)} there" for other in results.others]
    lines = [(*results.combinations[0].labels, "runs", f"best {score}", *others, f"last {score}")]
    for one in results.combinations:
        scores = map(spread, (one.best, *one.beside.values(), one.last))
        lines.append((*map(shown, one.labels.values()), one.count, *scores))
    return lines


def is_alike(results: Results) -> bool:
    """Whether all scores were measured by the same."""
    return scale(_records(results))[1]


def notes(results: Results) -> list[str]:
    """What belongs to the table: how to read it, what was measured, or why nothing was."""
    records = _records(results)
    several = max(len(one.runs) for one in results.combinations) > 1
    seeds = "Mean ± standard deviation over the seeds, of runs that ended." if several else "One seed each: no spread."
    lines = [seeds, scale(records)[0], averages(records)]
    return [*filter(None, [*lines, _unscored(results)])]


def _unscored(results: Results) -> str:
    """One line on why no run has a score; empty where one has, or none has ended."""
    ended = [run for run in results.runs if run.state.status in ENDED and run.record]
    if not ended or any(run.best for run in results.runs):
        return ""
    if all(run.record.settings.get("extractor") == "none" for run in ended):
        return (
            "no run is scored: their extractor is none, given or chosen (no labels, no weights or steps < eval_every); "
            'set one in the sweep file, extractor = "pixels-8x8" for one that needs neither'
        )
    return f"no run is scored: none has {results.score or 'a score'} in its metrics.jsonl"


def spread(values: Sequence[float]) -> str:
    """`1.234 ± 0.056` (sample standard deviation, two digits), one value alone without it, `–` for none."""
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return with_spread(statistics.mean(values), deviation) if deviation else number(values[0])


def title(results: Results, name: str) -> str:
    """`Fréchet distance (EMA)` of `distance_ema`, as the runs' own pages call it; of what is no score, its key."""
    rows = [row for run in results.runs if run.record for row in run.record.rows]
    return score_title(name, rows) if name in score_names(rows) else name


def winner(results: Results) -> list[int]:
    """The row with the best mean of best scores, where there are several to choose from that can be told apart."""
    means = {i: statistics.mean(one.best) for i, one in enumerate(results.combinations) if one.best}
    choose = max if measure_of(results.score) in HIGHER_IS_BETTER else min
    if len(means) < 2 or not is_alike(results):
        return []
    printed = {i: spread(results.combinations[i].best).partition(" ")[0] for i in means}
    found = choose(means, key=means.__getitem__)
    return [found] if [*printed.values()].count(printed[found]) == 1 else []


def _records(results: Results) -> list[tuple[str, Record]]:
    return [(run.case.name, run.record) for run in results.runs if run.record]


def _record(case: Case) -> Record | None:
    try:
        return read_run(case.folder)
    except RunError:
        return None
