"""`gnfast bench paper`: what is compared, for how long, what is kept, and what the table says of it."""

import dataclasses
import json
import signal
from unittest import mock

import pytest
import torch
from PIL import Image

from gnfast.bench import case as names
from gnfast.bench import compare, iteration
from gnfast.bench.mode import PAPERS as PAPERS_MODE
from gnfast.bench.paper import SHORT, learning, pages, prepare, presets_of, speed
from gnfast.bench.paper.prepare import GNFAST, PAPERS
from gnfast.cli import main
from gnfast.config.presets import PRESETS
from gnfast.data import ImageDataset
from gnfast.io.numbers import number
from gnfast.reproduce.scale import scale_of
from gnfast.runs import launch, lock
from gnfast.runs.checkpoint import RunError
from gnfast.runs.record import Record, read_run
from gnfast.runs.sweep_file import Case
from tests import processes

CPU = torch.device("cpu")
NAME = "gngan-cifar10-cnn"
TINY = ["model=small", "resolution=8", "channels=1", "width=0.1", "z_dim=5", "batch_d=7", "batch_g=6", "n_fake=20"]
WORDS = ["bench", "paper", "--presets", NAME, "--data", "digits", "--scale", "0.001", "--device", "cpu"]


def settings(*further):
    return ["--set", *TINY, *further]


@pytest.fixture
def forked(monkeypatch):
    monkeypatch.setattr(launch.subprocess, "Popen", processes.Popen)


@pytest.fixture
def training(tmp_path):
    """A training on noise, of these settings."""

    def make(device=CPU, **options):
        given = dict(word.split("=") for word in TINY[:1]) | {"resolution": 8, "width": 0.1, "z_dim": 5, "batch_d": 4}
        case = Case({}, NAME, given | {"batch_g": 6, "device": str(device)} | options, tmp_path / "gnfast")
        images = ImageDataset("noise", torch.randint(256, (32, 3, 8, 8), dtype=torch.uint8))
        return prepare._training(
            dataclasses.replace(case, options=case.options | {"extractor": "none"}), images, CPU, False
        )

    return make


def record(speeds, distances=()):
    """A run with rows (step, updates per second) and distances (step, value)."""
    rows = [{"step": step, "distance_ema": value} for step, value in distances]
    speed = [{"step": step, "seconds": 0.0, "steps_per_second": rate} for step, rate in speeds]
    return Record(None, "", {}, [], rows, speed, [])


def test_short_names():
    assert presets_of(["celebahq", NAME, "cifar10"]) == (*SHORT["celebahq"], *SHORT["cifar10"])
    assert all(preset in PRESETS for found in SHORT.values() for preset in found)
    with pytest.raises(ValueError, match="--presets: got none, wanted some of cifar10"):
        presets_of([])


def test_training_time_leaves_evaluations_out():
    # 20 updates at 10 per second; those that share an interval with an evaluation seem to take a second each.
    run = record([(5, 10.0), (10, 10.0), (15, 1.0), (20, 10.0)], [(0, 9.0), (10, 5.0), (20, 3.0)])
    assert learning.seconds_at(run, 20) == pytest.approx(2.0)
    assert learning.curve(run) == [(0.0, 0, 9.0), (1.0, 10, 5.0), (2.0, 20, 3.0)]
    # Within an interval, and after the last row.
    assert learning.seconds_at(run, 12) == pytest.approx(1.2)
    assert learning.seconds_at(run, 30) == pytest.approx(3.0)
    # What else takes time stays in: a slow beginning, say.
    assert learning.seconds_at(record([(5, 1.0), (10, 10.0)], [(10, 5.0)]), 10) == pytest.approx(5.5)
    # Where all intervals have an evaluation, they count as they are.
    assert learning.seconds_at(record([(5, 1.0), (10, 1.0)], [(2, 9.0), (7, 5.0)]), 10) == pytest.approx(10.0)
    assert learning.seconds_at(record([]), 10) == 0.0


