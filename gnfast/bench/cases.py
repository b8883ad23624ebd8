"""The comparisons: for each, the variants of one step, what all of them should give, and what they cost at least."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

import gnfast
from gnfast.bench import cost, spectral
from gnfast.bench.baselines import compiled_critic_step, repaired
from gnfast.bench.cost import Cost
from gnfast.bench.count import work
from gnfast.bench.graph import captured
from gnfast.bench.mode import PAPERS, Mode, tuned
from gnfast.bench.networks import Z_DIM, Network
from gnfast.bench.steps import PENALTIES, Result, critic_step, generator_step, penalty_step, rescaled_generator_step
from gnfast.bench.ways import Normalize, double_backward, four_passes, plain, without_rewrites

Step = Callable[[], Result]

OURS, CAPTURED = "gnfast", "gnfast, CUDA graph"


@dataclass(frozen=True)
class Setup:
    """Where and how cases are run.

    Attributes:
        device: where.
        precision: "float32", "tf32" or "bfloat16"; see `mode.tuned`.
        batch: images per step.
        graphs: include the variants that are captured in a CUDA graph.
        compiled: include the variants that torch.compile makes, which take a minute or more to make.
        search: let torch.compile search for kernels.
    """

    device: torch.device
    precision: str = "float32"
    batch: int = 64
    graphs: bool = False
    compiled: bool = False
    search: bool = False

    @property
    def tuned(self) -> Mode:
        """The mode of all variants but the papers' own."""
        return tuned(self.precision)


@dataclass(frozen=True)
class Variant:
    """One way to take a step.

    Attributes:
        prepare: makes the step, which may compile or capture; called in the variant's mode.
        mode: how it runs.
        budget: the variant whose error this one's is compared with; None where that is not asked (no normalisation).
        visible: whether its operations can be counted.
    """

    prepare: Callable[[], Step]
    mode: Mode
    budget: str | None
    visible: bool = True

    @property
    def precision(self) -> str:
        """A key of `agree.FLOORS`."""
        if self.mode.autocast is not None:
            return "bfloat16"
        return "tf32" if self.mode.conv_tf32 or self.mode.matmul_tf32 else "float32"


@dataclass(frozen=True)
class Case:
    """One step, several ways.

    Attributes:
        step: its name: "critic step".
        network: the network's name.
        shape: of one image.
        setup: where and how.
        variants: by name; `OURS` is the one that ratios are of.
        truth: what they should compute, in float64; None where variants are compared with one of them.
        cost: what the step costs at least.
    """

    step: str
    network: str
    shape: tuple[int, ...]
    setup: Setup
    variants: dict[str, Variant]
    truth: Callable[[], Result] | None
    cost: Cost
    notes: list[str] = field(default_factory=list)


A, B, C = "a: double backward as the papers run it", "b: a, tuned", "c: b, repaired"
D, E = "d: torch.compile of torch.func", "e: c in a CUDA graph"
PLAIN = "no normalisation"


def critic_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """The critic's step: f̂ of GN on half real, half fake images, hinge loss, gradients of all weights."""
    make = _Maker(network, setup)
    variants = make.normalized(critic_step)
    if setup.compiled:
        net, x = make.inputs(setup.tuned)

        def prepare() -> Step:
            step = compiled_critic_step(net, setup.search)
            return lambda: step(x)

        variants[D] = Variant(prepare, setup.tuned, B, visible=False)
    yield make.case("critic step", variants, partial(critic_step, double_backward), cost.critic_step)


def generator_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """The critic's part of the generator's step: the gradient with respect to the images, weights frozen."""
    make = _Maker(network, setup)
    variants = make.normalized(generator_step)
    variants["Faster-GNGAN's rescaled gradient"] = make.variant(rescaled_generator_step, setup.tuned)
    yield make.case(
        "generator step, critic's part", variants, partial(generator_step, double_backward), cost.generator_step
    )


def penalty_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """Gradient penalties and their gradients with respect to the weights."""
    # The other two take the gradient norm at other points, for the same price.
    for name in ("R1", "WGAN-GP"):
        make, penalty = _Maker(network, setup, half=True), PENALTIES[name]
        slow = partial(penalty_step, penalty, impl="reference")
        variants = {
            OURS: make.variant(partial(penalty_step, penalty, strict=True), setup.tuned),
            "gnfast, no rewrites": make.variant(
                partial(penalty_step, penalty, strict=True, rewrite=False), setup.tuned
            ),
            A: make.variant(slow, PAPERS, A),
            B: make.variant(slow, setup.tuned),
        }
        yield make.case(f"{name} penalty", variants, slow, cost.critic_step)


def spectral_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """Spectral normalisation of all layers, one power iteration, forward and backward, by itself."""
    setup = replace(setup, precision="float32" if setup.precision == "tf32" else setup.precision)
    dtype = torch.bfloat16 if setup.precision == "bfloat16" else torch.float32
    layers = spectral.layers_of(network.critic(torch.float32, torch.contiguous_format))
    # Plain float32: the products here are matrix-vector ones, which no rounding makes faster.
    mode = Mode(setup.tuned.layout, conv_tf32=False)
    ways = spectral.make(layers, mode.layout, dtype, setup.device)
    directions = spectral.directions_for(ways[spectral.PYTORCH])
    exact = copy.deepcopy(ways[spectral.PYTORCH]).double()

    def variant(way: str) -> Variant:
        return Variant(lambda: lambda: spectral.step(ways[way], directions), mode, spectral.PYTORCH)

    variants = {OURS: variant(spectral.MODEL)}
    variants |= {way: variant(way) for way in (spectral.LAYER, spectral.PYTORCH)}
    if setup.graphs:
        for name, way in ((CAPTURED, spectral.MODEL), ("PyTorch, CUDA graph", spectral.PYTORCH)):
            own = copy.deepcopy(ways[way])
            function = partial(spectral.step, own, directions)
            variants[name] = Variant(partial(captured, function, setup.device), mode, None, visible=False)
    weight_bytes = sum(direction.nbytes for direction in directions)
    # W in and W̄ out; for the backward G and W in and the gradient out; two products each way.
    least = Cost(8 * sum(direction.numel() for direction in directions), 5 * weight_bytes)

    def truth() -> Result:
        return spectral.step(exact, [direction.double() for direction in directions])

    yield Case("spectral normalisation", network.name, network.shape, setup, variants, truth, least)


