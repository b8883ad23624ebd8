"""What normalisation does to a critic, measured and drawn: the analyses of the papers, for any critic and any run.

Functions return tensors and dataclasses; `figures` draws them, `gnfast analyze` does both. docs/analysis.md shows the
results of small runs.
"""

from gnfast.measure.convolution_operator import circular_singular_values, operator_norm
from gnfast.measure.finite_differences import finite_differences
from gnfast.measure.gradient_norms import GradientNorms, gradient_norms
from gnfast.measure.lipschitz_constants import distributions, model_lipschitz, prefix_lipschitz, range_bound
from gnfast.measure.loss_domain import LossDomain, loss_domain
from gnfast.measure.singular_values import LayerSpectrum, layer_spectra

__all__ = [
    "GradientNorms",
    "LayerSpectrum",
    "LossDomain",
    "circular_singular_values",
    "distributions",
    "finite_differences",
    "gradient_norms",
    "layer_spectra",
    "loss_domain",
    "model_lipschitz",
    "operator_norm",
    "prefix_lipschitz",
    "range_bound",
]
