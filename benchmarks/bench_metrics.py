"""What an evaluation costs: `make bench`, or `pytest benchmarks/bench_metrics.py`.

Inception's features under each protocol, the Fréchet distance and the kernel distance. Weights are random ones: their
values do not change what is computed. A row is checked against its baseline before it is timed; `extra_info` has images
per second at the median.
"""

import pytest
import torch

from benchmarks.timed import DEVICES, time_call
from gnfast.bench.gate import relative_error
from gnfast.metrics import PROTOCOLS, FeatureStatistics, Inception, frechet_distance, kernel_distance, load_extractor

# 32×32 images per batch.
IMAGES = 16


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(Inception().state_dict(), path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["tf", "torch", "clean", "tf, plain network"])
def bench_features(benchmark, weights, device, name):
    """Features and logits; and the network alone, as it is stated: not folded, NCHW."""
    how = {"protocol": name.partition(",")[0], "weights": weights, "device": device, "progress": False}
    extractor = load_extractor("inception", **how)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)
    call = lambda: extractor(pixels)  # noqa: E731
    if name == "tf, plain network":
        net = Inception().eval().to(device)
        net.load_state_dict(torch.load(weights))
        call = lambda: net(PROTOCOLS["tf"].prepare(pixels).contiguous())[0]  # noqa: E731
        assert relative_error(extractor(pixels), call()) < 1e-4
    time_call(benchmark, f"features of {IMAGES} images, {device}", call, {"images/s": IMAGES})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["gnfast", "eigenvalues of the product"])
def bench_frechet_distance(benchmark, device, way):
    """The Fréchet distance of 2048 features; by the eigenvalues of the product, as others compute it."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2.5, 2048, dtype=torch.float64)
    a, b = FeatureStatistics(2048, torch.device(device)), FeatureStatistics(2048, torch.device(device))
    for side, shift in ((a, 0.0), (b, 0.01)):
        side.update(torch.randn(5000, 2048, dtype=torch.float64, generator=generator) * spread + shift)

    def by_eigenvalues() -> float:
        roots = torch.linalg.eigvals(a.cov @ b.cov).real.clamp(min=0).sqrt().sum()
        return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * roots)

    distance = {"gnfast": lambda: frechet_distance(a, b), "eigenvalues of the product": by_eigenvalues}
    ours, theirs = (call() for call in distance.values())
    assert abs(ours - theirs) < 1e-7 * theirs, (ours, theirs)
    time_call(benchmark, f"Fréchet distance, {device}", distance[way], {}, rounds=3)


@pytest.mark.parametrize("device", DEVICES)
def bench_kernel_distance(benchmark, device):
    """The kernel distance of ten subsets of 1000 vectors, in float64; ten times that for a `gnfast eval`."""
    x, y = torch.rand(5000, 2048, device=device), torch.rand(5000, 2048, device=device) * 1.01
    time_call(benchmark, f"kernel distance, {device}", lambda: kernel_distance(x, y, subsets=10), {}, rounds=3)
