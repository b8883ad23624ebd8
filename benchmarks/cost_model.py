"""The tables of docs/scaling.md: what an iteration costs, how well that predicts a CPU, and what it says of many GPUs.

    python benchmarks/cost_model.py [--measured benchmarks/results/cpu.json] [--plot docs/images/scaling.png]

Nothing here measures anything: FLOPs and bytes come from Plans and from runs on the device `meta`.
"""

import argparse
import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import gnfast
from gnfast.bench import cost
from gnfast.bench.cost import Cost
from gnfast.bench.count import work
from gnfast.bench.critics import SHIPPED, Z_DIM, Network, shipped
from gnfast.bench.iteration import iteration_cost, settings
from gnfast.bench.launches import STEPS, bytes_besides_products, launched
from gnfast.bench.overlap import Layer, critic_layers, exposed_s, generator_layers
from gnfast.bench.run_time import Rates, iteration_work, run_time
from gnfast.config.presets import PRESETS
from gnfast.runs import drawing
from gnfast.train.buckets import bucket_bytes

# Two cores of an AMD EPYC (AVX2): FLOP/s of the direct algorithm that Winograd's reaches, the geometric mean over the
# layers and passes of bench_conv.py, and memory, bytes/s.
CPU_FLOP_PER_S = 250e9
CPU_BYTES = 20e9
BATCH = 64
NHWC = torch.channels_last


