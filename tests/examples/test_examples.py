"""Every file of examples/ is run, and must do what it says: most train one GAN, which a loop by double backward trains
as well, and in float64 all must end with its weights. The others are compared with a formula of their own.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import io
import json
import os
import re
import runpy
import socket
import sys
import warnings
from pathlib import Path
from unittest import mock

import PIL.Image
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

import gnfast
from gnfast.bench.clock import interleaved_ms
from gnfast.train import PRESETS
from tests.oracle import relative_error
from tests.processes import START

FOLDER = Path(__file__).parents[2] / "examples"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb"))
STEPS = "--steps=3"


def run(name, *options, dtype=torch.float64, fallback="error"):
    """What `python examples/name options` leaves: its variables, with what it printed as "printed"."""
    printed, path = io.StringIO(), str(FOLDER / name)
    torch.set_default_dtype(dtype)
    try:
        with (
            mock.patch.multiple(sys, argv=[path, *options], path=[str(FOLDER), *sys.path]),
            contextlib.redirect_stdout(printed),
            contextlib.nullcontext() if fallback == "always" else warnings.catch_warnings(),
        ):
            warnings.simplefilter(fallback, gnfast.FallbackWarning)
            scope = runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        scope = {"status": end.code}
    finally:
        torch.set_default_dtype(torch.float32)
        sys.modules.pop("double_backward", None)
    return scope | {"printed": printed.getvalue()}


def parameters(scope):
    """Those of both networks, the generator's first."""
    groups = [group for name in ("optim_g", "optim_d") for group in scope[name].param_groups]
    return [parameter for group in groups for parameter in group["params"]]


def assert_same_weights(actual, expected, tolerance=1e-9):
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a.detach(), e.detach()) < tolerance


@functools.cache
def expected(dtype=torch.float64, steps=STEPS):
    """The weights that the loop by double backward ends with."""
    return parameters(run("gn_gan_before.py", steps, dtype=dtype))


def trains_the_same_gan(name, *options):
    scope = run(name, STEPS, *options)
    assert_same_weights(parameters(scope), expected())
    assert re.search("critic's loss [0-9.]+, generator's loss -?[0-9.]+", scope["printed"])
    return scope


def differs_in_one_line():
    before, after = ((FOLDER / f"gn_gan_{name}.py").read_text().splitlines() for name in ("before", "after"))
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert [line[:6] for line in changes] == ["- from", "+ from"]
    trains_the_same_gan("gn_gan_after.py")


def states_what_gnfast_computes():
    scope = run("double_backward.py")
    assert max(scope["errors"]) < 1e-12
    by_hand = scope["normalize_gradient"](scope["critic"], scope["x"])
    assert relative_error(by_hand, gnfast.reference.normalize_gradient(scope["critic"], scope["x"])) < 1e-12


def trains_by_lightning():
    warnings.filterwarnings("ignore", module="lightning")
    scope = run("lightning_module.py", STEPS)
    assert_same_weights(scope["gan"].parameters(), expected())
    assert set(scope["gan"].critic.state_dict()) == {f"{i}.{name}" for i in (0, 2, 5) for name in ("weight", "bias")}


def trains_in_low_precision(name, budget):
    """One step: the gradients are those of float32, up to rounding that cannot be float32's."""
    small_scale = functools.partial(torch.amp.GradScaler, init_scale=256.0)
    with mock.patch("torch.amp.GradScaler", small_scale):
        scope = run(name, "--steps=1", dtype=torch.float32)
    exact = expected(torch.float32, "--steps=1")
    errors = [relative_error(a.grad, e.grad) for a, e in zip(parameters(scope), exact, strict=True)]
    assert 1e-4 < max(errors) < budget


def captures_the_step():
    scope = trains_the_same_gan("cuda_graph.py")
    assert isinstance(scope["step"], gnfast.CapturedStep) and not scope["step"].captured


