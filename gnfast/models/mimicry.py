"""The ResNet pairs of mimicry (kwotsin/mimicry, `nets/sngan`), on which GraN-GAN builds (Bhaskara et al., WACV 2022).

They are SN-GAN's with three differences. The generator upsamples bilinearly. The critic's blocks begin with a ReLU that
works in place, so that the shortcut sees ReLU(x) as well; here both branches share that ReLU. Biases start as PyTorch
draws them. mimicry's SN-GAN puts `gnfast.spectral_norm_` on the critic, GraN-GAN leaves it out.
"""

from torch import Tensor, nn

from gnfast.models import resnet
from gnfast.models.widths import Factors


class Block(resnet.Block):
    """h = ReLU(x), then conv3-ReLU-conv3 of h plus h; `down` halves the map, a 1x1 adapts the shortcut where needed."""

    def __init__(self, in_channels: int, out_channels: int, down: bool):
        super().__init__(in_channels, out_channels, down, hidden=in_channels)
        # It stands before both branches.
        self.activation = self.residual.pop(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.activation(x))


def build(resolution: int, channels: int, z_dim: int, width: Factors) -> tuple[resnet.Generator, resnet.Discriminator]:
    """mimicry's pair for 32, 48, 64 or 128 pixels, without spectral normalisation; see `gnfast.models.build`."""
    start, g_widths, d_widths, downs = resnet.scaled_layout("mimicry-resnet", resnet.SNGAN_LAYOUTS, resolution, width)
    generator = resnet.Generator(start, g_widths, channels, z_dim, upsampling="bilinear")
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # The biases, which GN-GAN's generator sets to zero.
            module.reset_parameters()
    critic = resnet.Discriminator(d_widths, downs, channels, Block, resnet.SumPool())
    resnet.xavier_(generator)
    resnet.xavier_(critic)
    return generator, critic
