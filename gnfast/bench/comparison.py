"""One comparison, measured variant by variant: prepare, check, count, and only then time."""

import contextlib
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from gnfast.bench import count
from gnfast.bench.case import Case, Step, Variant, free
from gnfast.bench.ceilings import Ceilings
from gnfast.bench.clock import back_to_back_ms, device_ms, interleaved_ms
from gnfast.bench.critic_steps import Result
from gnfast.bench.gate import Error, Gate, said

Row = dict[str, Any]

RUN = 200_000
"""Iterations in a run of the papers."""


def measure(
    case: Case,
    ceilings: Ceilings | None,
    budget_s: float = 1.0,
    *,
    least: int = 3,
    warmup: int = 1,
    prepared: dict[str, Step] | None = None,
    only: Collection[str] | None = None,
    alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Iterator[Row]:
    """Measures a case, and gives each variant's row as soon as it is known.

    gnfast's own variant comes first: the best of `case.ours` that can be prepared. Every other takes turns with it, in
    rounds from which its ratio is formed, and then makes room for the next. A row without times is a note: "step",
    "network", "note", and "variant" where it is about one; of one that raised, "traceback" too. No ratio is formed with
    a variant that fails the gate, nor any where gnfast's own does, nor where there is no truth.

    A row's `ratio` is `ours_median_ms` / `median_ms`, both of the row's own rounds, and `ours` says whose. On a GPU
    `median_ms` is the time of one step that is waited for, `host_ms` of that until its call returns, `device_ms` the
    device's without Python's (see `clock.device_ms`), and `back_to_back_ms` a step's share of several that follow each
    other without waiting.

    Args:
        case: the comparison.
        ceilings: the device's, for the floor that each row's time is compared with; None leaves it out, as does a case
            whose cost is not known.
        budget_s, least, warmup: of each variant's rounds, as for `interleaved_ms`.
        prepared: steps that `case.prepare` made before, by name; each is taken out when its turn comes.
        only: the variants that are measured, all if None; others may be their yardsticks all the same.
        alone: keeps other processes off the device while something is timed.
    """
    gate = Gate(case)
    yield from ({**_named(case), "note": note} for note in [*case.notes, *gate.take_notes()])
    known = ceilings and case.cost
    floor_ms = 1e3 * case.cost.seconds(ceilings.flop_per_s, ceilings.bytes_per_s) if known else None
    turns = {"rounds": least, "warmup": warmup, "budget_s": budget_s}
    ours: _Running | None = None
    done: set[str] = set()
    names = [name for name in case.variants if only is None or name in only]
    while (name := _next(case, names, ours, done)) is not None:
        done.add(name)
        running = None
        try:
            running = _prepared(case, name, gate, prepared)
            yield from ({**_named(case), "variant": name, "note": note} for note in gate.take_notes())
            if ours is None and name in case.ours:
                ours = running
            with alone():
                row = _row(case, running, ours, turns, floor_ms)
            yield row | _counts(case.variants[name], running)
        except Exception as error:
            ours = None if running is ours else ours
            note = {"note": f"{name}: left out, {said(error)}", "traceback": traceback.format_exc()}
            yield {**_named(case), "variant": name, **note}
        # Of all that were measured, gnfast's own alone stays.
        del running
        free()


def _next(case: Case, names: list[str], ours: "_Running | None", done: set[str]) -> str | None:
    """The variant whose turn it is; gnfast's own as long as the others have none to be timed with."""
    if ours is None:
        names = [name for name in case.ours if name in names] + names
    return next((name for name in names if name not in done), None)


@dataclass(frozen=True)
class _Running:
    """A step that is ready to be timed, and what is known of it."""

    name: str
    step: Step
    active: Callable[[], contextlib.AbstractContextManager[None]]
    error: Error | None
    passes: bool | None
    checked: bool
    prepare_s: float

    @property
    def counts(self) -> bool:
        """Whether a ratio may be formed with it: it passed the gate, or none is asked of it."""
        return self.passes or not self.checked

    def run(self) -> Result:
        """The step in its mode."""
        with self.active():
            return self.step()


def _prepared(case: Case, name: str, gate: Gate, prepared: dict[str, Step] | None) -> _Running:
    variant = case.variants[name]
    active = partial(variant.active, case.setup.device)
    started = time.perf_counter()
    step = (prepared or {}).pop(name, None) or case.prepare(name)
    with active():
        result = step()
    prepare_s = time.perf_counter() - started
    return _Running(name, step, active, *gate.check(name, result), variant.checked, prepare_s)


def _row(case: Case, this: _Running, ours: _Running | None, turns: dict[str, Any], floor_ms: float | None) -> Row:
    variant, setup = case.variants[this.name], case.setup
    row: Row = {
        **_named(case),
        "variant": this.name,
        "shape": list(case.shape),
        "batch": setup.batch,
        "device": str(setup.device),
        "precision": "float32" if setup.device.type == "cpu" and variant.precision == "tf32" else variant.precision,
        "layout": str(variant.mode.layout).removeprefix("torch."),
    }
    together = {"this": this} if ours in (None, this) else {"ours": ours, "this": this}
    times = interleaved_ms(
        {who: running.step for who, running in together.items()}, **turns, around=lambda who: together[who].active()
    )
    row |= times["this"]
    median = row["median_ms"]
    if setup.device.type == "cuda":
        row["device_ms"] = device_ms(this.run, row["host_ms"])
        row["back_to_back_ms"] = back_to_back_ms(this.run, median, turns["budget_s"] / 2)
    in_turns = None if ours is None else times.get("ours", row)["median_ms"]
    comparable = ours is not None and ours.counts and this.counts
    row |= {
        "ours": ours and ours.name,
        "ours_median_ms": in_turns,
        "ratio": round(in_turns / median, 4) if comparable else None,
        "gate": {True: "green", False: "red", None: "not checked"}[this.passes],
        "prepare_s": round(this.prepare_s, 2),
    }
    if floor_ms is not None:
        row |= {"floor_ms": round(floor_ms, 4), "fraction_of_floor": round(floor_ms / median, 4)}
        row |= {"least_flops": case.cost.flops, "least_bytes": case.cost.bytes}
    if case.trains:
        per_step = row.get("back_to_back_ms", median)
        row |= {"steps_per_s": round(1e3 / per_step, 2), "hours_200k": round(RUN * per_step / 3.6e6, 4)}
    if this.error is not None:
        row |= {"error_values": this.error.values, "error_gradients": this.error.gradients}
    return row


def _counts(variant: Variant, this: _Running) -> Row:
    """What is counted of a step; why not all of it was, where that is so, for its times are measured."""
    row: Row = {}
    try:
        if not (variant.captured or variant.compiled):
            done = count.work(this.run, warm=True)
            row |= {"flops": done.flops, "launches": done.launches}
            row["peak_bytes"] = count.peak_bytes(this.run, warm=True)
    except Exception as error:
        row["not_counted"] = said(error)
    return row


def _named(case: Case) -> Row:
    return {"step": case.step, "network": case.network}
