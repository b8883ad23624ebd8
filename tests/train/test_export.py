"""Exported generators: the same images as from the run, bit for bit, and clear words about files that are none."""

import dataclasses
import json
import os

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from gnfast.cli import main
from gnfast.errors import InputError
from gnfast.io.files import atomic_write
from gnfast.runs import checkpoint
from gnfast.train import RunError
from gnfast.train import sample as sample_module
from gnfast.train.export import Snapshot, export, load_generator
from gnfast.train.sample import WALK, sample_run
from tests.tiny_runs import quiet, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps of tiny networks; the folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    quiet("digits", tiny(folder, steps=3, n_samples=4, ema_decay=0.4))
    row = {"step": 3, "distance_raw": 2.0, "distance_ema": 1.5, "extractor": "pixels", "n_real": 9, "n_fake": 9}
    with (folder / "metrics.jsonl").open("a") as file:
        print(json.dumps(row), file=file)
    return folder


def contents(file):
    """The metadata of an exported file, and its weights."""
    with safe_open(file, "pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("batch_norm", ["run", "running"])
def test_an_exported_file_draws_what_the_run_draws(run, tmp_path, weights, batch_norm):
    file = export(run, tmp_path / "new" / "G.safetensors", weights)
    options = {"count": 13, "seed": 4, "batch_norm": batch_norm, "device": "cpu"}
    a = sample_run(run, out=tmp_path / "run.png", weights=weights, **options)
    b = sample_run(file, out=tmp_path / "file.png", **options)
    assert a.read_bytes() == b.read_bytes()
    other = sample_run(run, out=tmp_path / "other.png", weights={"ema": "raw", "raw": "ema"}[weights], **options)
    assert other.read_bytes() != a.read_bytes()


def test_load_generator_gives_the_weights_in_the_mode_that_the_run_samples_in(run, tmp_path):
    generator = load_generator(export(run, tmp_path / "G.safetensors"))
    saved = checkpoint.load_newest(run / "checkpoints")["state"]["ema"]
    assert generator.training
    assert generator.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in generator.state_dict().items())
    images = generator(torch.randn(6, 5))
    assert images.shape == (6, 1, 8, 8) and not images.requires_grad


def test_the_metadata_tell_the_settings_and_scores_but_no_places(run, tmp_path):
    metadata, _ = contents(export(run, tmp_path / "G.safetensors"))
    metadata = {name: json.loads(value) for name, value in metadata.items()}
    expected = {"preset": "digits", "step": 3, "weights": "ema", "data": "digits"}
    expected |= {"model": "small", "resolution": 8, "z_dim": 5, "sample_bn": "batch"}
    assert expected.items() <= metadata.items()
    assert metadata["scores"]["distance_ema"] == 1.5
    assert not any(str(run.parent) in str(value) for value in metadata.values())
    assert {"run_dir", "device"}.isdisjoint(metadata)


def test_files_that_are_none_say_so(run, tmp_path):
    file = export(run, tmp_path / "G.safetensors")
    content = file.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for damaged in (
        content[:-50],
        content[:20],
        b"",
        b"PNG of a cat",
        content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    ):
        broken.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged"):
            load_generator(broken)
    save_file({"weight": torch.zeros(2)}, broken)
    with pytest.raises(RunError, match="not one of `gnfast export`"):
        load_generator(broken)
    for missing in ("nothing", "nothing.safetensors", "nothing.pt"):
        with pytest.raises(RunError, match=f"{missing} is not there: wanted a run folder, a file of"):
            export(tmp_path / missing, tmp_path / "G.safetensors")
    with pytest.raises(RunError, match="is not there"):
        load_generator(tmp_path / "nothing.safetensors")
    with pytest.raises(RunError, match="holds ema weights, not raw"):
        sample_run(file, weights="raw")
    metadata, state = contents(file)
    save_file(state, broken, metadata=metadata | {"width": "0.2"})
    with pytest.raises(RunError, match=r"do not fit a small generator: .* instead of "):
        load_generator(broken)
    with pytest.raises(ValueError, match=r"wanted FILE\.safetensors"):
        export(run, tmp_path / "G.pt")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 1e9}, "there are no such networks"),
        ({"width": 100.0}, "do not fit a small generator: .*the file has .* instead of"),
        ({"resolution": 1 << 50}, "there are no such networks"),
        ({"resolution": "8"}, "--resolution: got '8', wanted a whole number"),
        ({"model": "huge"}, "model: got 'huge', wanted one of"),
        ({"sample_bn": "neither"}, "--sample-bn: got 'neither', wanted one of"),
        ({"batch_g": 10**9}, "--batch-g: got 1000000000, wanted a whole number from 1 to 16384"),
        ({"betas": [0.1]}, "--betas: got"),
        ({"weights": "best"}, "damaged: its metadata are not those"),
        ({"step": None}, "damaged: its metadata are not those"),
        ({"step": 1 << 70, "scores": []}, "damaged: its metadata are not those"),
    ],
)
def test_settings_that_a_file_cannot_have(run, tmp_path, changed, message):
    metadata, state = contents(export(run, tmp_path / "G.safetensors"))
    metadata |= {name: json.dumps(value) for name, value in changed.items()}
    save_file(state, tmp_path / "theirs.safetensors", metadata=metadata)
    with pytest.raises(RunError, match=rf"theirs\.safetensors.*({message})"):
        load_generator(tmp_path / "theirs.safetensors")


