"""What the steps of a GPU run launch compiles without spills, within each kernel's registers."""

import os
import sys
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from gnfast.bench.critic_steps import critic_step, four_passes
from gnfast.kernels.backend import TABLE, choices
from tests.kernels import specialisations
from tests.kernels.cubin import assert_fits

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled"
)

HEAD = {"_head_normalize_kernel", "_head_pull_kernel"}
OPERANDS = {"_operands_kernel"}
SUMS = {"_scaled_sums_chunks_kernel", "_scaled_sums_totals_kernel"}
LOSS = {"_loss_means_kernel", "_loss_pull_kernel"}
JOIN = {"_join_forward_kernel", "_join_masked_kernel"}
PARTS_OF_NORMS = ("moments", "statistics", "normalise", "sums", "totals", "pull")
SPECTRAL = {f"_spectral_norm_{part}_kernel" for part in ("products", "finish", "scale", "inner_product", "project")}
# The others launch what these do: `python -m tests.kernels.specialisations` compiles them all.
DRAWN = [
    *((f"{kind} step, {name}, {precision}", 90) for kind in ("critic", "generator")
      for name in ("CNN 32", "ResNet 32") for precision in ("bfloat16", "tf32")),
    *(("critic step, ResNet 32, bfloat16", 80), ("iteration, CNN 32, bfloat16", 90)),
    ("iteration, ResNet 32, bfloat16", 90),
]  # fmt: skip


def assert_fit(found, element):
    for made in found.values():
        # Digits of 2/π for its sines and cosines (test_triton_compile.py).
        stack = 48 if made.name == "_draws_latents_kernel" else 0
        assert_fits(made.compiled, sys.modules[made.module].REGISTER_BUDGET[element], made.name, stack)


@pytest.mark.parametrize(("step", "capability"), DRAWN)
def test_launched_kernels_stay_in_registers(step, capability):
    found = specialisations.specialisations(step, capability)
    sums = set() if step.startswith("generator") else SUMS
    norms = {f"_batch_norm_{part}_kernel" for part in PARTS_OF_NORMS} if step.startswith("iteration") else set()
    assert {made.name for made in found.values()} == JOIN | HEAD | LOSS | OPERANDS | sums | norms
    assert_fit(found, "fp32")


@pytest.mark.parametrize(
    ("dtype", "layout", "capability"),
    [
        (torch.float32, torch.channels_last, 90),
        (torch.bfloat16, torch.channels_last, 80),
        (torch.float16, torch.contiguous_format, 90),
        (torch.float64, torch.contiguous_format, 80),
    ],
    ids=str,
)
def test_spectral_kernels_stay_in_registers(dtype, layout, capability):
    with specialisations.recording(capability, ("spectral",)) as found:
        specialisations.spectral_step("CNN 32", dtype, layout)
    assert {made.name for made in found.values()} == SPECTRAL
    assert_fit(found, "fp64" if dtype == torch.float64 else "fp32")


def test_numbers_of_a_run_are_not_compiled_into_its_draws():
    """Which seed, sizes of batches and data sets, and number of classes: only what a kernel's type depends on."""
    changes = {"penalty": "r1", "consistency": 1.0, "classes": 10, "flip": True}
    with specialisations.recording(90) as found:
        for seed, batch, z_dim in ((0, 16, 128), (1, 1, 1), (5, 50, 100)):
            specialisations.draws_step("CNN 32", batch, **changes, seed=seed, z_dim=z_dim)
        kernels = [made.name for made in found.values()]
        assert sorted(kernels) == sorted(f"_draws_{name}_kernel" for name in ("latents", "real", "uniform", "uniform"))
        # A wider number is another type.
        specialisations.draws_step("CNN 32", 16, **changes, seed=2**32 - 1)
        assert len(found) == 8
    assert_fit(found, "fp32")


def test_layers_share_what_is_compiled_for_spectral_normalisation():
    found = specialisations.specialisations("spectral norm, ResNet 32, float32, channels_last", 90)
    assert len(found) <= 8


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_a_gpu_launches_what_is_found_without_one(precision):
    from triton.runtime.jit import JITFunction

    capability = torch.cuda.get_device_capability()
    in_triton = [operation for operation in TABLE if choices(operation, "cuda")[0] == "triton"]
    step = critic_step, four_passes, "ResNet 32", 128, precision
    with specialisations.recording(10 * capability[0] + capability[1], in_triton) as found:
        specialisations.part_step(*step)

    run, launched = JITFunction.run, set()

    def launch(self, *args, **kwargs):
        compiled = run(self, *args, **kwargs)
        launched.add(compiled.hash)
        return compiled

    with mock.patch.object(JITFunction, "run", launch):
        specialisations.part_step(*step, device="cuda")
    assert launched == set(found)
