"""`gnfast analyze`: files for every analysis, one clear line for bad input; the live probe; small reproductions."""

import csv
import dataclasses
import importlib
import json
import sys
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from torch import nn

from gnfast import analysis
from gnfast.analysis import experiments, reproduce
from gnfast.analysis.critic_report import ANALYSES
from gnfast.analysis.experiments import FIGURES, Run
from gnfast.analysis.reproduce import Scale
from gnfast.cli import main
from gnfast.config.config import Config
from gnfast.data import load
from gnfast.train.probe import Probe
from gnfast.train.state import State

TINY = [
    *("--resolution=8", "--width=0.1", "--z-dim=5", "--steps=2", "--batch-d=4", "--batch-g=6", "--extractor=none"),
    *("--sample-every=0", "--n-samples=4", "--no-tensorboard", "--device=cpu"),
]
CONFIG = Config(
    data="digits",
    resolution=8,
    channels=1,
    flip=False,
    model="small",
    width=0.1,
    z_dim=5,
    steps=20,
    batch_d=4,
    batch_g=4,
    n_samples=4,
    tensorboard=False,
)


class Page(HTMLParser):
    """Headings and pictures of a page, and whether anything is fetched from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.panels, self.pictures, self.external = [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "h2":
            self.panels.append(attributes["id"])
        for name in ("src", "href"):
            if (address := attributes.get(name)) is not None:
                self.pictures += address.startswith("data:image/png;base64,")
                self.external += [] if address.startswith("data:") else [address]


def check(folder, names):
    """Every panel as a picture, a table and a part of a page that stands alone."""
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert page.panels == names
    assert page.pictures == len(names)
    assert not page.external
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 500
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            assert list(csv.DictReader(file))


def fails(capsys, *words):
    """The one line that a bad command prints."""
    assert main(["analyze", *words]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("gnfast: ")
    return line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "digits", *TINY, "--run-dir", str(folder)]) == 0
    return folder


def test_every_analysis_of_a_run(run, tmp_path, capsys):
    assert main(["analyze", str(run), "--n", "16", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == str(tmp_path / "index.html")
    assert out[0].startswith("left out training: needs a run that logged")
    names = ["gradient-norms", "finite-differences", "lipschitz-layers", "spectra", "operators", "loss-slopes"]
    check(tmp_path, names)
    with (tmp_path / "gradient-norms.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
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
        (["my_critics:patches"], "want one logit each"),
        (["my_critics:Sign"], "is not differentiable with respect to its input"),
        (["my_critics:number"], "cannot be built without arguments"),
        (["my_critics:nothing"], "cannot be imported"),
        (["my_critics"], "wanted module:Class"),
        (["my_critics:critic", "--what", ","], "empty selection"),
        (["my_critics:critic", "--what", "colours"], f"want some of {', '.join(ANALYSES)}"),
        (["my_critics:critic", "--what", "loss-domain"], "needs a run"),
        (["my_critics:critic", "--n", "1"], "--n: got 1"),
        (["my_critics:critic", "--method", "gn", "--tau", "2"], "tau: method 'gn' does not take it"),
    ],
)
def test_bad_input_about_a_critic(words, said, critics, tmp_path, capsys):
    assert said in fails(capsys, "--net", *words, "--data", "digits", "--out", str(tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()


def test_bad_input_about_a_run(run, tmp_path, capsys):
    assert f"{tmp_path / 'none'}: no such file or folder" in fails(capsys, str(tmp_path / "none"))
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert f"has no checkpoint yet, looked for {tmp_path}/checkpoints/step-*.pt" in fails(capsys, str(tmp_path))
    assert "wanted a path that exists or one of" in fails(capsys, str(run), "--data", "nowhere")
    assert "wanted either a run folder or --net" in fails(capsys, "--data", "digits")
    assert "wanted either a run folder or --net" in fails(capsys, str(run), "--net", "a:b")
    assert "--net needs --data" in fails(capsys, "--net", "torch.nn:Flatten")
    assert f"want some of {', '.join(FIGURES)}" in fails(capsys, "--reproduce", "everything")
    assert "want positive numbers" in fails(capsys, "--reproduce", "--steps-factor", "0")


def test_help(capsys):
    assert main(["analyze", "--help"]) == 0
    assert "Examples:" in capsys.readouterr().out
    for words in (["run", "--help"], ["--reproduce", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(["analyze", *words])
        assert not end.value.code
        assert "(default: " in capsys.readouterr().out


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
    assert _equal(state.state_dict(), twin.state_dict())
    assert all(module.training for module in state.critic.modules())
    assert Probe(config, 16).measure(state) == row
    assert all(isinstance(value, float) for value in row.values())
    assert row["grad_norm_real_min"] <= row["grad_norm_real_median"] <= row["grad_norm_real_max"]
    if name == "gn":
        assert row["grad_norm_fake_max"] <= 1
        assert -1 <= row["omega_min"] < row["omega_max"] <= 1
    spectra = analysis.layer_spectra(state.critic, torch.zeros(1, 1, 8, 8))
    for spectrum in spectra:
        assert row[f"sigma/{spectrum.layer}"] == pytest.approx(spectrum.raw[0].item(), rel=1e-3)
    if "alpha" in PROBED[name]:
        # L_α'(x) = L'(αx) of (x − 1)² on real images.
        assert row["slope_critic_real_min"] == pytest.approx(2 * (3 * row["omega_min"] - 1), rel=1e-5)


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def test_the_probe_of_a_class_conditional_critic():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.embed = nn.Linear(64, 3), nn.Embedding(10, 3)

        def forward(self, x, y):
            return (self.linear(x.flatten(1)) * self.embed(y)).sum(1)

    net, x, y = Pair().double(), torch.randn(5, 1, 8, 8).double(), torch.tensor([1, 2, 3, 1, 9])
    norms = analysis.gradient_norms(net, x, y, method="gn", chunk=2)
    wanted = (net.embed(y) @ net.linear.weight).norm(dim=1)
    torch.testing.assert_close(norms.norm, wanted.detach())


TINY_SCALE = Scale(resolution=8, images=64, steps_factor=0.005, width=0.05)


@pytest.fixture
def few(monkeypatch):
    """One run per figure and kind of measurement instead of all."""
    for name, spec in FIGURES.items():
        runs = {(run.measures, run.keys.get("family"), run.keys.get("depth")): run for run in reversed(spec.runs)}
        monkeypatch.setitem(FIGURES, name, dataclasses.replace(spec, runs=list(runs.values())[::-1]))
    for name, value in {"IMAGES": 8, "JACOBIANS": 2, "POINTS": 2, "FAKES": 16}.items():
        monkeypatch.setattr(reproduce, name, value)


def test_reproduction_draws_every_figure_and_repeats_nothing(few, tmp_path):
    lines = []
    page = reproduce.reproduce(TINY_SCALE, [], tmp_path, jobs=1, echo=lines.append)
    names = ["gradient-norms", "finite-differences", "lipschitz-layers", "lipschitz-training", "spectra", "sigmas"]
    names += ["operators", "loss-domains", "domain-sweep", "ablations", "robustness"]
    check(tmp_path, names)
    assert page == tmp_path / "index.html"
    assert lines
    assert len(list((tmp_path / "records").iterdir())) == len(lines)
    lines.clear()
    reproduce.reproduce(TINY_SCALE, ["gradients"], tmp_path, jobs=1, echo=lines.append)
    assert not lines
    reproduce.reproduce(dataclasses.replace(TINY_SCALE, width=0.1), ["gradients"], tmp_path, jobs=1, echo=lines.append)
    assert len(lines) == len(FIGURES["gradients"].runs)


def test_a_run_that_diverges_is_recorded_as_such(tmp_path):
    dataset = load("digits", resolution=8, channels=1, progress=False)
    run = Run("wild", "wild", {"lr_d": 1e30, "lr_g": 1e30, "loss": "wasserstein"}, ("domain", "sigmas"))
    config = Config(**reproduce.settings_of(run, dataclasses.replace(TINY_SCALE, steps_factor=0.05), 1))
    record = reproduce.train(run, config, dataset)
    assert record.diverged is not None
    assert record.distance is None


def test_runs_have_names_of_their_own_and_known_settings():
    by_name = {}
    for spec in FIGURES.values():
        for run in spec.runs:
            assert by_name.setdefault(run.name, run) == run
            assert set(run.measures) <= set(experiments.MEASURES)
            Config(**reproduce.settings_of(run, Scale(), 1))
