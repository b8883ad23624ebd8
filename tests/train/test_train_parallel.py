"""Training by several processes: the numbers of one process, one run folder, one wish to stop for all."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

import pytest
import torch
from torch import nn
from torch.multiprocessing import get_context, start_processes

from gnfast.bench.program import as_on_a_gpu
from gnfast.cli import main
from gnfast.cli.processes import _store
from gnfast.data import ImageDataset
from gnfast.metrics import FeatureExtractor
from gnfast.runs import checkpoint, torchrun
from gnfast.runs.checkpoint import LostError, RunError
from gnfast.train import Config, NonFiniteLossError, loop, step
from gnfast.train.buckets import averaged
from gnfast.train.evaluate import Measures, evaluate
from gnfast.train.failures import clear_errors
from gnfast.train.parallel import ALONE, Group, SyncBatchNorm, joined, synchronise_batch_norm
from gnfast.train.session import Session
from gnfast.train.state import State
from gnfast.train.validation import critic_losses
from tests.processes import START

STEPS = 3
CONFIG = Config(
    data="",
    resolution=16,
    model="dcgan",
    width=0.1,
    z_dim=5,
    n_dis=2,
    batch_d=8,
    batch_g=12,
    steps=20,
    precision="float64",
    consistency=2.0,
    penalty="1-gp",
    orthonormal=0.01,
    device="cpu",
)
# The critic's batch norm sees the images of all processes.
NORMED = dataclasses.replace(CONFIG, method="none", penalty="none", norm_d="batch")

# What generators are measured with.
MEASURED = ({}, {"sample_bn": "running", "sync_bn": False, "ema_start": 9})


def dataset():
    generator = torch.Generator().manual_seed(3)
    return ImageDataset("noise", torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=generator))


def in_process(rank, world, port, work, folder, *arguments):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(torch.device("cpu")) as group:
        torch.save(work(group, *arguments), f"{folder}/{rank}.pt")


def free_port():
    """A port for processes to meet at: those of other workers differ."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def in_processes(world, work, folder, *arguments):
    """What `work(group, *arguments)` gives in each of `world` processes."""
    arguments = (world, free_port(), work, str(folder), *arguments)
    start_processes(in_process, args=arguments, nprocs=world, start_method=START)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def train(group, config):
    state = State(config, dataset(), torch.device("cpu"), group)
    for _ in range(STEPS):
        state.update()
    return group.mean(torch.stack(state.pending)), state.critic.state_dict(), state.generator.state_dict()


NETS = {
    "images": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (3, 5, 4)),
    "vectors, the mean of all batches": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None)),
        (3,),
    ),
    "nothing kept": (
        lambda: nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4, 1e-3, 0.1, False, False)),
        (3, 5, 2, 2),
    ),
}


