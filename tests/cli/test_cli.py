"""The command line: help that teaches, one clear line and status 2 for bad input, and the commands themselves."""

import dataclasses
import errno
import io
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from gnfast.cli import main
from gnfast.cli.output import lasting_output
from gnfast.config.presets import PRESETS
from gnfast.kernels import tuning_table
from tests.cli.commands import TINY, fails, help_of

TINY = [*TINY, "--extractor=none"]


@pytest.fixture
def run(tmp_path):
    """A tiny finished run; `run[0]` is its command."""
    folder = tmp_path / "run"
    command = ["train", "digits", *TINY, "--run-dir", str(folder)]
    assert main(command) == 0
    return command, folder


def test_usage(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in ("train", "sample", "presets", "info"))
    assert main([]) == 2


@pytest.mark.parametrize("command", [["train", "digits"], ["sample"]])
def test_help_explains_every_option_with_its_value(capsys, command):
    text = help_of(capsys, *command)
    assert "Examples:" in text
    if command[0] == "train":
        assert "--lr-d FLOAT The critic's learning rate. (default: 0.001)" in text
        assert "--dry-run" in text
    else:
        assert "--weights {ema,raw}" in text


def listed(capsys, *words):
    """The names in the table that `gnfast presets WORD …` prints, and all of it."""
    capsys.readouterr()
    assert main(["presets", *words]) == 0
    text = capsys.readouterr().out
    return [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in PRESETS], text


def test_presets_in_groups_fit_a_screen_and_each_can_be_looked_into(capsys):
    text = listed(capsys)[1]
    assert len(text.splitlines()) <= 40
    groups, paper = [], ""
    for line in text.splitlines()[1:]:
        if line[:1].isspace() and paper and "gnfast" not in line:
            data, *sizes, count, example = line.replace(",", "").split()
            groups.append(int(count))
            names = listed(capsys, *paper, data)[0]
            assert len(names) == int(count) and example in names
            assert {str(PRESETS[name].config.resolution) for name in names} == {*sizes}
        else:
            paper = line.casefold().split()[:1]
    assert sum(groups) == len(PRESETS)
    # No name that --data knows is shown for those without one.
    assert all("imagenet" in name.split("-") for name, preset in PRESETS.items() if not preset.config.data)


def test_presets_are_found_by_their_parts(capsys):
    names, table = listed(capsys, "--all")
    assert sorted(names) == sorted(PRESETS)
    assert "IS 8.49±.11, FID (train) 11.13±.18, FID (test) 15.33±.16" in table
    assert "Faster" in listed(capsys, "CelebAHQ", "resnet")[1]
    for words, has in {
        ("resnet", "celebahq"): lambda c: c.model == "resnet" and c.data == "celebahq",
        ("cnn", "mnist"): lambda c: c.data == "mnist",
        ("gn",): lambda c: c.method == "gn",
        ("spectral-norm", "48x48"): lambda c: c.spectral_norm and c.resolution == 48,
        ("1-gp", "cifar10", "wasserstein"): lambda c: (c.penalty, c.data, c.loss) == ("1-gp", "cifar10", "wasserstein"),
        ("weight-norm",): lambda c: c.weight_norm != "none",
    }.items():
        found = listed(capsys, *words)[0]
        wanted = {name for name, preset in PRESETS.items() if has(preset.config)}
        # A name may say it, too.
        assert wanted <= {*found} <= {name for name in PRESETS if name in wanted or {*words} & {*name.split("-")}}
    assert listed(capsys, "gngan-stl10-resnet-s")[0] == ["gngan-stl10-resnet-sn", "gngan-stl10-resnet-sn-cr"]
    assert fails(capsys, "presets", "biggan", "mnist").startswith("gnfast: no preset has all of 'biggan', 'mnist'")
    assert fails(capsys, "presets", "celebahqq").endswith("did you mean 'celebahq'?")
    assert fails(capsys, "presets", "bird").endswith(f"`gnfast presets` counts all {len(PRESETS)}")
    for words in (["resnet", "64"], ["50"]):
        assert "--resolution changes that" in fails(capsys, "presets", *words)
    assert main(["presets", "gngan-church-256"]) == 0
    assert "CNN" not in capsys.readouterr().out


