"""Tables of choices that ship: what the tuner writes is what is read, and nothing counts that was not measured."""

import json
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gnfast
from benchmarks.gpu import tuner as gpu_tuner
from benchmarks.gpu.section import Context
from gnfast.bench.critic_steps import critic_step, four_passes
from gnfast.bench.critics import shipped
from gnfast.bench.mode import tuned
from gnfast.errors import FallbackWarning
from gnfast.kernels import autotune, backend, tuning_table
from tests.kernels.conv_twin import ConvTwin
from tests.kernels.test_conv import FUNCTIONS, Readers, images, in_doubles
from tests.oracle import assert_matches_double_backward

CPU = torch.device("cpu")
KEY = ("operation", 2, True), (torch.Size((4, 3)), None, torch.bfloat16)
CANDIDATES = {"default": lambda: pytest.fail("was run"), "fast": lambda: pytest.fail("was run")}
ROOT = Path(__file__).resolve().parents[2]


def chosen(key=KEY, candidates=CANDIDATES):
    return autotune.choose_fastest(key, candidates, CPU, tolerance=0.0)


@pytest.fixture
def table(tmp_path):
    """A table whose only choice is that of KEY."""
    path = tmp_path / "table.json"
    tuning_table.write(path, {tuning_table.text_of(KEY): ("fast", 0.75)}, CPU)
    return path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.usefixtures("fused")
def test_what_the_tuner_has_written_is_what_runs_elsewhere(ships, tuner, use, tmp_path, monkeypatch):
    """The tuner finds the second configuration the fastest; without it the table that it wrote says so."""
    seconds, used = {"first": 0.8, "second": 0.5}, Counter()
    monkeypatch.setattr(autotune, "_seconds", lambda call, device: seconds.get(*getattr(call, "args", ("apart",)), 1.0))
    monkeypatch.setenv("GNFAST_AUTOTUNE", "1")

    def note(function, configuration, result):
        used[function, configuration] += 1
        return result

    use("conv", "cpu", "torch", "triton", module=ConvTwin(fault=note))
    net, x = in_doubles(Readers()), images(3, 3, 8, 8)
    assert_matches_double_backward(net, x)
    ships(autotune.cache_file(CPU))
    monkeypatch.delenv("GNFAST_AUTOTUNE")
    used.clear()
    assert_matches_double_backward(net, x)
    assert used.keys() == {(function, "second") for function in FUNCTIONS}

    # Of another batch nothing was measured.
    used.clear()
    assert_matches_double_backward(net, images(2, 3, 8, 8))
    assert not used
    # Where Triton has no rival, its configurations are those that were measured all the same.
    with monkeypatch.context() as context:
        context.setitem(backend.CHOSEN, ("conv", "cpu"), ("triton",))
        assert_matches_double_backward(net, x)
    assert {configuration for _, configuration in used} == {"second"}
    used.clear()
    # Nothing of it counts where the variable is set; what is measured then is the user's own.
    monkeypatch.setenv("GNFAST_AUTOTUNE", "0")
    assert_matches_double_backward(net, x)
    assert not used
    monkeypatch.setenv("GNFAST_AUTOTUNE", "1")
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "empty"))
    seconds |= {"first": 2.0, "second": 2.0}
    assert_matches_double_backward(net, x)
    used.clear()
    assert_matches_double_backward(net, x)
    assert not used


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("listed", ["default", "a tile that is no more"])
def test_where_nothing_is_won_the_way_is_that_without_a_table(listed, ships, table, use, monkeypatch):
    twin = use("conv", "cpu", "torch", "triton", module=ConvTwin())
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 1)), images(2, 3, 5, 5)
    weight = in_doubles(net)[0].weight
    place = x.shape, None, weight.shape, weight.stride(), x.dtype, (1, 1), (0, 0), False, False
    choice = ("apart", 1.0) if listed == "default" else (listed, 0.5)
    for name in ("conv2d", "conv_join_forward"):
        tuning_table.write(table, {tuning_table.text_of(((name, False), place)): choice}, CPU)
        ships(table)
        assert_matches_double_backward(net, x)
        assert bool(tuning_table.shipped(CPU)) == (listed != "default")
    assert not twin.calls
    # The place was not missed.
    tuning_table.write(table, {tuning_table.text_of((("conv2d", False), place)): ("second", 0.5)}, CPU)
    ships(table)
    assert_matches_double_backward(net, x)
    assert twin.functions.keys() == {"conv2d"}