def test_time_to_a_distance():
    line = [(0.0, 0, 9.0), (2.0, 20, 5.0), (4.0, 40, 7.0), (6.0, 60, 3.0)]
    assert learning.reached(line, 7.0) == pytest.approx(1.0)
    # For good: at 6 it was before it rose again.
    assert learning.reached(line, 6.0) == pytest.approx(4.5)
    assert learning.reached(line, 3.0) == pytest.approx(6.0)
    assert (learning.reached(line, 9.5), learning.reached(line, 2.0), learning.reached([], 2.0)) == (0.0, None, None)
    runs = {GNFAST: {"curve": line}, PAPERS: {"curve": [(0.0, 0, 9.0), (10.0, 30, 7.0)]}}
    found = {"distance": 7.0, "gnfast_seconds": 1.0, "papers_seconds": 10.0, "ratio": 0.1}
    assert learning.compared(runs) == pytest.approx(found)
    # One that rises first, one that never comes as far, one that only rises, and one that has not learned.
    late = {GNFAST: {"curve": [(0.0, 0, 5.0), (1.0, 1, 9.0), (2.0, 2, 7.0)]}, PAPERS: runs[PAPERS]}
    assert learning.compared(late)["ratio"] == pytest.approx(0.2)
    assert learning.compared({GNFAST: runs[PAPERS], PAPERS: runs[GNFAST]})["ratio"] is None
    risen = {GNFAST: {"curve": line}, PAPERS: {"curve": [(0.0, 0, 9.0), (10.0, 30, 9.5)]}}
    assert learning.compared(risen) == {"distance": 9.5} | dict.fromkeys(["gnfast_seconds", "papers_seconds", "ratio"])
    assert learning.compared({GNFAST: {"curve": line}, PAPERS: {"curve": []}}) == {}


def test_ways_are_what_they_are_called(training):
    """As for a GPU, whose programs are made on the CPU."""
    made = training(precision="bfloat16", model="resnet", resolution=32, n_dis=5, loss="hinge")
    images = ImageDataset("noise", torch.zeros(32, 3, 32, 32, dtype=torch.uint8))
    case = speed.speed_case(dataclasses.replace(made, images=images), torch.device("cuda"), {})
    assert set(case.variants) == {*speed.OURS, names.A, *speed.BASELINES}
    given = {name: variant.make.args[0] for name, variant in case.variants.items()}
    modes = {name: variant.mode for name, variant in case.variants.items()}
    programs = {}
    for name, make in given.items():
        images, config, mode, _ = make.args
        ahead = mock.patch.object(iteration.State, "generates_ahead", True, create=True)
        with ahead:
            programs[name] = iteration.program(images, config, mode, CPU, **make.keywords)
    assert modes[names.A] == PAPERS_MODE
    configs = {name: program.config for name, program in programs.items()}
    assert configs[names.A].memory_format == "contiguous" and configs[names.A].precision == "float32"
    for name, config in configs.items():
        assert config.impl == ("auto" if name in speed.OURS else "reference"), name
        assert config.cuda_graph == case.variants[name].captured == (name in (names.CAPTURED, names.E)), name
        if name != names.A:
            assert (config.memory_format, config.precision) == ("channels_last", "bfloat16"), name
    assert {make.keywords["repaired"] for name, make in given.items() if name in (names.C, names.E)} == {True}
    assert not given[names.B].keywords["repaired"] and not given[names.A].keywords["repaired"]


def test_the_papers_run_differs_in_how_it_is_computed_alone(training):
    ours, theirs = (dataclasses.asdict(case.config()) for case in training(precision="bfloat16").cases.values())
    differing = {name: value for name, value in theirs.items() if value != ours[name] and name != "run_dir"}
    assert differing == prepare.PAPERS_RUN
    assert theirs["run_dir"].endswith("papers") and ours["run_dir"].endswith("gnfast")


def test_speed(training):
    rows = list(speed.measured(training(n_dis=2), CPU, 1.0))
    assert {row["variant"] for row in rows} == {names.EAGER, names.A, names.B, names.C}
    assert {row["gate"] for row in rows} == {"green"}
    for row in rows:
        assert row["images_per_s"] == pytest.approx(8 * row["steps_per_s"], rel=0.01)
        assert row["steps_per_s"] == pytest.approx(1e3 / row["median_ms"], rel=0.01)
        assert row["memory_bytes"] > 1000 and row["preset"] == NAME and "floor_ms" not in row
    assert speed.of_way(rows, GNFAST)["variant"] == names.EAGER and speed.of_way(rows, PAPERS)["variant"] == names.A
    best = speed.strongest(rows)
    assert best["ratio"] == max(row["ratio"] for row in rows if row["variant"] in (names.B, names.C))
    assert speed.strongest([dict(row, gate="red") for row in rows]) is None


