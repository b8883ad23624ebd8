"""The training program: resume to the bit, damaged checkpoints, refused run folders, moving average, stops."""

import copy
import dataclasses
import json
import os
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from gnfast import metrics, models
from gnfast.config.config import as_json, differences, from_json
from gnfast.config.presets import PRESETS
from gnfast.data import ImageDataset
from gnfast.io.rows import read_rows
from gnfast.runs import checkpoint, drawing, lock
from gnfast.runs.record import read_run
from gnfast.runs.signals import requested_stops
from gnfast.train import RunError, session
from gnfast.train import loop as loop_module
from gnfast.train import step as step_module
from gnfast.train.ema import Ema
from gnfast.train.evaluate import Measures, evaluate
from gnfast.train.logs import RunLog, grid, loss_curve
from gnfast.train.networks import build_networks, sample
from gnfast.train.state import State
from tests.kills import pixels
from tests.tiny_runs import equal, quiet, tiny


@pytest.fixture
def config(tmp_path):
    """Eleven steps of tiny networks on eight-pixel digits: odd intervals, so that stops fall between them."""
    return tiny(
        tmp_path / "run",
        steps=11,
        n_dis=2,
        lr_decay="linear",
        ema_decay=0.9,
        ema_start=3,
        log_every=3,
        sample_every=5,
        n_samples=9,
        checkpoint_every=4,
    )


def stop_at(monkeypatch, step, action):
    """Calls `action` at the end of the update that completes `step`."""
    original = State.update

    def update(self):
        original(self)
        if self.step == step:
            action()

    monkeypatch.setattr(State, "update", update)


class Killed(BaseException):
    """What a `kill -9` does to the process, as far as the files can tell."""


def die():
    raise Killed


