"""What an evaluation costs: Inception's features, the Fréchet distance and the kernel distance.

    python benchmarks/bench_metrics.py [--device cpu] [--images 16] [--rounds 5] [--out rows.json]

Weights are random ones: their values do not change what is computed. Each row is checked against its baseline before it
is timed, and baselines take turns with it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from gnfast.bench.agree import relative_error
from gnfast.bench.clock import interleaved_ms
from gnfast.bench.environment import environment
from gnfast.metrics import PROTOCOLS, FeatureStatistics, Inception, frechet_distance, kernel_distance, load_extractor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=16, help="images per batch, 32x32 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is taken")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows and the environment")
    arguments = parser.parse_args()
    described = environment()
    print(described)
    rows = []
    with torch.no_grad():
        for group in (feature_steps, distance_steps, kernel_steps):
            steps, count = group(torch.device(arguments.device), arguments.images)
            for name, times in interleaved_ms(steps, arguments.rounds, warmup=1).items():
                rate = {"images_per_second": round(1e3 * count / times["median_ms"], 2)} if count else {}
                rows.append({"what": name, **times, **rate})
                print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"environment": described, "rows": rows}, indent=1) + "\n")


def feature_steps(device: torch.device, count: int):
    """Features and logits under each protocol, and the network alone: as it is run, and plain (not folded, NCHW)."""
    torch.manual_seed(0)
    net = Inception().eval()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(net.state_dict(), Path(folder) / "random.pth")
        load = lambda name: load_extractor(  # noqa: E731
            "inception", protocol=name, weights=Path(folder) / "random.pth", device=device, progress=False
        )
        extractors = {name: load(name) for name in ("tf", "torch", "clean")}
    net.to(device)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, device=device)
    steps = {
        f"features, {name}": lambda extractor=extractor: extractor(pixels) for name, extractor in extractors.items()
    }
    plain = lambda: net(PROTOCOLS["tf"].prepare(pixels).contiguous())[0]  # noqa: E731
    assert relative_error(extractors["tf"](pixels), plain()) < 1e-4
    return steps | {"features, tf, plain network": plain}, count


def distance_steps(device: torch.device, _: int):
    """The Fréchet distance of 2048 features; by the eigenvalues of the product, as others compute it."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2.5, 2048, dtype=torch.float64)
    sides = []
    for shift in (0.0, 0.01):
        features = torch.randn(5000, 2048, dtype=torch.float64, generator=generator) * spread + shift
        sides.append(FeatureStatistics(2048, device))
        sides[-1].update(features)
    a, b = sides

    def by_eigenvalues() -> float:
        roots = torch.linalg.eigvals(a.cov @ b.cov).real.clamp(min=0).sqrt().sum()
        return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * roots)

    steps = {"distance": lambda: frechet_distance(a, b), "distance, eigenvalues of the product": by_eigenvalues}
    values = [step() for step in steps.values()]
    assert abs(values[0] - values[1]) < 1e-7 * values[1], values
    return steps, 0


def kernel_steps(device: torch.device, _: int):
    """The kernel distance of ten subsets of 1000 vectors, in float64; ten times that for a `gnfast eval`."""
    x, y = torch.rand(5000, 2048, device=device), torch.rand(5000, 2048, device=device) * 1.01
    return {"kernel distance, 10 subsets": lambda: kernel_distance(x, y, subsets=10)}, 0


if __name__ == "__main__":
    main()
