"""Steps as CUDA graphs: what a step may not do, that nothing in gnfast does it, and that replays equal eager steps."""

import contextlib
import copy
import gc
import time
import warnings
import weakref
from collections import namedtuple
from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gnfast
from gnfast import InputError, models, penalties
from gnfast.bench.graph import captured as captured_function
from gnfast.steps import captured
from gnfast.steps.captured import CapturedStep, CaptureError
from tests.oracle import Unseen

CRITICS = {
    "resnet": lambda: models.build("resnet", resolution=32, width=0.05)[1],
    "dcgan": lambda: models.build("dcgan", resolution=32, width=0.05)[1],
    "layers": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.PReLU(4),
        nn.Dropout(0.3),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.Hardtanh(),
        nn.BatchNorm2d(6).eval(),
        nn.MaxPool2d(2),
        nn.ReLU6(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Flatten(),
        nn.LazyLinear(1),
    ),
}


class NoHostWork(TorchDispatchMode):
    """Fails where a GPU would wait for Python or Python for it: values read, tensors made on the CPU, copies to it.

    The networks live on the meta device, so that whatever is not there comes from the host.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.is_meta, f"{func}: a tensor of shape {tuple(tensor.shape)} on {tensor.device}"
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default), func
        return result


def on_meta(name):
    with torch.device("meta"):
        critic = CRITICS[name]()
        x = torch.randn(4, 3, 32, 32)
        critic(x)
    return critic, x


def assert_never_waits(step):
    # The first call with a network may do what later ones need not: it puts random states back after a refusal.
    step()
    with NoHostWork():
        step()


@pytest.mark.parametrize("method", [*gnfast.heads.METHODS, "function"])
@pytest.mark.parametrize("name", CRITICS)
def test_critic_steps_never_wait(name, method):
    critic, x = on_meta(name)
    method = (lambda f, n: f / (n + 2)) if method == "function" else method

    def step():
        f_hat, norm = gnfast.normalize_gradient(critic, x, method=method, strict=True, return_grad_norm=True)
        (f_hat.sum() + penalties.centered(norm, 1.0)).backward()
        gnfast.normalize_gradient(critic, x, method=method, strict=True).sum().backward()

    assert_never_waits(step)
    images = x.clone().requires_grad_()
    with NoHostWork():
        critic.requires_grad_(False)
        gnfast.normalize_gradient(critic, images, method=method, strict=True).sum().backward()


@pytest.mark.parametrize("penalty", ["r1", "zero_centered", "one_centered", "dragan"])
def test_penalties_never_wait(penalty):
    critic, x = on_meta("resnet")
    images = [x, x] if penalty == "one_centered" else [x]
    assert_never_waits(lambda: getattr(penalties, penalty)(critic, *images, strict=True).backward())


def test_spectral_norm_never_waits():
    critic, x = on_meta("dcgan")
    gnfast.spectral_norm_(critic)
    assert_never_waits(lambda: gnfast.normalize_gradient(critic, x, strict=True).sum().backward())


def test_the_audit_sees_what_it_must():
    x = torch.empty(3, device="meta")
    for wait in (
        lambda: x.sum().item(),
        lambda: torch.tensor(1.0),
        lambda: x + torch.ones(3),
        lambda: bool((x > 0).any()),
    ):
        with pytest.raises((AssertionError, RuntimeError)), NoHostWork():
            wait()


class Training:
    """A critic's update with everything around it: spectral norm, gradient normalisation, Adam, a moving average."""

    def __init__(self, device, dtype=torch.float32, **adam):
        torch.manual_seed(0)
        self.critic = gnfast.spectral_norm_(models.build("dcgan", resolution=16, width=0.1)[1]).to(device, dtype)
        self.critic = self.critic.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.critic).requires_grad_(False)
        rate = torch.tensor(1e-3, device=device)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=rate, betas=(0.5, 0.9), **adam)

    def update(self, real, fake):
        self.optimizer.zero_grad(set_to_none=True)
        images = torch.cat([real, fake]).contiguous(memory_format=torch.channels_last)
        score = gnfast.normalize_gradient(self.critic, images, strict=True)
        loss = (1 - score[: len(real)]).relu().mean() + (1 + score[len(real) :]).relu().mean()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.critic.parameters()), 0.1)
        return {"loss": loss, "score": score.mean()}

    def state(self):
        return [*self.critic.state_dict().values(), *self.average.state_dict().values()]


