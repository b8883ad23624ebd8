"""Modules around a module: everything that PyTorch calls by a name has the name that it has without them."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.func import functional_call

import gnfast

WRAPPERS = {
    "GradientNorm": gnfast.GradientNorm,
    "rewrite": gnfast.rewrite,
    "both": lambda net: gnfast.rewrite(gnfast.GradientNorm(net)),
}


class Critic(nn.Module):
    """Parameters, a buffer and submodules, some of them called like what the wrappers have."""

    def __init__(self, body="body"):
        super().__init__()
        self.eps, self.method = nn.Parameter(torch.randn(6)), nn.Linear(6, 5)
        self.register_buffer("shift", torch.randn(6))
        self.add_module(body, nn.Sequential(nn.ReLU(), nn.utils.parametrizations.spectral_norm(nn.Linear(5, 1))))
        self.name = body

    def forward(self, x):
        return getattr(self, self.name)(self.method(x * self.eps + self.shift))


CRITICS = {
    "sequential": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)),
    "own": Critic,
    "own net": lambda: Critic("net"),
}


@pytest.fixture(params=WRAPPERS)
def wrap(request):
    return WRAPPERS[request.param]


@pytest.fixture(params=CRITICS)
def critics(request):
    """A critic to be wrapped, and another one of the same kind."""
    return CRITICS[request.param]().eval(), CRITICS[request.param]().eval()


X = torch.randn(3, 6)


def test_names(wrap, critics):
    net, other = critics
    module = wrap(net)
    assert list(module.state_dict()) == list(net.state_dict())
    for names in (nn.Module.named_parameters, nn.Module.named_buffers):
        assert [(name, id(t)) for name, t in names(module)] == [(name, id(t)) for name, t in names(net)]
    assert dict(net.named_modules()).items() <= dict(module.named_modules()).items()
    assert set(net.modules()) < set(module.modules())
    module.load_state_dict(other.state_dict())
    assert torch.equal(net(X), other(X))
    net.load_state_dict(module.state_dict())


def test_functional_call(wrap, critics):
    net, other = critics
    module, tensors = wrap(net).eval(), {**dict(other.named_parameters()), **dict(other.named_buffers())}
    before, expected = module(X), wrap(other).eval()(X)
    if hasattr(net, "net"):
        # `.net` of the wrapper is not the critic's: an error, and one path through all of them.
        with pytest.raises(AttributeError, match="no attribute"):
            functional_call(module, other.state_dict(), (X,))
        path = "net.net.net." if isinstance(module.net, gnfast.GradientNorm) else "net.net."
        tensors = {name.replace("net.", path): tensor for name, tensor in tensors.items()}
    else:
        assert torch.equal(functional_call(module, other.state_dict(), (X,)), expected)
        assert all(module.get_parameter(name) is parameter for name, parameter in net.named_parameters())
    assert torch.equal(functional_call(module, tensors, (X,)), expected)
    # What was there is there again.
    assert torch.equal(module(X), before) and all(type(p) is nn.Parameter for p in net.parameters())


def test_distributed_checkpoints(wrap, critics):
    net, other = critics
    module = wrap(net).eval()
    assert list(get_model_state_dict(module)) == list(net.state_dict())
    set_model_state_dict(module, get_model_state_dict(other))
    assert torch.equal(net(X), other(X))
    optimizer = torch.optim.Adam(module.parameters())
    module(X).sum().backward()
    optimizer.step()
    state = get_optimizer_state_dict(module, optimizer)
    assert state["state"].keys() == dict(net.named_parameters()).keys()
    set_optimizer_state_dict(module, optimizer, copy.deepcopy(state))
    next(module.parameters()).requires_grad_(False)
    kept = get_model_state_dict(module, options=StateDictOptions(ignore_frozen_params=True))
    assert len(kept) == len(net.state_dict()) - 1


def test_a_wrapper_is_a_module_like_others(wrap, critics):
    net, _ = critics
    module = wrap(net)
    assert module.train().net.training and net.training and not module.eval().net.training and not net.training
    twin = copy.deepcopy(module)
    assert torch.equal(twin(X), module(X)) and twin.double()(X.double()).dtype == torch.float64
    seen = []
    module.apply(seen.append)
    assert net in seen
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing


def test_an_attribute_of_the_critic_alone_is_said_to_be_there():
    critic = nn.Linear(3, 1)
    critic.optimiser = "Adam"
    with pytest.raises(AttributeError) as caught:
        _ = gnfast.GradientNorm(critic).optimiser
    assert caught.value.__notes__ == ["What the GradientNorm is around has it: .net.optimiser"]
    assert not hasattr(gnfast.GradientNorm(critic), "nowhere")
