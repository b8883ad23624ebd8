"""The analyses against plain definitions: dense matrices, double backward, derivatives by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import gnfast
from gnfast import measure
from gnfast.losses import LOSSES
from gnfast.models import build

METHODS = [None, *gnfast.heads.METHODS]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_critic(resolution=8, width=0.2, dtype=torch.float64):
    return build("small", resolution=resolution, channels=3, width=width)[1].to(dtype)


def curved_critic():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 7), nn.Softplus(), nn.Linear(7, 1)).double()


def dense(apply, shape):
    """The matrix of a linear map, (outputs, inputs)."""
    size = math.prod(shape)
    return apply(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).reshape(size, -1).T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [small_critic, curved_critic])
def test_gradient_norms_are_those_of_double_backward(make, method):
    net, images = make(), torch.randn(7, 3, 8, 8, dtype=torch.float64)
    measured = measure.gradient_norms(net, images, method=method, chunk=3)
    x = images.clone().requires_grad_()
    f, g = gnfast.reference.value_and_input_grad(net, x)
    f_hat = f if method is None else gnfast.normalize_gradient(net, x, method=method, impl="reference")
    (slope,) = torch.autograd.grad(f_hat.sum(), x)
    for got, wanted in [
        (measured.logit, f.flatten()),
        (measured.norm, g.flatten(1).norm(dim=1)),
        (measured.normalized, f_hat.flatten()),
        (measured.normalized_norm, slope.flatten(1).norm(dim=1)),
    ]:
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        assert not got.requires_grad


def test_gradient_norms_leave_the_critic_as_it_was():
    net = gnfast.spectral_norm_(small_critic(dtype=torch.float32))
    net.main[0].eval()
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    measure.gradient_norms(net, torch.randn(5, 3, 8, 8), method="gn")
    measure.layer_spectra(net, torch.randn(1, 3, 8, 8))
    measure.prefix_lipschitz(net, torch.randn(5, 3, 8, 8))
    measure.finite_differences(net, torch.randn(5, 3, 8, 8), torch.tensor([1.0]), method="gn")
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_gradient_norms_refuse_what_they_cannot_measure():
    net = small_critic()
    with pytest.raises(ValueError, match="images: got none"):
        measure.gradient_norms(net, torch.zeros(0, 3, 8, 8, dtype=torch.float64))
    patches = nn.Conv2d(3, 1, 3).double()
    with pytest.raises(ValueError, match=r"wanted one logit each"):
        measure.gradient_norms(patches, torch.zeros(2, 3, 8, 8, dtype=torch.float64))


def test_quantiles():
    found = measure.quantiles(torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]))
    assert found == {"min": 1, "q25": 2, "median": 3, "q75": 4, "max": 5}


def test_finite_differences_of_a_linear_critic_are_its_slope_at_every_distance():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    distances = torch.tensor([1e-6, 1e-3, 1.0, 1e3])
    found = measure.finite_differences(net, torch.randn(4, 3, 2, 2), distances)
    assert found.shape == (4, 4)
    torch.testing.assert_close(found, net[1].weight.double().norm().expand(4, 4), rtol=1e-8, atol=0)


@pytest.mark.parametrize("make", [small_critic, curved_critic])
@pytest.mark.parametrize("method", ["gn", "gran", "pgn"])
def test_finite_differences_begin_at_the_gradient_norm(method, make):
    net, images = make(), torch.randn(9, 3, 8, 8, dtype=torch.float64)
    found = measure.finite_differences(net, images, torch.tensor([1e-7]), method=method)
    wanted = measure.gradient_norms(net, images, method=method).normalized_norm
    torch.testing.assert_close(found[0], wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [small_critic, curved_critic])
@pytest.mark.parametrize("method", ["gn", "pgn"])
def test_finite_differences_go_along_the_gradient_of_the_normalised_critic(method, make):
    """PGN's falls where f rises; that of a critic with curvature points elsewhere."""
    net, images = make(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    h = lambda x: gnfast.normalize_gradient(net, x, method=method, impl="reference")[:, 0]  # noqa: E731
    x = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(h(x).sum(), x)
    there = images + 2 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    found = measure.finite_differences(net, images, torch.tensor([2.0]), method=method)
    torch.testing.assert_close(found[0], (h(there) - h(images)).detach().abs() / 2, rtol=1e-10, atol=1e-12)


class Conditional(nn.Module):
    """Two convolutions and a projection of the label."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.embed = nn.Embedding(3, 5)

    def forward(self, x, y):
        return (self.second(self.first(x).relu()).relu().sum((2, 3)) * self.embed(y)).sum(1, keepdim=True)


def test_measurements_of_a_class_conditional_critic_are_those_of_each_class_for_itself():
    net, images = Conditional().double(), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    quotients = measure.finite_differences(net, images, torch.tensor([0.5]), labels, method="gn")
    norms = measure.gradient_norms(net, images, labels, chunk=4).norm
    for place, label in enumerate(labels):
        alone = nn.Sequential(net.first, nn.ReLU(), net.second, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
        last = nn.Linear(5, 1, bias=False).double()
        last.weight = nn.Parameter(16 * net.embed.weight[label][None].detach())
        alone, image = nn.Sequential(alone, last), images[place : place + 1]
        wanted = measure.finite_differences(alone, image, torch.tensor([0.5]), method="gn")
        torch.testing.assert_close(quotients[:, place : place + 1], wanted, rtol=1e-9, atol=0)
        torch.testing.assert_close(norms[place : place + 1], measure.gradient_norms(alone, image).norm)
    largest = measure.model_lipschitz(net, {"real": images}, labels)
    assert largest["real"] == norms.max()
    found = measure.prefix_lipschitz(net, images, labels, chunk=4)
    assert list(found) == ["first", "second"]
    assert [s.layer for s in measure.layer_spectra(net, images[:1], labels[:1])] == ["first", "second"]


def test_finite_differences_refuse_a_distance_of_0():
    with pytest.raises(ValueError, match="distances: got"):
        measure.finite_differences(small_critic(), torch.zeros(1, 3, 8, 8), torch.tensor([0.0]))


@pytest.mark.parametrize("shape", [(7, 7), (5, 11), (40, 23), (1, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_largest_singular_value_of_a_matrix(shape, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(shape, dtype=torch.float64)
    start = torch.randn(shape[1], dtype=torch.float64)
    sigma, residual = measure.largest_singular_value(lambda v: matrix @ v, lambda u: matrix.T @ u, start)
    wanted = torch.linalg.matrix_norm(matrix, 2).item()
    assert sigma == pytest.approx(wanted, rel=1e-12)
    assert residual <= 1e-9 * sigma


def test_largest_singular_value_where_others_are_equal_or_zero():
    identity = lambda v: v.clone()  # noqa: E731
    assert measure.largest_singular_value(identity, identity, torch.randn(9, dtype=torch.float64))[0] == pytest.approx(
        1
    )
    nothing = lambda v: torch.zeros_like(v)  # noqa: E731
    assert measure.largest_singular_value(nothing, nothing, torch.randn(9, dtype=torch.float64)) == (0, 0)
    with pytest.raises(ValueError, match="start: got"):
        measure.largest_singular_value(identity, identity, torch.zeros(3))


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (2, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (4, 2)])
@pytest.mark.parametrize("channels", [(3, 5), (4, 2)])
def test_circular_singular_values_are_those_of_the_dense_operator(size, kernel, channels):
    weight = torch.randn(channels[1], channels[0], *kernel, dtype=torch.float64)

    def apply(images):
        found = 0
        for row in range(kernel[0]):
            for column in range(kernel[1]):
                moved = images.roll((-row, -column), dims=(2, 3))
                found = found + torch.einsum("oi,bihw->bohw", weight[:, :, row, column], moved)
        return found

    wanted = torch.linalg.svdvals(dense(apply, (channels[0], *size)))
    got = measure.circular_singular_values(weight, size)
    assert abs(got[0] / wanted[0] - 1) <= 1e-8
    torch.testing.assert_close(got, wanted[: len(got)], rtol=1e-8, atol=1e-10)


LAYERS = {
    "3x3 stride 1": (nn.Conv2d(3, 5, 3, 1, 1), (3, 7, 7)),
    "3x3 stride 1, no padding": (nn.Conv2d(2, 4, 3), (2, 6, 9)),
    "5x5 stride 1, larger than half the map": (nn.Conv2d(3, 2, 5, 1, 2), (3, 6, 6)),
    "4x4 stride 2": (nn.Conv2d(3, 6, 4, 2, 1), (3, 8, 8)),
    "groups and dilation": (nn.Conv2d(4, 6, 3, 1, 2, dilation=2, groups=2), (4, 6, 6)),
    "circular padding": (nn.Conv2d(3, 4, 3, 1, 1, padding_mode="circular"), (3, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 3, 4, 2, 1), (4, 4, 4)),
    "one dimension": (nn.Conv1d(3, 5, 3, 1, 1), (3, 11)),
    "linear": (nn.Linear(17, 9), (17,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_operator_norm_is_that_of_the_dense_matrix(name):
    layer, shape = LAYERS[name]
    layer = layer.double()
    bias = layer(torch.zeros(1, *shape, dtype=torch.float64))
    with torch.no_grad():
        wanted = torch.linalg.svdvals(dense(lambda x: layer(x) - bias, shape))[0].item()
    assert abs(measure.operator_norm(layer, shape) / wanted - 1) <= 1e-8
    assert layer.bias is not None


def test_layer_spectra_of_a_critic():
    net = small_critic()
    spectra = measure.layer_spectra(net, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert [s.layer for s in spectra] == ["main.0", "main.2", "main.4", "main.6", "linear"]
    assert [s.circular is None for s in spectra] == [True, False, True, False, True]
    for spectrum, layer in zip(spectra, [*net.main[::2], net.linear], strict=True):
        matrix = layer.weight.detach().flatten(1)
        torch.testing.assert_close(spectrum.raw, torch.linalg.svdvals(matrix))
        assert torch.equal(spectrum.raw, spectrum.normalized)
        # The operator applies the matrix to windows that overlap (kernel / stride)² times at most.
        overlap = 9 if spectrum.circular else 4
        assert 0 < spectrum.operator <= spectrum.raw[0] * math.sqrt(overlap)


def test_layer_spectra_know_raw_and_normalised_weights():
    net = gnfast.spectral_norm_(small_critic(), coeff=0.5)
    for _ in range(200):
        net(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    for spectrum in measure.layer_spectra(net, torch.randn(1, 3, 8, 8, dtype=torch.float64)):
        assert spectrum.normalized[0].item() == pytest.approx(0.5, rel=1e-3)
        torch.testing.assert_close(spectrum.raw / spectrum.raw[0], spectrum.normalized / spectrum.normalized[0])
    normed = weight_norm(nn.Linear(4, 3).double())
    (spectrum,) = measure.layer_spectra(normed, torch.randn(1, 4, dtype=torch.float64))
    direction = normed.parametrizations.weight.original1.detach()
    torch.testing.assert_close(spectrum.raw, torch.linalg.svdvals(direction))


def test_sigmas_are_the_largest_of_the_spectra_and_nan_where_weights_overflow():
    net = gnfast.spectral_norm_(small_critic(), coeff=0.5)
    spectra = {s.layer: s for s in measure.layer_spectra(net, torch.randn(1, 3, 8, 8, dtype=torch.float64))}
    sigmas = measure.layer_sigmas(net)
    assert sigmas.keys() == spectra.keys()
    for layer, (raw, applied) in sigmas.items():
        assert raw == pytest.approx(spectra[layer].raw[0].item(), rel=1e-3)
        assert applied == pytest.approx(spectra[layer].normalized[0].item(), rel=1e-3)
    plain = nn.Linear(3, 2)
    nn.init.constant_(plain.weight, 1e30)
    ((sigma, applied),) = measure.layer_sigmas(plain).values()
    assert math.isnan(sigma) and applied is None


def test_layer_spectra_need_layers():
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        measure.layer_spectra(nn.Flatten(), torch.zeros(1, 3, 8, 8))


def test_prefix_lipschitz_of_a_network_is_the_norm_of_its_jacobians():
    net = small_critic()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    found = measure.prefix_lipschitz(net, images, iterations=300, chunk=2)
    stops = {"main.0": 1, "main.2": 3, "main.4": 5, "main.6": 7}
    for name, stop in stops.items():
        part = net.main[:stop]
        jacobians = [
            torch.autograd.functional.jacobian(lambda x, part=part: part(x[None]).flatten(), image).flatten(1)
            for image in images
        ]
        wanted = max(torch.linalg.matrix_norm(jacobian, 2).item() for jacobian in jacobians)
        assert found[name] == pytest.approx(wanted, rel=1e-5)
    assert found["linear"] == pytest.approx(measure.gradient_norms(net, images).norm.max().item(), rel=1e-12)


def test_prefix_lipschitz_sees_outputs_before_in_place_activations():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 1)).double()
    found = measure.prefix_lipschitz(net, torch.randn(5, 12, dtype=torch.float64), iterations=300)
    assert found["1"] == pytest.approx(torch.linalg.matrix_norm(net[1].weight, 2).item(), rel=1e-6)


def test_distributions_and_the_largest_norm_on_each():
    net = small_critic()
    real, fake = torch.rand(2, 6, 3, 8, 8, dtype=torch.float64).mul(2).sub(1)
    images = measure.distributions(real, fake)
    assert list(images) == ["real", "generated", "between", "noise"]
    assert list(measure.distributions(real)) == ["real", "noise"]
    low, high = torch.minimum(real, fake), torch.maximum(real, fake)
    assert bool(((low <= images["between"]) & (images["between"] <= high)).all())
    found = measure.model_lipschitz(net, images, method="gn")
    assert found["real"] == measure.gradient_norms(net, real, method="gn").normalized_norm.max().item()
    assert all(value <= 1 + 1e-12 for value in found.values())


DERIVATIVES = {
    "wasserstein": (lambda x: -torch.ones_like(x), torch.ones_like, lambda x: -torch.ones_like(x)),
    "non-saturating": (lambda x: torch.sigmoid(x) - 1, torch.sigmoid, lambda x: torch.sigmoid(x) - 1),
    "hinge": (lambda x: -(x < 1).double(), lambda x: (x > -1).double(), lambda x: -torch.ones_like(x)),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_slopes_and_domain_of_a_loss(name):
    loss, real, fake = LOSSES[name], torch.randn(50).double() + 1, torch.randn(50).double() - 1
    domain = measure.loss_domain(loss, real, fake)
    both = torch.cat([real, fake])
    assert domain.omega.tolist() == [both.min().item(), both.max().item()]
    assert domain.width == both.max().item() - both.min().item()
    line = torch.linspace(both.min().item(), both.max().item(), 1001, dtype=torch.float64)
    for part, derivative in zip(("critic_real", "critic_fake", "generator"), DERIVATIVES[name], strict=True):
        torch.testing.assert_close(measure.slopes(getattr(loss, part), both), derivative(both))
        wanted = derivative(line)
        torch.testing.assert_close(domain.slopes[part], torch.stack([wanted.min(), wanted.max()]), rtol=1e-9, atol=1e-9)


def test_the_domain_of_a_loss_needs_finite_logits():
    with pytest.raises(ValueError, match="wanted at least one, and all finite"):
        measure.loss_domain(LOSSES["hinge"], torch.tensor([math.nan]), torch.zeros(2))
    with pytest.raises(ValueError, match="got 0 logits"):
        measure.loss_domain(LOSSES["hinge"], torch.zeros(0), torch.zeros(0))


def test_range_bound_is_the_diameter_of_the_images_times_the_constant():
    assert measure.range_bound(2.0, (3, 5, 7)) == pytest.approx(2 * math.sqrt(12 * 5 * 7))
    black, white = -torch.ones(3, 5, 7), torch.ones(3, 5, 7)
    assert measure.range_bound(1.0, (3, 5, 7)) == pytest.approx((white - black).norm().item())
