"""What gnfast raises and warns with."""


class UnsupportedError(RuntimeError):
    """The four passes do not cover this network (or call) exactly; the message names the submodule and operation."""


class FallbackWarning(UserWarning):
    """A network went through exact double backward instead of the four passes; the message says why."""


class InputError(ValueError):
    """An argument of the wrong kind, shape, dtype or device; the message names it, what came and what was wanted."""
