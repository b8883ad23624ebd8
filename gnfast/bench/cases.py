"""The comparisons: for each, the variants of one step, what all of them should give, and what they cost at least."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

import gnfast
from gnfast.bench import cost, spectral
from gnfast.bench.baselines import compiled_critic_step, compiled_step, repair, repaired
from gnfast.bench.cost import Cost
from gnfast.bench.count import work
from gnfast.bench.graph import captured
from gnfast.bench.mode import PAPERS, Mode, tuned
from gnfast.bench.networks import Z_DIM, Network
from gnfast.bench.steps import PENALTIES, Result, critic_step, generator_step, penalty_step, rescaled_generator_step
from gnfast.bench.ways import Normalize, double_backward, four_passes, plain, without_rewrites

Step = Callable[[], Result]

CAPTURED, EAGER, NO_REWRITES = "gnfast, CUDA graph", "gnfast, eager", "gnfast, no rewrites"
A, B, C = "a: double backward as the papers run it", "b: a, tuned", "c: b, repaired"
D, E = "d: torch.compile of torch.func", "e: c in a CUDA graph"
STRONGEST = "strongest: c compiled"
PLAIN, PLAIN_CAPTURED = "no normalisation", "no normalisation, CUDA graph"
RESCALED = "Faster-GNGAN's rescaled gradient"
"""Names of variants. The compiled ones are captured in CUDA graphs too, where there are any (`Setup.graphs`)."""

LARGE = 128
"""The side in pixels from which PyTorch's second-order weight gradients are too slow to search kernels for."""


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
        make: makes the step, which may compile or capture; called in the variant's mode.
        mode: how it runs.
        budget: the variant whose error this one may double, which may be itself; None for the floor of its precision.
        checked: whether its results are compared with the truth; what is no normalisation has none.
        visible: whether its operations can be counted.
        own_precision: the step casts by itself, so that no autocast is around it.
    """

    make: Callable[[], Step]
    mode: Mode
    budget: str | None = None
    checked: bool = True
    visible: bool = True
    own_precision: bool = False

    def active(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """What is around the step when it is made and when it runs."""
        return (replace(self.mode, autocast=None) if self.own_precision else self.mode).active(device)

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
        variants: by name, the most telling first.
        truth: what they should compute, in float64, or what plain PyTorch does.
        cost: what the step costs at least.
        notes: what else there is to say.
        trains: a step is an iteration of training.
    """

    step: str
    network: str
    shape: tuple[int, ...]
    setup: Setup
    variants: dict[str, Variant]
    truth: Callable[[], Result]
    cost: Cost
    notes: list[str] = field(default_factory=list)
    trains: bool = False

    @property
    def ours(self) -> tuple[str, ...]:
        """The variants that ratios may be of: the first that can be prepared is."""
        return tuple(name for name in (CAPTURED, EAGER) if name in self.variants)

    def prepare(self, name: str) -> Step:
        """A variant's step, compiled and captured where that is its way; it runs in `variants[name].active(device)`."""
        with self.variants[name].active(self.setup.device):
            return self.variants[name].make()


def critic_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """The critic's step: f̂ of GN on half real, half fake images, hinge loss, gradients of all weights."""
    make = _Maker(network, setup)
    variants = make.normalized(critic_step)
    if setup.compiled:

        def step() -> Step:
            net, x = make.inputs(setup.tuned)
            return make.compiled(compiled_critic_step(net, setup.search), x)

        compiled = {STRONGEST: variants[STRONGEST], D: Variant(step, setup.tuned, B, visible=False)}
        variants = compiled | variants
    yield make.case("critic step", variants, critic_step, cost.critic_step)


def generator_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """The critic's part of the generator's step: the gradient with respect to the images, weights frozen."""
    make = _Maker(network, setup)
    variants = make.normalized(generator_step)
    if setup.graphs:
        variants[f"{RESCALED}, CUDA graph"] = make.variant(rescaled_generator_step, setup.tuned, B, capture=True)
    variants[RESCALED] = make.variant(rescaled_generator_step, setup.tuned, B)
    yield make.case("generator step, critic's part", variants, generator_step, cost.generator_step)