def test_speed_of_graphs(training, monkeypatch):
    """As on a GPU, with graphs that call their function, and the images of all updates made ahead."""
    made = iteration.program

    def ahead(images, config, mode, device, **given):
        state = made(images, config, mode, device, **given)
        state.generates_ahead = config.impl != "reference" or given.get("repaired", False)
        return state

    monkeypatch.setattr(iteration, "program", ahead)
    monkeypatch.setattr(iteration.State, "_can_be_captured", lambda state: state.config.cuda_graph)
    monkeypatch.setattr(speed, "Setup", lambda *given, graphs: names.Setup(*given, graphs=True))
    images = ImageDataset("noise", torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8))
    given = {"model": "resnet", "resolution": 32, "width": 0.05, "n_dis": 2, "batch_d": 2, "batch_g": 3}
    rows = list(speed.measured(dataclasses.replace(training(**given), images=images), CPU, 0.0))
    assert {row["variant"]: row["gate"] for row in rows} == dict.fromkeys(
        [*speed.OURS, names.A, *speed.BASELINES], "green"
    )
    assert rows[0]["variant"] == names.CAPTURED and {row["ours"] for row in rows} == {names.CAPTURED}


def test_rates_are_of_the_same_load(training):
    """Twice as slow while the machine did something else as well."""
    rows = [{"median_ms": 10.0, "ours_median_ms": 10.0}, {"median_ms": 60.0, "ours_median_ms": 20.0}]
    rows += [{"median_ms": 30.0, "ours_median_ms": 10.0}, {"median_ms": 50.0, "ours_median_ms": None}]
    rates = [row["steps_per_s"] for row in speed.levelled(rows, training())]
    assert rates == pytest.approx([100, 33.33, 33.33, 20], rel=1e-3)
    rows = [row | {"back_to_back_ms": 1.0, "steps_per_s": 1000} for row in rows]
    assert speed.levelled(rows, training()) == rows


def test_memory_on_a_gpu_is_what_is_held(monkeypatch):
    """With a GPU that only counts: the step holds 30 bytes and takes 10 more; what making it took has gone."""
    held = {"now": 100, "most": 0}

    def hold(count):
        held["now"] += count
        held["most"] = max(held["most"], held["now"])

    def make():
        hold(1030)
        hold(-1000)
        return lambda: (hold(10), hold(-10))

    cuda = {"memory_reserved": lambda _: held["now"], "max_memory_reserved": lambda _: held["most"]}
    cuda |= {"reset_peak_memory_stats": lambda _: held.update(most=held["now"]), "synchronize": lambda _: None}
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    memory = {}
    variant = speed._weighed("way", names.Variant(make, PAPERS_MODE), torch.device("cuda"), memory)
    variant.make()
    assert memory == {"way": 40}