def batches(count, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(2, 4, 3, 16, 16, generator=generator).to(device, dtype) for _ in range(count)]


def test_on_the_cpu_it_calls_the_function():
    plain, captured = Training("cpu"), Training("cpu")
    step = CapturedStep(captured.update, "cpu", warmup=1)
    for real, fake in batches(3):
        expected, actual = plain.update(real, fake), step(real, fake)
        assert torch.equal(actual["loss"], expected["loss"])
    assert not step.captured
    assert all(torch.equal(a, b) for a, b in zip(captured.state(), plain.state(), strict=True))


def test_inputs_keep_their_shapes_and_constants():
    step = CapturedStep(lambda x, options: x * options["factor"], "cpu")
    x = torch.ones(4, 3)
    assert torch.equal(step(x, {"factor": 2}), 2 * x)
    for inputs, message in (
        ((x[:3], {"factor": 2}), r"inputs\[0\]: got \(\(3, 3\), torch.float32\), wanted \(\(4, 3\)"),
        ((x, {"factor": 3}), r"inputs\[1\]\['factor'\]: got 3, wanted 2"),
        ((x, {"factor": x}), r"inputs\[1\]\['factor'\]: got .*float32.*, wanted 2"),
        ((None, {"factor": 2}), r"inputs\[0\]: got None, wanted \(\(4, 3\)"),
        ((x, {"factor": 2, "more": 1}), r"inputs\[1\]: got \['factor', 'more'\], wanted \['factor'\]"),
        ((x,), "inputs: got 1 of them, wanted 2 of them as in the first call"),
    ):
        with pytest.raises(InputError, match=message):
            step(*inputs)
    step.reset()
    assert torch.equal(step(x[:3], {"factor": 3}), 3 * x[:3])
    with pytest.raises(InputError, match="warmup: got 0"):
        CapturedStep(step, "cpu", warmup=0)


def test_tensors_are_copied_in_the_order_of_the_nest(monkeypatch):
    """What a GPU would replay on: the memory of the first call's inputs, filled anew."""
    Pair = namedtuple("Pair", "left right")
    first, second = (
        ({"b": torch.full((2,), v), "a": [torch.full((3,), v + 1), None, 7]}, Pair(torch.full((1,), v + 2), "word"))
        for v in (1.0, 4.0)
    )
    step = CapturedStep(lambda *inputs: inputs, "cuda")
    with monkeypatch.context() as patch:
        patch.setattr(CapturedStep, "_place", lambda _, tensor: torch.empty_like(tensor))
        held = step._static(first)
        assert step._static(second) is held
    assert held[0]["a"][1:] == [None, 7] and held[1].right == "word"
    tensors = held[0]["b"], held[0]["a"][0], held[1].left
    assert [tensor.tolist() for tensor in tensors] == [[4.0] * 2, [5.0] * 3, [6.0]]


@pytest.mark.gpu
def test_replays_equal_eager_steps():
    plain, captured = (Training("cuda", fused=True, capturable=True) for _ in range(2))
    step = CapturedStep(captured.update, "cuda", warmup=2)
    for index, (real, fake) in enumerate(batches(8)):
        for training in (plain, captured):
            training.optimizer.param_groups[0]["lr"].fill_(1e-3 / (index + 1))
        expected = plain.update(real.cuda(), fake.cuda())
        actual = step(real.pin_memory(), fake.pin_memory())
        assert step.captured == (index >= 2)
        torch.testing.assert_close(actual["loss"], expected["loss"].detach(), rtol=1e-3, atol=1e-4)
    for left, right in zip(captured.state(), plain.state(), strict=True):
        torch.testing.assert_close(left, right, rtol=2e-2, atol=2e-3)


def test_seconds_are_counted_by_what_they_went_to():
    step = CapturedStep(torch.neg, "cpu", warmup=1)
    step(torch.ones(2))
    # Nothing comes before a first replay where there is none.
    assert step.seconds == {}
    for name in ("first calls", "first calls", "capture"):
        with step._counted(name):
            time.sleep(0.01)
    assert step.seconds["first calls"] >= 0.02 > step.seconds["capture"] >= 0.01
    assert step.seconds["Triton"] == 0
    step.reset()
    assert step.seconds == {}


