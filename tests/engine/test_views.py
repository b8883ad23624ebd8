"""What shares memory with its argument in PyTorch shares it in the recording: else writing in place would go unseen."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnfast.plan.opaque import Refused
from gnfast.plan.recorder import Recorder
from gnfast.plan.records import RECORDERS

B = 3
ZERO = torch.tensor([0])


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


def flat(h):
    return h.flatten(1)


def sequence(h):
    return h.flatten(2)


def volume(h):
    return h.unsqueeze(2)


# Every function that is recorded, in the calls in which it is likeliest to return its argument or a view of it.
CALLS = {
    "activations that leave every entry as it is": """
        F.relu(h); torch.relu(h); h.relu(); F.leaky_relu(h, 1.0); F.leaky_relu_(h.clone(), 1.0); F.rrelu(h);
        torch.abs(h); h.abs(); F.hardtanh(h, -99, 99); torch.clamp(h, -99); h.clamp(-99); torch.clip(h, -99);
        h.clip(max=99); torch.clamp_min(h, -99); h.clamp_min(-99); torch.clamp_max(h, 99); h.clamp_max(99); F.relu6(h);
        F.threshold(h, -99, 0); F.softshrink(h, 0.0); torch.hardshrink(h, 0); h.hardshrink(0); F.hardsigmoid(h);
        F.prelu(h, ones(1)); h.prelu(ones(1))
    """,
    "constants": """
        torch.zeros_like(h); torch.ones_like(h); torch.full_like(h, 1.0); torch.empty_like(h); torch.rand_like(h);
        torch.randn_like(h); torch.randint_like(h, 2); h.new_zeros(2); h.new_ones(2); h.new_full((2,), 1.0);
        h.new_empty(2); h.new_tensor([1.0])
    """,
    "products with one": """
        F.conv1d(sequence(h), ones(2, h.shape[1], 1)); F.conv2d(h, ones(2, h.shape[1], 1, 1));
        F.conv3d(volume(h), ones(2, h.shape[1], 1, 1, 1)); F.conv_transpose1d(sequence(h), ones(h.shape[1], 2, 1));
        F.conv_transpose2d(h, ones(h.shape[1], 2, 1, 1));
        F.conv_transpose3d(volume(h), ones(h.shape[1], 2, 1, 1, 1)); F.linear(h, ones(1, h.shape[-1]));
        torch.einsum("bcij->bcij", h); torch.einsum("bcij->bicj", h); torch.einsum("bcij->bc", h);
        torch.einsum("bcij", h); torch.einsum("bcij,->bcij", h, ones(())); torch.einsum("b...->b...", h);
        torch.einsum("...ij->...ji", h); torch.einsum("...", h); torch.einsum("bcii->bci", h[..., :2, :2]);
        torch.einsum("ij,bcij->bcij", ones(1, 1), h); torch.matmul(h, ones(h.shape[-1], 1));
        h.matmul(ones(h.shape[-1])); torch.mm(flat(h), ones(flat(h).shape[1], 1));
        flat(h).mm(ones(flat(h).shape[1], 1)); torch.mv(flat(h), ones(flat(h).shape[1]));
        flat(h).mv(ones(flat(h).shape[1])); torch.bmm(sequence(h), ones(B, sequence(h).shape[2], 1));
        sequence(h).bmm(ones(B, sequence(h).shape[2], 1));
        torch.addmm(flat(h), ones(B, 2), ones(2, flat(h).shape[1]), alpha=0);
        flat(h).addmm(ones(B, 2), ones(2, flat(h).shape[1]));
        torch.baddbmm(sequence(h), ones(B, h.shape[1], 2), ones(B, 2, sequence(h).shape[2]));
        sequence(h).baddbmm(ones(B, h.shape[1], 2), ones(B, 2, sequence(h).shape[2]))
    """,
    "arithmetic that changes nothing": """
        torch.add(h, 0); h + 0; torch.sub(h, 0); h - 0; 1 - h; torch.subtract(h, 0); h.subtract(0);
        torch.rsub(h, 0); torch.mul(h, 1); h * 1; torch.multiply(h, 1); h.multiply(1); torch.neg(h); -h;
        torch.div(h, 1); h / 1; torch.true_divide(h, 1); h.true_divide(1); +h; torch.positive(h);
        h.positive(); torch.conj(h); h.conj(); torch.conj_physical(h); h.conj_physical(); torch.resolve_conj(h);
        h.resolve_conj(); torch.resolve_neg(h); h.resolve_neg(); torch.real(h); h.real;
        torch.lerp(h, h, 0.0); h.lerp(h, 0.0); torch.addcmul(h, h, ones(()), value=0); h.addcmul(h, ones(()))
    """,
    "layers": """
        F.batch_norm(h, ones(h.shape[1]) * 0, ones(h.shape[1]));
        torch.batch_norm(h, None, None, ones(h.shape[1]) * 0, ones(h.shape[1]), False, 0.1, 1e-5, False);
        F.instance_norm(h, ones(h.shape[1]) * 0, ones(h.shape[1]), use_input_stats=False);
        torch.instance_norm(h, None, None, ones(h.shape[1]) * 0, ones(h.shape[1]), False, 0.1, 1e-5, False);
        F.dropout(h, 0.5, False); F.dropout(h, 0.0); F.dropout(h, 0.5); torch.dropout(h, 0.5, False);
        F.dropout1d(sequence(h), 0.5, False); F.dropout2d(h, 0.5, False); F.dropout2d(h, 0.0); F.dropout2d(h, 0.5);
        F.dropout3d(volume(h), 0.5, False); torch.feature_dropout(h, 0.5, False); F.alpha_dropout(h, 0.5, False);
        F.feature_alpha_dropout(h, 0.5, False); nn.Identity()(h)
    """,
    "windows of one entry, sums over nothing": """
        F.avg_pool1d(sequence(h), 1); F.avg_pool2d(h, 1); F.avg_pool3d(volume(h), 1);
        F.adaptive_avg_pool1d(sequence(h), sequence(h).shape[2]); F.adaptive_avg_pool2d(h, h.shape[2:]);
        F.adaptive_avg_pool2d(h, 1); F.adaptive_avg_pool3d(volume(h), (None, None, None));
        F.max_pool1d(sequence(h), 1); F.max_pool2d(h, 1); F.max_pool3d(volume(h), 1);
        F.max_pool1d_with_indices(sequence(h), 1)[0]; F.max_pool2d_with_indices(h, 1)[0];
        F.max_pool3d_with_indices(volume(h), 1)[0]; F.adaptive_max_pool2d(h, h.shape[2:]);
        F.adaptive_max_pool1d(sequence(h), sequence(h).shape[2]);
        F.adaptive_max_pool3d(volume(h), (None, None, None)); F.adaptive_max_pool1d_with_indices(sequence(h), 1)[0];
        F.adaptive_max_pool2d_with_indices(h, h.shape[2:])[0];
        F.adaptive_max_pool3d_with_indices(volume(h), (None, None, None))[0]; torch.sum(h, 1); h.sum(1, True);
        torch.mean(h, 1); h.mean(1, True); torch.norm(h, 1, 1); h.norm(1, 1, True); torch.linalg.norm(h, 1, 1);
        torch.linalg.vector_norm(h, torch.inf, 1, True); torch.max(h, 1)[0]; h.max(1, True)[0]; torch.min(h, 1)[0];
        h.min(1)[0]; torch.median(h, 1)[0]; h.median(1, True)[0]; torch.sort(h, 1)[0]; h.sort(1)[0];
        torch.topk(h, 1, 1)[0]; h.topk(h.shape[1], 1)[0]; torch.kthvalue(h, 1, 1)[0]; h.kthvalue(1, 1, True)[0];
        torch.amax(h, 1); h.amax(1, True); torch.amin(h, 1); h.amin(1, True); torch.max(h, h); torch.maximum(h, h);
        h.maximum(h); torch.minimum(h, h); h.minimum(h); torch.where(ones(()) > 0, h, 0.0);
        h.where(ones(()) > 0, 0.0); torch.masked_fill(h, ones(()) < 0, 0); h.masked_fill(ones(()) < 0, 0)
    """,
    "resampling by one": """
        F.interpolate(h, scale_factor=1, mode="nearest"); F.interpolate(h, scale_factor=1, mode="bilinear");
        F.interpolate(h, scale_factor=1, mode="area"); F.interpolate(h, scale_factor=1, mode="nearest-exact");
        F.interpolate(sequence(h), scale_factor=1); F.interpolate(h, h.shape[2:], mode="bicubic"); F.pad(h, (0, 0));
        F.pad(h, (0, 0, 0, -1)) if h.shape[2] > 1 else F.pad(h, ()); F.pad(h, (0, 0, 0, 0), "reflect");
        F.pad(h, (0, 0, 0, 0), "replicate"); F.pad(h, (0, 0, 0, 0), "circular"); F.pixel_shuffle(h, 1);
        F.pixel_unshuffle(h, 1); F.channel_shuffle(h, 1); F.channel_shuffle(h, h.shape[1]); F.unfold(h, 1)
    """,
    "shapes": """
        h.view(h.shape); h.view_as(h); torch.reshape(h, h.shape); flat(h); h.reshape(B, -1); h.reshape_as(h);
        torch.flatten(h, 1); h.squeeze(); torch.unflatten(h, 3, (1, -1)); h.unflatten(3, (1, -1));
        torch.squeeze(h, 1); torch.unsqueeze(h, 1); h.unsqueeze(1); torch.permute(h, (0, 1, 2, 3));
        h.permute(0, 2, 1, 3); torch.transpose(h, 1, 2); h.transpose(1, 1); torch.movedim(h, 1, 2); h.movedim(1, 2);
        torch.moveaxis(h, 1, 2); h.moveaxis(1, 2); torch.swapaxes(h, 1, 2); h.swapaxes(1, 2);
        torch.swapdims(h, 1, 2); h.swapdims(1, 2); h.mT; h.mH; torch.adjoint(h); h.adjoint(); h.sum((1, 2, 3)).t();
        flat(h).T; torch.t(h.sum((1, 2, 3)))
    """,
    "parts and repetitions": """
        torch.narrow(h, 1, 0, 1); h.narrow(1, 0, 1); torch.select(h, 1, 0); h.select(1, 0); h[:]; h[:, 0];
        h[..., None]; h[:, [0]]; h[:, torch.tensor(0)]; h[:, ones(h.shape[1]) > 0]; torch.diagonal(h, 0, 2, 3);
        h.diagonal(0, 2, 3); torch.linalg.diagonal(h); h.unfold(1, 1, 1); torch.chunk(h, 1, 1)[0]; h.chunk(1, 1)[0];
        torch.split(h, 1, 1)[0]; h.split(1, 1)[0]; torch.tensor_split(h, 1, 1)[0]; h.tensor_split(1, 1)[0];
        torch.split_with_sizes(h, [h.shape[1]], 1)[0]; h.split_with_sizes([h.shape[1]], 1)[0];
        torch.unbind(h, 1)[0]; h.unbind(1)[0]; torch.index_select(h, 1, torch.tensor(0));
        h.index_select(1, torch.tensor([0])); torch.gather(h, 1, (0 * ones(h.shape)).long());
        h.gather(1, (0 * ones(h.shape)).long()); h.take_along_dim((0 * ones(h.shape)).long(), 1);
        torch.take_along_dim(h, (0 * ones(h.shape)).long(), 1); h.expand(h.shape); h.expand_as(h);
        torch.broadcast_to(h, h.shape); h.broadcast_to(h.shape); h.repeat(1, 1, 1, 1); torch.tile(h, (1,));
        h.tile(1, 2); torch.repeat_interleave(h, 1, 1); h.repeat_interleave(2, 1); torch.flip(h, ()); h.flip(1);
        torch.fliplr(h); h.fliplr(); torch.flipud(h); h.flipud(); torch.roll(h, 0, 1); h.roll(1, 1);
        torch.rot90(h, 0, (2, 3)); h.rot90(4, (2, 3)); torch.cat([h], 1); torch.concat([h, h.new_zeros(0)], 1);
        torch.concatenate([h], 1); torch.stack([h], 1); torch.hstack([h]); torch.column_stack([h]);
        torch.dstack([h]); torch.vstack([h]); torch.row_stack([h]); torch.stack([h]).mean(0); torch.stack([h])[0]
    """,
    "functions that give something new": """
        F.celu(h); F.elu(h); F.gelu(h); F.glu(h.repeat(1, 1, 2, 1), 2); F.hardswish(h); F.logsigmoid(h); F.mish(h);
        F.selu(h); F.sigmoid(h); F.silu(h); F.softmax(h, 1); F.log_softmax(h, 1); F.softmin(h, 1); F.softplus(h);
        F.softsign(h); F.tanh(h);
        F.tanhshrink(h); F.huber_loss(h, ones(())); F.mse_loss(h, ones(())); F.smooth_l1_loss(h, ones(()));
        F.soft_margin_loss(h, ones(())); F.normalize(h); F.local_response_norm(h, 1); F.layer_norm(h, h.shape[1:]);
        F.rms_norm(h, h.shape[1:]); F.group_norm(h, 1); torch.layer_norm(h, h.shape[1:]); torch.group_norm(h, 1);
        torch.rms_norm(h, h.shape[1:]); torch.var_mean(h)[0]; torch.std_mean(h)[0]; 1 ** h; 1 / h; h**1; h.pow(1);
        h == 0; h != 0; h < 0; h <= 0; h > 0; h >= 0; (h > 0) & (h > 0); (h > 0) | (h > 0); (h > 0) ^ (h > 0); ~(h > 0);
        torch.bitwise_not(h > 0); (h > 0).bitwise_not(); h % 9; h.bool(); h.int();
        torch.bilinear(h, h, ones(1, h.shape[3], h.shape[3]));
        torch.addcdiv(h, h, ones(()), value=0); h.addcdiv(h, ones(()), value=0);
        torch.cosine_similarity(h, ones(())); torch.cross(h[..., :1].expand(-1, -1, -1, 3), ones(1, 1, 1, 3), -1);
        h[..., :1].expand(-1, -1, -1, 3).cross(ones(1, 1, 1, 3), -1);
        torch.linalg.cross(h[..., :1].expand(-1, -1, -1, 3), ones(1, 1, 1, 3)); F.grid_sample(h, ones(B, 2, 2, 2));
        F.affine_grid(h[:, 0, :1, :1].expand(-1, 2, 3), (B, 1, 2, 2)); F.fold(flat(h)[..., None], 1, 1);
        torch.trace(flat(h)); flat(h).trace(); torch.diag(flat(h)); flat(h).diag(); torch.diagflat(h); h.diagflat();
        torch.take(h, torch.tensor(0)); h.take(torch.tensor(0)); torch.renorm(h, 2, 0, 99.0); h.renorm(2, 0, 99.0);
        torch.addmv(h.flatten(), ones(h.numel(), 1), ones(1)); h.flatten().addmv(ones(h.numel(), 1), ones(1));
        torch.addr(flat(h), ones(B), ones(flat(h).shape[1])); flat(h).addr(ones(B), ones(flat(h).shape[1]));
        torch.addbmm(flat(h), ones(1, B, 1), ones(1, 1, flat(h).shape[1]));
        flat(h).addbmm(ones(1, B, 1), ones(1, 1, flat(h).shape[1])); torch.tensordot(h, ones(()), 0);
        torch.index_add(h, 0, ZERO, h[:1]); h.index_add(0, ZERO, h[:1]); torch.index_copy(h, 0, ZERO, h[:1]);
        h.index_copy(0, ZERO, h[:1]); torch.index_fill(h, 0, ZERO, 1.0); h.index_fill(0, ZERO, 1.0);
        torch.index_put(h, (ZERO,), h[:1]); h.index_put((ZERO,), h[:1]); torch.scatter(flat(h), 1, ZERO[None], 1.0);
        flat(h).scatter(1, ZERO[None], 1.0); torch.scatter_add(flat(h), 1, ZERO[None], flat(h));
        flat(h).scatter_add(1, ZERO[None], flat(h)); torch.masked_scatter(h, ones(()) > 0, h);
        h.masked_scatter(ones(()) > 0, h)
    """,
    "at least some axes": """
        torch.atleast_1d(h); torch.atleast_2d(h); torch.atleast_3d(flat(h)); torch.atleast_2d(h.sum((1, 2, 3)));
        next(iter(h))
    """,
    "copies and casts": """
        h.clone(); torch.clone(h); h.detach(); torch.detach(h); h.contiguous(); h.to(h.dtype); h.cpu();
        h.contiguous(memory_format=torch.channels_last); h.to("cpu"); h.to(h); h.to(h.dtype, copy=True);
        h.to(torch.float64, False, True); h.double(); h.float(); h.half(); h.bfloat16(); h.type(torch.float64);
        h.type("torch.DoubleTensor"); h.type_as(h); h.to(ones(())); h.to(memory_format=torch.channels_last);
        h.to(memory_format=torch.preserve_format)
    """,
}
CALLS = [call.strip() for group in CALLS.values() for call in group.split(";")]
# Those that always give something new, by what they are called with besides h; of names that PyTorch has twice, both.
OF_ONE = """acos acosh asin asinh atan atanh cos cosh erf exp exp2 expm1 log log10 log1p log2 reciprocal rsqrt sigmoid
    sin sinc sinh sqrt square tan tanh sign sgn floor ceil round trunc fix frac signbit isnan isinf isfinite logical_not
    any all argmax argmin argsort count_nonzero nan_to_num nanmean nansum var std prod celu selu"""
OF_TWO = """atan2 hypot logaddexp pow remainder fmod fmax fmin eq ne lt le gt ge less less_equal greater greater_equal
    not_equal isclose logical_and logical_or logical_xor kron"""
OF_BITS = "bitwise_and bitwise_or bitwise_xor"
OF_AN_AXIS = "softmax log_softmax logsumexp cumprod cumsum logcumsumexp diff triu tril diag_embed"
OF_VECTORS = "dot vdot inner outer ger"
for names, given in {
    OF_ONE: "",
    OF_TWO: "ones(())",
    OF_BITS: "ones(()) > 0",
    OF_AN_AXIS: "1",
    OF_VECTORS: "ones(h.numel())",
}.items():
    for name in names.split():
        h = {OF_BITS: "h > 0", OF_VECTORS: "h.flatten()"}.get(names, "h")
        CALLS += [f"torch.{name}({', '.join(filter(None, (h, given)))})"] if hasattr(torch, name) else []
        CALLS += [f"({h}).{name}({given})"] if hasattr(Tensor, name) else []

LAYOUTS = {
    "contiguous": lambda: ones(B, 4, 6, 6),
    "channels_last": lambda: ones(B, 4, 6, 6).contiguous(memory_format=torch.channels_last),
    "slices": lambda: ones(B, 4, 6, 12)[..., ::2],
    "transposed": lambda: ones(B, 6, 4, 6).transpose(1, 2),
    "expanded": lambda: ones(B, 4, 1, 1).expand(B, 4, 6, 6),
    "one channel": lambda: ones(B, 1, 6, 6),
    "one pixel": lambda: ones(B, 4, 1, 1),
    "one entry": lambda: ones(B, 1, 1, 1),
}


def in_pytorch(call, h):
    """Whether the result is h, a view of h, or neither."""
    y = call(h)
    shares = y.untyped_storage().data_ptr() == h.untyped_storage().data_ptr()
    return "h" if y is h else "view" if shares else "copy"


def in_the_recording(call, x):
    recorder = Recorder(nn.Identity(), x, False)
    h = recorder.input
    try:
        y = call(h)
    except Refused:
        return "refused"
    return "h" if y is h else "view" if h.views is not None and any(y is other for other in h.views) else "copy"


def function_of(call):
    return eval(f"lambda h: {call}", globals())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_memory_is_shared_as_in_pytorch(call):
    call = function_of(call)
    inputs = {name: make() for name, make in LAYOUTS.items()}
    actual = {name: in_pytorch(call, h) for name, h in inputs.items()}
    recorded = {in_the_recording(call, h) for h in inputs.values()}
    if recorded == {"refused"}:
        return
    # Where PyTorch's answer depends on the layout, the recording takes it for a view.
    expected = set(actual.values()) if len(set(actual.values())) == 1 else {"view"}
    assert recorded == expected, actual


class Called(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.functions = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.add(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore")
def test_every_recorded_function_is_among_them():
    with Called() as called:
        for call in CALLS:
            function_of(call)(LAYOUTS["contiguous"]())
    # There need not be a GPU; a statement has no result; two are methods, in Python; attention gives something new.
    apart = {Tensor.cuda, Tensor.__setitem__, F.sigmoid, F.tanh}
    apart |= {F.multi_head_attention_forward, F.scaled_dot_product_attention}
    # And so does what takes complex numbers.
    apart |= {f for f in RECORDERS if isinstance(f, str) or any(word in str(f) for word in ("fft", "complex", "stft"))}
    missing = sorted(map(str, set(RECORDERS) - called.functions - apart))
    assert not missing, f"without a call in this file, in CALLS, OF_ONE, OF_TWO or OF_AN_AXIS: {', '.join(missing)}"