def test_one_preset_has_the_source_of_each_value(capsys):
    assert main(["presets", "gngan-cifar10-resnet"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("--")}
    assert lines["--lr-d"].split()[1] == "0.0004"
    assert "basiclab/GNGAN-PyTorch" in lines["--lr-d"]
    assert lines["--seed"].split()[1:] == ["0", "gnfast"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gngan-cifar10-cnn", ("dcgan", 32, "non-saturating", 2e-4, 2e-4, 1, "none")),
        ("gngan-cifar10-resnet", ("resnet", 32, "hinge", 4e-4, 2e-4, 5, "linear")),
        ("gngan-stl10-cnn", ("dcgan", 48, "non-saturating", 2e-4, 2e-4, 1, "none")),
        ("gngan-stl10-resnet", ("resnet", 48, "hinge", 4e-4, 2e-4, 5, "linear")),
    ],
)
def test_presets_hold_the_published_values(name, expected):
    c = PRESETS[name].config
    assert (c.model, c.resolution, c.loss, c.lr_d, c.lr_g, c.n_dis, c.lr_decay) == expected
    assert (c.betas, c.batch_d, c.batch_g, c.steps) == ((0.0, 0.9), 64, 128, 200_000)
    assert (c.ema_decay, c.ema_start) == (0.9999, 0)
    assert (c.z_dim, c.flip, c.width, c.sample_bn, c.n_fake) == (128, True, 1.0, "batch", 50_000)


@pytest.mark.parametrize(
    ("name", "model", "resolution", "optimiser", "loss"),
    [
        ("sngan-cifar10-cnn", "sngan-cnn", 32, (1e-4, (0.5, 0.999), 1, 100_000), "hinge"),
        ("sngan-stl10-cnn", "sngan-cnn", 48, (1e-4, (0.5, 0.999), 1, 200_000), "hinge"),
        ("sngan-cifar10-cnn-ns", "sngan-cnn", 32, (1e-4, (0.5, 0.999), 1, 100_000), "non-saturating"),
        ("sngan-cifar10-cnn-a", "sngan-cnn", 32, (1e-4, (0.5, 0.9), 5, 100_000), "non-saturating"),
        ("sngan-cifar10-cnn-b", "sngan-cnn", 32, (1e-4, (0.5, 0.999), 1, 100_000), "non-saturating"),
        ("sngan-cifar10-cnn-c", "sngan-cnn", 32, (2e-4, (0.5, 0.999), 1, 100_000), "non-saturating"),
        ("sngan-cifar10-cnn-d", "sngan-cnn", 32, (1e-3, (0.5, 0.9), 5, 100_000), "non-saturating"),
        ("sngan-cifar10-cnn-e", "sngan-cnn", 32, (1e-3, (0.5, 0.999), 5, 100_000), "non-saturating"),
        ("sngan-stl10-cnn-f", "sngan-cnn", 48, (1e-3, (0.9, 0.999), 5, 100_000), "non-saturating"),
        ("sngan-cifar10-resnet", "sngan-resnet", 32, (2e-4, (0.0, 0.9), 5, 100_000), "hinge"),
        ("sngan-stl10-resnet", "sngan-resnet", 48, (2e-4, (0.0, 0.9), 5, 100_000), "hinge"),
        ("sngan-imagenet-128", "sngan-concat", 128, (2e-4, (0.0, 0.9), 5, 450_000), "hinge"),
    ],
)
def test_spectral_presets_hold_the_published_values(name, model, resolution, optimiser, loss):
    c = PRESETS[name].config
    assert (c.model, c.resolution, c.loss) == (model, resolution, loss)
    assert (c.lr_d, c.betas, c.n_dis, c.steps) == optimiser and c.lr_g == c.lr_d
    assert (c.method, c.spectral_norm, c.k_sn, c.learn_scale, c.z_dim) == ("none", True, 1.0, False, 128)
    assert "Miyato" in PRESETS[name].source_of("lr_d")
    # The paper states neither.
    assert PRESETS[name].source_of("flip") == PRESETS[name].source_of("batch_d") == "gnfast"


