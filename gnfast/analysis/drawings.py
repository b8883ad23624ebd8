"""The papers' figures that need no run: formulas drawn, and checked against what gnfast computes.

`DRAWINGS["normalisers"](folder)` writes folder/normalisers.png.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from gnfast.analysis import two_dimensional
from gnfast.analysis.marks import tiled
from gnfast.engine import reference
from gnfast.io.files import atomic_write, make_folder
from gnfast.losses import LOSSES
from gnfast.measure import slopes
from gnfast.runs.drawing import canvas, colour, drawing, legend, legend_outside, log_scale, png

# The centred least squares have the same term for real images.
TABLE_1 = ("non-saturating", "least-squares", "wasserstein", "cosine", "exponential")
DASHED = ("cosine", "exponential")
OUTPUTS, MATRICES = 16, 12
TAU, EPS = 1 / 0.83, 0.1


def loss_functions() -> Figure:
    """Losses on smaller and smaller domains are lines (Qin et al., ECCV 2020, Table 1, Figs. 2 and 3).

    Above the critic's terms for real images less their values at 0, and their slopes. Below x³ - x, whole and where
    it is restricted to [a, b]: convex, almost linear, and after a shift to [c, d]. gnfast's critics are high on real
    images for every loss, where the paper writes the Wasserstein and the exponential loss the other way round.
    """
    figure, grid = canvas(2, 4, 5.4)
    for axes, scale in zip(grid, (3.0, 0.3, 0.03), strict=False):
        x = torch.linspace(-scale, scale, 201, dtype=torch.float64)
        for index, name in enumerate(TABLE_1):
            term = LOSSES[name].critic_real
            axes.plot(x, term.value(x) - term.value(x.new_zeros(1)), **_style(index, name))
        axes.set(title=f"|x| ≤ {scale:g}", xlabel="x = f(real image)")
    x = torch.linspace(-3, 3, 201, dtype=torch.float64)
    for index, name in enumerate(TABLE_1):
        grid[3].plot(x, slopes(LOSSES[name].critic_real, x), **_style(index, name))
    grid[3].set(title="slopes", xlabel="x = f(real image)", ylim=(-8.5, 4.5))
    grid[0].set_ylabel("L(x) - L(0)")
    domains = {"(a) whole": (), "(b) convex": (0.1, 1.1), "(c) almost linear": (0.55, 0.65)}
    for axes, (title, ends) in zip(grid[4:], domains.items(), strict=False):
        _cubic(axes, title, {"[a, b]": ends} if ends else {})
    _cubic(grid[7], "the domain shifts", {"[a, b]": (0.1, 0.5), "[c, d]": (0.6, 1.0)})
    grid[4].set_ylabel("x³ - x")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def two_dimensional_gan() -> Figure:
    """A spectrally normalised GAN in the plane at three domains of the loss (Qin et al., ECCV 2020, Fig. 1).

    Above the data (black) and the generator's points (orange), below L(αx) / α and in red where the critic uses it.
    """
    alphas = (1e-10, 1.0, 1e10)
    figure, grid = canvas(2, len(alphas), 5.4)
    for above, below, alpha in zip(grid, grid[len(alphas) :], alphas, strict=False):
        plane = two_dimensional.trained(alpha)
        above.scatter(*plane.real.T, s=4, color="black")
        above.scatter(*plane.fake.T, s=4, color=colour(4))
        above.set_title(f"α = {alpha:g}: {plane.on_data:.0%} on the data")
        above.set(aspect="equal", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
        low, high = (alpha * plane.omega.double()).tolist()
        # Far beyond where the loss bends, a wider picture shows no more.
        reach = max(8.0, 1.5 * max(abs(low), abs(high)))
        x = torch.linspace(-reach, reach, 401, dtype=torch.float64)
        used = torch.linspace(low, high, 201, dtype=torch.float64)
        value = LOSSES["non-saturating"].critic_real.value
        below.plot(x, value(x), color="0.6")
        below.plot(used, value(used), color="red", linewidth=3, marker="o", markersize=3, markevery=[0, -1])
        below.set_xlabel("α f(x)")
    grid[len(alphas)].set_ylabel("L, on αΩ in red")
    return figure


def singular_value_sets() -> Figure:
    """Sets of singular values that weight and spectral normalisation allow (SN-GAN, Miyato et al., ICLR 2018, Fig. 14).

    Of the same random matrices, squared and in increasing order: rows normalised and all divided by the root of their
    number, so that the squares add up to 1 (eq. 27), or divided by the largest singular value.
    """
    figure, (axes,) = canvas(1, 1, 3.6)
    for name, tone, spectra in zip(("weight", "spectral"), ("blue", "red"), normalised_spectra(), strict=True):
        for index, squares in enumerate(spectra.square().flip(1)):
            label = None if index else f"{name} normalisation"
            axes.plot(range(1, 1 + OUTPUTS), squares, color=tone, alpha=0.5, label=label)
    axes.set(xlabel="singular values in increasing order", ylabel="squared singular value")
    legend(axes)
    return figure


def normalised_spectra(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Singular values (`MATRICES`, `OUTPUTS`), largest first, of random matrices whose spectra fall more and more.

    Returns:
        Those of the weight-normalised matrices (rows of norm 1, as in SN-GAN's eq. 25) over the root of the number of
        rows; those of the spectrally normalised matrices.
    """
    random = torch.Generator().manual_seed(seed)
    matrices = torch.randn(MATRICES, OUTPUTS, 4 * OUTPUTS, generator=random, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    falls = torch.linspace(0, 2, MATRICES, dtype=torch.float64)[:, None]
    matrices = (u * (torch.arange(1, 1 + OUTPUTS) ** -falls)[:, None]) @ v
    by_rows = matrices / matrices.norm(dim=2, keepdim=True)
    largest = torch.linalg.matrix_norm(matrices, 2)[:, None, None]
    return torch.linalg.svdvals(by_rows) / OUTPUTS**0.5, torch.linalg.svdvals(matrices / largest)


def normalisers() -> Figure:
    """The gradient norm of each normalised critic, against its formula (GN-GAN, Tables 1 and 2; PGN-GAN, Table I).

    Dots are measured on a small critic by double backward, at random images and with f made larger and larger; crosses
    are the formulas of `NORMS`. GN-GAN's Table 1 prints n/(n+|f|) for ζ = |f|; its Theorem 6 has the square, and so has
    what is measured.
    """
    figure, grid, left, bottom = tiled(len(NORMS), 2.6)
    for axes, (method, (text, _)) in zip(grid, NORMS.items(), strict=True):
        f, measured, wanted = sampled_norms(method)
        axes.plot(f.abs(), measured, "o", ms=5, color=colour(0), fillstyle="none", label="measured")
        axes.plot(f.abs(), wanted, "x", ms=3, color="black", linewidth=0.5, label="formula")
        off = float(((measured - wanted) / wanted).abs().max())
        axes.set_title(f"{method}: {text}\nlargest difference {off:.0e}", fontsize=8)
        for axis in (axes.xaxis, axes.yaxis):
            log_scale(axis)
        axes.set_ylim(float(wanted.min()) / 2, 2)
    for axes in bottom:
        axes.set_xlabel("|f|")
    for axes in left:
        axes.set_ylabel("gradient norm of\nthe normalised critic")
    legend_outside(figure, grid)
    return figure


NORMS: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "gn0": ("1", lambda f, n, m: torch.ones_like(n)),
    "gn1": ("n/(n+1)", lambda f, n, m: n / (n + 1)),
    "gn": ("(n/(n+|f|))²", lambda f, n, m: (n / (n + f.abs())).square()),
    "gran": ("n²/(τ(n²+ε))", lambda f, n, m: n.square() / (n.square() + EPS) / TAU),
    "gran-shift": ("n/(τ(n+ε))", lambda f, n, m: n / (n + EPS) / TAU),
    "pgn-table": ("(n/(n+|1-f|))²", lambda f, n, m: (n / (n + (1 - f).abs())).square()),
    "pgn": ("mn/(m+|1-f|)², m = ‖1-∇f‖", lambda f, n, m: m * n / (m + (1 - f).abs()).square()),
}
"""Normaliser to its ‖∇f̂‖ for a piecewise linear critic, in words and as a function of f, n = ‖∇f‖ and m = ‖1 - ∇f‖."""


