"""The comparisons: for each, the variants of one step, what all of them should give, and what they cost at least."""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import gnfast
from gnfast.bench import case as names
from gnfast.bench import cost, spectral_ways
from gnfast.bench import critic_steps as steps
from gnfast.bench.baselines import compiled_critic_step, compiled_step, repair, repaired
from gnfast.bench.case import Case, Setup, Step, Variant, remembered
from gnfast.bench.cost import Cost
from gnfast.bench.count import work
from gnfast.bench.critic_steps import PENALTIES, Normalize, Result
from gnfast.bench.critics import Z_DIM, Network
from gnfast.bench.graph import captured
from gnfast.bench.mode import PAPERS, Mode
from gnfast.engine.explain import refused_for
from gnfast.errors import FallbackWarning


def critic_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """The critic's step: f̂ of GN on half real, half fake images, hinge loss, gradients of all weights."""
    make = _Maker(network, setup)
    variants = make.normalized(steps.critic_step)
    functional = make.compiled(lambda net, x: compiled_critic_step(net, setup.search))
    variants = {names.STRONGEST: variants[names.STRONGEST], names.D: functional} | variants
    variants[names.STATIC] = make.static(steps.critic_step)
    yield make.case("critic step", variants, steps.critic_step, cost.critic_step)


def generator_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """The critic's part of the generator's step: the gradient with respect to the images, weights frozen."""
    make = _Maker(network, setup)
    variants = make.normalized(steps.generator_step)
    for name, capture in ((f"{names.RESCALED}, CUDA graph", True), (names.RESCALED, False)):
        variants[name] = make.variant(steps.rescaled_generator_step, setup.tuned, names.B, capture=capture)
    yield make.case("generator step, critic's part", variants, steps.generator_step, cost.generator_step)


def penalty_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """Gradient penalties and their gradients with respect to the weights."""
    # The other two take the gradient norm at other points, for the same price.
    for name in ("R1", "WGAN-GP"):
        make, penalty = _Maker(network, setup, half=True), PENALTIES[name]
        fast = partial(steps.penalty_step, penalty, strict=True)
        slow = partial(steps.penalty_step, penalty, impl="reference")
        replayed = partial(make.captured_penalty, fast)
        variants = {
            names.CAPTURED: Variant(replayed, setup.tuned, names.B, captured=True),
            names.A: make.variant(slow, PAPERS, names.A),
            names.B: make.variant(slow, make.searched_if_small, names.B),
            names.EAGER: make.variant(fast, setup.tuned, names.B),
            names.NO_REWRITES: make.variant(partial(fast, rewrite=False), setup.tuned, names.B),
        }
        truth = partial(steps.penalty_step, make.exact(penalty), impl="reference")
        yield make.case(f"{name} penalty", variants, truth, cost.critic_step, normalized=False)