def explains_a_critic():
    with pytest.warns(gnfast.FallbackWarning, match="FusedLeakyReLU"):
        scope = run("own_critic.py", fallback="always")
    assert scope["error"] < 1e-12
    before, after = scope["printed"].split("after: ")
    assert "custom autograd function FusedLeakyReLU" in before and "Exact in four passes" in after


def takes_a_normaliser():
    scope = run("own_normaliser.py")
    assert max(scope["errors"].values()) < 1e-12
    assert 0.5 < scope["norm"].max() <= 1 + 1e-12


def swaps_a_penalty(name, steps):
    by_gnfast, by_hand = run(name, steps), run(name, steps, "--by-hand")
    assert_same_weights(parameters(by_gnfast), parameters(by_hand))


class ByHand(nn.Module):
    """f̂ = f / (‖∇ₓf‖ + |f|) of a critic with labels, by double backward."""

    labels = ()

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y):
        ByHand.labels += (y,)
        x = x if x.requires_grad else x.clone().requires_grad_()
        f = self.net(x, y)
        (g,) = torch.autograd.grad(f.sum(), x, create_graph=True)
        return f / (g.flatten(1).norm(dim=1, keepdim=True) + f.abs())


def passes_labels_on():
    scope = run("conditional.py", STEPS)
    with mock.patch("gnfast.GradientNorm", ByHand):
        assert_same_weights(parameters(scope), parameters(run("conditional.py", STEPS)))
    in_training = ByHand.labels[:9]
    assert all(torch.equal(y, scope["dataset"].tensors[1][i // 3 * 64 :][:64]) for i, y in enumerate(in_training))
    assert re.search("with their labels -?[0-9.]+, with wrong ones -?[0-9.]+", scope["printed"])


def normalises_spectra():
    scope = run("spectral_norm.py", STEPS)
    for losses in (scope["first"], scope["second"]):
        assert losses["gnfast"] == pytest.approx(losses["PyTorch"], rel=1e-9)
    assert scope["second"] != scope["first"]
    assert gnfast.spectral_values(scope["critics"]["gnfast"]).keys() == {"0.weight", "2.weight", "5.weight"}


def draws_a_critic():
    """The notebook's cells, with fewer steps; and its pictures are there."""
    import matplotlib

    text = (FOLDER / "what_gn_does.ipynb").read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(text.encode()) < 300_000
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) == 2
    matplotlib.use("Agg")
    scope, source = {}, "\n".join("".join(cell["source"]) for cell in cells)
    assert "STEPS = 1000" in source
    with contextlib.redirect_stdout(io.StringIO()):
        exec(source.replace("STEPS = 1000", "STEPS = 40"), scope)
    matplotlib.pyplot.close("all")
    f, n, steepest = scope["f"], scope["steepness"], scope["runs"]["with GN"][1]
    assert relative_error(scope["f_hat"], f / (n + f.abs())) < 1e-5
    assert relative_error(scope["steepness_hat"], (n / (n + f.abs())).square()) < 1e-5
    assert n.max() > 1 and 0.1 < max(steepest) < 1 + 1e-5
    assert scope["error"] < 1e-12


def pixels(images):
    """Features for the demo's distance: no classifier is trained for it."""
    return images.float().mean(1)[:, ::2, ::2].flatten(1)


def demonstrates(folder):
    """Two steps, and one round of timings: the page of images, and what it prints of distances and gradients."""
    preset = PRESETS["digits"]
    config = dataclasses.replace(preset.config, extractor=f"{__name__}:pixels", eval_every=2)
    presets = mock.patch.dict(PRESETS, digits=dataclasses.replace(preset, config=config))
    timings = mock.patch(
        "gnfast.bench.clock.interleaved_ms", lambda steps, *_, **__: interleaved_ms(steps, 1, warmup=0)
    )
    with presets, timings:
        scope = run("demo.py", "--steps=2", f"--run-dir={folder}", dtype=torch.float32)
    before, after = map(float, re.search("digits: ([0-9.]+) before, ([0-9.]+) after", scope["printed"]).groups())
    assert scope["status"] == 0 and before != after
    assert float(re.search(r"weight gradients differ by (\S+)\)", scope["printed"])[1]) < 1e-2
    assert PIL.Image.open(folder / "demo.png").width > 12 * 8 * 4


CHECKS = {
    "amp_bfloat16.py": functools.partial(trains_in_low_precision, "amp_bfloat16.py", 0.1),
    "amp_float16.py": functools.partial(trains_in_low_precision, "amp_float16.py", 0.02),
    "compiled.py": functools.partial(trains_the_same_gan, "compiled.py", "--backend=aot_eager"),
    "conditional.py": passes_labels_on,
    "cuda_graph.py": captures_the_step,
    "demo.py": demonstrates,
    "double_backward.py": states_what_gnfast_computes,
    "gn_gan_after.py": differs_in_one_line,
    "gn_gan_before.py": expected,
    "lightning_module.py": trains_by_lightning,
    "own_critic.py": explains_a_critic,
    "own_normaliser.py": takes_a_normaliser,
    "spectral_norm.py": normalises_spectra,
    "stylegan_r1.py": functools.partial(swaps_a_penalty, "stylegan_r1.py", "--steps=9"),
    "wgan_gp.py": functools.partial(swaps_a_penalty, "wgan_gp.py", "--steps=2"),
    "what_gn_does.ipynb": draws_a_critic,
}


ON_TWO_PROCESSES = ("accelerate_loop.py", "ddp.py", "fsdp2.py")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in FILES if name not in ON_TWO_PROCESSES])
def test_example(name, tmp_path):
    CHECKS[name](*[tmp_path] if name == "demo.py" else [])