@pytest.mark.gpu
def test_seconds_before_the_first_replay():
    step, before = CapturedStep(lambda x: x + 1, "cuda", warmup=2), None
    for calls in range(5):
        step(torch.ones(2))
        assert ("capture" in step.seconds) == (calls >= 2) == step.captured
        before = before or dict(step.seconds) if step.captured else None
    # Replays add nothing.
    assert (
        step.seconds == before and before.keys() == {"first calls", "capture", "Triton"} and min(before.values()) >= 0
    )


@pytest.mark.gpu
def test_outputs_belong_to_the_caller():
    step = CapturedStep(lambda x: x.sum(), "cuda", warmup=1)
    results = [step(torch.full((3,), float(i))) for i in range(5)]
    assert [result.item() for result in results] == [0.0, 3.0, 6.0, 9.0, 12.0]


@pytest.mark.gpu
def test_random_numbers_differ_between_replays():
    generator = torch.Generator("cuda").manual_seed(1)
    draw = CapturedStep(
        lambda x: (torch.rand_like(x), torch.rand(x.shape, device="cuda", generator=generator)),
        "cuda",
        warmup=1,
        generators=[generator],
    )
    drawn = torch.stack([torch.stack(draw(torch.zeros(8))) for _ in range(5)]).reshape(10, 8)
    assert len(drawn.unique(dim=0)) == 10


@pytest.mark.gpu
def test_after_a_failed_capture_the_process_goes_on():
    x, stream = torch.ones(8), torch.cuda.current_stream()
    draw = CapturedStep(torch.rand_like, "cuda", warmup=1)
    draw(x), draw(x)
    assert draw.captured
    fails = CapturedStep(lambda x: (x + torch.rand_like(x)) * x.sum().item(), "cuda", warmup=1)
    fails(x)
    for _ in range(2):
        with pytest.raises(CaptureError, match="cannot be captured") as caught:
            fails(x)
        assert "captur" in str(caught.value.__cause__)
        torch.cuda.synchronize()
        assert torch.cuda.current_stream() == stream
    drawn = torch.stack([torch.rand(8, device="cuda"), torch.rand(8, device="cuda"), draw(x), draw(x)])
    assert len(drawn.unique(dim=0)) == 4
    seeded = []
    for _ in range(2):
        torch.manual_seed(3)
        seeded += [torch.rand(8, device="cuda"), draw(x)]
    assert torch.equal(seeded[0], seeded[2]) and torch.equal(seeded[1], seeded[3])
    training = Training("cuda", fused=True, capturable=True)
    step = CapturedStep(training.update, "cuda")
    losses = [step(real, fake)["loss"].item() for real, fake in batches(6)]
    assert step.captured and all(loss == loss for loss in losses)
    # Memory of other streams comes back, which the allocator puts off while it believes in a capture.
    torch.cuda.empty_cache()
    assert torch.ones(2, device="cuda").sum().item() == 2


class Driver:
    """What `record_graph` asks of PyTorch, in place of a GPU; notes what is asked."""

    def __init__(self, monkeypatch, ends):
        self.done, self.current, self.ends = [], "before", ends
        cuda = torch.cuda
        for name in ("stream", "graph", "CUDAGraph"):
            monkeypatch.setattr(cuda, name, getattr(self, name))
        monkeypatch.setattr(cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(cuda, "current_device", lambda: "cpu")
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(torch._C, name, lambda device, pool, name=name: self.done.append((name, pool)))
        monkeypatch.setattr(captured, "_FAILED", [])

    @contextlib.contextmanager
    def stream(self, stream):
        outer, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = outer

    @contextlib.contextmanager
    def graph(self, graph, pool=None, *, stream, capture_error_mode):
        """As PyTorch's: where the capture cannot be ended, on its stream for good."""
        outer, self.current = self.current, stream
        try:
            yield
        finally:
            self.done.append(("end", pool))
            if pool and not self.ends:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.current = outer

    def CUDAGraph(self):
        return self

    def register_generator_state(self, generator):
        self.done.append(("register", generator))


@pytest.mark.parametrize("ends", [False, True], ids=["invalid", "valid"])
def test_a_failed_capture_is_undone(ends, monkeypatch):
    driver = Driver(monkeypatch, ends)
    with pytest.raises(ZeroDivisionError):
        captured.record_graph(lambda: 1 / 0, "its own", ["generator"])
    assert driver.current == "before"
    assert driver.done == [
        *(("register", "generator"), ("end", "pool"), ("_cuda_endAllocateToPool", "pool")),
        *(("_cuda_releasePool", "pool"), ("register", "generator"), ("end", None)),
    ]
    assert len(captured._FAILED) == 1
    if ends:
        assert captured.record_graph(lambda: 3, "its own") == (driver, 3)
        assert driver.done[6:] == [("end", "pool")]


def test_casts_that_autocast_remembers_stay_on_their_side_of_a_capture(monkeypatch):
    Driver(monkeypatch, True)
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)

    def casts_of_weights():
        with Casts() as casts:
            layer(x)
        return casts.of.count(layer.weight.shape)

    with torch.autocast("cpu", torch.bfloat16):
        assert (casts_of_weights(), casts_of_weights()) == (1, 0)
        # In the graph, for it reads the weights anew; and after it, for nothing of the graph was computed.
        assert captured.record_graph(casts_of_weights, "its own")[1] == 1
        assert casts_of_weights() == 1


