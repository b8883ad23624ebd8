"""The operations that the four passes know. Importing a file registers what it records."""

from gnfast.plan.ops import (  # noqa: F401
    activation,
    constant,
    conv,
    detach,
    einsum,
    elementwise,
    layers,
    linear,
    pool,
    reduce,
    resample,
    selection,
    shape,
)
