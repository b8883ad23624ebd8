"""What gnfast raises and warns with."""

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches


class UnsupportedError(RuntimeError):
    """The passes do not cover this network (or call) exactly; the message names the submodule and operation."""


class FallbackWarning(UserWarning):
    """A call takes a slower way to the same result, exact double backward above all; the message says why."""


class UncompiledWarning(RuntimeWarning):
    """A compiled library is missing, and PyTorch's operations do its work; the message says why and what to type."""


class InputError(ValueError):
    """An argument of the wrong kind, shape, dtype or device; the message names it, what came and what was wanted."""


def not_a_tensor(value: object) -> InputError:
    """The error for a network that returns something else than its logit."""
    return InputError(
        f"net: got a {type(value).__name__} from the network, wanted a tensor of one logit per sample (put a critic "
        "that returns more into a module that returns its logit alone)"
    )


def warn_user(message: str, category: type[Warning] = FallbackWarning) -> None:
    """Gives a warning at the line outside gnfast and PyTorch from which the call came."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("gnfast", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def first_line(error: BaseException) -> str:
    """Of PyTorch's long messages the first sentence, which says what is wrong; the error's kind where it says none."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def require_int(name: str, value: object, least: int, error: type[ValueError] = InputError) -> int:
    """The value of an argument; raises `error` where it is not an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(f"{name}: got {value!r}, wanted an int of at least {least}")
    return value


TRAIN_PACKAGES = {"lmdb", "matplotlib", "numpy", "PIL", "safetensors", "sklearn", "tensorboard", "tqdm", "tyro"}
"""Import names of the packages in the extra `train`."""
# Where a package has another name than its module.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def missing(what: str, module: str | None) -> str:
    """The message where `what` needs a module that is not installed, with how to install it."""
    package = _PACKAGES.get(module, module)
    how = '; all that training needs: pip install --no-build-isolation -e ".[train]" in the checkout of gnfast'
    return f"{what} needs {package}, which is not installed: pip install {package}{how * (module in TRAIN_PACKAGES)}"


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """The message about a word that is none of those known: with the nearest, or with all unless they are many."""
    return f"unknown {what} {word!r}; {nearest(word, known)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is none of those known, as of `unknown`."""
    words = list(known)
    words = [name for name in words if word and name.startswith(word)] or words
    near = get_close_matches(word, words, 1)
    shown = words if len(words) <= 20 else [*words[:5], f"… ({len(words)} in all)"]
    return f"did you mean {near[0]!r}?" if near else f"wanted one of {', '.join(shown)}"