class HalfBatches(DataLoader):
    """As torchrun's other process has the other half."""

    def __init__(self, dataset, batch_size=1, **options):
        super().__init__(dataset, batch_size=-(-batch_size // 2), **options)


def work(rank, folder, ports):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["ACCELERATE_USE_CPU"] = "1"
    seen = {}
    for name, port in zip(ON_TWO_PROCESSES, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        # The others divide the batch by themselves.
        halved = mock.patch("torch.utils.data.DataLoader", HalfBatches)
        with halved if name == "accelerate_loop.py" else contextlib.nullcontext():
            scope = run(name, STEPS)
        seen[name] = [p.to_local() if isinstance(p, DTensor) else p for p in parameters(scope)]
    if rank == 0:
        del os.environ["RANK"]
        seen["alone"] = parameters(run("ddp.py", STEPS))
    torch.save({name: [p.detach().clone() for p in found] for name, found in seen.items()}, f"{folder}/{rank}.pt")


def test_two_processes_train_the_same_gan_and_so_does_one_without_torchrun(tmp_path):
    with contextlib.ExitStack() as places:
        sockets = [places.enter_context(socket.socket()) for _ in ON_TWO_PROCESSES]
        for place in sockets:
            place.bind(("127.0.0.1", 0))
        ports = [place.getsockname()[1] for place in sockets]
    start_processes(work, args=(str(tmp_path), ports), nprocs=2, start_method=START)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in ("accelerate_loop.py", "ddp.py"):
        assert_same_weights(first[name], expected())
        assert all(map(torch.equal, first[name], second[name]))
    assert_same_weights(map(torch.cat, zip(first["fsdp2.py"], second["fsdp2.py"], strict=True)), expected())
    assert_same_weights(first["alone"], expected())


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py") and name != "demo.py"])
def test_its_header_says_how_to_run_it(name):
    text = (FOLDER / name).read_text()
    assert f"    python examples/{name}\n" in ast.get_docstring(ast.parse(text), clean=False)
    assert text.count("  # the line that changes\n") == 1
    assert len(text.splitlines()) <= 80


def test_the_table_has_every_example_and_quotes_its_line():
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\) \| .+ \| `(.+)` \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == FILES
    for name, target, quoted in rows:
        lines = (FOLDER / name).read_text().splitlines()
        marked = [line for line in lines if line.endswith("# the line that changes")]
        assert name == target and any(quoted in line for line in marked or lines), name