@pytest.mark.parametrize("how", ["killed", "terminated"])
def test_a_continued_run_equals_an_uninterrupted_one_bit_for_bit(config, tmp_path, monkeypatch, how):
    whole = dataclasses.replace(config, run_dir=str(tmp_path / "whole"))
    quiet("digits", whole)
    with monkeypatch.context() as patch:
        if how == "killed":
            stop_at(patch, 6, die)
            with pytest.raises(Killed):
                quiet("digits", config)
        else:
            stop_at(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
            outcome, lines = quiet("digits", config)
            assert (outcome.step, outcome.finished, outcome.signal) == (6, False, signal.SIGTERM)
            assert "stopped after step 6 by SIGTERM" in lines[-1]
        if how == "killed":
            # As a power cut may leave them.
            for name in ("config.json", "environment.json"):
                (tmp_path / "run" / name).write_bytes(b"")
    outcome, lines = quiet("digits", config)
    if how == "killed":
        assert "config.json is damaged" in lines[0] and "environment.json is damaged" in lines[1]
        assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["seed"] == 0
    assert f"continuing after step {4 if how == 'killed' else 6}" in lines[-3]
    assert outcome.finished
    a, b = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("whole", "run"))
    assert a["state"]["step"] == 11
    assert equal(a, b)
    for name in ("metrics.jsonl", "samples/ema-000011.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_finished_run_says_so(config, tmp_path):
    # In a folder whose name is not UTF-8.
    folder = tmp_path / "run\udcff"
    config = dataclasses.replace(config, run_dir=str(folder))
    quiet("digits", config)
    before = {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()}
    # They come after the last checkpoint: a kill may have cut them off.
    shown = {name: (folder / name).read_bytes() for name in ("curves.png", "report.html")}
    for name in shown:
        (folder / name).unlink()
    outcome, lines = quiet("digits", config)
    assert outcome.finished
    assert "has finished its 11 steps" in lines[0]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (folder / "curves.png").read_bytes() == shown["curves.png"] and (folder / "report.html").exists()


def test_fewer_steps_than_a_run_has_done_are_refused(config, tmp_path):
    config = dataclasses.replace(config, lr_decay="none", steps=3)
    quiet("digits", config)
    settings = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(RunError, match=r"--steps: got 2, but .* has done 3"):
        quiet("digits", dataclasses.replace(config, steps=2))
    assert (tmp_path / "run" / "config.json").read_bytes() == settings


def test_a_second_start_is_refused_and_touches_nothing(config, tmp_path):
    folder = tmp_path / "run"
    with lock.sole_user(folder, "gnfast train, process"):
        with pytest.raises(RunError, match=rf"run: gnfast train, process {os.getpid()} on .* is still at work here"):
            quiet("digits", config)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not folder.exists()


def test_a_mistake_leaves_no_folder(config, tmp_path):
    with pytest.raises(ValueError, match="extractor"):
        quiet("digits", dataclasses.replace(config, extractor="nose", run_dir=str(tmp_path / "a" / "b")))
    assert not list(tmp_path.iterdir())


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"\.lock"), lock.sole_user(tmp_path, "x"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_row_costs_itself_and_says_so(tmp_path):
    rows = [f'{{"step": {step}}}\n' for step in range(1, 7)]
    content = "".join([*rows[:2], '{"step": 3, "lo\n', "[4]\n", *rows[3:], '{"step": 7, "l'])
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    said = []
    RunLog(tmp_path, 5, False, said.append).close()
    assert path.read_text() == "".join(rows[:2] + rows[3:5])
    assert "metrics.jsonl: line 3, 4 cannot be read" in said[0]
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == content
    RunLog(tmp_path, 5, False, said.append).close()
    assert len(said) == 1
    # Of a run that has not begun no row is left: the first one would come twice.
    path.write_text('{"step": 0}\n')
    RunLog(tmp_path, 0, False, said.append).close()
    assert path.read_text() == ""


def test_files_planted_in_a_run_folder_are_not_written_through(tmp_path):
    (tmp_path / "log.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"log\.txt: a link"):
        RunLog(tmp_path, 0, False)
    (tmp_path / "log.txt").unlink()
    os.mkfifo(tmp_path / "log.txt")
    with pytest.raises(ValueError, match=r"log\.txt"):
        RunLog(tmp_path, 0, False)


def test_paths_of_a_run_mean_the_same_from_everywhere(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = loop_module._from_anywhere(dataclasses.replace(config, data="images.zip", extractor_weights="~/w.pt"))
    assert (settings.data, settings.extractor_weights) == (f"{tmp_path}/images.zip", f"{tmp_path}/home/w.pt")
    assert loop_module._from_anywhere(config).data == "digits"
    assert loop_module.run_folder("digits", dataclasses.replace(config, run_dir="~/x")) == tmp_path / "home" / "x"


def test_signals_that_ask_to_stop(heard):
    with requested_stops() as received:
        os.kill(os.getpid(), signal.SIGHUP)
    assert received == [signal.SIGHUP]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        # As under nohup.
        with requested_stops() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not received
    finally:
        signal.signal(signal.SIGHUP, before)


NOISE = ImageDataset("noise", torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8))


def state_of(config, steps=0):
    state = State(config, NOISE, torch.device("cpu"))
    for _ in range(steps):
        state.update()
    return state


MOMENT = ("optim_d", "state", 0)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ((*MOMENT, "exp_avg"), torch.zeros(1), r"optim_d\[0\].exp_avg: got \(1,\)"),
        ((*MOMENT, "exp_avg_sq"), 3, r"optim_d\[0\].exp_avg_sq: got int, wanted"),
        ((*MOMENT, "max_exp_avg_sq"), torch.zeros(1), r"optim_d\[0\] has an unknown 'max_exp_avg_sq'"),
        ((*MOMENT, "step"), torch.zeros(7), r"optim_d\[0\].step: got \(7,\)"),
        (("optim_g", "state", 999), {}, "optim_g is not of"),
        (("optim_g",), [], "optim_g is not of"),
        (("critic",), {}, "critic lacks"),
        (("batches", "position"), "end", "batches.position: got str, wanted int"),
        (("noise",), torch.zeros(5056), "noise: got .*float32, wanted"),
        (("pending",), [torch.zeros(9)], r"a row of pending: got \(9,\).*, wanted \(3,\)"),
        (("step",), 1.5, "step: got float, wanted int"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_before_it_is_used(config, keys, value, message):
    state = state_of(config, 1)
    saved = state.state_dict()
    place = saved
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    before = copy.deepcopy(state.critic.state_dict())
    with pytest.raises(ValueError, match=message):
        state.load_state_dict(saved)
    assert equal(before, dict(state.critic.state_dict()))


def test_a_run_continues_in_another_memory_layout(config):
    """Fused optimisers go through weights and what they remember of them as they lie in memory."""
    first = state_of(config, 2)
    other = state_of(dataclasses.replace(config, memory_format="contiguous"))
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    for state in (first, other):
        state.update()
        state.update()
    for a, b in zip(first.critic.parameters(), other.critic.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_cannot_ask_for_more_than_it_holds(tmp_path):
    weights = saved_at(1)["state"]["generator"]
    lies = {
        "in one place": weights["w"][:1].expand(1000),
        "sparse": torch.eye(3).to_sparse(),
    }
    for name, tensor in lies.items():
        torch.save(saved_at(1) | {"x": tensor}, tmp_path / "step-000000001.pt")
        said = []
        with pytest.raises(RunError, match="none of the 1"):
            checkpoint.load_newest(tmp_path, said.append)
        assert "it holds a" in said[0], name
    torch.save(saved_at(1), tmp_path / "right.pt")
    with zipfile.ZipFile(tmp_path / "right.pt") as right, zipfile.ZipFile(tmp_path / "step-000000001.pt", "w") as wrong:
        for entry in right.infolist():
            wrong.writestr(entry.filename, b"big" if entry.filename.endswith("byteorder") else right.read(entry))
    with pytest.raises(RunError, match="none of the 1"):
        checkpoint.load_newest(tmp_path, said.append)
    assert "in another order" in said[-1]
    os.remove(tmp_path / "step-000000001.pt")
    os.mkfifo(tmp_path / "step-000000001.pt")
    with pytest.raises(RunError, match="none of the 1"):
        checkpoint.load_newest(tmp_path, said.append)
    assert "a named pipe" in said[-1]


def test_the_folder_tells_the_story(config, tmp_path):
    folder = tmp_path / "run"
    config = dataclasses.replace(config, tensorboard=True)
    quiet("digits", config)
    assert list(folder.glob("tensorboard/events*"))
    assert json.loads((folder / "config.json").read_text()) == {
        "preset": "digits",
        "config": as_json(config) | {"extractor": "none"},
    }
    (session,) = json.loads((folder / "environment.json").read_text())
    assert session["torch"] == torch.__version__
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [3, 6, 9, 11]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        f"{weights}-{step:06d}.png" for weights in ("ema", "raw") for step in (5, 10, 11)
    ]
    assert len(checkpoint.paths(folder / "checkpoints")) == 2
    assert "finished 11 steps" in (folder / "log.txt").read_text()
    assert Image.open(folder / "curves.png").width > 100


def test_events_are_what_tensorboard_reads(tmp_path):
    log = RunLog(tmp_path, 0, True, lambda line: None)
    log.row(3, loss_real=1.5, loss_fake=2, extractor="x")
    log.picture("ema", 3, torch.zeros(4, 3, 8, 8))
    log.picture("raw", 3, torch.zeros(4, 1, 8, 8))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        "loss_real": [(3, 1.5)],
        "loss_fake": [(3, 2.0)],
    }
    for name in ("ema", "raw"):
        (image,) = events.Images(name)
        path = tmp_path / "samples" / f"{name}-000003.png"
        assert image.encoded_image_string == path.read_bytes()
        assert (image.width, image.height) == Image.open(path).size


@pytest.mark.parametrize(("seconds", "drawn"), [(0.0, [0, 5, 10, 11]), (3600.0, [11])])
def test_the_page_is_drawn_at_evaluations_but_not_all_the_time(config, tmp_path, monkeypatch, seconds, drawn):
    steps = []
    monkeypatch.setattr(session, "PAGE_SECONDS", seconds)
    last = tmp_path / "run" / "metrics.jsonl"
    monkeypatch.setattr(
        session, "write_report", lambda _: steps.append(max((row["step"] for row in read_rows(last)), default=0))
    )
    quiet("digits", dataclasses.replace(config, extractor="none", eval_every=5, log_every=1))
    assert steps == drawn


def test_distances_in_curves_are_written_as_numbers(tmp_path, monkeypatch):
    rows = [{"step": step, "loss_real": 1.0, "distance_ema": 40.0 + step, "extractor": "x"} for step in range(9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures, png = [], drawing.png
    monkeypatch.setattr(drawing, "png", lambda figure: figures.append(figure) or png(figure))
    loss_curve(tmp_path)
    texts = [label.get_text() for axes in figures[0].axes for label in axes.get_yticklabels(which="both")]
    assert "40" in texts and not [text for text in texts if "$" in text]


def saved_at(step):
    """What a checkpoint holds at least."""
    weights = {"w": torch.arange(3.0)}
    return {
        "preset": "x",
        "data": "y",
        "state": {"step": step, "generator": weights, "critic": weights, "ema": weights},
    }


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, saved_at(step) | {"tensor": torch.arange(1000.0)})
    newest = checkpoint.paths(tmp_path)[0]
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        with zipfile.ZipFile(newest) as archive:
            place = next(entry for entry in archive.infolist() if entry.file_size >= 4000).header_offset
        content[place + 1000] ^= 1
    newest.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    warnings = []
    assert checkpoint.load_newest(tmp_path, warnings.append)["state"]["step"] == 1
    assert "step-000000002.pt is damaged" in warnings[0]
    checkpoint.paths(tmp_path)[1].write_bytes(b"")
    with pytest.raises(RunError, match="none of the 2 checkpoints"):
        checkpoint.load_newest(tmp_path, warnings.append)


def test_a_kill_while_writing_leaves_the_previous_checkpoint(config, monkeypatch):
    def half(state, file):
        file.write(b"PK\x03\x04 half of it")
        die()

    with monkeypatch.context() as patch:
        stop_at(patch, 8, lambda: patch.setattr(torch, "save", half))
        with pytest.raises(Killed):
            quiet("digits", config)
    outcome, lines = quiet("digits", config)
    assert "continuing after step 4" in lines[0]
    assert outcome.finished
    assert not list(outcome.run_dir.glob("checkpoints/*.part"))


def test_other_settings_are_named(config):
    quiet("digits", config)
    other = dataclasses.replace(config, lr_d=1e-3, batch_g=8, sample_every=1)
    with pytest.raises(RunError) as error:
        quiet("digits", other)
    assert "--lr-d: the run has 0.0002, the command says 0.001" in str(error.value)
    assert "--batch-g" in str(error.value)
    assert "sample" not in str(error.value)


def test_another_preset_other_images_and_other_folders_are_refused(config, tmp_path):
    quiet("digits", config)
    with pytest.raises(RunError, match="is a run of digits, not of gngan-cifar10-cnn"):
        quiet("gngan-cifar10-cnn", config)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (8, 8), 30).save(images / "one.png")
    with pytest.raises(RunError, match="other images"):
        quiet("digits", dataclasses.replace(config, data=str(images)))
    with pytest.raises(RunError, match="not a run folder"):
        quiet("digits", dataclasses.replace(config, run_dir=str(images)))


def test_steps_may_grow_without_a_schedule_only(config):
    constant = dataclasses.replace(config, lr_decay="none")
    assert not differences(as_json(constant), dataclasses.replace(constant, steps=20))
    assert differences(as_json(config), dataclasses.replace(config, steps=20))
    ends = dataclasses.replace(config, lr_decay_end=20)
    assert not differences(as_json(ends), dataclasses.replace(ends, steps=20))


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"model": "dcgan-table3"}, {"model": "sngan-cnn"}),
        ({"model": "layered-3-softplus-20"}, {"model": "layered-3", "activation": "softplus-20"}),
        ({"weight_norm": True}, {"weight_norm": "learned"}),
        ({"weight_norm": False}, {"weight_norm": "none"}),
    ],
)
def test_settings_of_earlier_versions_are_read(config, old, now):
    wanted = dataclasses.replace(config, **now)
    saved = as_json(wanted) | old
    assert from_json(saved) == wanted
    assert not differences(saved, wanted)
    assert differences(saved, dataclasses.replace(config, model="small", weight_norm="unit"))


