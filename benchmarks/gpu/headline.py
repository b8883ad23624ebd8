"""What the project exists for: critic's and generator's steps, whole iterations, spectral norm, in two precisions."""

from functools import partial

from benchmarks.gpu import spectral
from benchmarks.gpu.compare import ceilings, compare, compiled
from benchmarks.gpu.section import Section


def _step(case: str, network: str, precision: str, limit_s: float) -> Section:
    batch = 64 if case == "iteration" else 128
    return Section(partial(compare, case=case, network=network, batch=batch, precision=precision), limit_s)


def _compiled(network: str, precision: str, search: bool) -> Section:
    return Section(partial(compiled, network=network, batch=128, precision=precision, search=search), 25)


SECTIONS = {
    "ceilings": Section(ceilings, 15),
    "critic_resnet_bfloat16": _step("critic", "ResNet 32", "bfloat16", 40),
    "critic_cnn_bfloat16": _step("critic", "CNN 32", "bfloat16", 30),
    "iteration_cnn_bfloat16": _step("iteration", "CNN 32", "bfloat16", 25),
    "iteration_resnet_bfloat16": _step("iteration", "ResNet 32", "bfloat16", 35),
    "generator_resnet_bfloat16": _step("generator", "ResNet 32", "bfloat16", 25),
    "generator_cnn_bfloat16": _step("generator", "CNN 32", "bfloat16", 20),
    "spectral": Section(spectral.spectral, 25),
    "critic_resnet_tf32": _step("critic", "ResNet 32", "tf32", 30),
    "critic_cnn_tf32": _step("critic", "CNN 32", "tf32", 25),
    "generator_resnet_tf32": _step("generator", "ResNet 32", "tf32", 20),
    "generator_cnn_tf32": _step("generator", "CNN 32", "tf32", 20),
}
"""The most valuable first."""

COMPILED = {
    f"{kind}_{network.split()[0].lower()}_{precision}": _compiled(network, precision, kind == "searched")
    for precision in ("bfloat16", "tf32")
    for network in ("ResNet 32", "CNN 32")
    for kind in ("compiled", "searched")
}
"""Prepared beside the others: a step's strongest baseline, first as the compiler makes it, then with its search."""

GROUPS = tuple(
    tuple(name for name in COMPILED if name.endswith(suffix))
    for suffix in ("resnet_bfloat16", "cnn_bfloat16", "resnet_tf32", "cnn_tf32")
)
