"""The gate before every ratio: whether two steps computed the same, to the rounding of their precision."""

import math
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from gnfast.bench.case import Case, free
from gnfast.bench.critic_steps import Result
from gnfast.bench.mode import PAPERS
from gnfast.errors import InputError, UnsupportedError


class Error(NamedTuple):
    """How far a result is from the truth, relatively."""

    values: float
    """The median over samples."""
    gradients: float
    """The worst over weights; those with a gradient smaller than the others' are held to the others' size."""


# What is never held against a step: rounding, and the activations that it puts on the other side of zero.
FLOORS = {"float32": Error(1e-4, 2e-3), "tf32": Error(5e-3, 3e-2), "bfloat16": Error(3e-2, 1e-1)}
NO_BUDGET = Error(0.0, 0.0)


def error_of(result: Result, truth: Result) -> Error:
    """The error of a result; NaN is an infinite one."""
    values = 0.0 if truth.values is None else typical_error(result.values, truth.values)
    gradients = _gradient_errors(result.gradients, truth.gradients)
    if any(map(math.isnan, (values, *gradients))):
        return Error(math.inf, math.inf)
    return Error(values, max(gradients, default=0.0))


def _gradient_errors(actual: list[Tensor], expected: list[Tensor]) -> list[float]:
    # A bias whose true gradient is 0 has nothing but rounding, which its own size would make look like an error.
    count = sum(tensor.numel() for tensor in expected)
    mean_square = sum(tensor.double().square().sum().item() for tensor in expected) / max(count, 1)
    errors = []
    for a, b in zip(actual, expected, strict=True):
        size = max(b.double().norm().item(), (mean_square * b.numel()) ** 0.5)
        errors.append((a.double() - b.double()).norm().item() / (size or 1.0))
    return errors


def within(error: Error, budget: Error, precision: str) -> bool:
    """Whether an error is at most twice the budget, plain PyTorch's error in the same precision, or rounding.

    Where plain PyTorch's own result is lost in rounding, half the result is the most that may be.
    """
    compared = zip(error, budget, FLOORS[precision], strict=True)
    return all(found <= min(max(2 * allowed, floor), 0.5) for found, allowed, floor in compared)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; 0 where both are 0."""
    actual, expected = actual.double(), expected.double()
    difference, size = (actual - expected).norm().item(), expected.norm().item()
    return 0.0 if difference == 0 else difference / size if size else math.inf


def typical_error(actual: Tensor, expected: Tensor) -> float:
    """The median over samples of the relative error.

    Where rounding puts a pre-activation on the other side of zero, the input gradient of that sample jumps. It happens
    to any two implementations in low precision, and to few samples, which a norm over the batch would let dominate.
    """
    actual, expected = (values.double().reshape(len(values), -1) for values in (actual, expected))
    return ((actual - expected).norm(dim=1) / expected.norm(dim=1)).median().item()


class Gate:
    """The truth, and how far from it plain PyTorch is in each precision, found when first asked for."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._notes: list[str] = []
        self._budgets: dict[str, Error] = {}
        self._truth: Result | None = None
        if not any(variant.checked for variant in case.variants.values()):
            return
        try:
            with PAPERS.active(case.setup.device):
                self._truth = case.truth()
        except Exception as error:
            self._notes.append(f"nothing is checked and no ratio formed, for there is no truth: {said(error)}")

    def take_notes(self) -> list[str]:
        notes, self._notes = self._notes, []
        return notes

    def check(self, name: str, result: Result) -> tuple[Error | None, bool | None]:
        """A result's distance from the truth, and whether that is little enough; None where it is not asked."""
        variant = self.case.variants[name]
        if self._truth is None or not variant.checked:
            return None, None
        error = error_of(result, self._truth)
        if variant.budget == name:
            # The yardstick: what double backward itself loses is not a fault, as long as something is left.
            return error, max(error) < 1
        return error, within(error, self._budget(variant.budget), variant.precision)

    def _budget(self, name: str | None) -> Error:
        if name is None or name not in self.case.variants:
            return NO_BUDGET
        if name not in self._budgets:
            # One run, not timed: a search for kernels would take longer than it saves.
            variant, device = self.case.variants[name], self.case.setup.device
            variant = replace(variant, mode=replace(variant.mode, search=False))
            try:
                with variant.active(device):
                    self._budgets[name] = error_of(variant.make()(), self._truth)
            except Exception as error:
                self._notes.append(f"errors are held to the floor, for {name} does not run: {said(error)}")
                self._budgets[name] = NO_BUDGET
            free()
        return self._budgets[name]


def said(error: Exception) -> str:
    """What an exception says, in part of a line."""
    text = str(error).strip().splitlines()
    line = text[0][:200] if text else "no message"
    # gnfast's own are sentences; of others the kind says more than the text.
    return line if isinstance(error, InputError | UnsupportedError) else f"{type(error).__name__}: {line}"