def penalty_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """Gradient penalties and their gradients with respect to the weights."""
    # The other two take the gradient norm at other points, for the same price.
    for name in ("R1", "WGAN-GP"):
        make, penalty = _Maker(network, setup, half=True), PENALTIES[name]
        fast = partial(penalty_step, penalty, strict=True)
        slow = partial(penalty_step, penalty, impl="reference")
        variants = {}
        if setup.graphs:
            variants[CAPTURED] = Variant(partial(make.captured_penalty, fast), setup.tuned, B, visible=False)
        variants |= {
            A: make.variant(slow, PAPERS, A),
            B: make.variant(slow, make.searched_if_small, B),
            EAGER: make.variant(fast, setup.tuned, B),
            NO_REWRITES: make.variant(partial(fast, rewrite=False), setup.tuned, B),
        }
        truth = partial(penalty_step, make.exact(penalty), impl="reference")
        yield make.case(f"{name} penalty", variants, truth, cost.critic_step, normalized=False)


def spectral_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """Spectral normalisation of all layers, one power iteration, forward and backward, by itself."""
    setup = replace(setup, precision="float32" if setup.precision == "tf32" else setup.precision)
    dtype = torch.bfloat16 if setup.precision == "bfloat16" else torch.float32
    layers = spectral.layers_of(network.critic(torch.float32, torch.contiguous_format))
    # Plain float32: the products here are matrix-vector ones, which no rounding makes faster.
    mode = Mode(setup.tuned.layout, conv_tf32=False)
    ways = spectral.make(layers, mode.layout, dtype, setup.device)
    directions = spectral.directions_for(ways[spectral.PYTORCH])

    def variant(way: str, capture: bool = False) -> Variant:
        def make() -> Step:
            own = copy.deepcopy(ways[way])
            step = partial(spectral.step, own, directions)
            if capture:
                step = captured(step, setup.device)
                # The steps before the capture have iterated.
                own.load_state_dict(ways[way].state_dict())
            return step

        return Variant(make, mode, spectral.PYTORCH, visible=not capture)

    variants = {}
    if setup.graphs:
        variants = {CAPTURED: variant(spectral.MODEL, True), "PyTorch, CUDA graph": variant(spectral.PYTORCH, True)}
    variants |= {spectral.PYTORCH: variant(spectral.PYTORCH), EAGER: variant(spectral.MODEL)}
    variants[spectral.LAYER] = variant(spectral.LAYER)
    weight_bytes = sum(direction.nbytes for direction in directions)
    # W in and W̄ out; for the backward G and W in and the gradient out; two products each way.
    least = Cost(8 * sum(direction.numel() for direction in directions), 5 * weight_bytes)

    def truth() -> Result:
        exact = copy.deepcopy(ways[spectral.PYTORCH]).double()
        return spectral.step(exact, [direction.double() for direction in directions])

    yield Case("spectral normalisation", network.name, network.shape, setup, variants, truth, least)


