"""Functions with curvature: entry by entry, and those of several entries that autograd differentiates one by one."""

import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import records

_ENTRYWISE = (
    *("sigmoid", "tanh", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "square"),
    *("reciprocal", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan", "asinh", "acosh", "atanh"),
    *(F.softplus, F.elu, F.celu, F.selu, F.silu, F.mish, F.gelu, F.softsign, F.hardswish, F.logsigmoid, F.tanhshrink),
    *("erf", "sinc", "celu", "selu", "pow", Tensor.__pow__, Tensor.__rpow__, "hypot", "atan2", "logaddexp"),
)
_OF_SEVERAL = ("softmax", F.softmax, "log_softmax", F.log_softmax, F.softmin, "logsumexp", "cumprod", "prod")


@records(*_ENTRYWISE, *_OF_SEVERAL, told=True)
def _curved(function, trace, *args, inplace=False, **kwargs):
    y = trace.curved(function, *args, **kwargs)
    return trace.rebind(args[0], y) if inplace else y