@pytest.mark.usefixtures("fused")
def test_the_file_of_the_gpu_run_ships_as_it_is(ships, tuner, use, tmp_path, monkeypatch):
    twin = use("conv", "cpu", "torch", "triton", module=ConvTwin(("64x64x64",)))
    seconds = {"64x64x64": 0.5}
    monkeypatch.setattr(autotune, "_seconds", lambda call, device: seconds.get(*getattr(call, "args", ("apart",)), 1.0))
    rows = list(gpu_tuner.tuner(Context("cpu", True, tmp_path)))
    file = tmp_path / "cpu.json"
    choices = list(tuning_table.read(file)["choices"].values())
    assert len(rows) == 4 and sum(row["choices"] for row in rows) == len(choices)
    assert sum(row["other_than_default"] for row in rows) == choices.count(("64x64x64", 0.5)) > 9
    ships(file)
    monkeypatch.delenv("GNFAST_AUTOTUNE")
    twin.calls.clear()
    network, mode = shipped("ResNet 32", width=0.05), tuned("bfloat16")
    net, x = network.critic(torch.float32, mode.layout), network.images(2, torch.float32, mode.layout)
    for expected, way in ((set(), replace(mode, search=False)), (FUNCTIONS - {"conv2d_input_grad_squares"}, mode)):
        with way.active(CPU):
            critic_step(four_passes, net, x)
        assert twin.functions.keys() == expected


def test_listed_or_the_default(ships, table, monkeypatch):
    assert chosen() == "default"
    ships(table)
    with warnings.catch_warnings(action="error"):
        assert chosen() == "fast"
        for other in ((KEY[0][:2], KEY[1]), (KEY[0], (*KEY[1][:2], torch.float16)), (KEY[0], ((5, 3), *KEY[1][1:]))):
            assert chosen(other) == "default"
        # A candidate of another version of gnfast.
        assert chosen(candidates={"default": CANDIDATES["default"]}) == "default"
        for value, wanted in {"0": "default", "": "fast"}.items():
            monkeypatch.setenv("GNFAST_AUTOTUNE", value)
            assert chosen() == wanted
    assert "measured on 2" in tuning_table.status(CPU)


def test_versions_that_were_compared_must_be_the_same(ships, table):
    written = json.loads(table.read_text())
    assert {"device", "torch", "cudnn", "triton", "date", "choices"} == written.keys()
    for name in ("triton", "cudnn"):
        edit(table, **{name: "1.0"})
        ships(table)
        with warnings.catch_warnings(action="error"):
            assert chosen() == "default"
        assert tuning_table.status(CPU) == f"cpu.json, not used: measured with {name} 1.0, here {written[name]}"
        edit(table, **written)
    edit(table, torch="1.0")
    ships(table)
    assert chosen() == "fast"


