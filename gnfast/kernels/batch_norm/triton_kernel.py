"""The Triton kernels of batch norms, which triton.py launches.

Squares are summed about the mean of a chunk's first rows, and chunks are combined about the mean of all, so that a mean
far from 0 costs no digits.
"""

import triton
import triton.language as tl

NUM_WARPS = 8
# At 128, two blocks of 256 threads keep memory busy; float64 is there for tests.
REGISTER_BUDGET = {"fp32": 128, "fp64": 224}


@triton.jit
def _places(row, c, first, places, stride_b, stride_c, stride_p, WIDE: tl.constexpr):
    """Where the entries (ROWS, CHANNELS) are, counted from the first one of the tensor."""
    b, p = first + row // places, row % places
    if WIDE:
        b, p, c = b.to(tl.int64), p.to(tl.int64), c.to(tl.int64)
    return (b * stride_b + p * stride_p)[:, None] + (c * stride_c)[None, :]


@triton.jit
def _normalised(v, mean, rstd, weight, bias, WEIGHTED: tl.constexpr, BIASED: tl.constexpr):
    """x̂, and y before its ReLU."""
    unit = (v - mean) * rstd
    z = unit
    if WEIGHTED:
        z = z * weight
    if BIASED:
        z = z + bias
    return unit, z


@triton.jit
def _factors(t, b, c, stride, inside, PRESENT: tl.constexpr, ACC: tl.constexpr):
    """The weight or the bias for samples b, (samples, CHANNELS); the stride is 0 where all have the same."""
    value = tl.zeros((1, 1), ACC)
    if PRESENT:
        value = tl.load(t + (b * stride)[:, None] + c[None, :], mask=inside, other=0).to(ACC)
    return value


