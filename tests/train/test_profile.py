"""`gnfast train --profile`: the page says where the time went, and the run is the one that it would have been."""

import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from gnfast import metrics
from gnfast.cli import main
from gnfast.runs import checkpoint
from gnfast.runs.timeline import Span
from gnfast.train import NonFiniteLossError, train
from gnfast.train import profile as profile_module
from gnfast.train.profile import APART, UPDATE, Profile
from gnfast.train.spent import Spent, since_start
from gnfast.train.state import State
from tests.pages import Page
from tests.tiny_runs import equal, quiet, tiny


def profiled(config):
    """A run with its page's words, and the lines that it would have shown."""
    lines = []
    outcome = train("digits", config, progress=False, echo=lines.append, profile=Spent())
    page = Page(Path(config.run_dir, "profile.html"))
    page.assert_self_contained()
    return outcome, [text for text in page.texts if text.strip()], lines


def test_a_profiled_run_is_the_same_run(tmp_path):
    every = {"steps": 90, "log_every": 10, "probe_every": 30, "sample_every": 30, "checkpoint_every": 45}
    extra = {"extractor": "tests.kills:pixels", "n_fake": 20, "eval_every": 50}
    plain, watched = (tiny(tmp_path / name, **every, **extra) for name in ("plain", "watched"))
    quiet("digits", plain)
    outcome, words, lines = profiled(watched)
    assert outcome.finished and not [line for line in lines if line.startswith("profile")]
    states = [checkpoint.load_newest(Path(c.run_dir, "checkpoints"))["state"] for c in (plain, watched)]
    assert equal(*states)
    rows = [Path(c.run_dir, "metrics.jsonl").read_bytes() for c in (plain, watched)]
    assert rows[0] == rows[1]
    assert "updates 41 to 60 were profiled; operations of the CPU" in words
    assert {"products", "pointwise", "Python and autograd", "views and allocation", "optimiser"} <= {*words}
    side = ["log", "probe", "samples", "evaluation", "report", "curves", "checkpoint"]
    for name, times in zip(side, (9, 3, 3, 2, 1, 1, 2), strict=True):
        # Evaluations without the one at the start; of checkpoints one more for each that was the best so far.
        assert times <= int(words[words.index(name) + 1]) <= times + 2 * (name == "checkpoint"), name
    assert {"data", "networks and optimisers", "scores and log", "first scores", "first update"} <= {*words}
    # A CPU has no gaps between kernels.
    assert not {"gaps", "Gaps"} & {*words}
    together = words.index("together")
    assert words[together + 2] == "100.0%"


def test_evaluations_are_no_part_of_a_window_nor_of_an_update(tmp_path, monkeypatch):
    original = profile_module.write_profile
    seconds, windows = 0.1, []

    def write(folder, window, *rest):
        windows.append(window)
        return original(folder, window, *rest)

    def slow(*_):
        torch.zeros(2).exp2().sum()
        time.sleep(seconds)
        return (metrics.Scores(1.0, "f", 5, 4),) * 2

    monkeypatch.setattr(profile_module, "write_profile", write)
    monkeypatch.setattr("gnfast.train.session.evaluate", slow)
    _, words, _ = profiled(tiny(tmp_path / "run", steps=9, extractor="tests.kills:pixels", eval_every=1))
    # Updates 4 to 6 were timed and 7 to 9 profiled, with an evaluation before each.
    window = windows[-1]
    assert (window.first, window.last) == (7, 9)
    assert window.seconds < seconds
    assert not any(span.name == "aten::exp2" for span in window.spans)
    # The one before the first update is the start's.
    assert words[words.index("evaluation") + 1] == "9"
    (share,) = (float(re.search(r": ([\d.]+)% of the time", text)[1]) for text in words if "% of the time, " in text)
    assert share <= 100


def test_a_continued_run_is_profiled_from_where_it_goes_on(tmp_path):
    config = tiny(tmp_path / "run", steps=5)
    quiet("digits", config)
    _, words, _ = profiled(tiny(tmp_path / "run", steps=35))
    assert "updates 26 to 35 were profiled; operations of the CPU" in words


def test_a_run_that_has_nothing_to_do_writes_no_page(tmp_path):
    config = tiny(tmp_path / "run", steps=2)
    quiet("digits", config)
    outcome = train("digits", config, progress=False, echo=(lines := []).append, profile=Spent())
    assert outcome.finished and "nothing to do" in lines[-1] and not (tmp_path / "run" / "profile.html").exists()


