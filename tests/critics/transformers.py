"""Critics with attention over patches, mixers, and convolutional networks in the manner of transformers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.critics.critic import Critic, Residual


class Attention(nn.Module):
    """Multi-head attention, from one layer for queries, keys and values.

    `kind`: "softmax" written out, "sdpa" PyTorch's function, "l2" negative squared distances (Kim et al., 2021, and
    ViTGAN), "cosine" of normalised queries and keys with a learned sharpness (Swin v2).
    """

    def __init__(self, width: int, heads: int, kind: str) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        if kind == "cosine":
            self.sharpness = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size, count, width = x.shape
        q, k, v = self.qkv(x).reshape(size, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v) if self.kind == "sdpa" else self._weights(q, k).softmax(-1) @ v
        return self.proj(seen.transpose(1, 2).reshape(size, count, width))

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        if self.kind == "l2":
            distance = q.pow(2).sum(-1, keepdim=True) - 2 * q @ k.transpose(-2, -1) + k.pow(2).sum(-1)[:, :, None]
            return -distance * scale
        if self.kind == "cosine":
            return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.sharpness.exp()
        return q @ k.transpose(-2, -1) * scale


def encoder_block(width: int, kind: str, norm: type[nn.Module] = nn.LayerNorm) -> nn.Sequential:
    """Norm first, attention and perceptron as residuals."""
    mlp = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
    return nn.Sequential(Residual(norm(width), Attention(width, 2, kind)), Residual(norm(width), *mlp))


class Patches(nn.Module):
    """A token per patch, positions added, and a token of its own in front that the logit is read from."""

    def __init__(self, patch: int, count: int, width: int, overlap: int = 0) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch + overlap, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, count + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).permute(0, 2, 1)
        return torch.cat((self.cls.expand(x.shape[0], -1, -1), tokens), dim=1) + self.positions


class ViT(nn.Module):
    """A transformer whose first token gives the logit (ViTGAN, Lee et al., 2022, with `kind` "l2")."""

    def __init__(self, kind: str, norm: type[nn.Module] = nn.LayerNorm, overlap: int = 0) -> None:
        super().__init__()
        self.tokens = Patches(4, 6, 6, overlap)
        self.blocks = nn.Sequential(encoder_block(6, kind, norm), encoder_block(6, kind, norm))
        self.norm, self.head = norm(6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x)))[:, 0])


class TransGAN(nn.Module):
    """Patches of two sizes, mean pooling of tokens between the stages, windows, a class token (Jiang et al., 2021)."""

    def __init__(self, window: int = 0) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(3, 2, 4, 4)
        self.positions1 = nn.Parameter(torch.randn(1, 24, 4))
        self.positions2 = nn.Parameter(torch.randn(1, 6, 6))
        self.block1, self.block2, self.block3 = (encoder_block(width, "softmax") for width in (4, 6, 6))
        self.cls, self.norm, self.head = nn.Parameter(torch.randn(1, 1, 6)), nn.LayerNorm(6), nn.Linear(6, 1)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        h = self.fine(x).flatten(2).permute(0, 2, 1) + self.positions1
        h = self.merged(self.block1(self.parted(h)), x.shape[0]) if self.window else self.block1(h)
        h = F.avg_pool2d(h.permute(0, 2, 1).view(-1, 4, 6, 4), 2).flatten(2).permute(0, 2, 1)
        h = torch.cat([h, self.coarse(x).flatten(2).permute(0, 2, 1)], dim=-1) + self.positions2
        h = torch.cat((self.cls.expand(x.shape[0], -1, -1), self.block2(h)), dim=1)
        return self.head(self.norm(self.block3(h))[:, 0])

    def parted(self, h: Tensor) -> Tensor:
        """Windows become samples."""
        size, window = h.shape[0], self.window
        h = h.view(size, 6 // window, window, 4 // window, window, 4).permute(0, 1, 3, 2, 4, 5)
        return h.contiguous().view(-1, window * window, 4)

    def merged(self, h: Tensor, size: int) -> Tensor:
        window = self.window
        h = h.view(size, 6 // window, 4 // window, window, window, 4).permute(0, 1, 3, 2, 4, 5)
        return h.contiguous().view(size, -1, 4)


class EncoderLayers(nn.Module):
    """A small ViT out of nn.TransformerEncoder, the mean of its tokens."""

    def __init__(self, activation: str = "gelu", norm_first: bool = True, batch_first: bool = True) -> None:
        super().__init__()
        self.tokens = Patches(4, 6, 6)
        layer = nn.TransformerEncoderLayer(
            6, 2, 8, dropout=0.0, activation=activation, batch_first=batch_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.batch_first = nn.Linear(6, 1), batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        if self.batch_first:
            return self.head(self.encoder(h).mean(1))
        return self.head(self.encoder(h.transpose(0, 1)).mean(0))


class MultiheadPool(nn.Module):
    """A learned query attends to all places by nn.MultiheadAttention (attention pooling, as in CLIP's critics)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.query = nn.Conv2d(3, 6, 3, 2), nn.Parameter(torch.randn(1, 1, 6))
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.relu(self.conv(x)).flatten(2).transpose(1, 2)
        pooled, _ = self.attention(self.query.expand(len(x), -1, -1), tokens, tokens)
        return self.head(pooled).squeeze(-1).squeeze(-1)


class Mixer(nn.Module):
    """Perceptrons across tokens and across channels (Tolstikhin et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Conv2d(3, 5, 4, 4), nn.LayerNorm(5), nn.LayerNorm(5)
        self.tokens = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6))
        self.channels = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 5))
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2)
        h = h + self.tokens(self.norm1(h).transpose(1, 2)).transpose(1, 2)
        h = h + self.channels(self.norm2(h))
        return self.head(h.mean(1))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm over channels, two linear layers with GELU, a learned scale (Liu et al., 2022).

    With `v2`, global response normalisation (Woo et al., 2023).
    """

    def __init__(self, width: int, v2: bool) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 5, padding=2, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.ones(width))
        if v2:
            self.gain, self.shift = nn.Parameter(torch.ones(2 * width)), nn.Parameter(torch.zeros(2 * width))
        self.v2 = v2

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = F.gelu(self.up(h))
        if self.v2:
            spread = torch.norm(h, p=2, dim=(1, 2), keepdim=True)
            h = self.gain * (h * (spread / (spread.mean(dim=-1, keepdim=True) + 1e-6))) + self.shift + h
        return x + (self.scale * self.down(h)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Layer norms over channels written out for channels first, as in the official code."""

    def __init__(self, v2: bool = False) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 6, 2, 2)
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.block1, self.block2 = ConvNeXtBlock(4, v2), ConvNeXtBlock(6, v2)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block1(self.stem(x))
        u = h.mean(1, keepdim=True)
        s = (h - u).pow(2).mean(1, keepdim=True)
        h = (h - u) / torch.sqrt(s + 1e-6)
        h = self.weight[:, None, None] * h + self.bias[:, None, None]
        return self.head(self.norm(self.block2(self.down(h)).mean([-2, -1])))


class LinearAttention(nn.Module):
    """Attention without softmax: feature maps elu + 1, products by einsum (Katharopoulos et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 18), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(x).flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bnd,bne->bde", k, v)
        norm = 1 / torch.einsum("bnd,bd->bn", q, k.sum(1))
        return self.head(torch.einsum("bnd,bde,bn->bne", q, context, norm).mean(1))


class Gated(nn.Module):
    """A transformer's later form: RMS norm, rotary positions, causal attention, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Conv2d(3, 8, 4, 4), nn.RMSNorm(8), nn.RMSNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24, bias=False), nn.Linear(8, 8, bias=False)
        self.gate, self.up, self.down = (nn.Linear(*size, bias=False) for size in ((8, 10), (8, 10), (10, 8)))
        self.head = nn.Linear(8, 1)

    @staticmethod
    def rotated(h: Tensor) -> Tensor:
        angles = torch.arange(h.shape[2], dtype=h.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=h.dtype)
        a, b = h[..., 0::2], h[..., 1::2]
        return torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm1(h)).split(8, dim=-1))
        y = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, is_causal=True)
        h = h + self.proj(y.transpose(1, 2).flatten(2))
        n = self.norm2(h)
        h = h + self.down(F.silu(self.gate(n)) * self.up(n))
        return self.head(h[:, -1])


class NonLocal(nn.Module):
    """A non-local block with an embedded Gaussian, and biased energies of relative places (Wang et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 1)
        self.theta, self.phi, self.g = (nn.Conv2d(4, 2, 1) for _ in range(3))
        self.back, self.bias = nn.Conv2d(2, 4, 1), nn.Parameter(torch.randn(15, 15))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        q, k, v = (layer(h).flatten(2) for layer in (self.theta, self.phi, self.g))
        energy = torch.baddbmm(self.bias.expand(len(x), -1, -1), q.mT, k, alpha=1 / math.sqrt(2))
        seen = (v @ energy.softmax(-1).mT).reshape(len(x), 2, *h.shape[2:])
        return self.out((h + self.back(seen)).sum([2, 3]))


_IMAGE = (3, 3, 12, 8)
CRITICS = {
    "vit-softmax": Critic(lambda: ViT("softmax"), _IMAGE),
    "vit-sdpa": Critic(lambda: ViT("sdpa"), _IMAGE),
    "vitgan-l2-attention": Critic(lambda: ViT("l2", overlap=1), (3, 3, 13, 9)),
    "vit-cosine": Critic(lambda: ViT("cosine"), _IMAGE),
    "vit-rms-norm": Critic(lambda: ViT("sdpa", nn.RMSNorm), _IMAGE),
    "transgan": Critic(TransGAN, _IMAGE),
    "transgan-windows": Critic(lambda: TransGAN(window=2), _IMAGE),
    "vit-encoder-layers": Critic(EncoderLayers, _IMAGE),
    "vit-encoder-layers-training": Critic(EncoderLayers, _IMAGE, training=True),
    "vit-encoder-layers-norm-last": Critic(lambda: EncoderLayers("relu", norm_first=False), _IMAGE),
    "vit-encoder-layers-sequence-first": Critic(lambda: EncoderLayers(batch_first=False), _IMAGE, training=True),
    "multihead-attention-pooling": Critic(MultiheadPool, _IMAGE),
    "mlp-mixer": Critic(Mixer, _IMAGE),
    "convnext": Critic(ConvNeXt, _IMAGE),
    "convnext-v2": Critic(lambda: ConvNeXt(v2=True), _IMAGE),
    "linear-attention": Critic(LinearAttention, _IMAGE),
    "rotary-causal-swiglu": Critic(Gated, _IMAGE),
    "non-local": Critic(NonLocal, (3, 3, 11, 7), idle=("phi.bias",)),
}