def sampling_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """A batch of images from the generator, batch norm on the batch's statistics."""
    z = torch.randn(setup.batch, Z_DIM, generator=torch.Generator().manual_seed(2)).to(setup.device)

    def images(net: nn.Module) -> Result:
        with torch.no_grad():
            return Result(net(z))

    def variant(mode: Mode, merge: bool, capture: bool = False) -> Variant:
        net = network.generator(torch.float32, mode.layout, setup.device)
        net = gnfast.rewrite(net) if merge else net

        def prepare() -> Step:
            return captured(lambda: images(net), setup.device) if capture else lambda: images(net)

        return Variant(prepare, mode, A if mode == PAPERS else B, visible=not capture)

    variants = {OURS: variant(setup.tuned, True), A: variant(PAPERS, False), B: variant(setup.tuned, False)}
    if setup.graphs:
        variants[CAPTURED] = variant(setup.tuned, True, capture=True)
    exact = network.generator(torch.float64, torch.contiguous_format, setup.device)

    def truth() -> Result:
        with torch.no_grad():
            return Result(exact(z.double()))

    with setup.tuned.active(setup.device):
        counted = work(variants[OURS].prepare())
    least = Cost(counted.flops, counted.product_bytes)
    yield Case("sampling", network.name, network.shape, setup, variants, truth, least)


def iteration_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """A whole iteration of GN-GAN: n_dis critic updates, a generator update, the moving average."""
    # The training side has dependencies of its own, which nothing else here needs.
    from gnfast.bench.iteration import iteration_case

    yield iteration_case(network, setup)


CASES: dict[str, Callable[[Network, Setup], Iterator[Case]]] = {
    "critic": critic_cases,
    "generator": generator_cases,
    "penalties": penalty_cases,
    "spectral": spectral_cases,
    "iteration": iteration_cases,
    "sampling": sampling_cases,
}
"""name on the command line: the cases, for a network in a setup."""

NEED_A_GENERATOR = ("iteration", "sampling")


class _Maker:
    """Variants of one network's steps on the same weights and images."""

    def __init__(self, network: Network, setup: Setup, half: bool = False) -> None:
        self.network, self.setup = network, setup
        # A penalty is taken at as many images as there are real ones.
        self.batch = setup.batch
        self.taken = max(1, setup.batch // 2) if half else setup.batch

    def inputs(self, mode: Mode, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
        """A critic of its own and the images, as a mode lays them out."""
        device = self.setup.device
        images = self.network.images(self.batch, torch.float32, mode.layout, device)
        return self.network.critic(dtype, mode.layout, device), images

    def variant(
        self, step: Callable[[nn.Module, Tensor], Result], mode: Mode, budget: str | None = B, capture: bool = False
    ) -> Variant:
        def prepare() -> Step:
            net, x = self.inputs(mode)
            function = partial(step, net, x)
            return captured(function, self.setup.device) if capture else function

        return Variant(prepare, mode, budget, visible=not capture)

    def normalized(self, step: Callable[[Normalize, nn.Module, Tensor], Result]) -> dict[str, Variant]:
        """The variants that a critic's and a generator's step share."""
        mode = self.setup.tuned
        variants = {
            OURS: self.variant(partial(step, four_passes), mode),
            "gnfast, no rewrites": self.variant(partial(step, without_rewrites), mode),
            A: self.variant(partial(step, double_backward), PAPERS, A),
            B: self.variant(partial(step, double_backward), mode),
            C: self.variant(partial(step, repaired), mode),
        }
        if self.setup.graphs:
            variants[CAPTURED] = self.variant(partial(step, four_passes), mode, capture=True)
            variants[E] = self.variant(partial(step, repaired), mode, capture=True)
        return variants | {PLAIN: self.variant(partial(step, plain), mode, None)}

    def case(
        self,
        name: str,
        variants: dict[str, Variant],
        slow: Callable[[nn.Module, Tensor], Result],
        least: Callable[[gnfast.Plan, int], Cost],
    ) -> Case:
        def truth() -> Result:
            net, x = self.inputs(PAPERS, torch.float64)
            # The images stay float32, so that penalties draw the same points in every precision.
            return slow(_Widened(net), x)

        with self.setup.tuned.active(self.setup.device):
            net, x = self.inputs(self.setup.tuned)
            plan = gnfast.trace(net, x)
        notes = [f"falls back to double backward: {refusal}" for refusal in plan.refusals]
        return Case(
            name,
            self.network.name,
            self.network.shape,
            self.setup,
            variants,
            truth,
            least(plan, self.taken),
            notes,
        )


class _Widened(nn.Module):
    """A float64 network that takes narrower images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())
