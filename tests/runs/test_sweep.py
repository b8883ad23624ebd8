"""Sweeps: what a file says, runs that are started, stopped, continued, that fail and diverge, and the tables."""

import contextlib
import csv
import dataclasses
import json
import os
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest

from gnfast.cli import main
from gnfast.config.config import as_json
from gnfast.config.presets import PRESETS
from gnfast.runs import launch, lock
from gnfast.runs.launch import read_record, run_sweep, state_of
from gnfast.runs.record import read_run
from gnfast.runs.score_figure import score_figure
from gnfast.runs.sweep_file import load_sweep
from gnfast.runs.sweep_page import write_results
from gnfast.runs.sweep_results import collect, rows, spread
from gnfast.train import RunError
from tests import processes
from tests.pages import Page

TINY = """
preset = "digits"
[base]
resolution = 8
width = 0.1
z_dim = 5
steps = 4
batch_d = 4
batch_g = 6
extractor = "none"
log_every = 1
sample_every = 0
n_samples = 4
checkpoint_every = 2
tensorboard = false
device = "cpu"
"""
EXAMPLES = Path(__file__).parents[2] / "examples" / "sweeps"


@pytest.fixture
def sweep(tmp_path):
    """Reads a sweep file of a text."""

    def read(text, **options):
        path = tmp_path / "sweep.toml"
        path.write_text(text)
        return load_sweep(path, tmp_path / "out", **options)

    return read


def test_cases_and_grids_multiply_and_seeds_change_slowest(sweep):
    read = sweep(
        TINY
        + """
        [grid]
        seed = [0, 1]
        betas = [[0.5, 0.9], [0.0, 0.9]]
        [[case.critic]]
        name = "SN"
        method = "none"
        spectral_norm = true
        [[case.critic]]
        name = "GN"
        lr-d = 1e-3
        flip = false
        """
    )
    assert [case.name for case in read.cases] == [
        f"{critic},seed={seed},betas={betas}"
        for seed in (0, 1)
        for critic in ("SN", "GN")
        for betas in ("0.5+0.9", "0.0+0.9")
    ]
    first, third = read.cases[0], read.cases[2]
    assert first.combination == (("critic", "SN"), ("betas", [0.5, 0.9]))
    words = first.words()
    assert words[:2] == ["train", "digits"] and "--spectral-norm" in words and "--no-tensorboard" in words
    assert words[words.index("--betas") :][:3] == ["--betas", "0.5", "0.9"]
    config = third.config()
    assert (config.lr_d, config.betas, config.steps, config.flip) == (1e-3, (0.5, 0.9), 4, False)
    assert config.run_dir == str(third.folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = 'digitz'", "unknown name 'digitz'; did you mean 'digits'?"),
        ("[base]\nsteps = 3", "preset: which one?"),
        ("preset = 'digits'\n[base]\nextractor = 'planted:f'", "'planted:f' names code to import"),
        ("preset = 'digits'\n[base]\nlrd = 3", r"\[base\]: unknown name 'lrd'; did you mean 'lr_d'?"),
        ("preset = 'digits'\n[grid]\nseeds = [3]", r"\[grid\]: unknown name 'seeds'; did you mean 'seed'?"),
        ("preset = 'digits'\n[grid]\nseed = 3", r"\[grid\] seed: got .*, wanted a list"),
        ("preset = 'digits'\n[grid]\nseed = []", r"\[grid\] seed: got .*, wanted a list"),
        ("preset = 'digits'\n[[case]]\nseed = 3", r"\[\[case\]\]: each needs a name"),
        ("preset = 'digits'\n[[case.a]]\nname = 'x'\nfoo = 1", r"\[\[case.a\]\]: unknown name 'foo'"),
        ("preset = 'digits'\n[case]\na = 1", r"\[\[case.a\]\]: got .*, wanted tables"),
        ("preset = 'digits'\n[case]\na = []", r"\[\[case.a\]\]: got .*, wanted tables"),
        ("preset = 'digits'\n[grid]\nseed = [1, 1]", "two runs would be called 'seed=1'"),
        ("preset = 'digits'\n[base]\nsteps = 0", "run run: --steps: got 0, wanted a whole number of at least 1"),
        ("preset = 'digits'\n[base]\nlr_d = 'much'", "run run: "),
        ("preset = 'digits'\n[base]\nrun_dir = 'x'", "run_dir: follows from"),
        ("preset = 'digits'\n[run]\nprocesses = 0", "processes: got 0"),
        ("preset = 'digits'\n[run]\nproceses = 1", "did you mean 'processes'?"),
        ("preset = 'digits'\n[run]\ndevices = 'cuda'", "devices: got .cuda., wanted a list"),
        ("preset = 'digits'\nbase = 3", "base: got 3, wanted a table"),
        ("preset = 'digits'\n[base]\ndevice='cpu'\n[run]\ndevices = ['cpu']", "give one of the two"),
        ("preset = ", "sweep.toml: Invalid value"),
        ("preset = 'digits'\n[grid]\npreset = [['digits']]", "preset: "),
        ("preset = 'digits'\n[[case]]\nname = '..'", r"a run cannot be called '\.\.'"),
        ("preset = 'digits'\n[[case]]\nname = 'output'", "a run cannot be called 'output'"),
        (f"preset = 'digits'\n[grid]\nseed = {list(range(500))}\nn_dis = {list(range(500))}", "make 250,000 runs"),
        (f"preset = 'digits'\nx = {'[' * 5000}", "sweep.toml: lists or tables are nested too deeply"),
        ("preset = 'digits'\n[base]\nloss = 'hing'", r"--loss: got 'hing', wanted one of 'hinge'"),
        ("preset = 'digits'\n[base]\nresolution = 50", "run run: --resolution: small takes multiples of 4 .*, got 50"),
        ("preset = 'digits'\n[base]\nextractor = 'incepton'", "run run: --extractor: got 'incepton', wanted one of"),
        ("preset = 'digits'\n[base]\nsteps = true", "--steps: got True, wanted a whole number"),
    ],
)
def test_mistakes_are_named_with_their_place(sweep, text, message):
    with pytest.raises(ValueError, match=message):
        sweep(text)