def sampled_norms(method: str, count: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """f, ‖∇f̂‖ by double backward, and its formula, each (5 · count,) in float64: of critics c·f, c from 0.01 to 100."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 32), nn.LeakyReLU(0.1), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        images = torch.randn(count, 12, dtype=torch.float64)
    net, rows = net.double(), []
    options = {"tau": TAU, "eps": EPS} if method.startswith("gran") else {}
    for exponent in (-2, -1, 0, 1, 2):
        critic = nn.Sequential(net, _Times(10.0**exponent))
        x = images.clone().requires_grad_()
        f, g = (found.detach() for found in reference.value_and_input_grad(critic, x))
        f_hat = reference.normalize_gradient(critic, x, method=method, **options)
        (slope,) = torch.autograd.grad(f_hat.sum(), x)
        wanted = NORMS[method][1](f.flatten(), g.norm(dim=1), (1 - g).norm(dim=1))
        rows.append((f.flatten(), slope.norm(dim=1), wanted))
    f, measured, wanted = (torch.cat(column) for column in zip(*rows, strict=True))
    return f, measured, wanted


class _Times(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def _style(index: int, name: str) -> dict[str, str]:
    return {"color": colour(index), "label": name, "linestyle": "--" if name in DASHED else "-"}


def _cubic(axes: Axes, title: str, domains: dict[str, tuple[float, float]]) -> None:
    """x³ - x, with the domains in red."""
    x = torch.linspace(-1.4, 1.4, 201, dtype=torch.float64)
    axes.plot(x, x**3 - x, color="0.6" if domains else "red")
    for index, (name, ends) in enumerate(domains.items()):
        used = torch.linspace(*ends, 101, dtype=torch.float64)
        style = {"color": ("red", colour(4))[index], "linewidth": 2.5}
        axes.plot(used, used**3 - used, label=f"{name} = [{ends[0]:g}, {ends[1]:g}]", **style)
    axes.set(title=title, xlabel="x")
    legend(axes)


def _written(name: str, figure: Callable[[], Figure], out: Path) -> Path:
    make_folder(out)
    path = out / f"{name}.png"
    with drawing():
        image = png(figure())
    with atomic_write(path) as part:
        part.write_bytes(image)
    return path


FIGURES: dict[str, Callable[[], Figure]] = {
    "loss-functions": loss_functions,
    "two-dimensional": two_dimensional_gan,
    "singular-value-sets": singular_value_sets,
    "normalisers": normalisers,
}
"""Name of a drawing to what draws it; its docstring says what it shows."""

DRAWINGS: dict[str, Callable[[Path], Path]] = {name: partial(_written, name, draw) for name, draw in FIGURES.items()}
"""Name of a drawing to what writes it into a folder, as NAME.png, and returns the file."""