def test_metadata_that_are_no_settings(run, tmp_path):
    metadata, state = contents(export(run, tmp_path / "G.safetensors"))
    for damage in ({"step": "{"}, {"step": "[" * 100_000}, {"step": "9" * 5000}):
        save_file(state, tmp_path / "theirs.safetensors", metadata=metadata | damage)
        with pytest.raises(RunError, match=r"theirs\.safetensors is damaged: its metadata"):
            load_generator(tmp_path / "theirs.safetensors")
    del metadata["resolution"]
    save_file(state, tmp_path / "theirs.safetensors", metadata=metadata)
    with pytest.raises(RunError, match=r"theirs\.safetensors.*resolution: missing"):
        load_generator(tmp_path / "theirs.safetensors")


def test_weights_that_are_not_finite_are_not_drawn_from(run):
    taken = sample_module.snapshot(run)
    next(iter(taken.state.values())).view(-1)[0] = float("nan")
    with pytest.raises(RunError, match="NaN or infinity in "):
        taken.build()


def test_a_file_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "in-the-way").write_text("")
    assert main(["export", str(run), "--out", str(tmp_path / "in-the-way" / "G.safetensors")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "in-the-way" in line


def test_outputs_replace_files_alone(run, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for words in (["sample", run, "--n=1"], ["export", run], ["report", run], ["data", "stats", "digits"]):
        name = tmp_path / ("pipe.safetensors" if words[0] == "export" else "pipe.png")
        assert main([*map(str, words), "--out", str(name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"gnfast: {name}: a named pipe, wanted a regular file" and name.is_fifo()
        with pytest.raises(InputError, match="a named pipe, wanted a regular file"), atomic_write(name):
            pass
    (tmp_path / "file").write_text("kept")
    for words in (["sample", run], ["analyze", run]):
        assert main([*map(str, words), "--out", str(tmp_path / "file")]) == 2
        assert "/file: a file, wanted a folder" in capsys.readouterr().err


def test_a_link_that_the_user_names_is_followed_and_one_that_lies_in_the_run_is_not(run, tmp_path):
    places = [tmp_path / name for name in ("elsewhere.html", "planted.html")]
    for place in places:
        place.write_text("old")
    (tmp_path / "link.html").symlink_to("elsewhere.html")
    (run / "report.html").unlink(missing_ok=True)
    (run / "report.html").symlink_to(places[1])
    assert main(["report", str(run), "--out", str(tmp_path / "link.html")]) == 0
    assert (tmp_path / "link.html").is_symlink() and "<html" in places[0].read_text()
    assert main(["report", str(run)]) == 0
    assert not (run / "report.html").is_symlink() and places[1].read_text() == "old"


def test_files_have_the_mode_that_the_umask_gives(run, tmp_path):
    before = os.umask(0o027)
    try:
        assert export(run, tmp_path / "G.safetensors").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_walk_has_rows_of_ten_that_start_and_end_at_latents_of_the_seed(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sample_module, "sample", lambda g, z, y, **_: (seen.append(z), g(z))[1])
    path = sample_run(run, interpolate=3, out=tmp_path / "walk.png", seed=2, device="cpu")
    assert Image.open(path).size == ((WALK * 9 + 1) * 8, (3 * 9 + 1) * 8)
    assert all(len(z) == 6 for z in seen)
    a, b = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2))
    walk = torch.cat(seen)[: 3 * WALK].unflatten(0, (3, WALK))
    torch.testing.assert_close(walk[:, 0], a)
    torch.testing.assert_close(walk[:, -1], b)


class Conditional(nn.Module):
    """Images whose pixels are the label: y / 10 in [-1, 1]."""

    def forward(self, z, y):
        return (y / 10).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_labels_are_taken_in_turn(run, tmp_path, monkeypatch):
    taken = sample_module.snapshot(run)
    labelled = dataclasses.replace(taken, config=dataclasses.replace(taken.config, classes=10))
    monkeypatch.setattr(sample_module, "snapshot", lambda *_: labelled)
    monkeypatch.setattr(Snapshot, "build", lambda self: Conditional())

    def greys(**options):
        folder = sample_run(run, out=tmp_path / str(options), device="cpu", **options)
        return [Image.open(path).getpixel((0, 0)) for path in sorted(folder.iterdir())]

    grey = [round(127.5 * (1 + label / 10)) for label in range(10)]
    assert greys(count=13) == pytest.approx([*grey, *grey[:3]], abs=1)
    assert greys(count=5, classes=(7, 2)) == pytest.approx([grey[i] for i in (7, 2, 7, 2, 7)], abs=1)
    assert greys(interpolate=2, classes=(7, 2)) == pytest.approx([grey[7]] * WALK + [grey[2]] * WALK, abs=1)
    with pytest.raises(ValueError, match="--classes: got 10, wanted numbers from 0 to 9"):
        greys(classes=(1, 10))


def test_unconditional_generators_take_no_classes(run):
    with pytest.raises(ValueError, match="not class-conditional"):
        sample_run(run, classes=(1,))


def test_the_commands(run, tmp_path, capsys, monkeypatch):
    assert main(["export", str(run), "--raw"]) == 0
    file = capsys.readouterr().out.strip()
    assert file == str(run / "generator-raw.safetensors")
    assert main(["sample", file, "--n", "4", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "generator-raw.png")
    assert main(["sample", file, "--ema"]) == 2
    assert "holds raw weights, not ema" in capsys.readouterr().err
    assert main(["export"]) == 2
    assert "which run?" in capsys.readouterr().err
    assert main(["export", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
