"""Critics of sound, and of spectra."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.critics.classics import MelGAN
from tests.critics.critic import Critic


class PhaseShuffle(nn.Module):
    """WaveGAN's layers with a random shift, each sample's own or one for all, filled by reflection."""

    def __init__(self, per_sample: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels_in, channels_out, 9, 4, 4) for channels_in, channels_out in [(1, 3), (3, 4), (4, 6)]
        )
        self.per_sample, self.out = per_sample, nn.Linear(6 * 3, 1)

    def shuffled(self, x: Tensor) -> Tensor:
        if not self.per_sample:
            k = int(torch.randint(-2, 3, (1,)))
            k = k or 1
            return F.pad(x[..., :-k], (k, 0), "reflect") if k > 0 else F.pad(x[..., -k:], (0, -k), "reflect")
        shuffled = x.clone()
        for index, k in enumerate((torch.randint(0, 5, (x.shape[0],)) - 2).tolist()):
            if k > 0:
                shuffled[index] = F.pad(x[index][..., :-k], (k, 0), mode="reflect")
            elif k < 0:
                shuffled[index] = F.pad(x[index][..., -k:], (0, -k), mode="reflect")
        return shuffled

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for index, conv in enumerate(self.convs):
            h = F.leaky_relu(conv(h), 0.2)
            if index < len(self.convs) - 1:
                h = self.shuffled(h)
        return self.out(h.view(-1, 6 * 3))


class IndexedShuffle(nn.Module):
    """Random shifts per sample, by one gather along time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.out = nn.Conv1d(1, 4, 9, 4, 4), nn.Conv1d(4, 5, 9, 4, 4), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv(x), 0.2)
        length = h.shape[-1]
        places = (torch.arange(length)[None] + torch.randint(-2, 3, (len(h), 1))).abs()
        places = torch.where(places >= length, 2 * (length - 1) - places, places)
        h = torch.gather(h, 2, places[:, None].expand(-1, h.shape[1], -1))
        return self.out(F.leaky_relu(self.last(h), 0.2).mean(2))