def sampling_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """A batch of images from the generator, batch norm on the batch's statistics."""
    z = torch.randn(setup.batch, Z_DIM, generator=torch.Generator().manual_seed(2)).to(setup.device)

    def images(net: nn.Module, z: Tensor = z) -> Result:
        with torch.no_grad():
            return Result(net(z))

    def variant(mode: Mode, merge: bool, capture: bool = False) -> Variant:
        def make() -> Step:
            net = network.generator(torch.float32, mode.layout, setup.device)
            step = partial(images, gnfast.rewrite(net) if merge else net)
            return captured(step, setup.device) if capture else step

        return Variant(make, mode, A if mode == PAPERS else B, visible=not capture)

    variants = {}
    if setup.graphs:
        variants = {CAPTURED: variant(setup.tuned, True, True), "b in a CUDA graph": variant(setup.tuned, False, True)}
    variants |= {A: variant(PAPERS, False), B: variant(setup.tuned, False), EAGER: variant(setup.tuned, True)}

    def truth() -> Result:
        return images(network.generator(torch.float64, torch.contiguous_format, setup.device), z.double())

    with setup.tuned.active(setup.device):
        counted = work(variants[EAGER].make())
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
        self.large = len(network.shape) == 3 and max(network.shape[1:]) >= LARGE

    @property
    def searched_if_small(self) -> Mode:
        """The tuned mode for what runs PyTorch's second-order convolutions."""
        return replace(self.setup.tuned, search=not self.large)

    def exact(self, way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Double backward for the truth: as it is, or repaired where PyTorch's would take too long.

        On a GPU that is so of any size: in float64 its kernels for convolutions by a whole feature map are slow, where
        there are any, and without the truth no ratio is formed.
        """
        return repair(way) if self.large or self.setup.device.type == "cuda" else way

    def inputs(self, mode: Mode, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
        """A critic of its own and the images, as a mode lays them out."""
        device = self.setup.device
        images = self.network.images(self.batch, torch.float32, mode.layout, device)
        return self.network.critic(dtype, mode.layout, device), images

    def variant(
        self,
        step: Callable[[nn.Module, Tensor], Result],
        mode: Mode,
        budget: str | None = None,
        checked: bool = True,
        capture: bool = False,
    ) -> Variant:
        def make() -> Step:
            function = partial(step, *self.inputs(mode))
            return captured(function, self.setup.device) if capture else function

        return Variant(make, mode, budget, checked, visible=not capture)

    def compiled(self, step: Callable[[Tensor], Result], x: Tensor) -> Step:
        """A compiled step in a CUDA graph, where those are wanted."""
        function = partial(step, x)
        # Kernels are searched for by timing them, which cannot be captured.
        function()
        return captured(function, self.setup.device) if self.setup.graphs else function

    def captured_penalty(self, step: Callable[..., Result]) -> Step:
        """A penalty's step in a CUDA graph, which draws from the seed that it finds when it is replayed."""
        net, x = self.inputs(self.setup.tuned)
        replay = captured(partial(step, net, x, seeds=False), self.setup.device)

        def seeded() -> Result:
            torch.manual_seed(0)
            return replay()

        return seeded

    def normalized(self, step: Callable[[Normalize, nn.Module, Tensor], Result]) -> dict[str, Variant]:
        """The variants that a critic's and a generator's step share."""
        mode, graphs = self.setup.tuned, self.setup.graphs

        def strongest() -> Step:
            net, x = self.inputs(mode)
            return self.compiled(compiled_step(step, net, x, self.setup.search), x)

        variants = {}
        if graphs:
            variants[CAPTURED] = self.variant(partial(step, four_passes), mode, B, capture=True)
        if self.setup.compiled:
            variants[STRONGEST] = Variant(strongest, mode, B, visible=False)
        variants[A] = self.variant(partial(step, double_backward), PAPERS, A)
        if graphs:
            variants[PLAIN_CAPTURED] = self.variant(partial(step, plain), mode, checked=False, capture=True)
            variants[E] = self.variant(partial(step, repaired), mode, B, capture=True)
        return variants | {
            EAGER: self.variant(partial(step, four_passes), mode, B),
            C: self.variant(partial(step, repaired), mode, B),
            PLAIN: self.variant(partial(step, plain), mode, checked=False),
            NO_REWRITES: self.variant(partial(step, without_rewrites), mode, B),
            # Its search for kernels may take longer than all others together.
            B: self.variant(partial(step, double_backward), self.searched_if_small, B),
        }

    def case(
        self,
        name: str,
        variants: dict[str, Variant],
        step: Callable[..., Result],
        least: Callable[[gnfast.Plan, int], Cost],
        normalized: bool = True,
    ) -> Case:
        """A case whose truth is `step`, of the normalised critic if it takes one, in float64."""
        exact = partial(step, self.exact(double_backward)) if normalized else step

        def truth() -> Result:
            net, x = self.inputs(PAPERS, torch.float64)
            # Penalties draw in the images' precision, and should draw the same points in every one.
            return exact(net, x.double()) if normalized else exact(_Widened(net), x)

        with self.setup.tuned.active(self.setup.device):
            plan = gnfast.trace(*self.inputs(self.setup.tuned))
        return Case(
            name,
            self.network.name,
            self.network.shape,
            self.setup,
            variants,
            # Other precisions find it computed.
            partial(remembered, (name, self.network, self.batch, self.setup.device), truth),
            least(plan, self.taken),
            [f"falls back to double backward: {refusal}" for refusal in plan.refusals],
        )


class _Widened(nn.Module):
    """A float64 network that takes narrower images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


_TRUTHS: dict[tuple[object, ...], Result] = {}


def remembered(key: tuple[object, ...], truth: Callable[[], Result]) -> Result:
    """What `truth` gives, computed once; the last few are kept."""
    if key not in _TRUTHS:
        while len(_TRUTHS) >= 6:
            del _TRUTHS[next(iter(_TRUTHS))]
        _TRUTHS[key] = truth()
    return _TRUTHS[key]
