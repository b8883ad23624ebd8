"""`gnfast eval`: a run, images and statistics against real images or statistics; and the scores of a training run."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from gnfast import metrics
from gnfast.cli import main
from gnfast.data import load, to_uint8
from gnfast.io.numbers import fixed
from gnfast.io.rows import read_rows
from gnfast.metrics import PROTOCOLS, FeatureExtractor, ImageStatistics, ms_ssim, neural_divergence
from gnfast.train import Config
from gnfast.train.evaluate import as_line, as_row, of_classes, open_measures, sampler, samples_with_batch_statistics
from gnfast.train.export import snapshot
from tests.cli import commands

EXTRACTOR = f"--extractor={__name__}:pixels"


def pixels(images):
    flat = images.float().flatten(1) / 255
    return flat[:, 20:24], flat[:, 30:33]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny finished run, and a folder and a zip of images beside it."""
    folder = tmp_path_factory.mktemp("eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNFAST_CACHE", str(folder / "cache"))
        words = [*commands.TINY, "--n-fake=30", "--ema-start=0"]
        assert main(["train", "digits", *words, EXTRACTOR, "--run-dir", str(folder / "run")]) == 0
    (folder / "images").mkdir()
    for i, image in enumerate(load("digits", progress=False).images[:40]):
        Image.fromarray(image[0].numpy()).save(folder / "images" / f"{i:03d}.png")
    return folder


