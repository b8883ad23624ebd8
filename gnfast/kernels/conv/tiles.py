"""The tiles in which the Triton kernels cut a convolution, and which of them are worth trying."""

import math

import torch

# name: positions, output channels and reduction of a tile in 16-bit numbers, warps, stages; the first is the default.
CONFIGURATIONS = {
    "64x64x64": (64, 64, 64, 4, 4),
    "32x64x64": (32, 64, 64, 4, 4),
    "64x128x64": (64, 128, 64, 4, 4),
    "128x64x64": (128, 64, 64, 4, 4),
    "128x64x32": (128, 64, 32, 4, 3),
    "128x128x32": (128, 128, 32, 8, 3),
    "128x128x64": (128, 128, 64, 8, 3),
    "128x16x64": (128, 16, 64, 4, 4),
}
# Compiling one takes a second or two: so many are tried per shape.
_TRIED = 4
# Tiles that keep a large GPU's multiprocessors busy, roughly.
_BUSY = 100


def promising(positions: int, channels: int) -> list[str]:
    """The configurations worth trying for a result of so many positions, over all samples, and channels.

    Those as wide as the channels at most, the largest tiles first, as long as there are enough tiles for a large GPU.
    """

    def tiles(name: str) -> int:
        rows, columns, *_ = CONFIGURATIONS[name]
        return math.ceil(positions / rows) * math.ceil(channels / columns)

    def entries(name: str) -> int:
        return CONFIGURATIONS[name][0] * CONFIGURATIONS[name][1]

    widest = 16 if channels <= 16 else max(64, 1 << (channels - 1).bit_length())
    suited = [name for name, (_, columns, *_) in CONFIGURATIONS.items() if columns <= widest] or list(CONFIGURATIONS)
    suited.sort(key=entries, reverse=True)
    busy = [name for name in suited if tiles(name) >= _BUSY]
    return busy[:_TRIED] or suited[-2:]


def tile(
    configuration: str, dtype: torch.dtype, channels: int, epilogue: bool, aligned: bool, precision: str
) -> dict[str, object]:
    """The constants and options that a kernel is compiled with.

    Args:
        channels: of the reduction.
        epilogue: whether the kernel does more with its sums than to add biases and to store them.
        aligned: whether words of signs are read or written that are rows of channels.
        precision: of products of float32 numbers, "tf32" or "ieee".
    """
    rows, columns, depth, warps, stages = CONFIGURATIONS[configuration]
    if channels % 8:
        # Every number is loaded by itself and through a register.
        depth = min(depth, 32)
    if dtype == torch.float32:
        # Without tensor cores a thread holds factors of its sums, too, of the whole depth.
        depth = depth // 2 if precision == "tf32" else 16
        if (epilogue or precision == "ieee") and rows * columns >= 2048 * warps:
            # Beside 64 sums a thread has no registers for as many 32-bit summands or factors.
            columns //= 2
    if aligned:
        columns = max(columns, 32)
    flat = channels % depth != 0
    if flat and warps > 4:
        # Taps and channels as one axis under eight warps have been miscompiled for sm_90 (PyTorch's issue 173068).
        rows, warps = rows // 2, 4
    return {
        "BM": rows,
        "BN": columns,
        "BK": depth,
        "FLAT": flat,
        "CHANNELS": channels if flat else 0,
        "PRECISION": precision,
        "num_warps": warps,
        "num_stages": stages,
    }