def normalise(group, name):
    """Output, input gradient and state of a batch norm, on this process's parts of two batches."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().double()
    if group.world > 1:
        net = synchronise_batch_norm(net, torch.device("cpu"))
        assert isinstance(net[1], SyncBatchNorm)
    if net[1].affine:
        nn.init.normal_(net[1].weight)
    for _ in range(2):
        x = group.share(torch.randn(6, *shape, dtype=torch.float64)).requires_grad_()
        y = net(x)
    (y * y.detach().cos()).sum().backward()
    # Where nothing is kept, evaluation takes the statistics of what a process has.
    kept = net[1].track_running_stats
    return y.detach(), x.grad, net.state_dict(), net.eval()(x).detach() if kept else y.detach()


def average(group):
    parameter, unused = nn.Parameter(torch.zeros(3, 2).t()), nn.Parameter(torch.zeros(4))
    with averaged(group, [parameter, unused]):
        parameter.grad = torch.full_like(parameter, float(group.rank))
    return parameter.grad, unused.grad, group.any(group.rank == 1), group.any(False)


def in_turn(group, folder):
    """What a process finds when it has its turn, for which all but the leader take their time."""
    with group.leader_first():
        time.sleep(0.2 * group.rank)
        found = sorted(os.listdir(folder))
        (folder / f"in {group.rank}").touch()
    (folder / f"after {group.rank}").touch()
    return found


def measured(group, changes):
    """The scores of generators in a process, and of how many images each features were taken at a time.

    Where batch norm is not synchronised its statistics differ: the leader's count.
    """
    config = dataclasses.replace(CONFIG, n_fake=50, **changes)
    state, sizes = State(config, dataset(), torch.device("cpu"), group), []
    state.step = 1
    for net in (state.generator, state.ema.module):
        for buffer in net.buffers():
            buffer += group.rank

    def features(images):
        sizes.append(len(images))
        flat = images.flatten(1).double() / 255
        return flat[:, 7:19], flat[:, 30:35]

    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, GNFAST_CACHE=cache):
        extractor = FeatureExtractor("f", 12, features, classes=5, fingerprint="f")
        found = evaluate(state, Measures(dataset(), extractor), progress=False)
    return [dataclasses.asdict(scores) | {"timing": None} for scores in found], sizes


def refused(group):
    extractor = FeatureExtractor("f", 12, None, fingerprint=str(group.rank))
    state = State(CONFIG, dataset(), torch.device("cpu"), group)
    with pytest.raises(RuntimeError, match="the extractor's weights: the processes of the run have different ones"):
        evaluate(state, Measures(dataset(), extractor), progress=False)


def validated(group):
    return critic_losses(State(NORMED, dataset(), torch.device("cpu"), group), dataset())


def everything(group, folder):
    unsynchronised = dataclasses.replace(CONFIG, sync_bn=False)
    turns, norms = in_turn(group, folder), {name: normalise(group, name) for name in NETS}
    parts = train(group, CONFIG), train(group, unsynchronised), norms, average(group), turns
    refused(group)
    return *parts, [measured(group, changes) for changes in MEASURED], validated(group), train(group, NORMED)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What each of two processes found."""
    return in_processes(2, everything, tmp_path_factory.mktemp("processes"), tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize(
    # A bias in front of batch norm has gradients of rounding alone, which Adam enlarges.
    ("place", "config", "tolerance"),
    [(0, CONFIG, 1e-9), (-1, NORMED, 1e-8)],
    ids=["penalised", "normed critic"],
)
def test_two_processes_train_as_one(parts, place, config, tolerance):
    expected = train(ALONE, config)
    for ours in (part[place] for part in parts):
        torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(ours[1:], expected[1:], rtol=0, atol=tolerance)
    for a, b in zip(*([*part[place][1].values(), *part[place][2].values()] for part in parts), strict=True):
        assert torch.equal(a, b), "the processes must not drift apart"


def test_without_synchronised_batch_norm_they_do_not(parts):
    assert (parts[0][1][0] - train(ALONE, CONFIG)[0]).abs().max() > 1e-6


@pytest.mark.parametrize("name", NETS)
def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch(parts, name):
    expected = normalise(ALONE, name)
    for index in (0, 1, 3):
        whole = torch.cat([part[2][name][index] for part in parts])
        torch.testing.assert_close(whole, expected[index], rtol=1e-12, atol=1e-12)
    for part in parts:
        torch.testing.assert_close(part[2][name][2], expected[2], rtol=1e-12, atol=1e-12)


def test_gradients_are_averaged(parts):
    for gradient, unused, any_of_them, none_of_them in (part[3] for part in parts):
        assert torch.equal(gradient, torch.full((2, 3), 0.5))
        assert unused is None
        assert any_of_them
        assert not none_of_them


def test_others_see_what_the_leader_did_before_them_and_nothing_later(parts):
    assert [part[4] for part in parts] == [[], ["in 0"]]


@pytest.mark.parametrize("index", range(len(MEASURED)))
def test_evaluation_is_shared_and_gives_the_scores_of_one_process(parts, index):
    expected, sizes = measured(ALONE, MEASURED[index])
    assert all(scores["kid_mean"] and scores["is_mean"] for scores in expected)
    shares = []
    for part in parts:
        scores, share = part[5][index]
        assert scores == expected
        shares.append(sum(share))
    # Of 40 real images once, and of 50 of each generator.
    assert sum(shares) == sum(sizes) == 40 + 50 * (2 - index) and max(shares) < 0.6 * sum(sizes)


def evaluate_and_fail(rank, port, folder):
    """An evaluation that fails in the second process, whose message, like the other's, goes into the folder."""

    def features(images):
        if rank:
            raise ValueError("planted")
        return images.flatten(1).double()[:, :3]

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with clear_errors(folder), joined(torch.device("cpu")) as group:
            state = State(dataclasses.replace(CONFIG, n_fake=50), dataset(), torch.device("cpu"), group)
            evaluate(state, Measures(dataset(), FeatureExtractor("f", 3, features)), progress=False)
    except (ValueError, RunError) as error:
        (folder / str(rank)).write_text(str(error))


def test_an_evaluation_that_fails_in_one_process_ends_all(tmp_path):
    start_processes(evaluate_and_fail, args=(free_port(), tmp_path), nprocs=2, start_method=START)
    assert "another process of the run was lost" in (tmp_path / "0").read_text()
    assert (tmp_path / "1").read_text() == "planted"


def test_the_critics_loss_on_validation_images_is_that_of_one_process(parts):
    for part in parts:
        assert part[6] == pytest.approx(validated(ALONE), rel=1e-10)


def test_torchrun_writes_one_run_that_a_signal_stops_and_one_process_continues(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["train", "digits", "--resolution=8", "--width=0.1", "--z-dim=5", "--batch-d=4", "--batch-g=6", "--k-sn=3"]
    words += ["--n-samples=4", "--extractor=tests.cli.test_metrics_cli:pixels", "--n-fake=20", "--eval-every=0"]
    words += ["--device=cpu", "--no-tensorboard", f"--run-dir={folder}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "gnfast"]
    run = subprocess.Popen(
        [*torchrun, *words, "--steps=100000", "--checkpoint-every=1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(rows(folder)) < 3:
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    text = run.communicate(timeout=60)[0]
    assert text.count("saved; repeat the command to continue") == 1 and "2 processes" in text
    # Warnings are not said once for each process (`gnfast/cli/processes.py`).
    assert text.count("--k-sn 3.0 has no effect without --spectral-norm") == 1
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    assert json.loads((folder / "environment.json").read_text())[0]["processes"] == 2
    step = int(checkpoint.stem.removeprefix("step-"))
    shared = json.loads(rows(folder)[0])
    assert main([*words, f"--steps={step + 5}"]) == 0
    assert f"continuing after step {step}" in (text := capsys.readouterr().out) and f"finished {step + 5} steps" in text
    assert main([*words, "--steps=1", f"--run-dir={tmp_path / 'alone'}"]) == 0
    assert "distance_raw" in shared and json.loads(rows(tmp_path / "alone")[0]) == shared


def waits_for_others(port):
    """A process that Ctrl-C interrupts, as long as it runs Python."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    as_torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2", **as_torchrun}
    with joined(torch.device("cpu")):
        pass


def test_a_signal_ends_a_process_that_waits_for_the_others_in_native_code():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(60)
        child = get_context(START).Process(target=waits_for_others, args=(mute.getsockname()[1],))
        child.start()
        # Whether there is a torchrun; and then what PyTorch asks it, which nobody answers.
        asked = [mute.accept()[0] for _ in range(2)]
        os.kill(child.pid, signal.SIGINT)
        child.join(5)
        status = child.exitcode
        child.kill()
        assert status == -signal.SIGINT
        for connection in asked:
            connection.close()


def test_a_process_whose_torchrun_has_ended_says_so_at_once(monkeypatch):
    found = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **found}.items():
        monkeypatch.setenv(name, value)
    wanted = "torchrun that has started this process has ended"
    with pytest.raises(LostError, match=wanted), joined(torch.device("cpu")):
        pass
    assert _store() is None


ORPHAN = """
import os, pathlib, runpy, signal, sys, time
while_parent_lives, said = runpy.run_path(sys.argv[1])["while_parent_lives"], pathlib.Path(sys.argv[2])
if os.fork():
    while not said.exists():
        time.sleep(0.01)
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: (said.write_text("told"), os._exit(0)))
with while_parent_lives(0.02):
    time.sleep(0.1)
    said.write_text("alone")
    time.sleep(10)
"""


def test_a_process_is_told_when_its_parent_has_died(tmp_path):
    said = tmp_path / "said"
    subprocess.run([sys.executable, "-c", ORPHAN, torchrun.__file__, said], check=True)
    deadline = time.monotonic() + 8
    while said.read_text() != "told" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert said.read_text() == "told"


def poisoned_while_the_leader_is_busy(group, folder):
    """The step of a NaN, in a run whose leader is long at a picture, so that its copies are of earlier steps."""
    changes = {"data": "digits", "channels": 1, "steps": 30, "log_every": 2, "sample_every": 12, "n_samples": 4}
    config = dataclasses.replace(CONFIG, **changes, extractor="none", tensorboard=False, run_dir=str(folder / "run"))
    update, picture = step.critic_update, Session._picture

    def poisoned(state, draw):
        if state.step == 20:
            next(state.critic.parameters()).data.fill_(float("nan"))
        return update(state, draw)

    def slow(session, seen):
        while session.state.step < 22 and not session.side.failed:
            time.sleep(0.01)
        time.sleep(0.3)
        picture(session, seen)

    with (
        as_on_a_gpu(),
        mock.patch.object(step, "critic_update", poisoned),
        mock.patch.object(Session, "_picture", slow),
        mock.patch.object(loop, "joined", return_value=contextlib.nullcontext(group)),
        pytest.raises(NonFiniteLossError) as caught,
    ):
        loop.train("digits", config, progress=False, echo=lambda line: None)
    return caught.value.step


def test_processes_go_back_together_before_a_nan_however_far_their_threads_are(tmp_path):
    """Going back, they compute the same updates, or one would wait for another that is done."""
    assert in_processes(2, poisoned_while_the_leader_is_busy, tmp_path, tmp_path) == [21, 21]
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")["state"]
    assert saved["step"] == 20 and all(value.isfinite().all() for value in saved["critic"].values())


def stopped_between_rows(group, folder):
    """Stops a run after its fifth step, one after a row."""
    changes = {"data": "digits", "channels": 1, "log_every": 4, "extractor": "none", "tensorboard": False}
    config = dataclasses.replace(CONFIG, **changes, run_dir=str(folder / str(group.world)))
    update = State.update

    def signalled(state):
        update(state)
        if state.step == 5 and group.leads:
            os.kill(os.getpid(), signal.SIGTERM)

    joined_already = mock.patch.object(loop, "joined", return_value=contextlib.nullcontext(group))
    with joined_already, mock.patch.object(State, "update", signalled):
        return loop.train("digits", config, progress=False, echo=lambda line: None).step


def test_losses_that_wait_in_a_checkpoint_are_those_of_all_processes(tmp_path):
    assert in_processes(2, stopped_between_rows, tmp_path, tmp_path) == [5, 5]
    assert stopped_between_rows(ALONE, tmp_path) == 5
    ours, expected = (checkpoint.load_newest(tmp_path / n / "checkpoints")["state"]["pending"] for n in "21")
    assert len(ours) == 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def rows(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_batches_must_be_divisible(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "joined", lambda device: contextlib.nullcontext(Group(0, 2)))
    config = dataclasses.replace(CONFIG, data="digits", batch_d=5, run_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="--batch-d: got 5, wanted a multiple of processes"):
        loop.train("digits", config, progress=False)
    assert not (tmp_path / "run").exists()
