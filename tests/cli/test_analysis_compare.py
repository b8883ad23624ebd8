"""Analyses of several runs on the same axes, of class-conditional runs, and of data without classes."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from gnfast import measure
from gnfast.analysis import subjects
from gnfast.analysis.compare import compare
from gnfast.analysis.figures import PANELS
from gnfast.analysis.pooling import pooled
from gnfast.analysis.reproduce import Scale, reproduce
from gnfast.cli import main
from gnfast.runs.checkpoint import RunError
from gnfast.runs.drawing import drawing
from tests.cli.commands import fails
from tests.cli.test_analysis_cli import check, few, table  # noqa: F401
from tests.tiny_runs import quiet, tiny

SETTINGS = {
    "gn-0": {"probe_every": 2},
    "gn-1": {"probe_every": 2, "seed": 1},
    "sn": {"method": "none", "spectral_norm": True, "probe_every": 2},
    "unprobed": {"method": "none", "probe_every": 0},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in SETTINGS.items():
        quiet("x", tiny(folder / name, steps=4, n_samples=4, checkpoint_every=4, **changes))
    return folder


NAMES = ["gradient-norms", "finite-differences", "lipschitz-layers", "lipschitz-training", "spectra", "operators"]
NAMES += ["loss-slopes", "loss-domains", "sigmas"]


def test_seeds_share_a_box_and_methods_their_axes(runs, tmp_path, capsys):
    words = [str(runs / name) for name in ("gn-0", "gn-1", "sn")]
    assert main(["analyze", *words, "--labels", "GN,GN,SN", "--n", "12", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "index.html")]
    check(tmp_path, NAMES)
    rows = table(tmp_path, "gradient-norms")
    assert [(row["critic"], row["images"], row["count"]) for row in rows] == [
        *(("GN", "real", "24"), ("GN", "generated", "24")),
        *(("SN", "real", "12"), ("SN", "generated", "12")),
    ]
    critics = [subjects.of_run(runs / name, count=12, device=CPU) for name in ("gn-0", "gn-1")]
    norms = [measure.gradient_norms(one.critic, one.fake, method="gn").normalized_norm for one in critics]
    assert float(rows[1]["median"]) == pytest.approx(torch.cat(norms).double().quantile(0.5).item(), rel=1e-6)
    quotients = table(tmp_path, "finite-differences")
    assert {(row["critic"], row["images"]) for row in quotients} == {
        (critic, images) for critic in ("GN", "SN") for images in ("real", "generated")
    }
    assert {row["family"] for row in table(tmp_path, "loss-domains")} == {"hinge, gn", "hinge, spectral norm"}
    # Logged at steps 2 and 4 and measured at the end.
    assert [row["step"] for row in table(tmp_path, "lipschitz-training") if row["critic"] == "GN"] == ["2", "4", "4"]


def test_what_spectral_normalisation_applies_has_norm_1(runs, tmp_path):
    pictures = compare({"SN": [runs / "sn"]}, ["training", "singular-values"], tmp_path, n=4, device="cpu")
    assert [path.name for path in pictures] == ["loss-domains.png", "sigmas.png", "spectra.png", "operators.png"]
    for row in table(tmp_path, "sigmas"):
        assert float(row["applied"]) == pytest.approx(1, abs=0.05)
        assert abs(float(row["raw"]) - 1) > 0.05
    for row in table(tmp_path, "spectra"):
        if row["index"] == "0":
            assert float(row["normalized"]) == pytest.approx(1, abs=0.05)


def test_spectra_are_drawn_squared_and_scaled():
    rows = [
        {"critic": "SN", "layer": "linear", "index": index, "raw": 3 * sigma, "normalized": sigma}
        for index, sigma in enumerate([0.9, 0.6, 0.3])
    ]
    with drawing():
        (axes,) = PANELS["spectra"][2](rows).axes
    (line,) = axes.lines
    assert line.get_ydata() == pytest.approx([1, 4 / 9, 1 / 9])


def test_what_does_not_apply_to_a_run(runs, tmp_path, capsys):
    lines = []
    folders = {"GN": [runs / "gn-0"], "none": [runs / "unprobed"]}
    compare(folders, [], tmp_path, n=4, device="cpu", echo=lines.append)
    check(tmp_path, NAMES)
    (line,) = lines
    assert line.startswith(f"left out training of {runs / 'unprobed'}: needs figures that a run logs")
    words = [str(run) for (run,) in folders.values()]
    assert f"{runs / 'unprobed'}: training: needs figures that a run logs" in fails(
        capsys, "analyze", *words, "--what", "training", "--out", str(tmp_path / "other")
    )


def test_bad_input_about_several_runs(runs, tmp_path, capsys):
    words = ["analyze", str(runs / "gn-0"), str(runs / "sn"), "--out", str(tmp_path / "bad")]
    assert "--labels: got 1, wanted one for each of the 2 runs" in fails(capsys, *words, "--labels", "GN")
    assert "'a' stands for runs with hinge, gn and with hinge, spectral norm" in fails(
        capsys, *words, "--labels", "a,a"
    )
    assert "wanted some of gradients" in fails(capsys, *words, "--what", "colours")
    assert "--labels: wanted with several runs" in fails(capsys, "analyze", str(runs / "sn"), "--labels", "SN")
    with pytest.raises(ValueError, match="folders: got"):
        compare({}, [], tmp_path)
    with pytest.raises(RunError, match="no such file"):
        compare({"a": [runs / "sn", tmp_path / "none"]}, [], tmp_path)


def test_pooled_rows():
    first = {"operators": [{"critic": "a", "layer": "x", "matrix": 1.0, "circular": None, "operator": 2.0}]}
    second = {"operators": [{"critic": "a", "layer": "x", "matrix": 2.0, "circular": None, "operator": 4.0}]}
    assert pooled([first, second])["operators"] == [
        {"critic": "a", "layer": "x", "matrix": 1.5, "circular": None, "operator": 3.0}
    ]
    names = ("omega_min", "omega_max", "slope_min", "slope_max")
    one = {"family": "f", "setting": "s", "step": 2, **dict(zip(names, (-1.0, 1.0, 0.0, 0.5), strict=True))}
    two = one | {"omega_min": -2.0, "slope_max": 0.4}
    assert pooled([{"loss-domains": [one]}, {"loss-domains": [two]}])["loss-domains"] == [one | {"omega_min": -2.0}]


def test_a_class_conditional_run(tmp_path, capsys):
    config = tiny(tmp_path / "run", model="biggan", resolution=32, width=0.01, classes=10, steps=1, n_samples=2)
    quiet("x", dataclasses.replace(config, batch_d=2, batch_g=2, probe_every=1))
    words = ["--n", "4", "--n-jacobians", "2", "--out", str(tmp_path / "out")]
    assert main(["analyze", str(tmp_path / "run"), *words]) == 0
    assert not capsys.readouterr().out.startswith("left out")
    assert {row["count"] for row in table(tmp_path / "out", "gradient-norms")} == {"4"}
    subject = subjects.of_run(tmp_path / "run", count=4, device=CPU)
    assert subject.labels.shape == (4,) and subject.labels.max() <= 9
    wanted = measure.gradient_norms(subject.critic, subject.fake, subject.labels, method="gn").normalized_norm
    got = next(
        r for r in table(tmp_path / "out", "gradient-norms") if r["critic"] != "f" and r["images"] == "generated"
    )
    assert float(got["max"]) == pytest.approx(wanted.max().item(), rel=1e-5)


def pictures(folder, count):
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(random.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return str(folder)


def test_images_without_classes(tmp_path, capsys):
    data = pictures(tmp_path / "pictures", 20)
    quiet("x", tiny(tmp_path / "run", data=data, channels=3, steps=1, n_samples=2))
    assert main(["analyze", str(tmp_path / "run"), "--n", "4", "--what", "gradients"]) == 0
    config = tiny(tmp_path / "classes", model="biggan", resolution=32, width=0.01, classes=10, steps=1, n_samples=2)
    quiet("x", config)
    words = ("analyze", str(tmp_path / "classes"), "--data", data)
    assert "has no classes, wanted classes 0 to 9" in fails(capsys, *words)


def test_reproduction_on_images_without_classes(few, tmp_path):  # noqa: F811
    scale = Scale(data=pictures(tmp_path / "pictures", 20), resolution=8, images=16, steps_factor=0.005, width=0.05)
    reproduce(scale, ["gradients"], tmp_path / "out", echo=lambda line: None)
    check(tmp_path / "out", ["gradient-norms"])