def test_too_few_updates_are_said(tmp_path):
    _, words, lines = profiled(tiny(tmp_path / "run", steps=2))
    assert "profile: the session ended before its window of updates did; the page shows all but that" in lines
    assert "no updates were profiled; operations of the CPU" not in words and "no updates were profiled" in words
    assert "checkpoint" in words and "first update" in words


def test_a_run_that_ends_in_its_window_leaves_no_profiler(tmp_path, monkeypatch):
    original = State.update

    def update(self):
        original(self)
        if self.step == 50:
            raise NonFiniteLossError(50, "step 50: planted")

    monkeypatch.setattr(State, "update", update)
    lines = []
    with pytest.raises(NonFiniteLossError, match="planted"):
        train("digits", tiny(tmp_path / "run", steps=90), progress=False, echo=lines.append, profile=Spent())
    assert [line for line in lines if line.startswith("profile: the session ended before")]
    assert (tmp_path / "run" / "profile.html").exists()
    # Another one can start.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as later:
        torch.ones(2).add(1)
    assert any("add" in event.name for event in later.events())


def test_a_profiler_that_fails_ends_nothing(tmp_path, monkeypatch):
    def broken(**_):
        raise RuntimeError("kineto\nis missing")

    monkeypatch.setattr(torch.profiler, "profile", broken)
    outcome, words, lines = profiled(tiny(tmp_path / "run", steps=70))
    assert outcome.finished and "no updates were profiled" in words
    assert lines.count("profile: RuntimeError: kineto is missing; training goes on without") == 1


def event(name, begin, end, lane=0, gpu=False, note=False):
    """As the profiler has them."""
    values = {
        "name": name,
        "start_ns": begin,
        "duration_ns": end - begin,
        "device_type": DeviceType.CUDA if gpu else DeviceType.CPU,
        "device_resource_id": lane,
        "start_thread_id": lane,
        "is_user_annotation": note,
    }
    return SimpleNamespace(**{key: lambda value=value: value for key, value in values.items()})


def seen(events, length, say=None, device="cpu"):
    """What `Profile` makes of recorded events, after `length` updates of a state that does nothing."""
    config = SimpleNamespace(steps=300)
    state = SimpleNamespace(config=config, step=0, captured=None, device=torch.device(device), update=lambda: None)
    profile = Profile(state, None, Spent(), Spent(), say or print)
    state.step = length
    return profile._seen(events, length, 0.002, 0.001)


def test_kernels_are_told_from_names_and_from_the_host():
    events = [
        event(UPDATE, 1000, 2000, note=True),
        event(UPDATE, 2500, 3000, note=True),
        # The same name on the GPU's line is no kernel; nor is what a program calls a stretch of it.
        event(UPDATE, 1100, 3900, lane=7, gpu=True),
        event("Optimizer.step", 1100, 3900, lane=7, gpu=True, note=True),
        event("aten::mm", 1000, 1900),
        event("sm90_gemm", 1500, 2500, lane=7, gpu=True),
        event("Memcpy DtoD", 3000, 3500, lane=8, gpu=True),
    ]
    window = seen(events, 2)
    assert window.spans == [Span("sm90_gemm", 1500, 2500, 7), Span("Memcpy DtoD", 3000, 3500, 8)]
    # From the first update to the end of the last kernel.
    assert (window.begin, window.end, window.thread, window.first, window.last) == (1000, 3500, None, 1, 2)


def test_work_that_is_apart_is_cut_out():
    events = [event(UPDATE, 0, 100, note=True), event("sm90_gemm", 50, 150, lane=7, gpu=True)]
    events += [event(APART, 200, 1200, note=True), event("sm90_gemm", 300, 1100, lane=7, gpu=True)]
    events += [event(UPDATE, 1200, 1300, note=True), event("sm90_gemm", 1250, 1350, lane=7, gpu=True)]
    events += [event(APART, 1400, 2400, note=True), event(UPDATE, 2450, 2550, note=True)]
    window = seen(events, 3)
    assert window.spans == [Span("sm90_gemm", 50, 150, 7), Span("sm90_gemm", 250, 350, 7)]
    assert (window.begin, window.end) == (0, 550)