def test_command(capsys, tmp_path, forked):
    out = tmp_path / "out"
    words = [*WORDS, "--minutes", "0.2", "--out", str(out), *settings("steps=40", "ema_decay=0.5")]
    assert main(words) == 0
    text = capsys.readouterr().out
    table = (out / "table.md").read_text()
    assert table in text and str(out / "learning.png") in text
    assert f"| {NAME} | gnfast " in table and f"| {NAME} | the papers' way " in table and "| strongest: " in table
    assert "Fréchet distance in features of digits-classifier, 20 generated and 1,797 real images" in table
    assert Image.open(out / "learning.png").width > 500
    results = json.loads((out / "results.json").read_text())
    assert results["environment"]["torch"] == torch.__version__ and results["settings"]["minutes"] == 0.2
    # While it is measured, times of the same rounds are side by side: their ratio is that of the line.
    times = [(row, *(number(row[name]) for name in ("median_ms", "ours_median_ms"))) for row in results["rows"]]
    assert len(times) == 4
    for row, own, ours in times:
        ratio = row["ratio"]
        assert f"{row['variant']}: {own} ms, gnfast in turns with it {ours} ms, gnfast / this {ratio:.3f}" in text
        assert row["ours_median_ms"] / row["median_ms"] == pytest.approx(ratio, abs=1e-3)
    runs = results["learning"][NAME]["runs"]
    assert [run["status"] for run in runs.values()] == ["finished", "finished"]
    for run in runs.values():
        assert run["steps"] == 40 and len(run["curve"]) > 1 and run["curve"][-1][1] == 40
        assert [at for at, _, _ in run["curve"]] == sorted(at for at, _, _ in run["curve"])
    # The same training, to rounding: at the start, at the latest.
    assert runs[GNFAST]["curve"][0] == runs[PAPERS]["curve"][0]
    config = read_run(out / NAME / "papers").config
    assert config.impl == "reference" and config.memory_format == "contiguous" and config.threads == 1
    assert compare.differences(results, results)[-1].startswith(f"{len(results['rows'])} rows in both, 0 figures")
    # Repeated: nothing is measured again.
    with (
        mock.patch.object(speed, "measured", side_effect=AssertionError),
        mock.patch.object(learning, "run_sweep", side_effect=AssertionError),
    ):
        assert main(words) == 0
    assert (out / "table.md").read_text() == table
    capsys.readouterr()
    assert main([*words[:-1], "ema_decay=0.6"]) == 2
    assert "has results of other settings; choose another --out (set: there {" in capsys.readouterr().err
    for damaged in ([], results | {"rows": [1]}, results | {"learning": {NAME: {"ended": True}}}):
        (out / "results.json").write_text(json.dumps(damaged))
        assert main(words) == 2
        assert "results.json is not one of gnfast bench paper" in capsys.readouterr().err


def test_runs_end_with_their_time_and_go_on_where_they_were_interrupted(capsys, tmp_path, forked, monkeypatch):
    out = tmp_path / "out"
    words = [*WORDS, "--minutes", "0.05", "--out", str(out), *settings("steps=100000")]
    asked = []

    def interrupted(sweep, **given):
        asked.append(sweep)
        return signal.SIGINT

    with monkeypatch.context() as patch:
        patch.setattr(learning, "run_sweep", interrupted)
        assert main(words) == 128 + signal.SIGINT
    (sweep,) = asked
    assert len(sweep.cases) == sweep.processes and sweep.threads == 1
    learned = json.loads((out / "results.json").read_text())["learning"][NAME]
    assert not learned["ended"] and learned["seconds"] == pytest.approx(sweep.seconds, abs=0.1)
    assert 1.5 <= sweep.seconds <= 3
    with mock.patch.object(speed, "measured", side_effect=AssertionError):
        assert main(words) == 0
    assert "the time is over: 2 runs stop after a checkpoint" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    runs = results["learning"][NAME]["runs"]
    for way, run in runs.items():
        assert run["status"] == "stopped" and 0 < run["steps"] < 100_000 and run["seconds"] > 0, way
        assert read_run(out / NAME / prepare.FOLDERS[way]).status.endswith("by SIGTERM")


def test_on_one_core_or_a_gpu_runs_share_their_time(training, monkeypatch):
    made, asked = training(), []
    results = mock.Mock(seconds_to_learn=lambda _: 60.0, steps_per_s=lambda _, way: {GNFAST: 20.0, PAPERS: 2.0}[way])
    monkeypatch.setattr(learning, "_cores", lambda: 1)
    monkeypatch.setattr(learning, "run_sweep", lambda sweep, **_: asked.append((sweep, sweep.seconds)) or 0)
    for device in (CPU, torch.device("cuda")):
        asked.clear()
        assert learning.trained(made, results, device, False, lambda line: None) == 0
        assert [(sweep.cases[0].name, len(sweep.cases), left) for sweep, left in asked] == [
            ("gnfast", 1, 30.0),
            ("papers", 1, 30.0),
        ]
        (ours, _), (theirs, _) = asked
        # A dozen evaluations each, and ten rows of speed between two.
        assert ours.cases[0].config().eval_every == 50 and ours.cases[0].config().log_every == 5
        assert theirs.cases[0].config().eval_every == 5 and theirs.cases[0].config().log_every == 1
        assert ours.devices == (("cuda",) if device.type == "cuda" else ())
    # Those that have had their time before are left alone.
    monkeypatch.setattr(learning, "_used", lambda case: 31.0 if case.name == "gnfast" else 10.0)
    asked.clear()
    learning.trained(made, results, CPU, False, lambda line: None)
    assert [(sweep.cases[0].name, left) for sweep, left in asked] == [("papers", 20.0)]


