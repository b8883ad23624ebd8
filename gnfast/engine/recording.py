"""A network's Plan for one call, or the reason why there is none: recorded now, or known from an earlier call."""

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.nn.modules.module as torch_modules
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from gnfast.errors import InputError
from gnfast.interop import surroundings
from gnfast.plan.opaque import Refused
from gnfast.plan.plan import Plan, Refusal
from gnfast.plan.replay import Script
from gnfast.plan.state import capturing, modules_of, unchanged
from gnfast.plan.traced import has_own_rules
from gnfast.plan.tracing import record


@dataclass
class _Verdict:
    """What came of recording a network in one state: accepted, refused, or (at first) neither."""

    accepted: bool = False
    refusal: Refusal | None = None
    calls: int = 0
    """How many calls have relied on a refusal."""
    script: Script = field(default_factory=Script)
    """What the last recording consisted of."""

    def stands(self) -> bool:
        """Whether a refusal stands for this call.

        A network may be refused on one call alone (a first one that initialises by its data), so it is recorded again,
        ever more rarely: the 2nd, 3rd, 5th, 9th, ... time. Under hooks on saved tensors it is every time:
        `torch.utils.checkpoint` takes what a second run saves for what the first has, in the order of saving. While a
        CUDA graph is captured it is never recorded again.
        """
        if self.refusal is None:
            return False
        self.calls += 1
        recorded_again = self.calls & (self.calls - 1) == 0 or surroundings.saved_tensor_hooks() is not None
        return capturing() or not recorded_again


_VERDICTS: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _Verdict]]" = weakref.WeakKeyDictionary()
_VERDICTS_PER_NETWORK = 64


def plan_for(
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rewrite: bool,
    normed: bool = False,
    watch: AbstractContextManager[Any] | None = None,
) -> tuple[Plan, list[Tensor]]:
    """The Plan of net(x, *args, **kwargs) and the recorded operands; `watch` is as for `record`.

    `normed`: as for `require_norm`.

    A network that was refused before, in the same state, is mostly refused without running it. One that is refused now
    is as it was before the call.

    Raises:
        Refused: the passes do not apply; with the network's own error as its cause if that is the reason.
    """
    modules = [*modules_of(net)]
    require_recordable(x, args, kwargs)
    require_unhooked(net, modules)
    verdicts = _VERDICTS.setdefault(net, {})
    modes = torch.is_grad_enabled(), x.requires_grad, surroundings.autocast_dtype(x.device.type)
    state = [(id(module), module.training) for module in modules]
    key = _static(x), x.device.type, modes, normed, *state, _static(args), _static(sorted(kwargs.items()))
    if (verdict := verdicts.get(key)) is None:
        if len(verdicts) >= _VERDICTS_PER_NETWORK:
            verdicts.clear()
        verdict = verdicts[key] = _Verdict()
    if verdict.stands():
        raise Refused(verdict.refusal)
    # A refused recording must leave no trace: the fallback is about to run the same forward again.
    with unchanged(net, not verdict.accepted, modules) as before:
        try:
            if before.irrevocable and not verdict.accepted:
                raise Refused(Refusal("", "forward", before.irrevocable))
            careful = not (verdict.accepted or capturing() or x.is_meta)
            options = {"rewritten": rewrite, "careful": careful, "script": verdict.script, "watch": watch}
            options["eager"] = before.stateless
            result = _record(net, x, args, kwargs, options)
            require_norm(result[0], normed)
        except Refused as error:
            # An exception of the network's own may have to do with this call's arguments alone.
            if error.__cause__ is None:
                verdict.accepted, verdict.refusal = False, error.refusal
            raise
        before.accepted = True
    if not verdict.accepted:
        verdicts[key] = _Verdict(accepted=True, script=verdict.script)
    return result


def require_recordable(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses what no recording would show: transforms, hooks on x's gradient, an x of a kind with other rules."""
    differentiable = torch.is_grad_enabled() and x.requires_grad
    if way := surroundings.transform():
        _refuse(way, "the passes have no rule for this transform")
    if (args or kwargs) and not differentiable and any(leaf is x for leaf in tree_leaves((args, kwargs))):
        _refuse("forward", "x itself is among its further arguments")
    hooks = (x._backward_hooks or {}).values() if differentiable else ()
    # PyTorch's hooks on several tensors (`register_multi_grad_hook`) look on and change nothing.
    if any(getattr(hook, "__module__", None) != "torch.autograd.graph" for hook in hooks):
        _refuse("Tensor.register_hook", "a hook on x would not see the gradient of f")
    if has_own_rules(type(x)):
        _refuse(type(x).__name__, "x is of a subclass of Tensor with rules of its own")
    if isinstance(x, FakeTensor):
        _refuse("FakeTensor", "it has no values, which a recording compares")
    if torch_modules._global_backward_hooks or torch_modules._global_backward_pre_hooks:
        _refuse("register_module_full_backward_hook", "a backward hook for all modules would not see their gradients")


def require_norm(plan: Plan, normed: bool) -> None:
    """Refuses a curved Plan where ‖∇ₓf̂‖ is wanted, to be differentiated (`normed`)."""
    if normed and plan.takes_six:
        reason = "its input gradient depends on x, and that of the normalised critic has third derivatives"
        _refuse("return_grad_norm", reason)


def require_unhooked(net: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Refuses hooks on the gradients of modules."""
    hooked = next((m for m in modules if m._backward_hooks or m._backward_pre_hooks), None)
    if hooked is not None:
        name = next(name for name, module in net.named_modules() if module is hooked)
        _refuse("register_full_backward_hook", "a backward hook would not see its gradients", name)


def require_independent(x: Tensor, tensors: Iterable[Tensor]) -> None:
    """Refuses an operand that was itself computed from x."""
    if torch.is_grad_enabled() and x.requires_grad and any(_depends_on(tensor, x) for tensor in tensors):
        _refuse("forward", "it uses another tensor that was computed from x")


def _refuse(operation: str, reason: str, submodule: str = "") -> NoReturn:
    raise Refused(Refusal(submodule, operation, reason))


def _record(
    net: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
) -> tuple[Plan, list[Tensor]]:
    """As `record`, which does not see where operands come from and lets the network's own errors through."""
    try:
        plan, operands = record(net, x, args, kwargs, **options)
    except (Refused, InputError):
        raise
    except Exception as error:
        reason = f"recording it raised {type(error).__name__}: {error}"
        raise Refused(Refusal("", "forward", reason)) from error
    require_independent(x, operands)
    return plan, operands


def _depends_on(tensor: Tensor, x: Tensor) -> bool:
    """Whether autograd leads from `tensor` back to x: then the input gradient has a part that the recording misses."""
    if tensor is x or tensor.grad_fn is None:
        return tensor is x
    source = tuple(torch.autograd.graph.get_gradient_edge(x)[:2])
    pending, seen = [(tensor.grad_fn, tensor.output_nr)], set()
    while pending:
        edge = pending.pop()
        if edge == source:
            return True
        node, _ = edge
        if node is not None and node not in seen:
            seen.add(node)
            pending += node.next_functions
    return False


def _static(value: Any) -> Any:
    """What of an argument may decide which way the network's Python goes: numbers, strings, shapes; hashable."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:]), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_static, value))
    return value if isinstance(value, (int, float, str, type(None))) else type(value)
