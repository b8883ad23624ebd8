"""`gnfast analyze`: files for every analysis, one clear line for bad input; the live probe; small reproductions."""

import contextlib
import csv
import dataclasses
import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from gnfast import measure
from gnfast.analysis import experiments
from gnfast.analysis.critic_analyses import ANALYSES
from gnfast.analysis.experiments import BASE, EXPERIMENTS, FIGURES, METHODS, ZETA
from gnfast.analysis.reproduce import Scale, reproduce, sweep_for
from gnfast.cli import main
from gnfast.data import load
from gnfast.runs import launch
from gnfast.train.probe import Probe
from gnfast.train.state import State
from tests.cli.commands import TINY, fails, help_of
from tests.pages import Page
from tests.tiny_runs import tiny

CONFIG = tiny("", steps=20, flip=False, n_samples=4)


def check(folder, names):
    """Every panel as a picture, a table and a part of a page that stands alone."""
    page = Page(folder / "index.html")
    page.assert_self_contained()
    assert [attributes["id"] for tag, attributes in page.elements if tag == "h2"] == names
    assert len(page.pictures()) == len(names)
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 500
        assert table(folder, name)


def table(folder, name):
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "digits", *TINY, "--extractor=none", "--run-dir", str(folder)]) == 0
    return folder