@pytest.fixture(autouse=True)
def _cache(folder, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


def result(*words):
    assert main(["eval", *words, "--out", "result.json"]) == 0
    with open("result.json", encoding="utf-8") as file:
        return json.load(file)


def fails(capsys, *words):
    return commands.fails(capsys, "eval", *words)


def test_a_run_against_its_own_data(capsys):
    found = result("run", "--n", "50", "--seed", "3", EXTRACTOR)
    out = capsys.readouterr().out
    assert f"Fréchet distance in features of {__name__}:pixels" in out
    assert not any(f"{name} " in out for name in ("FID", "IS", "KID"))
    assert (found["n_real"], found["n_fake"], found["seed"], found["step"], found["weights"]) == (1797, 50, 3, 4, "ema")
    assert {"distance", "is_mean", "is_std", "kid_mean", "kid_std"} <= set(found)
    assert set(found["versions"]) == {"gnfast", "torch", "python"}
    assert set(found["timing"]) == {"distance_seconds", "images_per_second"}
    again = result("run", "--n", "50", "--seed", "3", EXTRACTOR)
    assert all(again[key] == found[key] for key in found if key != "timing")
    assert result("run", "--n", "50", "--seed", "4", EXTRACTOR)["distance"] != found["distance"]
    assert result("run", "--n", "50", "--seed", "3", "--raw", EXTRACTOR)["distance"] != found["distance"]


def test_an_average_that_has_hardly_moved_is_said_to_be_one(capsys):
    """By eval and sample, of a run and of a file, where it is the average that they take."""
    line = "after step 4 the moving average (--ema-decay 0.995) is still 98.0 % the weights of step 0; --raw "
    assert main(["export", "run", "--out", "average.safetensors"]) == 0
    for what, end in (("run", "takes the generator itself"), ("average.safetensors", "of the run takes the generator")):
        for words in (["eval", what, EXTRACTOR, "--n=20", "--data=digits"], ["sample", what, "--n=2", "--out=two.png"]):
            assert main(words) == 0
            assert f"warning: {line}{end}" in capsys.readouterr().err
    assert result("run", EXTRACTOR, "--n=20")["average"].startswith(line)
    capsys.readouterr()
    assert "average" not in result("run", EXTRACTOR, "--n=20", "--raw")
    assert main(["sample", "run", "--n=2", "--out=two.png", "--raw"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_an_average_that_has_not_begun_is_said_to_be_the_generator(tmp_path, capsys):
    words = [*commands.TINY, "--ema-start=9", "--no-tensorboard", f"--run-dir={tmp_path / 'young'}"]
    assert main(["train", "digits", *words, EXTRACTOR, "--n-fake=20"]) == 0
    line = "until step 9 (--ema-start) the moving average is the generator itself"
    averaged = result(str(tmp_path / "young"), EXTRACTOR, "--n=20")
    assert averaged["average"] == line and f"warning: {line}" in capsys.readouterr().err
    alike = result(str(tmp_path / "young"), EXTRACTOR, "--n=20", "--raw")
    assert "average" not in alike and alike["distance"] == averaged["distance"]


def test_what_is_measured_is_said_before_and_how_far_it_is_while_it_is(capsys, monkeypatch):
    assert main(["eval", "run", "--n-real=60", EXTRACTOR]) == 0
    (line,) = capsys.readouterr().err.splitlines()[:1]
    name = EXTRACTOR.partition("=")[2]
    assert line == f"measuring 30 generated images in features of {name}; against 60 images of digits"
    assert main(["eval", "images", EXTRACTOR, "--n=20", "--save-stats=said.npz"]) == 0
    assert capsys.readouterr().err.startswith(f"measuring 20 images of images in features of {name}\n")
    assert main(["eval", "said.npz", "--reference", "said.npz"]) == 0
    assert capsys.readouterr().err == f"measuring 20 images in features of {name}; against said.npz\n"
    monkeypatch.setattr("gnfast.cli.eval_told.LINE_SECONDS", 0)
    assert main(["eval", "run", "--n=14", EXTRACTOR, "--n-real=300"]) == 0
    _, real, real_again, first, second = capsys.readouterr().err.splitlines()[:5]
    assert re.fullmatch(r"128 of 300 images of digits, \S+ images/s, 00:\d\d left", real), real
    assert real_again.startswith("256 of 300 ")
    assert first.startswith("6 of 14 generated images, ") and second.startswith("12 of 14 ")


@pytest.mark.parametrize(("command", "words"), [("sample", ["--n=2"]), ("eval", [EXTRACTOR, "--n=20"])])
def test_threads_are_the_runs_unless_they_are_said(capsys, monkeypatch, command, words):
    shutil.copytree("run", f"threads-{command}")
    config = json.loads(Path("run/config.json").read_text())
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    # Of a machine that this one is not, as many as there are.
    for own, said, wanted in (
        (3, (), [3]),
        (0, (), []),
        (3, ("--threads=2",), [2]),
        (3, ("--threads=0",), []),
        (99, (), [8]),
    ):
        config["config"]["threads"] = own
        Path(f"threads-{command}/config.json").write_text(json.dumps(config))
        assert main([command, f"threads-{command}", *words, *said]) == 0
        assert asked == wanted
        asked.clear()
    line = commands.fails(capsys, command, f"threads-{command}", *words, "--threads=-1")
    assert "--threads: got -1, wanted a whole number of at least 0" in line


def test_data_that_a_file_was_trained_on_and_that_is_not_there(capsys):
    shutil.copytree("run", "elsewhere")
    config = json.loads(Path("elsewhere/config.json").read_text())
    config["config"]["data"] = "/far/away/pictures"
    Path("elsewhere/config.json").write_text(json.dumps(config))
    assert main(["export", "elsewhere", "--out", "away.safetensors"]) == 0
    for what, data in (("away.safetensors", "pictures"), ("elsewhere", "/far/away/pictures")):
        line = fails(capsys, what, EXTRACTOR, "--n=20")
        assert line == f"gnfast: {what} was trained on '{data}', which is not there: say --data"
        assert main(["eval", what, EXTRACTOR, "--n=20", "--data=digits", "--split=train"]) == 0
    assert "got 'nothing', wanted a path" in fails(capsys, "away.safetensors", EXTRACTOR, "--n=20", "--data=nothing")


def test_pixels_score_a_run_without_weights_labels_or_code(capsys):
    found = result("run", "--extractor", "pixels-8x8", "--n=20")
    assert found["distance_name"] == "Fréchet distance in features of pixels-8x8"
    assert found["covariance"].startswith("singular: 20 generated images for 64 features; ")
    # Which weights would have.
    assert "extractor_sha256" not in found
    assert f"covariance {found['covariance']}" in re.sub(" +", " ", capsys.readouterr().out)


def test_a_run_is_measured_as_in_training():
    row = [row for row in read_rows(Path("run") / "metrics.jsonl") if "distance_ema" in row][-1]
    found = result("run", "--kid-subsets", "10", EXTRACTOR)
    assert found["n_fake"] == row["n_fake"] == 30
    for key in ("distance", "is", "kid"):
        name = key if key == "distance" else f"{key}_mean"
        assert found[name] == pytest.approx(row[f"{key}_ema"], rel=1e-9)


def test_images_and_statistics(capsys):
    against_data = result("images", "--data", "digits", EXTRACTOR)
    assert (against_data["n_real"], against_data["n_fake"]) == (1797, 40)
    assert main(["eval", "digits", "--save-stats", "digits.npz", EXTRACTOR]) == 0
    against_file = result("images", "--reference", "digits.npz", EXTRACTOR)
    assert main(["eval", "images", "--save-stats", "images.npz", EXTRACTOR]) == 0
    two_files = result("images.npz", "--reference", "digits.npz")
    file_and_data = result("images.npz", "--data", "digits", EXTRACTOR)
    for found in (against_file, two_files, file_and_data):
        assert found["extractor"] == against_data["extractor"]
        for key in ("distance", "is_mean", "kid_mean", "n_real", "n_fake"):
            assert found[key] == pytest.approx(against_data[key], rel=1e-9), key
    assert result("images.npz", "--reference", "images.npz")["distance"] == pytest.approx(0, abs=1e-9)
    assert "images_per_second" not in two_files["timing"]


def test_both_sides_are_measured_as_they_are(capsys):
    """Grey copies of coloured images are not compared with coloured ones that were made grey without a word."""
    Path("colour").mkdir()
    Path("grey").mkdir()
    for i in range(20):
        image = Image.fromarray(torch.randint(256, (12, 12, 3), dtype=torch.uint8).numpy())
        image.save(f"colour/{i:02d}.png")
        image.convert("L").save(f"grey/{i:02d}.png")
    line = fails(capsys, "grey", "--data", "colour", EXTRACTOR)
    assert "real images: got 3x12x12 of colour, wanted 1x12x12, as those of grey are; --resolution" in line
    # The same pixels in three channels are as far from the coloured ones as they are when they are saved so.
    as_colour = result("grey", "--data", "colour", EXTRACTOR, "--channels=3")
    assert as_colour["shape"] == "3x12x12"
    Path("saved").mkdir()
    for path in Path("grey").iterdir():
        Image.open(path).convert("RGB").save(f"saved/{path.name}")
    assert result("saved", "--data", "colour", EXTRACTOR)["distance"] == as_colour["distance"] > 1e-3
    assert result("grey", "--data", "colour", EXTRACTOR, "--channels=1")["distance"] == pytest.approx(0, abs=1e-9)
    # Real images and statistics of them are the same thing.
    main(["eval", "colour", "--save-stats", "colour.npz", EXTRACTOR])
    line = fails(capsys, "grey", "--reference=colour.npz", EXTRACTOR)
    assert "--reference: got colour.npz, of 3x12x12, wanted 1x12x12, as those of grey are" in line
    against_file = result("saved", "--reference=colour.npz", EXTRACTOR)
    assert against_file["distance"] == pytest.approx(as_colour["distance"], rel=1e-12)


def test_what_does_not_fit_a_run_is_said_before_it_generates(capsys, monkeypatch):
    generated = metrics.generated_statistics
    monkeypatch.setattr(metrics, "generated_statistics", lambda *_, **__: pytest.fail("generated"))
    size, pixels = "1x8x8", "--extractor=pixels-8x8"
    line = fails(capsys, "run", "--resolution=16", pixels)
    assert line.endswith(f"wanted {size}, which the generator of run draws, whatever --resolution and --channels say")
    assert main(["eval", "images", "--resolution=16", "--save-stats=other.npz", pixels]) == 0
    line = fails(capsys, "run", "--reference=other.npz", pixels)
    assert f"--reference: got other.npz, of 1x16x16, wanted {size}, which the generator" in line
    assert main(["eval", "images", "--save-stats=digits8.npz", pixels]) == 0
    # Statistics that are measured, too, before the features of the real images.
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "reference_statistics", lambda *_, **__: pytest.fail("measured"))
        line = fails(capsys, "other.npz", "--data=images")
    assert "real images: got 1x8x8 of images, wanted 1x16x16, as those of other.npz are; --resolution" in line
    monkeypatch.setattr(metrics, "generated_statistics", generated)
    result("run", "--reference=digits8.npz", "--resolution=16", "--protocol=torch", "--n=20", pixels)
    said = capsys.readouterr().err
    assert "warning: --resolution, --crop and --channels have no effect" in said
    assert "warning: --protocol has no effect: pixels-8x8 sees images as they are" in said
    assert "got pixels-8, wanted pixels-8x8" in fails(capsys, "run", "--reference=digits8.npz", "--extractor=pixels-8")
    line = fails(capsys, "run", "--reference=digits8.npz", "--extractor=classifier")
    assert line.endswith("--extractor: got classifier, wanted pixels-8x8, by which digits8.npz was measured")
    metrics.dataset_statistics(load("digits"), metrics.load_extractor("classifier", load("digits"))).save(
        "classified.npz"
    )
    line = fails(capsys, "run", "--reference=classified.npz", "--extractor=classifier")
    assert line.endswith("got classified.npz of a classifier, wanted --data in place: its images")


def test_a_folder_of_runs_is_none_of_images(capsys):
    Path("runs/first").mkdir(parents=True)
    Path("runs/first/config.json").write_text("{}")
    assert "runs is a folder of runs; name one: first" in fails(capsys, "runs", "--data", "digits", EXTRACTOR)


def test_images_of_several_sizes_are_brought_to_one(capsys):
    Path("mixed").mkdir()
    for i in range(12):
        Image.new("L", (8 + i % 2, 8), i).save(f"mixed/{i:02d}.png")
    assert "pass --resolution" in fails(capsys, "mixed", "--data", "digits", EXTRACTOR)
    assert result("mixed", "--data", "digits", EXTRACTOR, "--resolution=8")["shape"] == "1x8x8"


def test_code_is_imported_on_the_word_of_the_command_line_alone(capsys, monkeypatch):
    """Not on that of a run, an exported file or a file of statistics."""
    monkeypatch.syspath_prepend(".")
    Path("planted.py").write_text("open('code-was-run', 'w')\ndef f(x): return x.flatten(1).float()\n")
    shutil.copytree("run", "theirs")
    config = json.loads(Path("theirs/config.json").read_text())
    config["config"]["extractor"] = "planted:f"
    Path("theirs/config.json").write_text(json.dumps(config))
    assert main(["export", "theirs", "--out", "theirs.safetensors"]) == 0
    dataclasses.replace(ImageStatistics.load(_statistics()), extractor="planted:f").save("theirs.npz")
    for what in ("theirs", "theirs.safetensors", "theirs.npz"):
        assert "'planted:f' names code to import" in fails(capsys, what, "--data", "digits", "--n=0")
        assert not Path("code-was-run").exists()
    # The statistics are of other features than that function gives.
    assert main(["eval", "theirs", "--extractor", "planted:f"]) == 0
    assert Path("code-was-run").exists()


def _statistics():
    assert main(["eval", "images", "--save-stats", "images.npz", EXTRACTOR]) == 0
    return "images.npz"


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_the_result_is_written_before_anything_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(SystemExit, match="141"):
        main(["eval", "images", "--data", "digits", EXTRACTOR, "--out", "kept.json", "--save-stats", "kept.npz"])
    assert json.loads(Path("kept.json").read_text())["n_fake"] == 40
    assert ImageStatistics.load("kept.npz").features.count == 40


def test_a_result_that_cannot_be_written_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("gnfast.cli.eval.write_text", raising(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["eval", "images", "--data", "digits", EXTRACTOR, "--out", "full.json"]) == 2
    printed = capsys.readouterr()
    assert "Fréchet distance" in printed.out
    assert "No space left on device" in printed.err


def raising(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize("option", ["--out", "--save-stats"])
def test_what_is_no_file_is_not_replaced_and_nothing_is_measured_before(capsys, monkeypatch, option):
    monkeypatch.setattr("gnfast.cli.eval._evaluate", raising(AssertionError("measured")))
    os.mkfifo(f"pipe{option}")
    os.symlink(f"pipe{option}", f"link{option}")
    for name in (f"pipe{option}", f"link{option}"):
        line = fails(capsys, "images", option, name, "--data", "digits")
        assert line == f"gnfast: {name}: a named pipe, wanted a regular file"


def test_fewer_images_and_no_kid():
    found = result("images", "--data", "digits", EXTRACTOR, "--n", "25", "--kid-subsets", "0")
    assert found["n_fake"] == 25
    assert "kid_mean" not in found
    assert main(["eval", "images", EXTRACTOR, "--kid-subsets", "0", "--save-stats", "small.npz"]) == 0
    assert ImageStatistics.load("small.npz").kept is None


def test_what_the_paper_reports_is_shown(capsys):
    """Not to a run of other images, which says why; one of a preset without published scores says nothing."""
    words = [*commands.TINY, "--model=small", "--data=digits", "--channels=1", "--extractor=none", "--run-dir=runs/gn"]
    assert main(["train", "gngan-cifar10-cnn", *words]) == 0
    assert main(["export", "runs/gn", "--out", "gn.safetensors"]) == 0
    capsys.readouterr()
    for what in ("runs/gn", "gn.safetensors"):
        found = result(what, EXTRACTOR, "--n=20")
        assert found["published"] == "none for digits: the scores of gngan-cifar10-cnn are of cifar10"
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("published "))
        assert line.endswith(found["published"])
    assert "published" not in result("run", EXTRACTOR, "--n=20")


def test_fewer_real_images(capsys):
    """Those that a run asks for, of its own data; others on the command line."""
    shutil.copytree("run", "fewer")
    config = json.loads(Path("fewer/config.json").read_text())
    config["config"]["n_real"] = 100
    Path("fewer/config.json").write_text(json.dumps(config))
    assert result("fewer", EXTRACTOR)["n_real"] == 100
    assert result("fewer", EXTRACTOR, "--n-real", "70")["n_real"] == 70
    assert result("fewer", EXTRACTOR, "--data", "images", "--resolution=8")["n_real"] == 40
    assert result("fewer", EXTRACTOR, "--split", "train")["n_real"] == 1797
    assert result("images", "--data", "digits", EXTRACTOR, "--n-real", "90")["n_real"] == 90
    line = fails(capsys, "run", EXTRACTOR, "--n-real", "1798")
    assert "n_real: got 1798, wanted 2 to the 1797 images of digits" in line
    line = fails(capsys, "images", "--save-stats", "few.npz", EXTRACTOR, "--n-real", "5")
    assert "--n-real: got 5, but there are no real images to choose from" in line


def test_a_run_is_measured_against_as_many_real_images_as_it_says(capsys):
    words = [*commands.TINY, "--n-fake=30", EXTRACTOR, "--run-dir=runs/few"]
    assert "--n-real: got 1798, wanted 2 to the 1797" in commands.fails(
        capsys, "train", "digits", *words, "--n-real=1798"
    )
    assert not Path("runs/few").exists()
    assert main(["train", "digits", *words, "--n-real=300"]) == 0
    rows = [row for row in read_rows(Path("runs/few/metrics.jsonl")) if "distance_ema" in row]
    assert [row["n_real"] for row in rows] == [300, 300]
    # Training draws its latents with the run's seed + 3.
    found = result("runs/few", "--kid-subsets", "10", EXTRACTOR)
    assert (found["n_real"], found["distance"]) == (300, pytest.approx(rows[-1]["distance_ema"], rel=1e-9))


def test_how_alike_the_images_of_a_class_are(capsys, monkeypatch):
    monkeypatch.setattr(metrics, "PAIRS", 7)
    words = ["--model=biggan", "--classes=10", "--width=0.03125", "--run-dir=runs/classes", "--extractor=none"]
    assert main(["train", "digits", *commands.TINY, *words, "--resolution=32"]) == 0
    capsys.readouterr()
    found = result("runs/classes", EXTRACTOR, "--n=20", "--seed=1", "--ms-ssim")
    assert f"intra-class MS-SSIM  {found['ms_ssim']:.4f}" in re.sub(" {3,}", "  ", capsys.readouterr().out)
    taken = snapshot(Path("runs/classes"))
    draw = of_classes(taken.build(), 5, 1, True)
    # Of 140 images in batches of six: two of each of three classes, in turn.
    images = to_uint8(torch.cat([draw(torch.arange(i, i + 6) // 2 % 10) for i in range(0, 140, 6)]))[:140]
    assert found["ms_ssim"] == pytest.approx(float(ms_ssim(images[::2], images[1::2]).mean()), abs=1e-12)
    assert found["ms_ssim_pairs_per_class"] == 7
    # Next to the distance of the same generator, which it does not change.
    assert result("runs/classes", EXTRACTOR, "--n=20", "--seed=1")["distance"] == found["distance"]
    for what in ("run", "images"):
        line = fails(capsys, what, "--data=digits", EXTRACTOR, "--ms-ssim")
        assert f"--ms-ssim: got {what}, wanted a class-conditional generator" in line


def test_errors_are_one_line(capsys):
    assert "usage: gnfast eval" in fails(capsys)
    assert "got both" in fails(capsys, "run", "--data", "digits", "--reference", "x.npz")
    assert "got neither, and images has no real images of its own" in fails(capsys, "images")
    assert "nowhere" in fails(capsys, "nowhere", "--data", "digits")
    assert "G.safetensors is not there: wanted a run folder" in fails(capsys, "G.safetensors", "--data", "digits")
    assert "no-such.npz" in fails(capsys, "images", "--reference", "no-such.npz")
    assert "n: got 41, wanted 2 to the 40 images" in fails(capsys, "images", "--data", "digits", EXTRACTOR, "--n", "41")
    assert "got no data set, wanted one" in fails(
        capsys, "images", "--extractor", "classifier", "--save-stats", "x.npz"
    )
    main(["eval", "images", "--save-stats", "some.npz", EXTRACTOR])
    assert "holds statistics already" in fails(capsys, "some.npz", "--reference", "some.npz", "--n", "5")
    assert "wanted the same extractor" in fails(
        capsys, "images", "--reference", "some.npz", f"--extractor={__name__}:corner"
    )


def corner(images):
    return images.float().flatten(1)[:, 20:24]


def test_help(capsys):
    text = commands.help_of(capsys, "eval")
    assert "Examples:" in text
    assert all(name in text for name in ("--protocol", "--reference", "--save-stats"))


def test_rows_of_metrics_jsonl():
    from gnfast.metrics import Scores

    raw = Scores(2.0, "inception", 5, 4, "tf", 0, 8.0, 0.1, 1.0, 0.1)
    ema = dataclasses.replace(raw, distance=1.0, is_mean=9.0, kid_mean=0.5)
    assert as_row(raw, ema) == {
        "distance_raw": 2.0,
        "distance_ema": 1.0,
        "is_raw": 8.0,
        "is_ema": 9.0,
        "kid_raw": 1.0,
        "kid_ema": 0.5,
        "extractor": "inception",
        "n_real": 5,
        "n_fake": 4,
        "protocol": "tf",
    }
    plain = Scores(2.0, "f", 5, 4)
    assert set(as_row(plain, plain)) == {"distance_raw", "distance_ema", "extractor", "n_real", "n_fake"}


def test_scores_of_features_without_a_scale_have_no_fifteen_digits():
    huge = metrics.Scores(
        123456789.123, "f", 5, 4, is_mean=1.5, is_std=0.0, kid_mean=1.9123456789e15, kid_std=2.3456e13
    )
    shown = ["123,456,789", "1.5000 ± 0.0000", "1.912e15 ± 2.346e13"]
    assert [value for _, value in huge.rows()] == shown
    assert "123,456,789 (EMA)" in as_line(huge, huge) and "× 1000 1.912e15, 1.912e15;" in as_line(huge, huge)


def test_measures_of_a_run():
    digits = load("digits", progress=False)
    settings = Config(data="digits", resolution=8, channels=1, extractor=f"{__name__}:pixels")

    def measures(**changes):
        config = dataclasses.replace(settings, **changes)
        return open_measures(config, digits, torch.device("cpu"), False)

    assert measures(extractor="none") == (digits, None)
    reference, extractor = measures()
    assert reference is digits
    assert extractor.dim == 4
    split, _ = measures(eval_split="train")
    assert split is not digits
    assert split.fingerprint == digits.fingerprint
    with pytest.raises(ValueError, match="split"):
        measures(eval_split="nothing")
    with pytest.raises(ValueError, match="protocol: got 'other', wanted one of"):
        measures(protocol="other")


def test_the_papers_protocol_insists_on_batch_statistics():
    make = lambda protocol: FeatureExtractor("f", 4, pixels, protocol=protocol)  # noqa: E731
    assert not samples_with_batch_statistics("running", make(None))
    assert not samples_with_batch_statistics("running", make(PROTOCOLS["tf"]))
    assert samples_with_batch_statistics("running", make(PROTOCOLS["paper-gn"]))
    assert samples_with_batch_statistics("batch", make(None))


def test_a_critic_that_is_trained_afresh_tells_generated_images_from_real_ones(capsys):
    found = result("run", EXTRACTOR, "--n=20", "--seed=3", "--neural-divergence=4")
    assert f"neural_divergence  {fixed(found['neural_divergence'])}" in re.sub(" {3,}", "  ", capsys.readouterr().out)
    assert found["neural_divergence_steps"] == 4
    real = load("digits", resolution=8, channels=1, progress=False).images
    taken = snapshot(Path("run"))
    draw = sampler(taken.build(), 5, 0, 6, 3, True)
    wanted = neural_divergence(real, draw, steps=4, batch_size=6, seed=3)
    assert found["neural_divergence"] == pytest.approx(wanted, rel=1e-5)
    assert result("run", EXTRACTOR, "--n=20", "--seed=3")["distance"] == found["distance"]
    message = "--neural-divergence: got images, wanted a generator"
    assert message in fails(capsys, "images", EXTRACTOR, "--data=digits", "--channels=1", "--neural-divergence=4")


class Fidelity:
    """torch-fidelity as its version 0.4.0 is called: the real one agreed, by hand, to seven digits."""

    __version__ = "0.4.0"

    def calculate_metrics(self, *, input1, input2, feature_extractor_weights_path, fid, isc, kid, **how):
        self.fake, self.real = (torch.stack([images[i] for i in range(len(images))]) for images in (input1, input2))
        self.weights = torch.load(feature_extractor_weights_path)
        self.asked, self.how = (fid, isc, kid), how
        found = {"frechet_inception_distance": 3.5, "inception_score_mean": 2.0, "inception_score_std": 0.1}
        return found | ({"kernel_inception_distance_mean": 0.25, "kernel_inception_distance_std": 0.5} if kid else {})


@pytest.fixture
def fidelity(monkeypatch):
    fidelity, tf = Fidelity(), metrics.find_protocol("tf")
    extractor = FeatureExtractor("inception", 4, pixels, classes=3, protocol=tf)
    monkeypatch.setattr(metrics, "load_extractor", lambda *_, **__: extractor)
    monkeypatch.setattr("gnfast.cli.eval_further.load_weights", lambda *_, **__: ({"fc.bias": torch.ones(3)}, ""))
    monkeypatch.setitem(sys.modules, "torch_fidelity", fidelity)
    return fidelity


def test_torch_fidelity_gets_the_same_images(fidelity, monkeypatch):
    found = result("images", "--data", "digits", "--n-real", "20", "--via", "torch-fidelity")
    assert (found["via"], found["via_distance"], found["via_is_mean"]) == ("torch-fidelity 0.4.0", 3.5, 2.0)
    assert found["distance"] > 0 and found["distance"] != 3.5 and "via_kid_mean" not in found
    digits = load("digits", progress=False).images
    assert torch.equal(fidelity.real, digits[torch.arange(20) * 1797 // 20].expand(-1, 3, -1, -1))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fidelity.fake, digits[order].expand(-1, 3, -1, -1))
    assert torch.equal(fidelity.weights["fc.bias"], torch.ones(3))
    assert fidelity.asked == (True, True, False) and fidelity.how["samples_shuffle"] is False
    monkeypatch.setattr("gnfast.metrics.second_opinion._SUBSET", 10)
    # Of a run, after another score that has drawn images of its own.
    words = ("--n", "30", "--neural-divergence", "1", "--extractor", "inception", "--device", "cpu")
    found = result("run", *words, "--via", "torch-fidelity")
    assert (found["via_kid_mean"], found["via_kid_std"]) == (250, 500) and fidelity.how["kid_subset_size"] == 10
    subject = snapshot(Path("run"))
    draw = sampler(subject.build(), 5, 0, 6, 3, True)
    assert torch.equal(fidelity.fake[:6], to_uint8(draw(6)).expand(-1, 3, -1, -1)) and len(fidelity.fake) == 30


def test_torch_fidelity_needs_images_and_its_protocol(fidelity, capsys, monkeypatch):
    via = ("--via", "torch-fidelity", "--device=cpu")
    result("images", "--save-stats", "x.npz")
    assert "--via: got statistics, wanted images of both sides" in fails(capsys, "images", "--reference", "x.npz", *via)
    assert "--via: got statistics" in fails(capsys, "x.npz", "--data", "digits", *via)
    other = FeatureExtractor("inception", 4, pixels, classes=3, protocol=metrics.find_protocol("torch"))
    monkeypatch.setattr(metrics, "load_extractor", lambda *_, **__: other)
    assert "got inception and protocol torch, wanted Inception" in fails(capsys, "images", "--data", "digits", *via)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    line = fails(capsys, "images", "--data", "digits", *via)
    assert "--via: torch-fidelity cannot be imported" in line and "pip install torch-fidelity" in line
