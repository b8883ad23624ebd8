"""SN-GAN's networks, layer by layer, against Tables 3 to 6 of its paper (Miyato et al., ICLR 2018).

Each network runs on shapes alone; what a row of the tables says of it is read from the modules in the order in which
they run, and from the shapes between them.
"""

import pytest
import torch
from torch import nn

from gnfast.models import REGISTRY, biggan, build, resnet

DECONVOLUTIONS = """
    4x4 stride 2 deconv 256 BN ReLU
    4x4 stride 2 deconv 128 BN ReLU
    4x4 stride 2 deconv 64 BN ReLU
    3x3 stride 1 conv 3 Tanh"""
# The table has no BN and no ReLU after the dense layer; GN-GAN's code has them, as DCGAN has.
TABLE_3A = {side: f"dense {side // 8}x{side // 8}x512 BN ReLU {DECONVOLUTIONS}" for side in (32, 48)}
TABLE_3B = """
    3x3 stride 1 conv 64 lReLU
    4x4 stride 2 conv 64 lReLU
    3x3 stride 1 conv 128 lReLU
    4x4 stride 2 conv 128 lReLU
    3x3 stride 1 conv 256 lReLU
    4x4 stride 2 conv 256 lReLU
    3x3 stride 1 conv 512 lReLU
    dense 1"""
IMAGE = "BN ReLU 3x3 stride 1 conv 3 Tanh"
LOGIT = "ReLU global sum pooling dense 1"
TABLE_4A = f"dense 4x4x256 ResBlock up 256 ResBlock up 256 ResBlock up 256 {IMAGE}"
TABLE_4B = f"ResBlock down 128 ResBlock down 128 ResBlock 128 ResBlock 128 {LOGIT}"
TABLE_5A = f"dense 6x6x512 ResBlock up 256 ResBlock up 128 ResBlock up 64 {IMAGE}"
TABLE_5B = f"ResBlock down 64 ResBlock down 128 ResBlock down 256 ResBlock down 512 ResBlock 1024 {LOGIT}"
TABLE_6A = f"""dense 4x4x1024
    ResBlock up 1024 ResBlock up 512 ResBlock up 256 ResBlock up 128 ResBlock up 64 {IMAGE}"""
THREE = "ResBlock down 64 ResBlock down 128 ResBlock down 256"
REST = f"ResBlock down 512 ResBlock down 1024 ResBlock 1024 {LOGIT}"
TABLE_6B = f"{THREE} {REST}"
# The paper prints Concat(Embed(y), h), and 128 in the caption.
TABLE_6C = f"{THREE} embed 128 {REST}"

PAIRS = [
    ("sngan-cnn", 32, {}, TABLE_3A[32], TABLE_3B),
    ("sngan-cnn", 48, {}, TABLE_3A[48], TABLE_3B),
    ("sngan-resnet", 32, {}, TABLE_4A, TABLE_4B),
    ("sngan-resnet", 48, {}, TABLE_5A, TABLE_5B),
    ("sngan-resnet", 128, {}, TABLE_6A, TABLE_6B),
    ("sngan-concat", 128, {}, TABLE_6A, TABLE_6C),
    # An inner product with the embedding, which Table 6 leaves to Miyato and Koyama, 2018.
    ("sngan-projection", 128, {}, TABLE_6A, f"{TABLE_6B} embed 1024"),
    # Gulrajani et al.'s: half the feature maps in the generator (Appendix B.2), and a mean (their code).
    ("gulrajani-resnet", 32, {"width_g": 0.5}, TABLE_4A.replace("256", "128"), TABLE_4B.replace("sum", "mean")),
    ("sngan-ac", 32, {"width_g": 0.5}, TABLE_4A.replace("256", "128"), TABLE_4B.replace("sum", "mean")),
]
BLOCKS = resnet.GeneratorBlock, biggan.GeneratorBlock, resnet.FirstBlock, resnet.Block


def layers(net: nn.Module) -> list[nn.Module]:
    """The modules that the tables have words for."""
    children = [] if isinstance(net, BLOCKS) else list(net.children())
    return [layer for child in children for layer in layers(child)] or [net]


def words(module: nn.Module, h: torch.Tensor, result: torch.Tensor, start: int) -> str:
    """What the tables say of a layer between two maps."""
    match module:
        case nn.Linear() if start:
            return f"dense {start}x{start}x{result.shape[1] // start**2}"
        case nn.Linear():
            return f"dense {result.shape[1]}"
        case nn.Embedding():
            return f"embed {result.shape[1]}"
        case nn.Conv2d() | nn.ConvTranspose2d():
            up = result.shape[2] > h.shape[2]
            assert max(result.shape[2], h.shape[2]) == module.stride[0] * min(result.shape[2], h.shape[2])
            size = "x".join(map(str, module.kernel_size))
            return f"{size} stride {module.stride[0]} {'deconv' if up else 'conv'} {result.shape[1]}"
        case nn.LeakyReLU():
            assert module.negative_slope == 0.1
            return "lReLU"
        case nn.ReLU() | nn.Tanh():
            return type(module).__name__
        case nn.BatchNorm2d():
            return "BN"
        case resnet.SumPool() | nn.AdaptiveAvgPool2d():
            return f"global {'sum' if isinstance(module, resnet.SumPool) else 'mean'} pooling"
    step = {2.0: "up ", 1.0: "", 0.5: "down "}[result.shape[2] / h.shape[2]]
    return f"ResBlock {step}{result.shape[1]}"


def described(net: nn.Module, *inputs: torch.Tensor) -> list[str]:
    """The words of a network's layers, in the order in which they run."""
    found, start = [], getattr(net, "start", 0)
    for layer in layers(net):
        layer.register_forward_hook(lambda m, h, result: found.extend(words(m, h[0], result, start).split()))
    net(*inputs)
    return found


@pytest.mark.parametrize(("name", "side", "options", "generator", "critic"), PAIRS, ids=lambda v: str(v)[:20])
def test_the_layers_are_those_of_the_tables(name, side, options, generator, critic):
    conditional = REGISTRY[name].conditional
    with torch.device("meta"):
        g, d = build(name, resolution=side, classes=10 * conditional, **options)
        labels = [torch.zeros(2, dtype=torch.int64)] * conditional
        assert described(g, torch.zeros(2, 128), *labels) == generator.split()
        ours = described(d, torch.zeros(2, 3, side, side), *labels)
    assert ours == critic.split()
    assert any(isinstance(module, biggan.ConditionalBatchNorm) for module in g.modules()) == conditional