class Casts(TorchDispatchMode):
    """Notes the shapes of what is cast."""

    def __init__(self):
        super().__init__()
        self.of = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.of.append(args[0].shape)
        return func(*args, **(kwargs or {}))


def test_a_graph_keeps_what_it_reads(monkeypatch):
    Driver(monkeypatch, True)
    for name in ("Stream", "synchronize", "current_stream", "device"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    net = nn.Linear(4, 1)
    weight = weakref.ref(net.weight)
    replay = captured_function(partial(lambda net, x: net(x).detach(), net, torch.randn(2, 4)), torch.device("cuda"))
    del net
    gc.collect()
    assert weight() is not None
    del replay
    gc.collect()
    assert weight() is None


@contextlib.contextmanager
def capture(**others):
    """PyTorch says that a CUDA graph is being captured."""
    with mock.patch.multiple(
        torch.cuda, is_initialized=lambda: True, is_current_stream_capturing=lambda: True, **others
    ):
        yield


def test_no_random_state_of_a_gpu_is_read_during_a_capture():
    def forbidden(*_):
        raise AssertionError("during a capture")

    refused = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), Unseen(), nn.Linear(3, 1))
    for net in (nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), refused):
        with warnings.catch_warnings(), capture(get_rng_state_all=forbidden, set_rng_state_all=forbidden):
            warnings.simplefilter("ignore", gnfast.FallbackWarning)
            assert gnfast.normalize_gradient(net, torch.randn(2, 4)).shape == (2, 1)


def test_state_that_would_advance_twice_in_a_graph_raises():
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), Unseen(), nn.Linear(3, 1))
    x = torch.randn(2, 4)
    with capture(), pytest.raises(gnfast.UnsupportedError, match="call it before, outside the graph"):
        gnfast.normalize_gradient(net, x)
    with pytest.warns(gnfast.FallbackWarning):
        gnfast.normalize_gradient(net, x)
    # Known by now: whichever call is captured, the network is not recorded in it.
    with capture():
        for _ in range(4):
            gnfast.normalize_gradient(net, x)


@pytest.mark.gpu
def test_captured_training_follows_eager_training():
    from gnfast.config.config import Config
    from gnfast.data import ImageDataset
    from gnfast.train.state import State

    images = ImageDataset("noise", torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8))
    settings = {"data": "", "model": "dcgan", "resolution": 32, "z_dim": 16, "width": 0.25, "n_dis": 2, "steps": 16}
    settings |= {"batch_d": 8, "batch_g": 16, "lr_decay": "linear", "ema_start": 6, "ema_decay": 0.9}
    # In float32 ten steps make a difference of 1e-7 one of 10 %, and biases before a batch norm, whose gradients are 0,
    # wander by a rate a step. In float64 rounding leaves 1e-10, while a step left out, an average begun late or an old
    # latent make 1e-2. A captured rate is a float32, which holds these.
    settings |= {"precision": "float64", "lr_d": 2**-12, "lr_g": 2**-12}
    eager, captured = (
        State(Config(**settings, cuda_graph=graph), images, torch.device("cuda")) for graph in (False, True)
    )
    assert eager.captured is None
    warmup = captured.captured.warmup
    for step in range(10):
        eager.update()
        captured.update()
        # Anew where the moving average begins.
        assert captured.captured.captured == (warmup <= step < 5 or step >= 5 + warmup)
    for left, right in zip(captured.ema.module.parameters(), eager.ema.module.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
    expected, actual = eager.take_losses(), captured.take_losses()
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-7)
    captured.load_state_dict(eager.state_dict())
    for _ in range(5):
        captured.update()
    assert captured.captured.captured and all(abs(value) < 1e3 for value in captured.take_losses().values())
