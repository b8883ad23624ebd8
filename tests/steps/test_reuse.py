"""Memory that is reused: nothing new in a steady step, no block twice, the same numbers, given back when asked for."""

import itertools
import os
import resource
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

import gnfast
from gnfast.bench.count import peak_bytes
from gnfast.steps.memory import _library, memory_use, release_memory, reuse_memory
from tests.forks import fork

pytestmark = pytest.mark.skipif(_library() is None, reason="the C++ library is not built, or reuse is turned off")
BLOCK = 64 << 10


@pytest.fixture(autouse=True)
def _nothing_held():
    release_memory()


def critic() -> nn.Module:
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 4, 2, 1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 256, 1)).to(memory_format=torch.channels_last)


def images() -> Tensor:
    # The first layer's maps have more than the 32 MiB above which malloc maps every block anew.
    return torch.randn(160, 3, 32, 32).contiguous(memory_format=torch.channels_last)


def critic_step(net: nn.Module, x: Tensor) -> list[Tensor]:
    f_hat = gnfast.normalize_gradient(net, x)
    return [f_hat.detach(), *torch.autograd.grad(f_hat.square().sum(), list(net.parameters()))]


def generator_step(net: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    return list(torch.autograd.grad(-gnfast.normalize_gradient(net, x).mean(), x))


STEPS = [pytest.param(critic_step, id="critic"), pytest.param(generator_step, id="generator")]


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_resident() -> int:
    """KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def blocks_handed_out(size: int) -> int:
    before = memory_use()["blocks"]
    torch.empty(size, dtype=torch.uint8)
    return memory_use()["blocks"] - before


@pytest.mark.parametrize("step", STEPS)
def test_a_steady_step_takes_no_memory_from_the_system(step):
    net, x = critic().requires_grad_(step is critic_step), images()
    for _ in range(3):
        step(net, x)
    before, faults = memory_use(), page_faults()
    for _ in range(3):
        step(net, x)
    after = memory_use()
    assert after["blocks"] > before["blocks"]
    assert (after["grown"], after["refused"], after["held"]) == (before["grown"], before["refused"], before["held"])
    # 160 · 64 · 32 · 32 floats are more than 10,000 pages.
    assert page_faults() - faults < 1000


@pytest.fixture(scope="module")
def processes():
    """What processes without reuse and with it measure of themselves."""
    code = (
        "import test_reuse as t; net, x = t.critic(), t.images(); t.critic_step(net, x[:1])\n"
        "before = t.peak_resident()\n"
        "for _ in range(2): t.critic_step(net, x); t.generator_step(net, x)\n"
        "resident, faults = t.peak_resident() - before, t.page_faults(); t.critic_step(net, x)\n"
        "print(resident, t.page_faults() - faults, t.memory_use()['blocks'])"
    )
    return [tuple(map(int, run(code, GNFAST_REUSE_MEMORY=value).split())) for value in "01"]


def test_without_reuse_a_step_faults_its_pages_in_again(processes):
    # Unless huge pages are always on, in which case there is one for 512 pages.
    assert processes[0][1] > 20


@pytest.mark.parametrize("step", STEPS)
def test_the_same_numbers_from_memory_full_of_nan(step, monkeypatch):
    net, x = critic().requires_grad_(step is critic_step), images()[:33]
    with monkeypatch.context() as patch:
        patch.setattr(gnfast.steps.memory, "_library", lambda: None)
        expected = step(net, x)
    with reuse_memory():
        torch.full((1 << 24,), float("nan"))
        for _ in range(2):
            for got, want in zip(step(net, x), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_the_profiler_sees_the_same_peak(monkeypatch):
    net, x = critic(), images()
    with_reuse = peak_bytes(lambda: critic_step(net, x))
    monkeypatch.setattr(gnfast.steps.memory, "_library", lambda: None)
    assert peak_bytes(lambda: critic_step(net, x)) == with_reuse


def test_the_process_needs_no_more_memory(processes):
    assert processes[1][0] <= 1.1 * processes[0][0]


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 5 << 20])
def test_blocks_of_some_size_only_and_inside_only(size):
    assert blocks_handed_out(size) == 0
    with reuse_memory():
        with reuse_memory():
            pass
        assert blocks_handed_out(size) == (size >= BLOCK)
    assert blocks_handed_out(size) == 0


def test_a_scope_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), reuse_memory():
        1 / 0
    assert blocks_handed_out(BLOCK) == 0


def test_tensors_keep_their_memory_after_the_scope():
    occupied = memory_use()["in_use"]
    with reuse_memory():
        kept = torch.arange(1 << 20)
        view = torch.ones(1 << 20)[5:10]
    release_memory()
    with reuse_memory():
        torch.zeros(1 << 23)
        copy = kept.clone()
    assert torch.equal(kept, torch.arange(1 << 20)) and torch.equal(copy, kept) and view.sum() == 5
    kept.resize_(1 << 21)
    assert torch.equal(kept[: 1 << 20], copy)
    del kept, view, copy
    assert memory_use()["in_use"] == occupied


def test_random_blocks_never_overlap_and_all_come_back():
    generator = torch.Generator().manual_seed(0)
    occupied, alive = memory_use()["in_use"], []
    with reuse_memory():
        for index in range(2000):
            if alive and torch.rand((), generator=generator) < 0.5:
                tensor, content = alive.pop(int(torch.randint(len(alive), (), generator=generator)))
                assert tensor[0] == content and tensor[-1] == content and tensor.data_ptr() % 64 == 0
            else:
                tensor = torch.empty(int(torch.randint(BLOCK // 4, 1 << 18, (), generator=generator)))
                tensor[0] = tensor[-1] = index
                alive.append((tensor, index))
        spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t, _ in alive)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    del alive, tensor
    assert memory_use()["in_use"] == occupied


def test_threads_allocate_and_free_each_others_tensors():
    occupied, shared, errors = memory_use()["in_use"], [], []

    def work(number: int) -> None:
        for index in range(300):
            tensor = torch.full((BLOCK // 4 + 97 * index,), float(number))
            shared.append((tensor, number))
            other, content = shared.pop(0)
            if not bool((other == content).all()):
                errors.append((number, index))

    with reuse_memory():
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    shared.clear()
    assert not errors and memory_use()["in_use"] == occupied


def test_what_no_tensor_occupies_is_given_back():
    with reuse_memory():
        tensor = torch.ones(BLOCK)
        torch.ones(1 << 24)
    held = memory_use()["held"]
    release_memory()
    assert held >= 1 << 26
    assert memory_use()["held"] <= held - (1 << 26) + (2 << 20)
    assert bool((tensor == 1).all())
    with reuse_memory():
        assert torch.ones(1 << 24).sum() == 1 << 24


def test_never_more_than_the_machine_has():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    before = memory_use()["refused"]
    with reuse_memory():
        # Address space only: nothing is written.
        blocks = [torch.empty(int(0.6 * pages), dtype=torch.uint8) for _ in range(2)]
    assert memory_use()["refused"] == before + 1
    assert memory_use()["held"] <= pages + (2 << 20)
    del blocks


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_has_its_own():
    with reuse_memory():
        tensor = torch.ones(1 << 20)
        child = fork()
        if child == 0:
            # OpenMP's other threads do not exist in a child.
            torch.set_num_threads(1)
            ok = bool((tensor == 1).all()) and torch.zeros(1 << 20).add_(tensor).sum() == 1 << 20
            tensor.fill_(2)
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert bool((tensor == 1).all())


def test_turned_off_by_the_environment(processes):
    assert processes[0][2] == 0 < processes[1][2]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run("import gnfast; gnfast.memory_use()", GNFAST_REUSE_MEMORY="yes")
    assert "GNFAST_REUSE_MEMORY: got 'yes', wanted 0 or 1" in caught.value.stderr


def run(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()