def spectral_cases(network: Network, setup: Setup) -> Iterator[Case]:
    """Spectral normalisation of all layers, one power iteration, forward and backward, by itself."""
    setup = replace(setup, precision="float32" if setup.precision == "tf32" else setup.precision)
    dtype = torch.bfloat16 if setup.precision == "bfloat16" else torch.float32
    layers = spectral_ways.layers_of(network.critic(torch.float32, torch.contiguous_format))
    # Plain float32: the products here are matrix-vector ones, which no rounding makes faster.
    mode = Mode(setup.tuned.layout, conv_tf32=False)
    ways, directions = spectral_ways.make(layers, mode.layout, dtype, setup.device)
    pytorch = spectral_ways.PYTORCH

    def variant(way: str, capture: bool = False) -> Variant:
        def make() -> Step:
            own = copy.deepcopy(ways[way])
            step = partial(spectral_ways.step, own, directions)
            if capture:
                step = captured(step, setup.device)
                # The steps before the capture have iterated.
                own.load_state_dict(ways[way].state_dict())
            return step

        return Variant(make, mode, pytorch, captured=capture)

    variants = {
        names.CAPTURED: variant(spectral_ways.MODEL, capture=True),
        "PyTorch, CUDA graph": variant(pytorch, capture=True),
        pytorch: variant(pytorch),
        names.EAGER: variant(spectral_ways.MODEL),
        spectral_ways.LAYER: variant(spectral_ways.LAYER),
    }
    weight_bytes = sum(direction.nbytes for direction in directions)
    # W in and W̄ out; for the backward G and W in and the gradient out; two products each way.
    least = Cost(8 * sum(direction.numel() for direction in directions), 5 * weight_bytes)

    def truth() -> Result:
        exact = copy.deepcopy(ways[pytorch]).double()
        return spectral_ways.step(exact, [direction.double() for direction in directions])

    name = "spectral normalisation"
    yield Case(name, network.name, network.shape, setup, setup.chosen(variants), truth, least)


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

        return Variant(make, mode, names.A if mode == PAPERS else names.B, captured=capture)

    variants = {
        names.CAPTURED: variant(setup.tuned, merge=True, capture=True),
        "b in a CUDA graph": variant(setup.tuned, merge=False, capture=True),
        names.A: variant(PAPERS, merge=False),
        names.B: variant(setup.tuned, merge=False),
        names.EAGER: variant(setup.tuned, merge=True),
    }

    def truth() -> Result:
        return images(network.generator(torch.float64, torch.contiguous_format, setup.device), z.double())

    with setup.tuned.active(setup.device):
        counted = work(variants[names.EAGER].make())
    least = Cost(counted.flops, counted.product_bytes)
    yield Case("sampling", network.name, network.shape, setup, setup.chosen(variants), truth, least)


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
        self.taken = max(1, setup.batch // 2) if half else setup.batch

    @property
    def searched_if_small(self) -> Mode:
        """The tuned mode for what runs PyTorch's second-order convolutions."""
        return replace(self.setup.tuned, search=not self.network.large)

    def exact(self, way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Double backward for the truth: as it is, or repaired where PyTorch's would take too long.

        On a GPU that is so of any size: in float64 its kernels for convolutions by a whole feature map are slow, where
        there are any, and without the truth no ratio is formed.
        """
        return repair(way) if self.network.large or self.setup.device.type == "cuda" else way

    def inputs(self, mode: Mode, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
        """A critic of its own and the images, as a mode lays them out."""
        device = self.setup.device
        images = self.network.images(self.setup.batch, torch.float32, mode.layout, device)
        return self.network.critic(dtype, mode.layout, device), images

    def variant(
        self,
        step: Callable[[nn.Module, Tensor], Result],
        mode: Mode,
        budget: str | None = None,
        checked: bool = True,
        capture: bool = False,
    ) -> Variant:
        """A step of a critic of its own, which a CUDA graph replays if `capture`."""

        def make() -> Step:
            function = partial(step, *self.inputs(mode))
            return captured(function, self.setup.device) if capture else function

        return Variant(make, mode, budget, checked, captured=capture)

    def compiled(self, build: Callable[[nn.Module, Tensor], Callable[[Tensor], Result]]) -> Variant:
        """A step of the images that torch.compile makes, in a CUDA graph where those are wanted."""

        def make() -> Step:
            net, x = self.inputs(self.setup.tuned)
            function = partial(build(net, x), x)
            # Kernels are searched for by timing them, which cannot be captured.
            function()
            return captured(function, self.setup.device) if self.setup.graphs else function

        return Variant(make, self.setup.tuned, names.B, compiled=True)

    def static(self, step: Callable[[Normalize, nn.Module, Tensor], Result]) -> Variant:
        """A step whose recording is kept, or it raises. On a GPU its passes are graphs, from the second call on."""

        def make() -> Step:
            function = partial(step, steps.static, *self.inputs(self.setup.tuned))
            with warnings.catch_warnings(action="error", category=FallbackWarning):
                for _ in range(3):
                    function()
            return function

        # Of what is in graphs nothing can be counted.
        return Variant(make, self.setup.tuned, names.B, captured=self.setup.graphs)

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
        mode, search, yardstick = self.setup.tuned, self.setup.search, names.B
        return {
            names.CAPTURED: self.variant(partial(step, steps.four_passes), mode, yardstick, capture=True),
            names.STRONGEST: self.compiled(lambda net, x: compiled_step(step, net, x, search)),
            names.A: self.variant(partial(step, steps.double_backward), PAPERS, names.A),
            names.PLAIN_CAPTURED: self.variant(partial(step, steps.plain), mode, checked=False, capture=True),
            names.E: self.variant(partial(step, repaired), mode, yardstick, capture=True),
            names.EAGER: self.variant(partial(step, steps.four_passes), mode, yardstick),
            names.C: self.variant(partial(step, repaired), mode, yardstick),
            names.PLAIN: self.variant(partial(step, steps.plain), mode, checked=False),
            names.NO_REWRITES: self.variant(partial(step, steps.without_rewrites), mode, yardstick),
            # Its search for kernels may take longer than all others together.
            names.B: self.variant(partial(step, steps.double_backward), self.searched_if_small, yardstick),
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
        network, setup = self.network, self.setup
        exact = partial(step, self.exact(steps.double_backward)) if normalized else step

        def truth() -> Result:
            net, x = self.inputs(PAPERS, torch.float64)
            if normalized:
                return exact(net, x.double())
            # Penalties draw in the images' precision, and should draw the same points in every one.
            net.register_forward_pre_hook(lambda _, images: (images[0].double(),))
            return exact(net, x)

        with setup.tuned.active(setup.device):
            plan = gnfast.explain(*self.inputs(setup.tuned)).plan
        # Other precisions find it computed.
        known = partial(remembered, (name, network, setup.batch, setup.device), truth)
        variants, notes, priced = setup.chosen(variants), [], None
        if plan.refusals:
            # What its passes would cost is nobody's floor.
            variants = {name: variant for name, variant in variants.items() if name not in names.OURS}
            refusals = "; ".join(refused_for(plan).values())
            notes = [f"gnfast falls back here, and is double backward, so that no row is its own: {refusals}"]
        else:
            priced = least(plan, self.taken)
        return Case(name, network.name, network.shape, setup, variants, known, priced, notes)
