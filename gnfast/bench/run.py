"""One comparison, measured: prepare, check, count, and only then time."""

from collections.abc import Callable
from typing import Any

import torch

from gnfast.bench.agree import Error, error_of, within
from gnfast.bench.cases import OURS, Case, Step, Variant
from gnfast.bench.ceilings import Ceilings
from gnfast.bench.clock import interleaved_ms
from gnfast.bench.count import peak_bytes, work
from gnfast.bench.steps import Result

Row = dict[str, Any]

NO_BUDGET = Error(0.0, 0.0)


def measure(case: Case, rounds: int, ceilings: Ceilings, warmup: int = 1) -> tuple[list[Row], list[str]]:
    """Measures a case.

    A variant that cannot be prepared is left out with a note. Where a variant fails the gate, its row says so, and no
    ratio is formed with it; where gnfast's own does, no ratio at all.

    Args:
        case: the comparison.
        rounds: timed rounds, in each of which every variant has its turn.
        ceilings: the device's, for the floor that each row's time is compared with.
        warmup: rounds before those, beside the runs that checking and counting take.

    Returns:
        the rows, gnfast's first, and notes.
    """
    notes = list(case.notes)
    steps: dict[str, Step] = {}
    results: dict[str, Result] = {}
    for name, variant in case.variants.items():
        try:
            with variant.mode.active(case.setup.device):
                steps[name] = variant.prepare()
                first = steps[name]()
                # A captured step fills the same tensors on every replay.
                results[name] = Result(
                    None if first.values is None else first.values.clone(), [t.clone() for t in first.gradients]
                )
        except Exception as error:
            steps.pop(name, None)
            notes.append(f"{name}: left out, {type(error).__name__}: {_first_line(error)}")
    if not steps:
        return [], notes
    errors = _errors(case, results)
    results.clear()
    gates = {name: _passes(name, case.variants[name], errors) for name in errors}
    running = {name: _active(case, name, step) for name, step in steps.items()}
    counts = {name: work(step, warm=True) for name, step in running.items() if case.variants[name].visible}
    peaks = {name: peak_bytes(step, warm=True) for name, step in running.items() if case.variants[name].visible}
    times = interleaved_ms(running, rounds, warmup)
    floor_ms = 1e3 * case.cost.seconds(ceilings.flop_per_s, ceilings.bytes_per_s)
    ours = times[OURS]["median_ms"] if gates.get(OURS) else None
    rows = []
    for name, time in times.items():
        comparable = ours is not None and gates.get(name, True)
        row: Row = {
            "step": case.step,
            "network": case.network,
            "variant": name,
            "shape": list(case.shape),
            "batch": case.setup.batch,
            "device": str(case.setup.device),
            "precision": case.variants[name].precision,
            "layout": str(case.variants[name].mode.layout).removeprefix("torch."),
            **time,
            "ratio": round(ours / time["median_ms"], 4) if comparable else None,
            "gate": {True: "green", False: "red", None: "not checked"}[gates.get(name)],
            "floor_ms": round(floor_ms, 4),
            "fraction_of_floor": round(floor_ms / time["median_ms"], 4),
            "least_flops": case.cost.flops,
            "least_bytes": case.cost.bytes,
        }
        if name in errors:
            row |= {"error_values": errors[name].values, "error_gradients": errors[name].gradients}
        if name in counts:
            row |= {"flops": counts[name].flops, "launches": counts[name].launches, "peak_bytes": peaks[name]}
        rows.append(row)
    return rows, notes


def _errors(case: Case, results: dict[str, Result]) -> dict[str, Error]:
    """Per variant that is asked for one, its distance from the truth, or from its budget where there is no truth."""
    asked = {name: case.variants[name].budget for name in results if case.variants[name].budget is not None}
    if case.truth is None:
        return {name: error_of(results[name], results[budget]) for name, budget in asked.items() if budget in results}
    truth = case.truth()
    return {name: error_of(results[name], truth) for name in asked}


def _passes(name: str, variant: Variant, errors: dict[str, Error]) -> bool:
    if variant.budget == name:
        # The yardstick: what double backward itself loses is no fault, as long as something is left.
        return max(errors[name].values, errors[name].gradients) < 1
    return within(errors[name], errors.get(variant.budget, NO_BUDGET), variant.precision)


def _active(case: Case, name: str, step: Step) -> Callable[[], Result]:
    mode, device = case.variants[name].mode, case.setup.device

    def run() -> Result:
        with mode.active(device):
            return step()

    return run


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else "no message"


def free() -> None:
    """Hands a GPU's unused memory back before the next case."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