@pytest.mark.parametrize(
    "change",
    [
        *({"choices": value} for value in (None, [], {"x": 1}, {"[[], []]": ["fast"]}, {"[[], []]": ["fast", "0.5"]})),
        *(
            {"choices": {key: ["fast", 0.5]}}
            for key in ("{", "[]", '["operation", []]', '[["torch.nn"], []]', "[[{}], []]", "[" * 10_000)
        ),
        {"device": None, "choices": 3},
    ],
    ids=lambda change: str(change)[:60],
)
def test_a_damaged_table_is_told_once(change, ships, table):
    edit(table, **change)
    ships(table)
    with pytest.warns(FallbackWarning, match=r"cpu\.json: .*; kernels run in their default") as said:
        assert chosen() == chosen() == "default"
    assert len(said) == 1 and "cannot be read" in tuning_table.status(CPU)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_table_that_is_none_is_told_once(content, ships, table):
    table.write_bytes(content)
    assert autotune._loaded.__wrapped__(table) == {}
    ships(table)
    with pytest.warns(FallbackWarning) as said:
        assert chosen() == chosen() == "default"
    assert len(said) == 1


@pytest.mark.parametrize(("version", "wanted"), [(91002, "9.10"), (8902, "8.9"), (None, "none")])
def test_minor_versions(version, wanted, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    assert tuning_table.versions.__wrapped__()["cudnn"] == wanted


def test_a_file_is_named_after_the_compute_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device.index == 1 else (8, 6))
    names = [tuning_table.file_name(torch.device("cuda", index)) for index in range(2)]
    assert names == ["sm_86.json", "sm_90.json"]


@pytest.mark.interpreted
def test_a_triton_kernel_is_launched_as_listed(ships, table, monkeypatch):
    from gnfast.kernels.join import triton as join

    launched, grid = [], join._grid
    monkeypatch.setattr(join, "_grid", lambda numel, name: launched.append(name) or grid(numel, name))
    x, bias = torch.randn(3, 5, 4, 4), torch.randn(5)
    expected = torch.relu(x + bias[:, None, None])
    place = x.shape, x.stride(), 1, x.dtype
    for operation in (("join_forward", 1, 1, False), ("another",)):
        tuning_table.write(table, {tuning_table.text_of((operation, place)): ("32x2", 0.5)}, CPU)
        ships(table)
        torch.testing.assert_close(join.forward([x], [bias], 1, 0.0, False, None)[0], expected)
    assert launched == ["32x2", next(iter(join.CONFIGURATIONS))]


def test_tables_are_packed(tmp_path, table):
    """Both kinds of package have the tables of the folder, and each whole."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "Makefile"):
        shutil.copy(ROOT / name, project)
    for name in ("gnfast/__init__.py", "gnfast/kernels/__init__.py", "csrc/schema.cpp"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text('__version__ = "0"\n')
    shipped = "gnfast/kernels/tuned/sm_90.json"
    (project / shipped).parent.mkdir()
    shutil.copy(table, project / shipped)
    code = "import os, runpy, sys; os.environ['GNFAST_BUILD'] = 'none'; sys.argv = ['setup.py', 'sdist', 'bdist_wheel']"
    code += "; runpy.run_path('setup.py')"
    run = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,), (sdist,) = (project / "dist").glob("*.whl"), (project / "dist").glob("*.tar.gz")
    assert zipfile.ZipFile(wheel).read(shipped) == table.read_bytes()
    with tarfile.open(sdist) as files:
        assert files.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/{shipped}").read() == table.read_bytes()


def test_tables_that_ship_are_well_formed():
    for path in tuning_table.FOLDER.glob("*"):
        table = tuning_table.read(path)
        choices = tuning_table._by_place(table["choices"])
        assert path.stem.startswith("sm_") and choices and table["device"] != "cpu"
        assert all(ratio is None or 0 < ratio <= 1 for _, ratio in table["choices"].values())


def test_nothing_is_looked_up_without_a_table(ships, use, monkeypatch):
    from gnfast.kernels.conv import contest

    monkeypatch.setattr(contest, "_place", lambda *_: pytest.fail("a key was made"))
    use("conv", "cpu", "torch", "triton")
    net = in_doubles(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 1)))
    gnfast.normalize_gradient(net, images(2, 3, 5, 5), strict=True)
    assert backend.choices("conv", "cpu") == ("torch", "triton")