def test_the_page_of_a_gpu_has_kernels_and_gaps(tmp_path):
    config = tiny(tmp_path / "run", steps=1)
    quiet("digits", config)
    events = [event(UPDATE, 0, 40_000, note=True), event(UPDATE, 50_000, 90_000, note=True)]
    events += [event("sm90_gemm", start, start + 25_000, lane=7, gpu=True) for start in (0, 50_000)]
    events += [event("ncclDevKernel_AllReduce", start + 15_000, start + 35_000, 9, gpu=True) for start in (0, 50_000)]
    graph = {"first calls": 4.1, "Triton": 2.0, "capture": 0.6}
    profile_module.write_profile(tmp_path / "run", seen(events, 2), {}, {}, graph, 1.0, 2)
    page = Page(tmp_path / "run" / "profile.html")
    page.assert_self_contained()
    words = page.texts
    at = words.index("products")
    # 15 µs alone and half of 10, of a window of 90 µs with two updates.
    assert words[at : at + 4] == ["products", "0.02", "44.4%", "1"]
    at = words.index("all-reduce", at)
    assert words[at : at + 4] == ["all-reduce", "0.015", "33.3%", "1"]
    # 15 µs between the updates, and 5 after the last kernel.
    at = words.index("gaps", at)
    assert words[at : at + 3] == ["gaps", "0.01", "22.2%"]
    assert "1 per update; 0.5 of them are longer than 5 µs and take 16.7% of the time" in words
    at = words.index("15.0")
    assert words[at : at + 3] == ["15.0", "ncclDevKernel_AllReduce", "sm90_gemm"]


def test_a_gpu_whose_kernels_cannot_be_seen_is_said():
    lines = []
    events = [event(UPDATE, 0, 100, note=True), event("aten::mm", 10, 20)]
    window = seen(events, 1, lines.append, "cuda")
    assert lines == ["profile: no kernels were recorded, as without CUPTI: the page shows operations of the CPU"]
    assert window.thread == 0 and len(window.spans) == 2
    assert seen([], 1, lines.append) is None and "recorded nothing" in lines[-1]


def test_work_inside_other_work_counts_once_and_other_threads_apart():
    spent = Spent()
    with spent("evaluation"):
        time.sleep(0.02)
        with spent("checkpoint"):
            time.sleep(0.05)
    with pytest.raises(ZeroDivisionError), spent("checkpoint"):
        _ = 1 / 0
    thread = threading.Thread(target=spent.timed("checkpoint", time.sleep), args=(0.03,))
    thread.start()
    thread.join()
    outer, inner = spent.entries["evaluation"], spent.entries["checkpoint"]
    assert 0.02 <= outer.here < 0.05 and outer.times == 1
    assert inner.times == 3 and 0.05 <= inner.here < inner.here + inner.elsewhere and inner.elsewhere >= 0.03


def test_marks_count_what_lies_between_them():
    spent = Spent()
    time.sleep(0.02)
    spent.mark("data")
    spent.mark("networks")
    assert spent.entries["data"].here >= 0.02 > spent.entries["networks"].here


def test_the_age_of_a_process():
    before = since_start()
    assert before is None or 0 < before < since_start() + 1


def test_the_command(tmp_path, capsys):
    words = ["--resolution=8", "--width=0.1", "--z-dim=5", "--batch-d=4", "--batch-g=6", "--n-samples=4", "--steps=6"]
    words += ["--eval-every=0", "--no-tensorboard", "--extractor=none", "--device=cpu", f"--run-dir={tmp_path / 'run'}"]
    assert main(["train", "digits", "--profile", *words]) == 0
    page = (tmp_path / "run" / "profile.html").read_text()
    assert "updates 5 to 6 were profiled" in page and "Python and imports" in page
    assert main(["train", "--help"]) == 0 and "[--profile]" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_kernels_of_a_gpu_are_seen(tmp_path, cuda_graph):
    _, words, lines = profiled(tiny(tmp_path / "run", steps=90, device="cuda", cuda_graph=cuda_graph))
    assert not [line for line in lines if line.startswith("profile")]
    assert "updates 41 to 60 were profiled; kernels of the GPU" in words
    assert {"products", "optimiser", "gaps"} <= {*words}
    assert cuda_graph == any("capture" in text for text in words)
