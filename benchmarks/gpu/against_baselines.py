"""gnfast's steps against baselines, by the cases of `gnfast.bench`; and what the device reaches at its best."""

import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.alone import search_alone
from benchmarks.gpu.section import Context, Row
from gnfast.bench import critic_steps, smooth_critics
from gnfast.bench import environment as surroundings
from gnfast.bench.baselines import repaired
from gnfast.bench.case import STATIC, STRONGEST, Case, D, Setup, free
from gnfast.bench.cases import CASES
from gnfast.bench.comparison import measure
from gnfast.bench.critics import SHIPPED, shipped
from gnfast.bench.gate import typical_error
from gnfast.bench.graph import captured
from gnfast.bench.mode import PRECISIONS, tuned


def environment(context: Context) -> Iterator[Row]:
    """Device, versions, and what runs where."""
    yield surroundings.environment(context.device)


def ceilings(context: Context) -> Iterator[Row]:
    """What this device reaches at its best: an 8192³ product or a 3×3 convolution, and a copy of 1 GiB."""
    for precision in reversed(PRECISIONS):
        found = context.ceilings(precision)
        if found is None:
            raise RuntimeError(f"no ceilings in {precision}; log.txt has the reason")
        yield {
            "precision": precision,
            "TFLOP/s": round(found.flop_per_s / 1e12, 2),
            "GB/s": round(found.bytes_per_s / 1e9, 1),
        }


def captured_step(context: Context, network: str, step: str, precision: str) -> Iterator[Row]:
    """One captured step, which also compiles what the headline needs of Triton: processes share what is compiled."""
    device, mode = torch.device(context.device), tuned(precision)
    chosen = shipped(network, width=0.05 if context.quick else 1.0)
    x = chosen.images(2 if context.quick else 128, torch.float32, mode.layout, device)
    take = partial(getattr(critic_steps, f"{step}_step"), net=chosen.critic(torch.float32, mode.layout, device), x=x)
    with mode.active(device):
        result = captured(partial(take, critic_steps.four_passes), device)()
        values = result.values.float()
        if not torch.isfinite(values).all():
            raise AssertionError(f"{int((~torch.isfinite(values)).sum())} of {values.numel()} values are not finite")
        # PyTorch's own second-order convolutions would be searched for kernels, which may take all of the time.
        expected = take(repaired).values
    # A rough check; the headline compares with float64.
    error = typical_error(values, expected)
    yield {"network": network, "step": step, "precision": precision, "differs_from_double_backward_by": error}
    if not error < 0.5:
        raise AssertionError(f"{step} step of {network} in {precision}: differs from double backward by {error:.2g}")


def compare(
    context: Context, case: str, network: str, batch: int, precision: str, budget_s: float = 0.6
) -> Iterator[Row]:
    """One of `CASES` on one of `SHIPPED`: gnfast's step against baselines, checked, with the fraction of the floor."""
    for found in _cases(context, case, network, batch, precision):
        for row in measure(found, context.ceilings(precision), **_rounds(context, budget_s), alone=context.alone):
            # The papers' code has a precision of its own.
            yield row | {"asked": precision}
        free()


def compiled(
    context: Context, network: str, batch: int, precision: str, search: bool, budget_s: float = 0.6
) -> Iterator[Row]:
    """The baselines of the critic's and the generator's step that torch.compile makes, prepared while others measure.

    With `search` the compiler tries kernels (max-autotune), which takes it longer.
    """
    # Four such processes share the cores. The compiler, which reads this, is not imported yet.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    search_alone(context.out)
    ready, failures = [], []
    options = {"compiled": True, "search": search and not context.quick}
    # A CPU's C++ compiler would take minutes for what a dry run is about.
    as_it_is = mock.patch.object(torch, "compile", lambda function, **_: function)
    for name in ("critic", "generator"):
        (found,) = _cases(context, name, network, batch, precision, **options)
        prepared = {}
        # Without its search torch.compile of torch.func is weaker than the strongest in every way.
        for variant in (STRONGEST, D) if search else (STRONGEST,):
            if variant not in found.variants:
                continue
            started = time.monotonic()
            try:
                with as_it_is if context.quick else contextlib.nullcontext():
                    prepared[variant] = found.prepare(variant)
            except Exception as error:
                failures.append(error)
                continue
            print(f"{found.step}: {variant} prepared in {time.monotonic() - started:.0f} s", flush=True)
        ready.append((found, prepared))
    context.wait()
    for found, prepared in ready:
        options = {"prepared": prepared, "only": (found.ours[0], *prepared), "alone": context.alone}
        for row in measure(found, context.ceilings(precision), **_rounds(context, budget_s), **options):
            yield row | {"asked": precision, "search": search}
        free()
    for error in failures:
        # The others were measured first.
        raise error


def _cases(
    context: Context, case: str, network: str, batch: int, precision: str, compiled: bool = False, search: bool = False
) -> Iterator[Case]:
    width, smooth = 1.0, network in smooth_critics.networks()
    if context.quick:
        # Through many layers of few channels, nothing of a gradient is left in bfloat16.
        small = not smooth and SHIPPED[network][1] < 48
        width, batch, precision = (0.05, 2, precision) if small else (0.02, 2, "float32")
    setup = Setup(torch.device(context.device), precision, batch, graphs=True, compiled=compiled, search=search)
    chosen = smooth_critics.networks(width)[network] if smooth else shipped(network, width=width)
    # PyTorch differentiates attention twice in its mathematical form alone.
    with sdpa_kernel(SDPBackend.MATH) if smooth else contextlib.nullcontext():
        for found in CASES[case](chosen, setup):
            if smooth:
                # A batch norm counts its batches, which a recording that is kept would not.
                del found.variants[STATIC]
            yield found


def _rounds(context: Context, budget_s: float) -> dict[str, float]:
    return {"budget_s": 0.0, "least": 1, "warmup": 0} if context.quick else {"budget_s": budget_s}
