"""All sections by name, those of each stage together, the most valuable first."""

from typing import Any

from benchmarks.gpu.section import Section

CRITICS = {"resnet": "ResNet 32", "cnn": "CNN 32"}
PRECISIONS = ("bfloat16", "tf32")


def _section(function: str, limit_s: float, **options: Any) -> Section:
    return Section(f"benchmarks.gpu.{function}", limit_s, options)


def _cases(case: str, network: str, batch: int, precision: str, limit_s: float, **options: Any) -> Section:
    options |= {"case": case, "network": network, "batch": batch, "precision": precision}
    return _section("against_baselines:compare", limit_s, **options)


LOAD = {
    "load": _section("load:load", 75),
    "environment": _section("against_baselines:environment", 20),
}

SMOKE = {
    "smoke_kernels": _section("tests:kernels", 40),
    "smoke_iteration": _section("training:captured_iteration", 40),
    "smoke_training": _section("training:short_training", 40),
    **{
        f"smoke_{step}_{short}_{precision}": _section(
            "against_baselines:captured_step", 40, network=network, step=step, precision=precision
        )
        for short, network in CRITICS.items()
        for precision in PRECISIONS
        for step in ("critic", "generator")
    },
}

HEADLINE = {
    "ceilings": _section("against_baselines:ceilings", 15),
    "critic_resnet_bfloat16": _cases("critic", "ResNet 32", 128, "bfloat16", 40),
    "critic_cnn_bfloat16": _cases("critic", "CNN 32", 128, "bfloat16", 30),
    "iteration_cnn_bfloat16": _cases("iteration", "CNN 32", 64, "bfloat16", 25),
    "iteration_resnet_bfloat16": _cases("iteration", "ResNet 32", 64, "bfloat16", 35),
    "generator_resnet_bfloat16": _cases("generator", "ResNet 32", 128, "bfloat16", 25),
    "generator_cnn_bfloat16": _cases("generator", "CNN 32", 128, "bfloat16", 20),
    "spectral": _section("spectral_norm:spectral_norm", 25),
    "critic_resnet_tf32": _cases("critic", "ResNet 32", 128, "tf32", 30),
    "critic_cnn_tf32": _cases("critic", "CNN 32", 128, "tf32", 25),
    "generator_resnet_tf32": _cases("generator", "ResNet 32", 128, "tf32", 20),
    "generator_cnn_tf32": _cases("generator", "CNN 32", 128, "tf32", 20),
}

COMPILED = tuple(
    {
        f"{kind}_{short}_{precision}": _section(
            "against_baselines:compiled", 25, network=network, batch=128, precision=precision, search=kind == "searched"
        )
        for kind in ("compiled", "searched")
    }
    for precision in PRECISIONS
    for short, network in CRITICS.items()
)
"""Groups that are prepared beside the headline: a step's strongest baseline as the compiler makes it, then with its
search for kernels."""

TESTS = {"tests": _section("tests:all_tests", 140)}

SMOOTH = {
    "patchgan": "PatchGAN 64, batch norm",
    "silu": "SiLU ResNet 32",
    "vit": "ViT 32",
    "stylegan2": "StyleGAN2 32, minibatch stddev",
    "attention": "ResNet 32 with self-attention",
    "biggan": "BigGAN 64",
}
"""Critics of six passes."""

REST = {
    "critic_256": _cases("critic", "ResNet 256", 32, "bfloat16", 60, budget_s=1.5),
    "convolutions": _section("convolutions:convolutions", 45),
    "launches": _section("small_kernels:launches", 15),
    "sign_bits": _section("small_kernels:sign_bits", 20),
    "twins": _section("twins:twins", 45),
    "generator_256": _cases("generator", "ResNet 256", 32, "bfloat16", 45, budget_s=1.5),
    "sampling": _cases("sampling", "ResNet 32", 128, "bfloat16", 25),
    "penalties": _cases("penalties", "ResNet 32", 128, "bfloat16", 30),
    "evaluation": _section("evaluation:evaluation", 25),
    "critic_128": _cases("critic", "ResNet 128", 64, "bfloat16", 45),
    "critic_48": _cases("critic", "ResNet 48", 128, "bfloat16", 25),
    **{f"smooth_{short}": _cases("critic", network, 64, "tf32", 35, budget_s=0.3) for short, network in SMOOTH.items()},
    "tiles": _section("convolutions:tiles", 60),
    "tuner": _section("tuner:tuner", 240),
}

RUN = {"training": _section("training:training", 660)}

SECTIONS: dict[str, Section] = {
    name: section
    for sections in (LOAD, SMOKE, HEADLINE, *COMPILED, TESTS, REST, RUN)
    for name, section in sections.items()
}
