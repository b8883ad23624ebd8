"""The operations that the four passes know. Importing a file registers what it records."""

from gnfast.plan.ops import activation, conv, elementwise, linear, pool, reduce, shape  # noqa: F401