def test_a_run_folder_of_an_earlier_version_continues(config, tmp_path):
    config = dataclasses.replace(config, model="sngan-cnn", resolution=16, lr_decay="none", steps=4)
    quiet("digits", config)
    old = {"model": "dcgan-table3", "weight_norm": False}
    written = Path(config.run_dir, "config.json")
    written.write_text(json.dumps((known := json.loads(written.read_text())) | {"config": known["config"] | old}))
    (saved,) = checkpoint.paths(Path(config.run_dir, "checkpoints"))
    checkpoint.save(saved.parent, 4, (state := checkpoint.load(saved)) | {"config": state["config"] | old})
    outcome, _ = quiet("digits", dataclasses.replace(config, steps=6))
    assert (outcome.trained, outcome.finished) == (2, True)
    assert read_run(Path(config.run_dir)).config.model == "sngan-cnn"


def test_a_dead_critic_trains_without_nan(config, monkeypatch):
    """All weights zero: f = 0 and the input gradient is 0 everywhere."""
    original = models.build

    def dead(*arguments, **keywords):
        generator, critic = original(*arguments, **keywords)
        for parameter in critic.parameters():
            nn.init.zeros_(parameter)
        return generator, critic

    monkeypatch.setattr(models, "build", dead)
    outcome, _ = quiet("digits", config)
    assert outcome.finished


