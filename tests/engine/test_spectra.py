"""Critics with Fourier transforms, complex numbers and places to sample at, against double backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import UnsupportedError, reference
from tests.engine.test_engine import Called
from tests.oracle import assert_falls_back, assert_matches_double_backward, relative_error


def complex_weight():
    return torch.complex(torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 6, 4, dtype=torch.float64))


def magnitude(z):
    return (z.real.square() + z.imag.square() + 0.1).sqrt()


def framed(h, **options):
    return torch.stft(h.flatten(1), 8, hop_length=4, window=torch.hann_window(8, dtype=h.dtype), **options)


SPECTRA = {
    "rfft2": lambda net, h: magnitude(torch.fft.rfft2(h)),
    "fft along an axis": lambda net, h: magnitude(torch.fft.fft(h, dim=1)),
    "fft of the batch": lambda net, h: torch.fft.fft(h, dim=0).abs(),
    "there and back": lambda net, h: torch.fft.irfft2(torch.fft.rfft2(h, norm="ortho") * net.z, s=(6, 6), norm="ortho"),
    "real parts alone": lambda net, h: torch.fft.fftn(h, dim=(2, 3)).real,
    "imaginary parts alone": lambda net, h: torch.fft.rfft(h).imag,
    "absolute values": lambda net, h: torch.fft.rfftn(h, dim=(1, 2)).abs() ** 2,
    "both parts as an axis": lambda net, h: torch.view_as_real(torch.fft.rfft(h)).flatten(3),
    "from two halves": lambda net, h: torch.fft.ifft(torch.complex(h[:, :2], h[:, 1:])).real,
    "from pairs": lambda net, h: torch.view_as_complex(h.reshape(len(h), 3, 6, 3, 2)).abs(),
    "sums of products": lambda net, h: (torch.fft.rfft2(h) * net.z + 2 * net.z).sum(3).abs(),
    "auto-correlation": lambda net, h: torch.fft.irfft(torch.fft.rfft(h) * torch.fft.rfft(h).conj()),
    "angles": lambda net, h: torch.fft.rfft(h + 9).mean(2).angle(),
    "stft": lambda net, h: framed(h, return_complex=True).abs(),
    "stft centred": lambda net, h: framed(h, center=True, pad_mode="constant", return_complex=True).real.unsqueeze(3),
    "two spectra": lambda net, h: (torch.fft.rfft2(h) - torch.fft.rfft2(h * h)).abs(),
}


def critic(function):
    def forward(net, x):
        h = function(net, net.conv(x)).flatten(1)
        weights = torch.linspace(-1, 1, h.shape[1], dtype=h.dtype)
        return (torch.tanh(h) * weights).sum(1) + net.bias

    z, bias = nn.Parameter(complex_weight()), nn.Parameter(torch.randn(1))
    return Called(forward, conv=nn.Conv2d(2, 3, 3, padding=1).double(), z=z, bias=bias)


@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_match_double_backward(name):
    net, x = critic(SPECTRA[name]), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    assert_matches_double_backward(net, x)


@pytest.mark.parametrize("name", ["rfft2", "stft"])
def test_spectra_under_autocast(name):
    net, x = critic(SPECTRA[name]).float(), torch.randn(3, 2, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = gnfast.normalize_gradient(net, x, strict=True), reference.normalize_gradient(net, x)
    assert actual.dtype == expected.dtype and relative_error(actual, expected) < 5e-2


REFUSED = {
    "slices": lambda net, h: torch.fft.rfft(h)[..., :2].abs(),
    "in place": lambda net, h: torch.fft.rfft(h).mul_(net.z).abs(),
    "a complex factor": lambda net, h: (h[..., :4] * net.z).real,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_else_is_done_with_complex_numbers_is_refused(name):
    net, x = critic(REFUSED[name]), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    assert_falls_back(net, x, match="complex numbers")


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_samples_at_places(mode, learned):
    def forward(net, x):
        h = F.grid_sample(
            net.conv(x), (net.grid if learned else net._grid).expand(len(x), -1, -1, -1), mode=mode, align_corners=False
        )
        return torch.relu(h).mean((1, 2, 3))

    grid = torch.rand(1, 4, 5, 2, dtype=torch.float64) * 2.2 - 1.1
    net = Called(forward, conv=nn.Conv2d(2, 3, 3).double(), **{"grid" if learned else "_grid": grid})
    x = torch.randn(3, 2, 7, 6, dtype=torch.float64)
    assert_matches_double_backward(net, x)
    assert gnfast.trace(net, x).takes_six == learned


def test_what_falls_back_says_so():
    net, x = critic(REFUSED["slices"]), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=r"Tensor.__getitem__.*complex numbers"):
        gnfast.normalize_gradient(net, x, strict=True)
