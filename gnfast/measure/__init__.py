"""What normalisation does to a critic, measured: pure functions of a network and images, which leave both as they were.

They return tensors and dataclasses. `gnfast analyze` draws them; docs/analysis.md lists them, with the papers' figures.
"""

from gnfast.measure.convolution_operator import circular_singular_values, operator_norm
from gnfast.measure.finite_differences import finite_differences
from gnfast.measure.gradient_norms import GradientNorms, gradient_norms, quantiles
from gnfast.measure.lanczos import largest_singular_value
from gnfast.measure.lipschitz_constants import distributions, model_lipschitz, prefix_lipschitz, range_bound
from gnfast.measure.loss_domain import LossDomain, loss_domain, slopes
from gnfast.measure.singular_values import LayerSpectrum, layer_sigmas, layer_spectra

__all__ = [
    "GradientNorms",
    "LayerSpectrum",
    "LossDomain",
    "circular_singular_values",
    "distributions",
    "finite_differences",
    "gradient_norms",
    "largest_singular_value",
    "layer_sigmas",
    "layer_spectra",
    "loss_domain",
    "model_lipschitz",
    "operator_norm",
    "prefix_lipschitz",
    "quantiles",
    "range_bound",
    "slopes",
]