def test_the_generator_step_leaves_the_critic_alone(config):
    state = state_of(config)
    before = [parameter.clone() for parameter in state.critic.parameters()]
    *_, latents = state.draws()
    step_module.generator_update(state, latents)
    for parameter, value in zip(state.critic.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad
        assert parameter.grad is None


def test_ema_averages_the_whole_state_after_its_start():
    net = nn.BatchNorm1d(2)
    ema = Ema(net, decay=0.75, start=2)
    for step, value in ((1, 4.0), (2, 8.0), (3, 0.0)):
        net.weight.data.fill_(value)
        net.running_mean.fill_(value)
        net.num_batches_tracked.fill_(step)
        ema.update(net, step)
    expected = 0.75 * (0.75 * 4 + 0.25 * 8) + 0.25 * 0
    assert ema.module.weight.tolist() == ema.module.running_mean.tolist() == [expected] * 2
    assert ema.module.num_batches_tracked == 3
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_an_average_that_is_a_copy_is_measured_once(config, monkeypatch, decay):
    """It is one before step 3, and always without decay: then the states are equal, and only then the scores shared."""
    state = state_of(dataclasses.replace(config, ema_decay=decay, n_fake=9))
    measures = Measures(NOISE, metrics.FeatureExtractor("pixels", 4, pixels))
    score, calls, copies = metrics.evaluate, [], []
    monkeypatch.setattr(metrics, "evaluate", lambda *args, **kw: calls.append(state.step) or score(*args, **kw))
    for _ in range(4):
        raw, ema = evaluate(state, measures, False)
        copies.append(raw is ema)
        assert copies[-1] == equal(*(net.state_dict() for net in state.generators().values()))
        state.update()
    assert copies == ([True, True, True, False] if decay else [True] * 4)
    assert calls == ([0, 1, 2, 3, 3] if decay else [0, 1, 2, 3])


def test_sampling_leaves_the_generator_as_it_was():
    generator, _ = models.build("small", resolution=8, channels=1, z_dim=3, width=0.1)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    z = torch.randn(6, 3)
    batch, running = sample(generator, z), sample(generator, z, batch_statistics=False)
    assert not torch.equal(batch, running)
    assert torch.equal(running, sample(generator, z, batch_statistics=False))
    assert generator.training
    assert equal(before, dict(generator.state_dict()))


def test_grid_puts_images_in_reading_order():
    picture = grid(torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None, None], columns=2, scale=1)
    assert torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(5, 5).tolist() == [
        [255, 255, 255, 255, 255],
        [255, 10, 255, 20, 255],
        [255, 255, 255, 255, 255],
        [255, 30, 255, 255, 255],
        [255, 255, 255, 255, 255],
    ]