def test_every_analysis_of_a_run(run, tmp_path, capsys):
    assert main(["analyze", str(run), "--n", "16", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == str(tmp_path / "index.html")
    assert out[0].startswith("left out training: needs figures that a run logs")
    names = ["gradient-norms", "finite-differences", "lipschitz-layers", "spectra", "operators", "loss-slopes"]
    check(tmp_path, names)
    rows = table(tmp_path, "gradient-norms")
    assert [(row["critic"], row["images"], row["count"]) for row in rows] == [
        (critic, images, "16") for critic in ("f", "f̂ (gn)") for images in ("real", "generated")
    ]
    assert all(float(row["max"]) <= 1 + 1e-6 for row in rows[2:])


def test_what_a_run_logged_while_it_trained(run, tmp_path):
    """The rows that the probe gives are the ones that the figures over training read."""
    state = State(CONFIG, load("digits", resolution=8, channels=1, progress=False), torch.device("cpu"))
    copy = tmp_path / "copy"
    (copy / "checkpoints").mkdir(parents=True)
    (copy / "config.json").write_bytes((run / "config.json").read_bytes())
    for path in (run / "checkpoints").iterdir():
        (copy / "checkpoints" / path.name).write_bytes(path.read_bytes())
    with (copy / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(2):
            state.update()
            print(json.dumps({"step": state.step, **Probe(CONFIG, 4).measure(state)}), file=file)
    assert main(["analyze", str(copy), "--what", "training", "--n", "4"]) == 0
    check(copy / "analysis", ["gradient-norm-training", "sigmas", "loss-domains"])


@pytest.fixture
def critics(tmp_path, monkeypatch):
    """A module of critics, good and bad, that can be imported."""
    (tmp_path / "my_critics.py").write_text(
        "from torch import nn\n"
        "def critic():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 1))\n"
        "def for_colour():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 1))\n"
        "def patches():\n    return nn.Conv2d(1, 1, 3)\n"
        "class Sign(nn.Module):\n    def forward(self, x):\n        return x.detach().sum((1, 2, 3)).sign()\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("my_critics")
    del sys.modules["my_critics"]


def test_a_critic_that_is_imported(critics, tmp_path):
    torch.save(critics.critic().state_dict(), tmp_path / "weights.pt")
    out = tmp_path / "out"
    words = ["--net", "my_critics:critic", "--weights", str(tmp_path / "weights.pt"), "--data", "digits", "--n", "8"]
    words += ["--method", "gran", "--tau", "1.2", "--fakes", "digits", "--what", "gradients, lipschitz"]
    assert main(["analyze", *words, "--out", str(out)]) == 0
    check(out, ["gradient-norms", "lipschitz-layers"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["my_critics:for_colour"], "do not fit the critic"),
        (["my_critics:patches"], "wanted one logit each"),
        (["my_critics:Sign"], "is not differentiable with respect to its input"),
        (["my_critics:number"], "cannot be built without arguments"),
        (["my_critics:nothing"], "my_critics has no nothing; wanted one of"),
        (["my_critics"], "wanted module:Class"),
        (["my_critics:critic", "--what", ","], "empty selection"),
        (["my_critics:critic", "--what", "colours"], f"wanted some of {', '.join(ANALYSES)}"),
        (["my_critics:critic", "--what", "loss-domain"], "needs a run"),
        (["my_critics:critic", "--n", "1"], "--n: got 1"),
        (["my_critics:critic", "--method", "gn", "--tau", "2"], "tau: method 'gn' does not take it"),
    ],
)
def test_bad_input_about_a_critic(words, said, critics, tmp_path, capsys):
    assert said in fails(capsys, "analyze", "--net", *words, "--data", "digits", "--out", str(tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()


def test_bad_input_about_a_run(run, tmp_path, capsys):
    assert f"{tmp_path / 'none'}: no such file or folder" in fails(capsys, "analyze", str(tmp_path / "none"))
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert f"has no checkpoint yet, looked for {tmp_path}/checkpoints/step-*.pt" in fails(
        capsys, "analyze", str(tmp_path)
    )
    assert "wanted a path that exists or one of" in fails(capsys, "analyze", str(run), "--data", "nowhere")
    assert "wanted either a run folder or --net" in fails(capsys, "analyze", "--data", "digits")
    assert "wanted either a run folder or --net" in fails(capsys, "analyze", str(run), "--net", "a:b")
    assert "--net needs --data" in fails(capsys, "analyze", "--net", "torch.nn:Flatten")
    assert f"wanted some of {', '.join(FIGURES)}" in fails(capsys, "analyze", "--reproduce", "everything")
    assert "wanted positive numbers" in fails(capsys, "analyze", "--reproduce", "--steps-factor", "0")


def test_help(capsys):
    assert "Examples:" in help_of(capsys, "analyze")
    for word in ("run", "--reproduce"):
        assert "(default: " in help_of(capsys, "analyze", word)


PROBED = {
    "gn": {"method": "gn"},
    "spectral": {"method": "none", "spectral_norm": True, "k_sn": 2.0},
    "gran, loss scaled": {"method": "gran", "tau": 2.0, "alpha": 3.0, "loss": "least-squares"},
}


@pytest.mark.parametrize("name", PROBED)
def test_the_probe_measures_what_the_analyses_do_and_changes_nothing(name):
    config = dataclasses.replace(CONFIG, **PROBED[name])
    dataset = load("digits", resolution=8, channels=1, progress=False)
    state, twin = (State(config, dataset, torch.device("cpu")) for _ in range(2))
    for _ in range(3):
        state.update()
        twin.update()
        row = Probe(config, 16).measure(state)
    torch.testing.assert_close(state.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert all(module.training for module in state.critic.modules())
    assert Probe(config, 16).measure(state) == row
    assert all(isinstance(value, float) for value in row.values())
    assert row["grad_norm_real_min"] <= row["grad_norm_real_median"] <= row["grad_norm_real_max"]
    if name == "gn":
        assert row["grad_norm_fake_max"] <= 1
        assert -1 <= row["omega_min"] < row["omega_max"] <= 1
    spectra = measure.layer_spectra(state.critic, torch.zeros(1, 1, 8, 8))
    for spectrum in spectra:
        assert row[f"sigma/{spectrum.layer}"] == pytest.approx(spectrum.raw[0].item(), rel=1e-3)
    if "alpha" in PROBED[name]:
        # L_α'(x) = L'(αx) of (x − 1)² on real images.
        assert row["slope_critic_real_min"] == pytest.approx(2 * (3 * row["omega_min"] - 1), rel=1e-5)


def test_the_probe_of_a_class_conditional_critic():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.embed = nn.Linear(64, 3), nn.Embedding(10, 3)

        def forward(self, x, y):
            return (self.linear(x.flatten(1)) * self.embed(y)).sum(1)

    net, x, y = Pair().double(), torch.randn(5, 1, 8, 8).double(), torch.tensor([1, 2, 3, 1, 9])
    norms = measure.gradient_norms(net, x, y, method="gn", chunk=2)
    wanted = (net.embed(y) @ net.linear.weight).norm(dim=1)
    torch.testing.assert_close(norms.norm, wanted.detach())


SCALE = Scale(resolution=8, images=64, steps_factor=0.005, width=0.05)


class InThisProcess:
    """What a sweep needs of a process, without the seconds that one takes to start."""

    def __init__(self, words, stdout, **_):
        with open(stdout.name, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            self.returncode = main(words[3:])

    def poll(self):
        return self.returncode


@pytest.fixture
def few(monkeypatch):
    """One run per experiment instead of all, one of which diverges; and few images."""
    wild = [{"name": "ζ = 0", "loss": "wasserstein", "method": "none", "lr_d": 1e30, "lr_g": 1e30, "steps": 800}]
    for name, spec in EXPERIMENTS.items():
        case = {axis: entries[:1] for axis, entries in spec.get("case", {}).items()}
        case |= {"methods": {"critic": [{"name": "SN", **METHODS["SN"]}]}, ZETA: {"setting": wild}}.get(name, {})
        grid = {axis: values[:1] for axis, values in spec.get("grid", {}).items()}
        monkeypatch.setitem(EXPERIMENTS, name, {**spec, "case": case, "grid": grid})
    monkeypatch.setattr(experiments, "IMAGES", 8)
    monkeypatch.setitem(BASE, "n_fake", 16)
    # Not in subprocess itself, which others ask for processes too: `platform.platform()`, the first time.
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": InThisProcess}))
    monkeypatch.setattr(launch, "POLL_SECONDS", 0)


def test_reproduction_draws_every_figure_and_repeats_nothing(few, tmp_path):
    lines = []
    page, signal = reproduce(SCALE, [], tmp_path, jobs=2, echo=lines.append)
    names = ["gradient-norms", "finite-differences", "lipschitz-layers", "lipschitz-training", "spectra", "sigmas"]
    names += ["operators", "loss-domains", "domain-sweep", "ablations", "robustness"]
    check(tmp_path, names)
    assert (page, signal) == (tmp_path / "index.html", 0)
    assert len(lines) == len(EXPERIMENTS)
    found = {row["family"]: row for row in table(tmp_path, "ablations") if row["setting"] != "ζ = |f|"}
    assert float(found["activation"]["distance"]) > 0 and not found["activation"]["diverged_at"]
    assert not found[ZETA]["distance"] and int(found[ZETA]["diverged_at"]) < 4
    # The critic at the start, at each measurement and at the end.
    assert {row["step"] for row in table(tmp_path, "sigmas")} == {"0", "1", "2"}
    assert {row["step"] for row in table(tmp_path, "lipschitz-layers")} == {"0", "1"}
    lines.clear()
    reproduce(SCALE, ["gradients"], tmp_path, echo=lines.append)
    assert len(lines) == 1 and lines[0].endswith("have ended before; 0 to do")
    lines.clear()
    reproduce(dataclasses.replace(SCALE, width=0.1), ["gradients"], tmp_path, echo=lines.append)
    assert len(lines) == 1 and lines[0].startswith("[1/1] methods,SN: finished")


def test_the_runs_of_all_figures_have_names_of_their_own_and_known_settings(tmp_path):
    dataset = load("digits", resolution=16, progress=False)
    sweep = sweep_for(Scale(), EXPERIMENTS, "digits", dataset, tmp_path, 1)
    assert len({case.name for case in sweep.cases}) == len(sweep.cases) == 126
    assert {case.labels["experiment"] for case in sweep.cases} == {n for f in FIGURES.values() for n in f.experiments}
    assert all(case.config().steps == case.options["steps"] > 0 for case in sweep.cases)