def test_runs_that_a_killed_command_left_are_waited_for(training, monkeypatch):
    """Also when they have had their time, which nobody ends for them."""
    made = training()
    results = mock.Mock(seconds_to_learn=lambda _: 60.0, steps_per_s=lambda *_: 20.0)
    monkeypatch.setattr(learning, "_used", lambda case: 61.0)
    left = lock.sole_user(made.cases[GNFAST].folder.parent, "a sweep (or runs that it left), process")
    with left, pytest.raises(RunError, match=r"runs that it left.* still at work here"):
        learning.trained(made, results, CPU, False, lambda line: None)
    assert learning.trained(made, results, CPU, False, lambda line: None) == 0


def test_runs_that_fail_are_tried_again(capsys, tmp_path, monkeypatch, forked):
    out = tmp_path / "out"
    words = [*WORDS, "--minutes", "0.02", "--out", str(out), *settings("steps=3")]
    # A folder that another program has left there.
    (out / NAME / "papers").mkdir(parents=True)
    (out / NAME / "papers" / "notes.txt").write_text("mine")
    assert main(words) == 1
    table = (out / "table.md").read_text()
    assert f"- {NAME}, the papers' way: failed, gnfast: " in table and "no config.json" in table
    (out / NAME / "papers" / "notes.txt").unlink()
    assert main(words) == 0
    assert "failed" not in (out / "table.md").read_text()


def test_wrong_losses_have_no_ratio(tmp_path, monkeypatch):
    first = iteration._first

    def wrong(state):
        found = first(state)
        return found if state.config.impl == "reference" else dataclasses.replace(found, values=1.5 * found.values)

    monkeypatch.setattr(iteration, "_first", wrong)
    monkeypatch.setattr(learning, "run_sweep", lambda *_, **__: 0)
    assert main([*WORDS, "--minutes", "0.02", "--out", str(tmp_path / "out"), *settings()]) == 1
    row = next(
        line for line in (tmp_path / "out" / "table.md").read_text().splitlines() if f"| {NAME} | gnfast" in line
    )
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["–", "no"]


def test_what_cannot_be_scored_is_not_trained(capsys, tmp_path):
    for index in range(12):
        colour = (20 * index, 3, 7)
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{index}.png")
    words = [*WORDS, "--minutes", "0.02", "--out", str(tmp_path / "out"), *settings("channels=3")]
    words[words.index("digits")] = f"cifar10={tmp_path}"
    words[-len(TINY) + 1] = "channels=3"
    words.pop()
    assert main(words) == 0
    found = capsys.readouterr().out
    assert f"{NAME}: not trained, for nothing measures it: a classifier needs classes" in found
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"] and not results["learning"][NAME]["runs"]
    assert not (tmp_path / "out" / NAME).exists() and not (tmp_path / "out" / "learning.png").exists()


@pytest.mark.parametrize("labels", [None, torch.zeros(4, dtype=torch.int64)])
def test_without_inception_a_classifier_measures(monkeypatch, labels):
    images = ImageDataset(
        "four", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels, ("a",) if labels is not None else ()
    )
    case = Case({}, NAME, {"extractor": "inception"}, None)
    monkeypatch.setattr(prepare, "load_weights", mock.Mock())
    assert prepare._scored(case, images, False) == (case, "")
    monkeypatch.setattr(prepare, "load_weights", mock.Mock(side_effect=ValueError("could not\ndownload")))
    found, note = prepare._scored(case, images, False)
    assert found.options["extractor"] == ("none" if labels is None else "classifier")
    assert note.startswith("no FID: could not download; ")