def test_a_record_that_a_power_cut_emptied_does_not_stop_a_sweep(tmp_path):
    (tmp_path / "sweep.json").write_text("")
    with pytest.warns(UserWarning, match=r"sweep\.json is damaged"):
        assert read_record(tmp_path) == {}
    (tmp_path / "sweep.json").write_text("[1]")
    with pytest.raises(RunError, match=r"sweep\.json is not one of a sweep"):
        read_record(tmp_path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_can_be_read(path, tmp_path):
    read = load_sweep(path)
    # Where `gnfast train digits` is, there is no room for a sweep.
    assert read.out == Path("runs", "digits-sweep" if path.stem in PRESETS else path.stem)
    assert len(read.cases) == {"digits": 8, "settings": 36, "seeds": 5}[path.stem]


def test_settings_are_those_of_the_presets():
    read = load_sweep(EXAMPLES / "settings.toml")
    for case in read.cases:
        if case.labels["critic"] == "SN":
            published = as_json(PRESETS[f"sngan-cifar10-cnn-{case.labels['setting'].lower()}"].config)
            ours = as_json(case.config())
            assert {name for name in ours if ours[name] != published[name]} <= {"extractor", "run_dir", "seed"}


def test_dry_run_lists_commands_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "look.toml"
    file.write_text(TINY + "[grid]\nseed = [0, 1]\n")
    assert main(["sweep", str(file), "--dry-run"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    words = shlex.split(first)
    assert words[:3] == ["gnfast", "train", "digits"] and "--run-dir=runs/look/seed=0" in words
    assert "--seed=1" in shlex.split(second)
    assert last.startswith("2 runs in runs/look, 1 at a time")
    assert [path.name for path in tmp_path.iterdir()] == ["look.toml"]
    file.write_text(TINY + "[grid]\nloss = ['hinge', 'hing']\n")
    assert main(["sweep", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run loss=hing" in line and "'non-saturating'" in line
    assert main(["sweep"]) == 2
    assert main(["sweep", str(tmp_path / "none.toml")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["look.toml"]


MIXED = (
    TINY
    + """
[[case]]
name = "good"
[[case]]
name = "broken"
data = "./nowhere"
[[case]]
name = "nan"
method = "none"
loss = "wasserstein"
lr_g = 1e30
lr_d = 1e30
[run]
processes = 2
threads = 1
"""
)


def test_runs_that_fail_or_diverge_are_recorded_and_do_not_stop_the_others(tmp_path, capsys, monkeypatch):
    file = tmp_path / "mixed.toml"
    file.write_text(MIXED)
    out = tmp_path / "out"
    command = ["sweep", str(file), "--out", str(out)]
    monkeypatch.setattr(launch.subprocess, "Popen", processes.Popen)
    assert main(command) == 1
    text = capsys.readouterr().out
    record = read_record(out)
    assert {name: entry["status"] for name, entry in record.items()} == {
        "good": "finished",
        "broken": "failed",
        "nan": "diverged",
    }
    assert "--data: got './nowhere', which does not exist" in record["broken"]["message"]
    assert "is nan" in record["nan"]["message"] or "is inf" in record["nan"]["message"]
    assert "[3/3]" in text and "1 diverged" in text and "1 failed" in text
    assert read_run(out / "good").settings["threads"] == 1
    page = Page(out / "report.html")
    page.assert_self_contained()
    assert {a["href"] for tag, a in page.elements if tag == "a"} >= {"good/report.html"}
    assert (out / "good" / "report.html").exists()

    # The second time only the run that failed is started.
    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    monkeypatch.setattr(Process, "commands", [], raising=False)
    assert main(command) == 1
    (words,) = Process.commands
    assert f"--run-dir={out / 'broken'}" in words
    assert "2 of 3 runs" in capsys.readouterr().out


def test_a_stopped_sweep_is_continued(sweep, monkeypatch):
    long = TINY.replace("steps = 4", "steps = 1000000").replace("checkpoint_every = 2", "checkpoint_every = 1000")
    read = sweep(long + "[grid]\nseed = [3, 4]\n")
    rows_file = read.cases[0].folder / "metrics.jsonl"

    def stop():
        while not (rows_file.exists() and rows_file.stat().st_size):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop, daemon=True)
    watcher.start()
    lines = []
    assert run_sweep(read, progress=False, echo=lines.append) == signal.SIGTERM
    watcher.join()
    assert "SIGTERM: 1 run stops after a checkpoint" in lines[0]
    first, second = read.cases
    assert state_of(first, read_record(read.out)).status == "stopped"
    assert state_of(second, read_record(read.out)).status == "waiting" and not second.folder.exists()
    step = read_run(first.folder).step
    assert step > 0

    # Without a schedule, a run's length is only where it stops.
    monkeypatch.setattr(launch.subprocess, "Popen", processes.Popen)
    shorter = sweep(TINY.replace("steps = 4", f"steps = {step + 3}") + "[grid]\nseed = [3]\n")
    assert run_sweep(shorter, progress=False, echo=lines.append) == 0
    (case,) = shorter.cases
    assert state_of(case, read_record(read.out)).status == "finished"
    assert f"continuing after step {step} of {step + 3}" in (case.folder / "log.txt").read_text()
    assert run_sweep(shorter, progress=False, echo=lines.append) == 0
    assert "1 of 1 runs" in lines[-1] and "0 to do" in lines[-1]


class Process:
    """A process that ends when it is polled for the second time."""

    alive = 0
    most = 0

    def __init__(self, words, stdout, **_):
        stdout.write(b"some output\n")
        Process.commands.append(words)
        Process.alive += 1
        Process.most = max(Process.most, Process.alive)
        self.polls, self.returncode = 0, None

    def poll(self):
        self.polls += 1
        if self.polls == 2:
            Process.alive -= 1
            self.returncode = 0
        return self.returncode

    def kill(self):
        pass

    wait = kill


def test_devices_take_turns_and_no_more_than_wanted_run_at_once(sweep, monkeypatch):
    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0)
    monkeypatch.setattr(Process, "commands", [], raising=False)
    text = TINY.replace('device = "cpu"', "")
    read = sweep(
        text + "[grid]\nseed = [0, 1, 2, 3, 4, 5, 6]\n[run]\ndevices = ['cuda:0', 'cuda:1']\nprocesses = 4\nthreads = 3"
    )
    assert run_sweep(read, progress=False, echo=lambda line: None) == 0
    assert Process.most == 4
    devices = [next(word for word in words if word.startswith("--device")) for words in Process.commands]
    assert devices == [f"--device=cuda:{index % 2}" for index in range(7)]
    assert all("--threads=3" in words for words in Process.commands)
    assert sorted(path.name for path in (read.out / "output").iterdir()) == [f"seed={seed}.txt" for seed in range(7)]


@pytest.mark.parametrize("continued", [False, True])
def test_the_time_of_a_sweep_begins_with_its_training(continued, sweep, monkeypatch):
    """Not while a run imports and reads, also where it has rows of a session before."""
    read = dataclasses.replace(sweep(TINY), seconds=0.0)
    folder = read.cases[0].folder
    if continued:
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text("[{}]")
        os.utime(folder / "environment.json", (1e9, 1e9))
        (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    events = []

    class Starting(Process):
        def poll(self):
            self.polls += 1
            if self.polls == 3:
                events.append("begins")
                folder.mkdir(exist_ok=True)
                (folder / "environment.json").write_text("[{}, {}]")
                (folder / "metrics.jsonl").write_text('{"step": 0}\n')
            return self.returncode

        def terminate(self):
            events.append("is stopped")
            self.returncode = -signal.SIGTERM

    monkeypatch.setattr(launch.subprocess, "Popen", Starting)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0)
    monkeypatch.setattr(Process, "commands", [], raising=False)
    assert run_sweep(read, progress=False, echo=lambda line: None) == 0
    assert events == ["begins", "is stopped"]


def test_a_sweep_does_not_replace_the_page_of_a_run(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "sweep.toml").write_text(TINY)
    for word in ("--table", "--no-table", "--dry-run"):
        assert main(["sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "out"), word]) == 2
        assert "out is the folder of a run; choose another" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_two_sweeps_do_not_share_a_folder(sweep):
    read = sweep(TINY)
    with lock.sole_user(read.out, "a sweep, process"), pytest.raises(RunError, match="still at work"):
        run_sweep(read, progress=False)


def pretend(case, scores, steps=4, status="finished"):
    """A run folder with scores at its last steps."""
    folder = case.folder
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"preset": case.preset, "config": as_json(case.config())}))
    if status == "finished":
        (folder / "checkpoints" / f"step-{steps:09d}.pt").touch()
    first = steps - len(scores) + 1
    scores = [value if isinstance(value, dict) else {"distance_ema": value} for value in scores]
    lines = [{"step": first + i, "distance_raw": 99.0, **value} for i, value in enumerate(scores)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status == "diverged":
        record = read_record(folder.parent) | {case.name: {"status": "diverged", "message": "gnfast: <nan>"}}
        (folder.parent / "sweep.json").write_text(json.dumps(record))


def test_tables_hold_mean_and_deviation_over_seeds(sweep):
    read = sweep(TINY + "[grid]\nk_sn = [0.5, 1.0, 10.0]\nseed = [0, 1, 2]\n")
    values = {0.5: [(3.0, 1.0, 2.0), (5.0, 2.0, 2.0), (9.0, 3.0, 5.0)], 1.0: [(4.0, 0.5)]}
    for case in read.cases:
        found = values.get(case.labels["k_sn"], [])
        if case.labels["seed"] < len(found):
            pretend(case, found[case.labels["seed"]], status="diverged" if len(found) == 1 else "finished")
    results = collect(read)
    assert results.score == "distance_ema"
    head, *body = rows(results)
    assert head == ("k_sn", "runs", "best Fréchet distance (EMA)", "last Fréchet distance (EMA)")
    assert body == [
        ("0.5", "3", "2.0 ± 1.0", "3.0 ± 1.7"),
        ("1.0", "0 of 3, 1 diverged, 2 waiting", "0.5", "0.5"),
        ("10.0", "0 of 3, 3 waiting", "–", "–"),
    ]
    path = write_results(results)
    with (read.out / "table.csv").open() as file:
        first, second, third = csv.DictReader(file)
    assert (float(first["best_mean"]), float(first["best_std"]), float(first["last_mean"])) == (2.0, 1.0, 3.0)
    assert (second["diverged"], second["best_std"], third["best_mean"]) == ("1", "", "")
    with (read.out / "runs.csv").open() as file:
        runs = {line["run"]: line for line in csv.DictReader(file)}
    assert (runs["k_sn=0.5,seed=1"]["best"], runs["k_sn=0.5,seed=1"]["best_step"]) == ("2.0", "3")
    assert runs["k_sn=10.0,seed=0"]["status"] == "waiting"
    assert "| 1.0 | 0 of 3, 1 diverged, 2 waiting | **0.5** | 0.5 |" in (read.out / "table.md").read_text()
    assert "<svg" in (read.out / "figure.svg").read_text()
    page = Page(path)
    page.assert_self_contained()
    assert "gnfast: <nan>" in page.texts
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(links) == 4
    assert all((read.out / link.replace("%3D", "=").replace("%2C", ",")).exists() for link in links)


def rows_of(case, row):
    (case.folder / "metrics.jsonl").write_text(json.dumps({"step": 4, **row}) + "\n")


def test_a_sweep_says_what_was_measured_and_names_a_winner_where_there_is_one(sweep):
    how = {"extractor": "pixels-8x8", "n_real": 100, "n_fake": 200}
    read = sweep(TINY + "ema_start = 1\n[grid]\nk_sn = [0.5, 1.0]\n")
    for case, value in zip(read.cases, (13.44968, 13.44953), strict=True):
        pretend(case, [{"distance_ema": value, **how}])
    results = collect(read)
    page, written = Page(write_results(results)), (read.out / "table.md").read_text()
    line = "Measured by pixels-8x8; 100 real, 200 generated."
    assert line in page.texts and f"\n{line}\n" in written
    assert "One seed each: no spread." in page.texts and "One seed each" in written
    with (read.out / "table.csv").open() as file:
        assert [row["measured"] for row in csv.DictReader(file)] == [line, line]
    # Of figures that are printed alike none is better.
    assert written.count("13.45") == 4 and "**" not in written
    assert "Here, of k_sn=0.5, k_sn=1.0: after step 4 the moving average" in "".join(page.texts)
    rows_of(read.cases[1], {"distance_ema": 12.0, **how})
    write_results(collect(read))
    assert "**12" in (read.out / "table.md").read_text()
    # Nor is any better than one that was measured otherwise.
    rows_of(read.cases[1], {"distance_ema": 1.0, **how, "n_fake": 300})
    text = Page(write_results(collect(read))).texts
    assert "**" not in (read.out / "table.md").read_text() and "Curves" not in text
    assert any(line.startswith("Not comparable: ") for line in text) and not (read.out / "figure.svg").exists()


def test_other_scores_are_those_at_the_best_step(sweep):
    """GN-GAN's protocol: the checkpoint with the best FID, and what else that checkpoint scores."""
    read = sweep(TINY + "[grid]\nk_sn = [0.5, 1.0]\nseed = [0, 1]\n")
    found = {0: [(3.0, 5.0, 1.0), (2.0, 6.0, 0.5), (4.0, 9.0, 0.1)], 1: [(2.5, 8.0, 0.7), (3.0, 9.0, 0.2)]}
    for case in read.cases:
        if case.labels["k_sn"] == 0.5:
            scores = [
                dict(zip(("distance_ema", "is_ema", "kid_ema"), s, strict=True)) for s in found[case.labels["seed"]]
            ]
            pretend(case, [{**one, "is_raw": 1.0, "is_std_ema": 0.1} for one in scores])
    results = collect(read)
    head, first, second = rows(results)
    others = ("class score (EMA) there", "kernel distance × 1000 (EMA) there")
    assert head == ("k_sn", "runs", "best Fréchet distance (EMA)", *others, "last Fréchet distance (EMA)")
    assert first == ("0.5", "2", "2.25 ± 0.35", "7.0 ± 1.4", "0.60 ± 0.14", "3.50 ± 0.71")
    assert second == ("1.0", "0 of 2, 2 waiting", "–", "–", "–", "–")
    path = write_results(results)
    with (read.out / "table.csv").open() as file:
        line, waiting = csv.DictReader(file)
    assert (float(line["is_ema_at_best_mean"]), float(line["kid_ema_at_best_mean"])) == (7.0, 0.6)
    assert float(line["is_ema_at_best_std"]) == pytest.approx(2**0.5) and waiting["is_ema_at_best_mean"] == ""
    with (read.out / "runs.csv").open() as file:
        runs = {line["run"]: line for line in csv.DictReader(file)}
    run = runs["k_sn=0.5,seed=0"]
    assert [run[name] for name in ("best", "best_step", "is_ema_at_best", "last")] == ["2.0", "3", "6.0", "4.0"]
    assert runs["k_sn=1.0,seed=0"]["is_ema_at_best"] == ""
    assert "| **2.25 ± 0.35** |" not in (read.out / "table.md").read_text()
    # On the page, scores have names.
    page = Page(path)
    assert {"class score (EMA) there", "best Fréchet distance (EMA)", "7.0 ± 1.4"} <= set(page.texts)
    assert not any("_ema" in text for text in page.texts) and f"recipe: {read.cases[0].preset}" in page.texts


def test_the_figure_has_bars_side_by_side_for_two_kinds_of_cases(sweep):
    cases = "".join(
        f"[[case.critic]]\nname = '{c}'\n[[case.rate]]\nname = '{r}'\n" for c, r in (("GN", "A"), ("SN", "B"))
    )
    read = sweep(TINY + "[grid]\nseed = [0, 1]\n" + cases)
    for case in read.cases:
        pretend(case, (case.labels["seed"] + 1.0 + (case.labels["critic"] == "SN"),))
    write_results(collect(read))
    figure = (read.out / "figure.svg").read_text()
    assert all(f">{text}</text>" in figure for text in ("GN", "SN", "A", "B", "best Fréchet distance (EMA)"))


def test_only_several_runs_have_an_error_bar():
    rows = [
        {"family": "f", "place": place, "hue": "h", "score": score}
        for place, score in (("one", 4.0), ("two", 1.0), ("two", 3.0))
    ]
    axes = score_figure(rows, "family", "place", "hue", "score", "").axes[0]
    (bars,) = axes.containers[0].lines[2]
    one, two = bars.get_segments()
    assert len(one) == 0
    assert two[:, 1] == pytest.approx([2 - 2**0.5, 2 + 2**0.5])


@pytest.mark.parametrize(
    ("text", "labels", "runs"),
    [
        ("", (), 1),
        ("[grid]\nseed = [0, 1]", (), 2),
        ("[grid]\nseed = [5]\nk_sn = [1.0]", ("1.0",), 1),
        ("[grid]\nseed = [0, 1, 2, 3]\n[[case]]\nname = 'SN'", ("SN",), 4),
    ],
    ids=("no-grid", "seeds", "one-value", "one-case"),
)
def test_a_sweep_of_one_combination_has_tables_and_a_figure(sweep, text, labels, runs):
    read = sweep(TINY + text)
    for case in read.cases:
        pretend(case, (2.0,))
    results = collect(read)
    Page(write_results(results)).assert_self_contained()
    assert rows(results)[1:] == [(*labels, str(runs), "2", "2")]
    assert f">{results.combinations[0].name()}</text>" in (read.out / "figure.svg").read_text()


def test_the_score_can_be_chosen_and_may_be_better_the_higher(sweep):
    read = sweep('score = "is_ema"\n' + TINY + "[grid]\nmethod = ['gn', 'none']\n")
    for case, values in zip(read.cases, ((5.0, 7.0, 6.0), (1.0, 2.0, 3.0)), strict=True):
        pretend(case, (1.0,))
        lines = [{"step": step, "is_ema": value, "distance_ema": 1.0} for step, value in enumerate(values)]
        (case.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # With the distance beside it, which is 1 at every step.
    assert rows(collect(read))[1:] == [("gn", "1", "7", "1", "6"), ("none", "1", "3", "1", "3")]
    write_results(collect(read))
    assert "| gn | 1 | **7** |" in (read.out / "table.md").read_text()


def test_a_run_with_other_settings_has_not_finished(sweep):
    read = sweep(TINY)
    pretend(read.cases[0], (1.0,))
    assert state_of(read.cases[0], {}).status == "finished"
    changed = sweep(TINY + "lr_d = 0.5")
    assert state_of(changed.cases[0], {}).status == "stopped"


def test_a_sweep_without_scores_has_a_table_too(tmp_path, capsys):
    file = tmp_path / "new.toml"
    file.write_text(TINY + "[grid]\nseed = [0, 1]\n")
    with contextlib.chdir(tmp_path):
        assert main(["sweep", str(file), "--table"]) == 0
        assert "0 of 2, 2 waiting  –" in capsys.readouterr().out
        Page(tmp_path / "runs" / "new" / "report.html").assert_self_contained()
        assert not (tmp_path / "runs" / "new" / "figure.svg").exists()


@pytest.mark.parametrize(
    ("extractor", "why"),
    [("none", "their extractor is none, given or"), ("inception", "none has distance_raw in its metrics.jsonl")],
)
def test_why_no_run_of_a_sweep_is_scored(tmp_path, capsys, extractor, why):
    file = tmp_path / "new.toml"
    file.write_text(TINY.replace('"none"', f'"{extractor}"') + "ema_start = 0\n[grid]\nseed = [0, 1]\n")
    cases = load_sweep(file, tmp_path / "out").cases

    def shown():
        assert main(["sweep", str(file), "--table", "--out", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out.splitlines()
        lines = [line for line in said if line.startswith("no run is scored: ")]
        # Of all runs that have begun together.
        assert len([line for line in said if "the moving average" in line]) == cases[0].folder.exists()
        assert lines == [text for text in Page(tmp_path / "out" / "report.html").texts if "no run is scored" in text]
        return lines

    # Nothing is missed in runs that have not begun, nor where one is scored.
    assert not shown()
    pretend(cases[0], [{"distance_raw": None}])
    (line,) = shown()
    assert line.startswith(f"no run is scored: {why}")
    pretend(cases[1], [1.0])
    assert not shown()


def test_spreads_have_two_digits():
    assert [spread(values) for values in ([], [2.34567], [1.0, 1.0], [1.2, 1.3], [1000.0, 4000.0])] == [
        *("–", "2.346", "1", "1.250 ± 0.071", "2500 ± 2121")
    ]