@dataclass(frozen=True)
class Machine:
    """What is assumed of a GPU and its links; docs/scaling.md gives the reasons."""

    flop_per_s: float = 0.5 * 790e12
    bytes_per_s: float = 0.85 * 4.8e12
    eager_us: float = 10.0
    graph_us: float = 1.5
    node_size: int = 8
    node_bytes_per_s: float = 0.8 * 450e9
    link_bytes_per_s: float = 0.8 * 50e9
    node_latency_s: float = 2e-6
    link_latency_s: float = 5e-6

    def all_reduce_s(self, size: float, gpus: int) -> float:
        """A ring in each node, then a ring over nodes that all GPUs of a node share: each carries its part.

        2(p−1)/p · S/B + 2(p−1) · α for each ring.
        """
        local, nodes = min(gpus, self.node_size), -(-gpus // self.node_size)
        inner = 2 * (local - 1) / local * size / self.node_bytes_per_s + 2 * (local - 1) * self.node_latency_s
        outer = 2 * (nodes - 1) / nodes * size / local / self.link_bytes_per_s + 2 * (nodes - 1) * self.link_latency_s
        return inner + outer


@dataclass(frozen=True)
class Iteration:
    """One iteration of GN-GAN on one GPU, in bfloat16."""

    device_s: float
    """Seconds that kernels run."""
    launches: int
    reduced_bytes: tuple[int, ...]
    """Of each update's gradients in float32: n_dis of the critic's and one of the generator's."""
    backwards: tuple[list[Layer], ...]
    """Of each update, when its gradients come."""
    flops: float
    papers_flops: float
    """What double backward does, in critic and generator steps, without merging anything."""

    def seconds(self, machine: Machine, gpus: int = 1, graph: bool = True) -> float:
        """With what of the all-reduces the backwards do not hide.

        Between two kernels of a graph there is a gap; launched one by one, kernels may wait for Python besides.
        """
        device = self.device_s + self.launches * machine.graph_us * 1e-6
        waiting = 0 if graph else self.launches * machine.eager_us * 1e-6
        return max(device, waiting) + self.exposed_s(machine, gpus)

    def exposed_s(self, machine: Machine, gpus: int) -> float:
        """Seconds of all-reduces after the end of the backwards."""
        reduce = functools.partial(machine.all_reduce_s, gpus=gpus)
        return sum(exposed_s(layers, bucket_bytes(gpus), reduce) for layers in self.backwards)

    def all_reduces_s(self, machine: Machine, gpus: int) -> float:
        """Seconds of one all-reduce per update."""
        return sum(machine.all_reduce_s(size, gpus) for size in self.reduced_bytes)


@functools.cache
def plan_of(network: Network, dtype: torch.dtype, rewrite: bool = True) -> gnfast.Plan:
    """The critic's Plan."""
    return gnfast.trace(network.critic(dtype, NHWC), network.images(1, dtype, NHWC), rewrite=rewrite)


@functools.cache
def launches(network: Network) -> dict[str, int]:
    """Operations of a critic and a generator step on a GPU in bfloat16, G's included; the same at any width."""
    narrow = shipped(network.name, width=0.1)
    generator, z = gnfast.rewrite(narrow.generator(torch.float32, NHWC)), torch.randn(2, Z_DIM)
    with torch.no_grad():
        forward = work(lambda: generator(z)).launches
    weights = list(generator.parameters())
    backward = work(lambda: torch.autograd.grad(generator(z).sum(), weights)).launches
    critic, part = (launched(network.name, step, "bfloat16", 0.25, 2).launches for step in STEPS)
    return {"critic": critic + forward, "generator": part + backward}


@functools.cache
def generator_costs(name: str) -> tuple[Cost, Cost, Cost, Cost]:
    """Forward, and forward with backward, per image in float32: merged, then as the code states it."""
    with torch.device("meta"):
        stated, _ = shipped(name).build()
    merged = gnfast.rewrite(shipped(name).generator(torch.float32, NHWC))
    return *cost.generator(merged, Z_DIM), *cost.generator(stated, Z_DIM)


def weight_bytes(network: Network) -> tuple[int, int]:
    """Of the critic and of the generator, in float32."""
    with torch.device("meta"):
        generator, critic = network.build()
    return tuple(4 * sum(p.numel() for p in net.parameters()) for net in (critic, generator))


def one_gpu(network: Network, machine: Machine, batch: int = BATCH) -> Iteration:
    """What one iteration is on one GPU: `batch` real images per critic update, twice as many in the generator's."""
    plan = plan_of(network, torch.bfloat16)
    config, double = settings(network, batch), 2 * batch
    forward, both, stated_forward, stated_both = generator_costs(network.name)
    passes = cost.seconds(plan, double, machine.flop_per_s, machine.bytes_per_s)
    # Half the bytes: bfloat16.
    drawing, training, generating = (
        Cost(count * found.flops, count * found.bytes / 2).seconds(machine.flop_per_s, machine.bytes_per_s)
        for found, count in ((forward, batch), (both, double), (forward, double))
    )
    of_critic = critic_layers(plan, double, machine.flop_per_s, machine.bytes_per_s)
    with torch.device("meta"):
        of_generator = generator_layers(network.build()[0], Z_DIM, training - generating)
    pointwise = cost.pointwise_bytes(plan, double).bytes / machine.bytes_per_s
    critic_s = sum(passes.values()) + pointwise + drawing
    generator_s = passes["forward"] + passes["input gradient"] + pointwise * 2 / 3 + training
    counts, (critic_bytes, generator_bytes) = launches(network), weight_bytes(network)
    return Iteration(
        device_s=config.n_dis * critic_s + generator_s,
        launches=config.n_dis * counts["critic"] + counts["generator"],
        reduced_bytes=(*[critic_bytes] * config.n_dis, generator_bytes),
        backwards=(*[of_critic] * config.n_dis, of_generator),
        flops=iteration_cost(config, plan, forward, both).flops,
        papers_flops=config.n_dis * (6 * plan.stated_flops * double + stated_forward.flops * batch)
        + (5 * plan.stated_flops + stated_both.flops) * double,
    )


def print_table(headings: str, rows: Iterable[str]) -> None:
    """Prints a table in Markdown, whose cells are parted by " | "."""
    for cells in (headings, " | ".join(["---"] * headings.count(" | ") + ["---"]), *rows):
        print(f"| {cells} |")
    print()


def costs() -> Iterator[str]:
    for network in map(shipped, SHIPPED):
        plan, counts = plan_of(network, torch.float32), launches(network)
        forward, both, stated, stated_both = generator_costs(network.name)
        weights = [count / 1e6 for count in weight_bytes(network)]
        least, pointwise = (count(plan, BATCH) * (1 / BATCH) for count in (cost.critic_step, cost.pointwise_bytes))
        yield (
            f"{network.name} | {plan.stated_flops / 1e9:.2f} / {plan.flops()['forward'] / 1e9:.2f} "
            f"| {least.flops / 1e9:.2f} | {least.bytes / 1e6:.1f}, {pointwise.bytes / 1e6:.1f} "
            f"| {plan.kept_bytes() / 1e6:.2f} | {stated.flops / 1e9:.2f} / {forward.flops / 1e9:.2f} "
            f"| {stated_both.flops / 1e9:.2f} / {both.flops / 1e9:.2f} "
            f"| {weights[0]:.1f} / {weights[1]:.1f} | {counts['critic']} / {counts['generator']}"
        )


def on_a_cpu(measured: Path) -> Iterator[str]:
    for row in json.loads(measured.read_text())["rows"]:
        if row["part"] != "time" or row["layout"] != "channels_last" or "times" not in row:
            continue
        for way, rewrite in (("four passes", True), ("without rewrites", False)):
            plan = plan_of(shipped(row["critic"]), torch.float32, rewrite)
            critic = "critic step" in row["what"]
            passes = cost.seconds(plan, BATCH, CPU_FLOP_PER_S, CPU_BYTES)
            products = sum(passes.values()) if critic else passes["forward"] + passes["input gradient"]
            pointwise = cost.pointwise_bytes(plan, BATCH).bytes * (1 if critic else 2 / 3) / CPU_BYTES
            found, said = row["times"][way]["median_ms"], 1e3 * (products + pointwise)
            step = "critic" if critic else "generator, critic's part"
            yield (
                f"{row['critic']} {step}, {way} | {1e3 * products:.0f} ms "
                f"| {1e3 * pointwise:.0f} ms | {said:.0f} ms | {found:.0f} ms | {said / found:.2f}"
            )


def on_a_gpu(machine: Machine) -> Iterator[str]:
    for network in map(shipped, SHIPPED):
        found = one_gpu(network, machine)
        eager, graph = (found.seconds(machine, graph=g) for g in (False, True))
        yield (
            f"{network.name} | {found.flops / 1e12:.2f} T, {found.flops / found.papers_flops:.2f} "
            f"| {1e3 * found.device_s:.2f} ms | {found.launches} "
            f"| {1e3 * eager:.1f} ms | {1e3 * graph:.1f} ms | {found.flops / graph / 790e12:.0%}"
        )


GPUS = (1, 8, 64, 256, 1024)


Point = tuple[int, float, float, float, float, float]


def scaling(machine: Machine, network: Network, total: int = 1024) -> Iterator[Point]:
    """Per number of GPUs: all-reduces, what is exposed, weak and strong iteration in seconds, the strong speed-up.

    Weak scaling keeps the images of a GPU, strong scaling keeps `total` real images in all.
    """
    weak, alone = one_gpu(network, machine), one_gpu(network, machine, total).seconds(machine)
    for gpus in GPUS:
        together, exposed = weak.seconds(machine, gpus), weak.exposed_s(machine, gpus)
        strong = one_gpu(network, machine, max(1, total // gpus)).seconds(machine, gpus)
        yield gpus, weak.all_reduces_s(machine, gpus), exposed, together, strong, alone / strong


def on_many_gpus(name: str, curve: list[Point]) -> Iterator[str]:
    for gpus, reducing, exposed, weak, strong, speed_up in curve:
        yield (
            f"{name} | {gpus} | {1e3 * reducing:.2f} ms | {1e3 * exposed:.2f} ms | {1e3 * weak:.1f} ms "
            f"| {curve[0][3] / weak:.0%} | {1e3 * strong:.1f} ms | {speed_up:.0f}×"
        )


def draw(curves: dict[str, list[Point]], picture: Path) -> None:
    with drawing.drawing():
        figure, (weak, strong) = drawing.canvas(1, 2, 3.8)
        for index, (name, points) in enumerate(curves.items()):
            style = {"marker": drawing.marker(index), "markersize": 5, "color": drawing.colour(index)}
            weak.plot(GPUS, [points[0][3] / point[3] for point in points], label=name, **style)
            strong.plot(GPUS, [point[5] for point in points], **style)
        for axes, ideal in ((weak, [1] * len(GPUS)), (strong, GPUS)):
            axes.plot(GPUS, ideal, color="#555555", linestyle="dashed", label="ideal" if axes is weak else None)
            axes.set_xscale("log", base=2)
            axes.set_xticks(GPUS, map(str, GPUS))
            axes.set_xlabel("GPUs")
        strong.set_yscale("log", base=2)
        strong.set_yticks(GPUS, map(str, GPUS))
        strong.set(ylabel="speed / one GPU's", title="strong: 1024 real images in all")
        weak.set(ylim=(0, 1.08), ylabel="speed per GPU / one GPU's", title="weak: 64 real images per GPU")
        figure.suptitle("Predicted, not measured; higher is better", fontsize=10)
        drawing.legend_outside(figure, [weak])
        picture.write_bytes(drawing.png(figure))


def runs(machine: Machine) -> Iterator[str]:
    """Minutes of whole runs, at the rates of large products and at those assumed of convolutions."""
    assumed = Rates(machine.flop_per_s, machine.bytes_per_s, machine.graph_us * 1e-6)
    for name in ("gngan-cifar10-cnn", "gngan-cifar10-resnet"):
        found, steps = iteration_work(name), PRESETS[name].config.steps
        counted = f"{found.flops / 1e12:.2f} T | {bytes_besides_products(found) / 1e9:.2f} GB | {found.launches}"
        for rates in (Rates(), assumed):
            time = run_time(found, steps, rates)
            said = f"{rates.flop_per_s / 1e12:.0f} TFLOP/s, {rates.bytes_per_s / 1e12:.1f} TB/s"
            parts = " | ".join(f"{minutes:.1f}" for minutes in (time.products, time.rest, time.gaps))
            yield f"{name} | {counted} | {said} | {parts} | **{time.total:.1f} min**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measured", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    parser.add_argument("--plot", type=Path, help="a picture of the last table")
    options = parser.parse_args()
    machine = Machine()
    headings = "networks | critic forward, stated / merged | four passes | bytes: least, pointwise | kept | "
    headings += "G forward | G forward + backward | weights D / G | launches D / G step"
    print_table(headings, costs())
    headings = "step, batch 64, channels_last | products | pointwise | predicted | measured | predicted / measured"
    print_table(headings, on_a_cpu(options.measured))
    headings = "networks | FLOP, of double backward's | device | launches | eager | as one graph | of the bf16 peak"
    print_table(headings, on_a_gpu(machine))
    headings = (
        "preset, 200,000 steps | FLOP | bytes besides products | launches | rates | products | other bytes | gaps | "
    )
    print_table(headings + "together", runs(machine))
    curves = {name: list(scaling(machine, shipped(name))) for name in ("ResNet 32", "ResNet 128", "ResNet 256")}
    headings = "networks | GPUs | all-reduces | exposed | weak: iteration | efficiency | strong: iteration | speed-up"
    print_table(headings, (line for name, curve in curves.items() for line in on_many_gpus(name, curve)))
    if options.plot:
        draw(curves, options.plot)


if __name__ == "__main__":
    main()