class MelGANMaps(MelGAN):
    """Its scales, whose logits are laid one after the other: a row per sample (Kumar et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for scale in self.scales:
            results.append(scale(x).flatten(1))
            x = self.pool(x)
        return torch.cat(results, 1)


class Periods(nn.Module):
    """HiFi-GAN's multi-period critic: time folded to two axes, padded by reflection, convolved along one."""

    def __init__(self, periods: tuple[int, ...] = (2, 3, 5)) -> None:
        super().__init__()
        self.periods = periods
        self.convs = nn.ModuleList(
            nn.ModuleList([weight_norm(nn.Conv2d(1, 3, (5, 1), (3, 1), (2, 0))), weight_norm(nn.Conv2d(3, 4, (5, 1)))])
            for _ in periods
        )
        self.posts = nn.ModuleList(weight_norm(nn.Conv2d(4, 1, (3, 1), 1, (1, 0))) for _ in periods)

    def forward(self, x: Tensor) -> Tensor:
        outputs, features = [], []
        for period, convs, post in zip(self.periods, self.convs, self.posts, strict=True):
            b, c, t = x.shape
            h = x
            if t % period:
                missing = period - (t % period)
                h = F.pad(h, (0, missing), "reflect")
                t = t + missing
            h = h.view(b, c, t // period, period)
            for conv in convs:
                h = F.leaky_relu(conv(h), 0.1)
                features.append(h)
            h = post(h)
            features.append(h)
            outputs.append(torch.flatten(h, 1, -1))
        return torch.cat(outputs, 1)


class Scales(nn.Module):
    """HiFi-GAN's multi-scale critic: spectral norm at the finest scale, weight norm below."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(
                norm(nn.Conv1d(1, 4, 5, 1, 2)),
                nn.LeakyReLU(0.1),
                norm(nn.Conv1d(4, 4, 7, 2, groups=2, padding=3)),
                nn.LeakyReLU(0.1),
                norm(nn.Conv1d(4, 1, 3, 1, padding=1)),
            )
            for norm in (spectral_norm, weight_norm)
        )
        self.meanpool = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.scales
        return torch.cat([torch.flatten(fine(x), 1, -1), torch.flatten(coarse(self.meanpool(x)), 1, -1)], 1)


class Spectrogram(nn.Module):
    """Convolutions over the magnitude of a short-time Fourier transform (UnivNet, Jang et al., 2021; BigVGAN).

    `magnitude`: "norm" of real and imaginary parts side by side, "abs" of complex numbers, "log" with a floor,
    "complex" both parts as channels (EnCodec).
    """

    def __init__(self, magnitude: str) -> None:
        super().__init__()
        self.magnitude = magnitude
        self.conv1 = weight_norm(nn.Conv2d(2 if magnitude == "complex" else 1, 4, (3, 5), padding=(1, 2)))
        self.conv2 = weight_norm(nn.Conv2d(4, 4, (3, 5), stride=(1, 2), padding=(1, 2)))
        self.post = weight_norm(nn.Conv2d(4, 1, 3, padding=1))
        self.register_buffer("window", torch.hann_window(16))

    def spectrum(self, x: Tensor) -> Tensor:
        x = F.pad(x, (6, 6), mode="reflect").squeeze(1)
        spectrum = torch.stft(x, 16, hop_length=4, win_length=16, window=self.window, center=False, return_complex=True)
        if self.magnitude == "norm":
            return torch.norm(torch.view_as_real(spectrum), p=2, dim=-1).unsqueeze(1)
        if self.magnitude == "abs":
            return spectrum.abs().unsqueeze(1)
        if self.magnitude == "log":
            power = spectrum.real.pow(2) + spectrum.imag.pow(2)
            return torch.log(torch.clamp(torch.sqrt(power + 1e-9), min=1e-5)).unsqueeze(1)
        return torch.cat([spectrum.real[:, None], spectrum.imag[:, None]], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.spectrum(x)
        for conv in (self.conv1, self.conv2):
            h = F.leaky_relu(conv(h), 0.1)
        return torch.flatten(self.post(h), 1, -1)


class SpectrumBeside(nn.Module):
    """A logit from the image and from the logarithm of its Fourier magnitudes (Fourier-domain critics)."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.frequency = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 3, 2)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        power = torch.log1p(spectrum.real.square() + spectrum.imag.square())
        h = torch.cat([F.relu(self.space(x)).mean([2, 3]), F.relu(self.frequency(power)).mean([2, 3])], 1)
        return self.out(h)


class FourierMixing(nn.Module):
    """Residual blocks that mix all places by a Fourier transform and weights per frequency (FFC; FNet and GFNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 1)
        self.real, self.imag = nn.Parameter(torch.randn(4, 10, 4)), nn.Parameter(torch.randn(4, 10, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        spectrum = torch.fft.rfft2(h, norm="ortho") * torch.complex(self.real, self.imag)
        h = h + F.relu(torch.fft.irfft2(spectrum, s=(10, 6), norm="ortho"))
        return self.out(F.relu(h).mean([2, 3]))


class MelSpectrum(nn.Module):
    """A framed product with cosines and sines, energies in bands, their logarithm, 1-D convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(12)[:, None] * torch.arange(7)[None] * (2 * torch.pi / 12)
        self.register_buffer("waves", torch.cat([angles.cos(), angles.sin()], 1))
        self.register_buffer("bands", torch.rand(7, 5))
        self.conv, self.norm, self.out = nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.squeeze(1).unfold(-1, 12, 6) @ self.waves
        power = frames[..., :7] ** 2 + frames[..., 7:] ** 2
        mel = (power @ self.bands + 1e-6).log().transpose(1, 2)
        return self.out(F.leaky_relu(self.norm(self.conv(mel)), 0.2).mean(2))


_WAVE = (3, 1, 131)
CRITICS = {
    "wavegan-phase-shuffle": Critic(lambda: PhaseShuffle(per_sample=False), _WAVE),
    "wavegan-phase-shuffle-per-sample": Critic(lambda: PhaseShuffle(per_sample=True), _WAVE),
    "wavegan-phase-shuffle-gather": Critic(IndexedShuffle, _WAVE),
    "melgan-maps": Critic(MelGANMaps, _WAVE),
    "hifigan-periods": Critic(Periods, _WAVE),
    "hifigan-scales": Critic(Scales, _WAVE, training=True),
    "univnet-stft-norm": Critic(lambda: Spectrogram("norm"), (3, 1, 60)),
    "bigvgan-stft-abs": Critic(lambda: Spectrogram("abs"), (3, 1, 60)),
    "log-stft": Critic(lambda: Spectrogram("log"), (3, 1, 60)),
    "encodec-stft-complex": Critic(lambda: Spectrogram("complex"), (3, 1, 60)),
    "log-mel-batch-norm": Critic(MelSpectrum, (3, 1, 60), training=True, idle=("conv.bias",)),
    "image-spectrum": Critic(SpectrumBeside, (3, 3, 10, 6)),
    "fourier-mixing": Critic(FourierMixing, (3, 3, 10, 6)),
}