@triton.jit
def _term(
    x, more, total, row, c, inside, first, places, width, factor_h, factor_w, x_b, x_c, x_p, total_b, total_c, total_p,
    more_b, more_c, more_p, MORE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x; or the sum of x and `more`, of which each pixel is repeated, rounded as it is written to `total`."""
    v = tl.load(x + _places(row, c, first, places, x_b, x_c, x_p, WIDE), mask=inside, other=0).to(ACC)
    if MORE:
        p = row % places
        p = p // width // factor_h * (width // factor_w) + p % width // factor_w
        b = first + row // places
        if WIDE:
            b, p = b.to(tl.int64), p.to(tl.int64)
        place = (b * more_b + p * more_p)[:, None] + (c * more_c)[None, :]
        v += tl.load(more + place, mask=inside, other=0).to(ACC)
        rounded = v.to(total.dtype.element_ty)
        tl.store(total + _places(row, c, first, places, total_b, total_c, total_p, WIDE), rounded, mask=inside)
        v = rounded.to(ACC)
    return v


@triton.jit
def _batch_norm_moments_kernel(
    x, more, total, partials, rows, chunk, chunks, samples, channels, places, width, factor_h, factor_w,
    x_b, x_c, x_p, total_b, total_c, total_p, more_b, more_c, more_p,
    MORE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The mean of a chunk of a group's rows, and the sum of squares about it."""
    group, start = tl.program_id(0) // chunks, tl.program_id(0) % chunks * chunk
    end, first = tl.minimum(start + chunk, rows), group * samples
    row = start + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (row < end)[:, None] & (c < channels)[None, :]
    v = _term(
        x, more, total, row, c, inside, first, places, width, factor_h, factor_w, x_b, x_c, x_p,
        total_b, total_c, total_p, more_b, more_c, more_p, MORE, WIDE, ACC,
    )  # fmt: skip
    about = tl.sum(v, axis=0) / tl.minimum(end - start, ROWS)
    sums = tl.where(inside, v - about[None, :], 0.0)
    squares = sums * sums
    for begin in range(start + ROWS, end, ROWS):
        row = begin + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & (c < channels)[None, :]
        v = _term(
            x, more, total, row, c, inside, first, places, width, factor_h, factor_w, x_b, x_c, x_p,
            total_b, total_c, total_p, more_b, more_c, more_p, MORE, WIDE, ACC,
        )  # fmt: skip
        v = tl.where(inside, v - about[None, :], 0.0)
        sums += v
        squares += v * v
    shift = tl.sum(sums, axis=0)
    mean = shift / (end - start)
    place = tl.program_id(0) * channels + c
    tl.store(partials + place, about + mean, mask=c < channels)
    spread = tl.sum(squares, axis=0) - shift * mean
    tl.store(partials + place + tl.num_programs(0) * channels, spread, mask=c < channels)


@triton.jit
def _batch_norm_statistics_kernel(
    partials, mean, rstd, running_mean, running_var, groups, rows, chunk, chunks, channels,
    eps, more_eps, momentum, more_momentum,
    RUNNING: tl.constexpr, CUMULATIVE: tl.constexpr, ACC: tl.constexpr, CHUNKS: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """What the chunks of each group have together; the running averages, group after group."""
    c = tl.program_id(0) * FEW + tl.arange(0, FEW)
    k = tl.arange(0, CHUNKS)
    inside = (k < chunks)[:, None] & (c < channels)[None, :]
    count = tl.where(inside, tl.minimum(chunk, rows - k * chunk)[:, None], 0).to(ACC)
    momentum = tl.zeros((FEW,), ACC) + momentum + more_momentum
    if RUNNING:
        kept_mean = tl.load(running_mean + c, mask=c < channels, other=0).to(ACC)
        kept_var = tl.load(running_var + c, mask=c < channels, other=0).to(ACC)
    for group in range(groups):
        place = ((group * chunks + k) * channels)[:, None] + c[None, :]
        means = tl.load(partials + place, mask=inside, other=0)
        squares = tl.load(partials + place + groups * chunks * channels, mask=inside, other=0)
        average = tl.sum(means * count, axis=0) / rows
        apart = means - average[None, :]
        squares = tl.sum(squares + count * apart * apart, axis=0)
        tl.store(mean + group * channels + c, average, mask=c < channels)
        deviation = tl.sqrt(squares / rows + eps + more_eps)
        tl.store(rstd + group * channels + c, 1 / deviation, mask=c < channels)
        if RUNNING:
            kept_mean = (1 - momentum) * kept_mean + momentum * average
            kept_var = (1 - momentum) * kept_var + momentum * (squares / (rows - 1))
            if CUMULATIVE:
                momentum = momentum / (1 + momentum)
    if RUNNING:
        tl.store(running_mean + c, kept_mean.to(running_mean.dtype.element_ty), mask=c < channels)
        tl.store(running_var + c, kept_var.to(running_var.dtype.element_ty), mask=c < channels)


@triton.jit
def _last_first(
    mean, rstd, rows, tiles, samples, channels, places,
    BY_SAMPLE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The tile of a program of which the first takes the last tile: its group, rows and channels, which entries are
    inside, which samples' factors are wanted there, and the group's means and 1/σ."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    group, row = tile // tiles, tile % tiles * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (c < channels)[None, :]
    b, wanted = group * samples + row // places, inside
    if not BY_SAMPLE:
        b, wanted = tl.zeros((1,), tl.int32), (c < channels)[None, :]
    m = tl.load(mean + group * channels + c, mask=c < channels, other=0)[None, :]
    r = tl.load(rstd + group * channels + c, mask=c < channels, other=0)[None, :]
    return group, row, c, inside, b, wanted, m, r


@triton.jit
def _batch_norm_normalise_kernel(
    x, y, mean, rstd, weight, bias, rows, tiles, samples, channels, places, x_b, x_c, x_p, weight_b, bias_b,
    WEIGHTED: tl.constexpr, BIASED: tl.constexpr, BY_SAMPLE: tl.constexpr, RELU: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y, which lies as x does."""
    group, row, c, inside, b, wanted, m, r = _last_first(
        mean, rstd, rows, tiles, samples, channels, places, BY_SAMPLE, ROWS, WIDTH
    )
    place = _places(row, c, group * samples, places, x_b, x_c, x_p, WIDE)
    w = _factors(weight, b, c, weight_b, wanted, WEIGHTED, ACC)
    offset = _factors(bias, b, c, bias_b, wanted, BIASED, ACC)
    v = tl.load(x + place, mask=inside, other=0).to(ACC)
    _, z = _normalised(v, m, r, w, offset, WEIGHTED, BIASED)
    if RELU:
        # NaN stays, as in PyTorch.
        z = tl.where(z <= 0, 0.0, z)
    tl.store(y + place, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _batch_norm_sums_kernel(
    dy, x, partials, mean, rstd, weight, bias, rows, chunk, chunks, samples, channels, places, x_b, x_c, x_p,
    dy_b, dy_c, dy_p, weight_b, bias_b,
    WEIGHTED: tl.constexpr, BIASED: tl.constexpr, RELU: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Σ g and Σ g · x̂ over a chunk of a group's rows: over one sample where each has its own weight or bias."""
    group, start = tl.program_id(0) // chunks, tl.program_id(0) % chunks * chunk
    end = tl.minimum(start + chunk, rows)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    m = tl.load(mean + group * channels + c, mask=c < channels, other=0)[None, :]
    r = tl.load(rstd + group * channels + c, mask=c < channels, other=0)[None, :]
    first = group * samples
    b, beside = first + (start + tl.arange(0, 1)) // places, (c < channels)[None, :]
    w = _factors(weight, b, c, weight_b, beside, WEIGHTED, ACC)
    offset = _factors(bias, b, c, bias_b, beside, BIASED, ACC)
    total = tl.zeros((ROWS, WIDTH), ACC)
    along = tl.zeros((ROWS, WIDTH), ACC)
    for begin in range(start, end, ROWS):
        row = begin + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & (c < channels)[None, :]
        v = tl.load(x + _places(row, c, first, places, x_b, x_c, x_p, WIDE), mask=inside, other=0).to(ACC)
        g = tl.load(dy + _places(row, c, first, places, dy_b, dy_c, dy_p, WIDE), mask=inside, other=0).to(ACC)
        unit, z = _normalised(v, m, r, w, offset, WEIGHTED, BIASED)
        if RELU:
            g = tl.where(z <= 0, 0.0, g)
        total += g
        along += g * unit
    place = tl.program_id(0) * channels + c
    tl.store(partials + place, tl.sum(along, axis=0), mask=c < channels)
    tl.store(partials + place + tl.num_programs(0) * channels, tl.sum(total, axis=0), mask=c < channels)


@triton.jit
def _batch_norm_totals_kernel(
    partials, weight, means, grad_weight, grad_bias, groups, rows, chunks, channels, weight_b,
    WEIGHTED: tl.constexpr, TOTALS: tl.constexpr, ACC: tl.constexpr, CHUNKS: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """<weight · g · x̂> and <weight · g> of each group, and the gradients of a weight and a bias that all samples share.

    Where each sample has its own, a chunk is a sample."""
    c = tl.program_id(0) * FEW + tl.arange(0, FEW)
    of_weight = tl.zeros((FEW,), ACC)
    of_bias = tl.zeros((FEW,), ACC)
    for group in range(groups):
        along = tl.zeros((FEW,), ACC)
        total = tl.zeros((FEW,), ACC)
        for begin in range(0, chunks, CHUNKS):
            k = begin + tl.arange(0, CHUNKS)
            inside = (k < chunks)[:, None] & (c < channels)[None, :]
            place = ((group * chunks + k) * channels)[:, None] + c[None, :]
            first = tl.load(partials + place, mask=inside, other=0)
            second = tl.load(partials + place + groups * chunks * channels, mask=inside, other=0)
            of_weight += tl.sum(first, axis=0)
            of_bias += tl.sum(second, axis=0)
            if WEIGHTED:
                w = _factors(weight, group * chunks + k, c, weight_b, inside, True, ACC)
                first, second = w * first, w * second
            along += tl.sum(first, axis=0)
            total += tl.sum(second, axis=0)
        tl.store(means + group * 2 * channels + c, along / rows, mask=c < channels)
        tl.store(means + (group * 2 + 1) * channels + c, total / rows, mask=c < channels)
    if TOTALS:
        tl.store(grad_weight + c, of_weight.to(grad_weight.dtype.element_ty), mask=c < channels)
        tl.store(grad_bias + c, of_bias.to(grad_bias.dtype.element_ty), mask=c < channels)


@triton.jit
def _batch_norm_pull_kernel(
    dy, x, dx, mean, rstd, weight, bias, means, rows, tiles, samples, channels, places, x_b, x_c, x_p,
    dy_b, dy_c, dy_p, weight_b, bias_b,
    WEIGHTED: tl.constexpr, BIASED: tl.constexpr, BY_SAMPLE: tl.constexpr, RELU: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dx, which lies as x does."""
    group, row, c, inside, b, wanted, m, r = _last_first(
        mean, rstd, rows, tiles, samples, channels, places, BY_SAMPLE, ROWS, WIDTH
    )
    place = _places(row, c, group * samples, places, x_b, x_c, x_p, WIDE)
    along = tl.load(means + group * 2 * channels + c, mask=c < channels, other=0)[None, :]
    total = tl.load(means + (group * 2 + 1) * channels + c, mask=c < channels, other=0)[None, :]
    w = _factors(weight, b, c, weight_b, wanted, WEIGHTED, ACC)
    offset = _factors(bias, b, c, bias_b, wanted, BIASED, ACC)
    v = tl.load(x + place, mask=inside, other=0).to(ACC)
    from_dy = _places(row, c, group * samples, places, dy_b, dy_c, dy_p, WIDE)
    g = tl.load(dy + from_dy, mask=inside, other=0).to(ACC)
    unit, z = _normalised(v, m, r, w, offset, WEIGHTED, BIASED)
    if RELU:
        g = tl.where(z <= 0, 0.0, g)
    if WEIGHTED:
        g = g * w
    tl.store(dx + place, (r * (g - total - unit * along)).to(dx.dtype.element_ty), mask=inside)