def test_evaluation_names_its_extractor_and_is_repeatable(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    measured = dataclasses.replace(
        config, extractor="tests.kills:pixels", n_fake=20, eval_every=6, steps=6, lr_decay="none"
    )
    monkeypatch.syspath_prepend(os.fspath(Path(__file__).parents[2]))
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "cache"))
    # Stopped after the row of step 0 and before a checkpoint.
    with monkeypatch.context() as patch:
        stop_at(patch, 1, die)
        with pytest.raises(Killed):
            quiet("digits", measured)
    outcome, lines = quiet("digits", measured)
    assert [row["step"] for row in outcome.distances] == [0, 6]
    # The average of so few steps would show the first weights.
    assert outcome.picture.name == "raw-000006.png"
    assert all(row["extractor"] == "tests.kills:pixels" for row in outcome.distances)
    assert any("tests.kills:pixels" in line for line in lines)
    assert not any("FID" in line.partition(", not FID; ")[0] for line in lines)
    # Measuring must not change what is learnt.
    plain = dataclasses.replace(measured, extractor="none", run_dir=str(tmp_path / "plain"))
    quiet("digits", plain)
    a, b = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("run", "plain"))
    assert equal(a["state"], b["state"])


def test_config_survives_json():
    for preset in PRESETS.values():
        assert from_json(json.loads(json.dumps(as_json(preset.config)))) == preset.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps: got 0, wanted a whole number of at least 1"),
        ({"lr_d": -1.0}, "--lr-d: got -1.0"),
        ({"channels": 2}, "--channels: got 2, wanted one of 1, 3"),
        ({"ema_decay": 1.0}, "--ema-decay"),
        ({"betas": (0.0, 1.0)}, "--betas"),
        ({"tau": 1.2}, "--tau: got 1.2, wanted none, except with --method gran or gran-shift"),
        ({"method": "gran-shift", "tau": 1.2, "eps": 0.0}, "--eps: got 0.0"),
        ({"method": "gran-shift", "tau": 1.2, "eps": 0.3, "rescale": "initial"}, "--rescale: got 'initial'"),
        ({"learn_scale": True}, "--learn-scale: got True, wanted false, except with"),
        ({"learn_scale": True, "weight_norm": "learned"}, "--learn-scale"),
        ({"rescale": "glorot", "penalty": "r1"}, "--rescale: got 'glorot', wanted none with --penalty"),
        ({"stable_rank": 0.5}, "--stable-rank: got 0.5, wanted 0 without --spectral-norm"),
        ({"stable_rank": 1.5, "spectral_norm": True}, "--stable-rank: got 1.5, wanted a number from 0 to 1"),
        ({"last_width": 2.0}, "--last-width: got 2.0, wanted 1 with a --model that has no last convolution to widen"),
        ({"lr_decay_start": 1, "lr_decay": "none"}, "--lr-decay-start: got 1, wanted 0 without --lr-decay"),
        ({"lr_decay_end": 11, "lr_decay": "none"}, "--lr-decay-end: got 11, wanted 0 without --lr-decay"),
        ({"lr_decay_end": 10}, "--lr-decay-end: got 10, wanted 0, or at least --steps 11"),
        ({"weight_clip": 0.1, "spectral_norm": True}, "--weight-clip: got 0.1, wanted 0 with --spectral-norm or"),
        ({"orthonormal": 0.1, "weight_norm": "unit"}, "--orthonormal: got 0.1, wanted 0 with"),
    ],
)
def test_bad_settings_say_what_was_wanted(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


SPECTRAL = {"method": "none", "spectral_norm": True, "steps": 12, "log_every": 1, "ema_decay": 0.0, "lr_decay": "none"}


def losses_of(folder):
    return torch.tensor(
        [
            [row[name] for name in ("loss_real", "loss_fake", "loss_generator")]
            for row in read_rows(folder / "metrics.jsonl")
            if "loss_real" in row
        ]
    )


@pytest.mark.parametrize("first", ["auto", "reference"])
def test_spectral_norm_is_pytorchs_step_for_step_and_continues_its_checkpoints(config, tmp_path, first):
    """A run by PyTorch's spectral norm, one by gnfast's, and one that changes from one to the other half-way."""
    config = dataclasses.replace(config, **SPECTRAL)
    second = {"auto": "reference", "reference": "auto"}[first]
    for impl in ("auto", "reference"):
        quiet("digits", dataclasses.replace(config, impl=impl, run_dir=str(tmp_path / impl)))
    quiet("digits", dataclasses.replace(config, impl=first, steps=6))
    outcome, lines = quiet("digits", dataclasses.replace(config, impl=second))
    assert outcome.finished and any("continuing after step 6" in line for line in lines)
    expected = losses_of(tmp_path / "reference")
    assert expected.shape == (12, 3) and expected.std() > 1e-3
    for name in ("auto", "run"):
        torch.testing.assert_close(losses_of(tmp_path / name), expected, rtol=1e-4, atol=1e-5)
    states = [
        checkpoint.load_newest(tmp_path / name / "checkpoints")["state"]["critic"]
        for name in ("auto", "reference", "run")
    ]
    for state in states:
        assert state.keys() == states[0].keys()
        for key, value in state.items():
            torch.testing.assert_close(value, states[0][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["unit", "learned", "frobenius"])
def test_weight_norm_settings_reach_the_critic(config, kind):
    layers = [m for m in build_networks(config)[1].modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    scaled = kind != "learned"
    net = build_networks(dataclasses.replace(config, weight_norm=kind, learn_scale=scaled))[1]
    norms = [m for m in net.modules() if type(m).__name__ == ("WeightNorm" if scaled else "_WeightNorm")]
    assert len(norms) == len(layers) and all(norm.gamma is not None for norm in norms if scaled)


def test_spectral_norm_settings_reach_the_critic(config):
    net = build_networks(dataclasses.replace(config, **SPECTRAL, k_sn=0.5, learn_scale=True, stable_rank=0.9))[1]
    weights = {name: norm for name, norm in net.named_modules() if type(norm).__name__ == "SpectralNorm"}
    assert len(weights) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules())
    assert all((norm.coeff, norm.stable_rank) == (0.5, 0.9) and norm.gamma is not None for norm in weights.values())
    with pytest.raises(ValueError, match="--impl: got 'reference', wanted auto with --k-sn"):
        dataclasses.replace(config, **SPECTRAL, k_sn=0.5, impl="reference")
