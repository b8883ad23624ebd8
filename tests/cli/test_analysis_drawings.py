"""Drawings without runs: what they show holds, and each is a picture."""

import pytest
import torch
from PIL import Image

from gnfast.analysis import drawings, two_dimensional
from gnfast.analysis.drawings import DRAWINGS, NORMS, OUTPUTS, normalised_spectra, sampled_norms
from gnfast.engine.heads import METHODS
from gnfast.losses import LOSSES
from gnfast.runs.drawing import tick


@pytest.mark.parametrize("name", DRAWINGS)
def test_each_is_a_picture(name, tmp_path, monkeypatch):
    short = two_dimensional.trained
    monkeypatch.setattr(drawings.two_dimensional, "trained", lambda alpha: short(alpha, steps=2))
    path = DRAWINGS[name](tmp_path / "new")
    assert path == tmp_path / "new" / f"{name}.png"
    with Image.open(path) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("method", METHODS)
def test_gradient_norms_of_normalised_critics_are_as_the_papers_say(method):
    """Over critics of which some say almost nothing and some are sure."""
    assert method in NORMS, "gnfast/analysis/drawings.py has no formula of its gradient norm"
    f, measured, wanted = sampled_norms(method)
    assert f.abs().min() < 1e-2 and f.abs().max() > 1
    torch.testing.assert_close(measured, wanted, rtol=1e-10, atol=0)


def test_singular_values_that_weight_and_spectral_normalisation_allow():
    by_rows, by_largest = normalised_spectra()
    torch.testing.assert_close(by_rows.square().sum(1), torch.ones(len(by_rows), dtype=torch.float64))
    torch.testing.assert_close(by_largest[:, 0], torch.ones(len(by_largest), dtype=torch.float64))
    # The one set is narrow; the other has flat spectra and steep ones.
    assert by_rows.sum(1).max() <= OUTPUTS**0.5 + 1e-12
    assert by_largest[0, -1] > 0.99 and by_largest[-1, 1] < 0.3


def test_a_wide_domain_of_the_loss_keeps_a_spectrally_normalised_gan_from_its_data():
    state = torch.random.get_rng_state()
    narrow, wide = (two_dimensional.trained(alpha, steps=700) for alpha in (1.0, 1e10))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert narrow.on_data > 1.5 * wide.on_data
    assert narrow.omega[1] - narrow.omega[0] < 2


def test_ticks_are_short_numbers():
    numbers = {0: "0", 20: "20", 100_000: "100000", 1e8: "1e8", -1e6: "-1e6", 0.0001: "0.0001", 2e-5: "2e-5"}
    assert {number: tick(number) for number in numbers} == numbers


def test_losses_are_lines_where_their_domain_is_small():
    for name in drawings.TABLE_1:
        term = LOSSES[name].critic_real
        x = torch.linspace(-1e-4, 1e-4, 21, dtype=torch.float64)
        values = term.value(x) - term.value(x.new_zeros(1))
        line = values[-1] + (values[0] - values[-1]) * torch.linspace(1, 0, 21, dtype=torch.float64)
        assert (values - line).abs().max() < 1e-3 * values.abs().max(), name