def test_missing_images_are_named_before_anything_is_read(capsys, tmp_path, monkeypatch):
    loaded = mock.Mock(side_effect=AssertionError("read"))
    monkeypatch.setattr(prepare, "images_of", loaded)
    lines = []
    scale = scale_of(0.01, ["celebahq=/nowhere.zip", "cifar10=/nowhere"], [])
    given = (("gngan-celebahq-128", "gngan-celebahq-256", NAME), scale, tmp_path, CPU, False, lines.append)
    with pytest.raises(ValueError, match=r"no images for any: gngan-celebahq-128, gngan-celebahq-256: .*nowhere.zip"):
        prepare.prepared(*given)
    loaded.side_effect = lambda config, progress: "damaged"
    here = dataclasses.replace(scale, data={"celebahq": "/nowhere.zip", "cifar10": str(tmp_path)})
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"--data celebahq=PATH.*cifar10-cnn: damaged"):
        prepare.prepared(given[0], here, *given[2:])
    assert lines[0].startswith("not measured: gngan-celebahq-128, gngan-celebahq-256: ")
    assert lines[1] == f"not measured: {NAME}: damaged"
    assert "imagenet=PATH" in prepare._missing(PRESETS["faster-gngan-imagenet-64"].config)


def fails(capsys, *words):
    assert main(["bench", "paper", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = ("--scale", "0.01", "--data", "digits")
    assert "--presets: unknown preset 'gngan-cifar10'" in fails(capsys, "--presets", "gngan-cifar10", *small)
    for minutes in ("0", "-1", "nan", "inf"):
        assert f"--minutes: got {minutes}, wanted" in fails(capsys, f"--minutes={minutes}", *small)
    assert "--scale: there is no GPU" in fails(capsys, "--presets", "cifar10")
    assert "--scale: got 2.0" in fails(capsys, "--scale", "2")
    assert "--set: got impl, which the comparison sets itself" in fails(capsys, *small, "--set", "impl=reference")
    assert "--set: got eval_every, which" in fails(capsys, *small, "--set", "eval-every=3")
    assert "--set: got precision=float64, wanted" in fails(capsys, *small, "--set", "precision=float64")
    assert "--data: unknown data set 'cifar'" in fails(capsys, "--scale", "1", "--data", "cifar=x")
    assert not any(tmp_path.iterdir())


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "paper", "--help"])
    assert not end.value.code
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "gnfast bench paper --presets cifar10 stl10 celebahq --minutes 30" in text
    assert "--minutes" in text and "Wall-clock minutes of each preset" in text


def test_tables_of_what_is_missing():
    """A way that was left out, a run that failed, and no learning at all."""
    row = {"preset": NAME, "variant": names.EAGER, "steps_per_s": 2.0, "images_per_s": 128.0, "gate": "green"}
    row |= {"ratio": 1.0, "memory_bytes": 2 * 10**10}
    results = mock.Mock(presets=[NAME], rows=lambda _: [row], runs=lambda _: {}, content={"notes": [], "left_out": {}})
    assert f"| {NAME} | gnfast          | 2       | 128      | 20.0 GB | 1.00 " in pages._speed(results)
    assert f"| {NAME} | strongest       | –       | –        | –" in pages._speed(results)
    assert pages._learning(results) == ""
    failed = {"status": "failed", "message": "out of memory", "curve": []}
    results.runs = lambda _: {GNFAST: failed, PAPERS: failed}
    assert pages._notes(results).splitlines()[0] == f"- {NAME}, gnfast: failed, out of memory"
    assert pages._learning(results).count("| –") >= 6


@pytest.mark.gpu
def test_on_a_gpu(tmp_path, capsys):
    words = [*WORDS[:-2], "--minutes", "0.5", "--out", str(tmp_path / "out")]
    assert main([*words, *settings("steps=2000", "ema_decay=0.5", "n_dis=2")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not results["notes"], results["notes"]
    rows = {row["variant"]: row for row in results["rows"]}
    assert set(rows) == {*speed.OURS, names.A, *speed.BASELINES}
    assert {row["gate"] for row in rows.values()} == {"green"}
    assert all(row["memory_bytes"] > 0 and row["back_to_back_ms"] > 0 for row in rows.values())
    runs = results["learning"][NAME]["runs"]
    assert all(run["curve"] and run["status"] in ("finished", "stopped") for run in runs.values())