@pytest.mark.parametrize("data", ["cifar10", "stl10"])
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("weight-clip", {"weight_clip": 0.01}),
        ("gan-gp", {"penalty": "1-gp"}),
        ("wgan-gp", {"penalty": "1-gp", "loss": "wasserstein"}),
        ("batch-norm", {"norm_d": "batch"}),
        ("layer-norm", {"norm_d": "layer"}),
        ("weight-norm", {"weight_norm": "unit"}),
        ("orthonormal", {"orthonormal": 1.0, "init_d": "orthogonal"}),
    ],
)
def test_sngans_baselines_differ_from_it_in_their_method_alone(data, method, changes):
    for letter in "abcdef":
        ours = PRESETS[f"sngan-{data}-cnn-{letter}"].config
        theirs = PRESETS[f"sngan-{data}-{method}-{letter}"].config
        assert dataclasses.replace(ours, spectral_norm=False, **changes) == theirs
        assert (theirs.penalty_weight, theirs.k_gp) == (10.0, 1.0)


def test_dry_run_shows_networks_and_plan_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "gngan-stl10-resnet", "--dry-run", "--width", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "Rewrites shrink a forward" in text
    assert "runs/gngan-stl10-resnet/" in text
    assert not list(tmp_path.iterdir())
    assert main(["train", "gngan-cifar10-biggan", "--dry-run", "--width", "0.1"]) == 0
    assert "forwards of the network" in capsys.readouterr().out
    assert main(["train", "gngan-cifar10-cnn", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "4.00 forwards" in text
    assert "3,813,379" in text
    assert "5,860,865" in text
    assert "\nwould write into" in text
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step-000000012.pt").touch()
    assert main(["train", "digits", "--dry-run", "--run-dir=run"]) == 0
    assert "\nwould continue after step 12, and would write into run/" in capsys.readouterr().out
    assert main(["train", "digits", "--dry-run", "--run-dir=run", "--steps=12"]) == 0
    assert "\nfinished 12 steps; would write into run/" in capsys.readouterr().out


def test_options_that_nothing_uses_are_named(capsys):
    words = ["--k-sn", "5", "--penalty", "r1", "--k-gp", "2", "--penalty-weight", "3", "--optimizer", "rmsprop"]
    assert main(["train", "digits", "--dry-run", *words]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "gnfast: --k-sn 5.0 has no effect without --spectral-norm",
        "gnfast: --k-gp 2.0 has no effect without --penalty 1-gp",
    ]
    # A preset's own value is not the user's word.
    assert PRESETS["wgan-gp-k-cifar10"].config.k_gp == 0.83
    assert main(["train", "wgan-gp-k-cifar10", "--dry-run", "--penalty", "none", "--width", "0.1"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["train", "digits", "--dry-run", "--optimizer", "rmsprop", "--betas", "0", "0.5"]) == 0
    assert "--betas 0.0 0.5 has no effect without --optimizer adam" in capsys.readouterr().err


def test_info_names_versions_and_backends(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("gnfast", "torch", "CPU", "built", "backends"))


def test_info_names_the_table_of_a_gpu(capsys, monkeypatch):
    gpu = types.SimpleNamespace(name="a GPU", total_memory=2**34)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    monkeypatch.setattr(tuning_table, "status", lambda device: f"table of {device}")
    assert main(["info"]) == 0
    assert "a GPU, 16 GiB; tuned: table of cuda:0" in capsys.readouterr().out


def test_bad_input_is_one_line(capsys, tmp_path):
    assert "did you mean 'train'" in fails(capsys, "trian")
    assert "did you mean 'digits'" in fails(capsys, "train", "digitz")
    # nsgan-cifar10 is nearer, but does not begin so.
    assert "did you mean 'gngan-cifar10-" in fails(capsys, "train", "gngan-cifar10")
    assert "did you mean --lr-d" in fails(capsys, "train", "digits", "--lrd", "3")
    assert "did you mean --steps and --run-dir?" in fails(capsys, "train", "digits", "-steps", "3", "--rundir=x")
    assert "did you mean --raw?" in fails(capsys, "eval", "run", "-raw")
    assert "did you mean --dry-run?" in fails(capsys, "train", "digits", "-dry-run")
    assert "did you mean '--version'?" in fails(capsys, "-version")
    assert "-d, 3 (see" in fails(capsys, "train", "digits", "--xyzzy", "-d", "3")
    assert "train: got -data first, wanted a preset: gnfast train PRESET --data" in fails(capsys, "train", "-data", "x")
    assert "'foo'" in fails(capsys, "train", "digits", "--lr-d", "foo")
    assert "'hinge', 'soft-hinge', 'non-saturating'" in fails(capsys, "train", "digits", "--loss", "foo")
    assert "--steps: got 0, wanted a whole number of at least 1" in fails(capsys, "train", "digits", "--steps", "0")
    assert "ImageNet" in fails(capsys, "train", "faster-gngan-imagenet-64")
    assert "not a run folder" in fails(capsys, "sample", str(tmp_path))
    assert "which run?" in fails(capsys, "sample")
    assert "takes no arguments" in fails(capsys, "info", "all")
    assert "preset or part of one 'zzz'; `gnfast presets` counts all" in fails(capsys, "presets", "zzz")
    assert fails(capsys, "sweep", "missing.toml") == "gnfast: missing.toml: No such file or directory"
    run_dir = ["--run-dir", str(tmp_path / "run")]
    assert "/nowhere" in fails(capsys, "train", "digits", "--data", "/nowhere", *run_dir)
    assert "--device" in fails(capsys, "train", "digits", "--device", "abacus", *run_dir)
    assert "resolution" in fails(capsys, "train", "digits", "--resolution", "9", *run_dir)
    assert "extractor" in fails(capsys, "train", "digits", *TINY, "--extractor", "nose", *run_dir)


def test_a_path_in_the_wrong_place_or_without_quotes(capsys, tmp_path):
    place = tmp_path / "my pictures"
    place.mkdir()
    assert f"wanted a preset: gnfast train PRESET --data '{place}'" in fails(capsys, "train", str(place))
    for words in (["--data", *str(place).split()], [f"--data={tmp_path}/my", "pictures"]):
        line = fails(capsys, "train", "digits", *words)
        assert f"Unrecognized options: pictures; a path with a space needs quotes: '{place}'" in line
    # Words that are together longer than any file's name may be.
    assert "Unrecognized options: --xyzzy" in fails(capsys, "train", "digits", "--xyzzy", "a" * 200, "b" * 200)
    assert "unknown preset" in fails(capsys, "train", "a" * 300)
    assert fails(capsys, "eval", "no/such").startswith("gnfast: WHAT: got 'no/such', which does not exist")
    assert fails(capsys, "eval", "digits", "--data=no/such").startswith("gnfast: --data: got 'no/such'")


def test_train_then_again_then_with_other_settings(capsys, run):
    command, folder = run
    assert "samples/ema-000004.png" in capsys.readouterr().out
    assert main(command) == 0
    assert "has finished its 4 steps" in capsys.readouterr().out
    line = fails(capsys, *command, "--batch-g", "8", "--seed", "1")
    assert "--batch-g: the run has 6, the command says 8; --seed: the run has 0" in line
    assert f"{folder} is a run of digits" in fails(
        capsys, "train", "gngan-cifar10-cnn", "--data", "digits", "--run-dir", str(folder)
    )


@pytest.mark.parametrize("command", [["train", "digits", "--run-dir"], ["sweep", "s.toml", "--table", "--out"]])
def test_a_place_for_a_folder_that_something_else_has_is_named(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text('preset = "digits"')
    Path("file").write_text("")
    Path("link").symlink_to("nowhere")
    os.mkfifo("pipe")
    for name, there in (
        ("file", "file: a file"),
        ("file/below", "file: a file"),
        ("link", "link: a link to nothing"),
        ("link/below", "link: a link to nothing"),
        ("pipe", "pipe: a named pipe"),
        ("/dev/null", "/dev/null: a device"),
    ):
        assert fails(capsys, *command, name) == f"gnfast: {there}, wanted a folder"


def test_sample(capsys, run, tmp_path):
    _, folder = run
    capsys.readouterr()
    assert main(["sample", str(folder), "--n", "4"]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(folder / "sample-ema.png")
    assert Image.open(path).mode == "L"
    assert main(["sample", str(folder), "--n", "7", "--raw", "--out", str(tmp_path / "fakes")]) == 0
    assert len(list((tmp_path / "fakes").iterdir())) == 7
    assert main(["sample", str(folder), "--n", "4", "--out", str(tmp_path / "grid.JPG")]) == 0
    with Image.open(tmp_path / "grid.JPG") as picture:
        assert (picture.format, picture.size) == ("JPEG", (152, 152))
    assert "wanted FILE.png or FILE.jpg, or a folder" in fails(capsys, "sample", str(folder), "--out", "grid.webp")
    assert "--n: got 0" in fails(capsys, "sample", str(folder), "--n", "0")
    assert "--raw and --ema: wanted one" in fails(capsys, "sample", str(folder), "--raw", "--ema")


def test_output_that_nobody_can_read_ends_nothing(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    ascii_only = io.TextIOWrapper(os.fdopen(writer, "wb"), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setattr(sys, "stderr", None)
    with lasting_output():
        for _ in range(2):
            print("Fréchet ± \udcff" + "x" * 100_000, flush=True)
        print("to nobody", file=sys.stderr)
        print("what is left in the buffer")
    assert sys.stdout is ascii_only
    ascii_only.close()


@pytest.mark.parametrize(
    ("words", "lines"),
    [(["info"], 1), (["bench", "critic"], 1), (["bench", "paper"], 3), (["train", "digits"], 3), (["sweep", "a"], 3)],
)
def test_a_reader_that_is_gone_ends_a_command_at_its_next_line_unless_it_trains(monkeypatch, capfd, words, lines):
    said = []

    def run(_words):
        for number in range(3):
            said.append(number)
            print(number)
        return 0

    monkeypatch.setattr(f"gnfast.cli.{words[0]}.run", run)
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        if lines == 1:
            with pytest.raises(SystemExit) as end:
                main(words)
            assert end.value.code == 128 + signal.SIGPIPE
        else:
            assert main(words) == 0
    assert said == [*range(lines)]
    assert capfd.readouterr().err == ""


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


@FULL
@pytest.mark.parametrize("words", [["info"], ["--help"], ["train", "--help"], ["train", "digits", "--help"], ["train"]])
def test_a_full_stdout_ends_nothing_before_it_is_done(capsys, monkeypatch, tmp_path, words):
    run = tmp_path / "run"
    if words == ["train"]:
        words = ["train", "digits", *TINY, "--run-dir", str(run)]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == 2
    assert capsys.readouterr().err == f"gnfast: stdout: {os.strerror(errno.ENOSPC)}\n"
    if str(run) in words:
        assert "finished 4 steps" in (run / "log.txt").read_text()


@FULL
@pytest.mark.parametrize("status", [0, 1, 130])
def test_a_full_stderr_leaves_the_status_of_what_failed(monkeypatch, status):
    def told(_words):
        print("a warning", file=sys.stderr, flush=True)
        return status

    monkeypatch.setattr("gnfast.cli.info.run", told)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(["info"]) == (status or 2)


def test_characters_that_a_terminal_lacks_are_spelt_out(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    with lasting_output():
        print("± \udcff")
    assert shown.getvalue() == b"\\xb1 \\udcff\n"


def test_a_signal_unwinds_a_command(monkeypatch, capsys):
    def stopped(words):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            print("taken back")

    monkeypatch.setattr("gnfast.cli.info.run", stopped)
    with pytest.raises(SystemExit) as end:
        main(["info"])
    assert end.value.code == 128 + signal.SIGTERM and "taken back" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_warning_is_one_line(capsys, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        Image.new("L", (8, 8), 60 * index).save(images / f"{index}.png")
    (images / "broken.png").write_text("not an image")
    assert main(["train", "digits", *TINY, "--data", str(images), "--run-dir", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("warning: ")
    # What became of a run's own images is known by then, and of the same prepared in another way it is not.
    for words, count in (((), 0), (("--data", str(images)), 0), (("--crop=4",), 1)):
        assert main(["eval", str(tmp_path / "run"), "--n=4", "--extractor=pixels-8x8", "--raw", *words]) == 0
        assert capsys.readouterr().err.count("1 of 5 files skipped") == count


def test_the_library_does_not_import_the_training_side():
    # torch itself imports tqdm where it is there. Its compiler alone takes as long as the rest of it.
    code = (
        "import sys, gnfast, gnfast.models, gnfast.losses, gnfast.cli\n"
        "names = 'tyro', 'tensorboard', 'matplotlib', 'PIL', 'sklearn', 'torch._dynamo'\n"
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_missing_extra_is_named_and_info_works_without(capsys, monkeypatch):
    for name in ("tyro", "tqdm"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith(("gnfast.train", "gnfast.metrics", "gnfast.data"))]:
        monkeypatch.delitem(sys.modules, name)
    wanted = "train needs tyro, which is not installed: pip install tyro; all"
    assert wanted in fails(capsys, "train", "digits")
    assert main(["info"]) == 0
