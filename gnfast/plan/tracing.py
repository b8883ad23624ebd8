"""From an `nn.Module` to a Plan: run its forward once with a tensor that records instead of computing.

The network's own Python runs on every call, so control flow on shapes, `train()`/`eval()`, replaced submodules, forward
hooks and parametrised weights act as they would without gnfast, and each weight is read exactly once, in order. What
the recording cannot express exactly is refused by name.

The forward of a user is arbitrary Python and may depend on anything (counters, the clock, attributes, random numbers).
Nothing short of running it shows that it would do the same again, so it runs on every call, and `replay.py` makes that
cheap where it does. A recording is kept where all code of a network is known (`gnfast/engine/known.py`) or where the
user promises as much (`static=True`, `gnfast/engine/static.py`); `gnfast.CapturedStep` replays a whole step.
"""

import contextlib
import functools
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gnfast.errors import InputError, not_a_tensor
from gnfast.kernels.backend import implementation
from gnfast.plan.attention import with_attention
from gnfast.plan.ends import shorten
from gnfast.plan.fuse import fuse
from gnfast.plan.op import Shape
from gnfast.plan.opaque import Refused
from gnfast.plan.packed import with_packed_attention
from gnfast.plan.permutes import with_single_permutes
from gnfast.plan.plan import CUT_OFF, INDEPENDENT, Derived, Node, Plan, Refusal, reached
from gnfast.plan.recorder import Recorder
from gnfast.plan.replay import Script
from gnfast.plan.rewrite import rewrite
from gnfast.plan.traced import Traced


def record(
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    rewritten: bool = True,
    fused: bool | None = None,
    explain: bool = False,
    careful: bool = False,
    script: Script | None = None,
    watch: contextlib.AbstractContextManager[Any] | None = None,
    eager: bool = False,
) -> tuple[Plan, list[Tensor]]:
    """Runs the network's forward on a traced x.

    Args:
        rewritten: merge operations where that is exact and cheaper.
        fused: put what lies between matrix products into one operation; None where x's device has a kernel for it.
        explain: note what is refused and go on, for a Plan to be printed.
        careful: refuse as well a network that writes into what it has used by `.data` or numpy, which PyTorch does not
            count: by comparing contents, which takes a copy of each operand.
        script: the network's last recording, which this one follows where it can, and replaces. The nodes then lack the
            names of submodules.
        watch: a context around the forward.
        eager: whether it is known that nothing in the network was compiled.

    Returns:
        the Plan, and the recorded operands in the order of their slots, as the network has them.

    Raises:
        Refused: the network is outside what the passes do exactly (with `explain`: only the Plan says so).
    """
    recorder = Recorder(net, x, explain, careful, script)
    try:
        around = contextlib.nullcontext() if eager else _without_compiled_code(), watch or contextlib.nullcontext()
        _run(recorder, net, x, args, kwargs, *around)
    except Refused as error:
        if not explain:
            raise
        if error.refusal not in recorder.refusals:
            recorder.refusals.append(error.refusal)
    except Exception as error:
        if not explain or isinstance(error, InputError):
            raise
        if not recorder.refusals:
            # The network's own errors come from here. After a refusal the recording goes by guesses.
            net(x.clone(), *args, **kwargs)
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"recording it raised {type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        recorder.refusals.append(Refusal("", "forward", reason))
    finally:
        recorder.close()
    if script is not None:
        recorder.replay.keep()
    tensors, nodes, refusals = recorder.operands.tensors, tuple(recorder.nodes), tuple(recorder.refusals)
    trainable = frozenset(slot for slot, operand in enumerate(tensors) if operand.requires_grad)
    fused = implementation("join", x.device.type).FUSES if fused is None else fused
    structure = type(net).__name__, tuple(x.shape[1:]), nodes, recorder.output, trainable
    return _plan(*structure, tuple(recorder.operands.dtypes), refusals, rewritten, fused), tensors


def _run(
    recorder: Recorder,
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    stance: contextlib.AbstractContextManager[Any],
    watch: contextlib.AbstractContextManager[Any],
) -> None:
    """Runs the forward; refuses what is wrong with it as a whole or with what it returns."""
    # With gradients on, as for double backward: a custom autograd Function leaves no mark without them.
    with torch.inference_mode(False), torch.enable_grad(), stance, watch:
        result = net(recorder.input, *args, **kwargs)
    if not isinstance(result, Tensor):
        raise not_a_tensor(result)
    recorder.operation = "its output"
    if not isinstance(result, Traced):
        recorder.refuse(INDEPENDENT)
    recorder.require_recorded(result)
    if recorder.custom is not None:
        # What was recorded behind it is for further refusals alone.
        raise Refused(recorder.custom)
    if (changed := recorder.operands.changed()) is not None:
        recorder.refuse(f"the forward changes in place a tensor of shape {tuple(changed.shape)} that it has used")
    recorder.output = result.value
    if not _follows_x(tuple(recorder.nodes), result.value):
        recorder.refuse(CUT_OFF)


@functools.lru_cache(maxsize=256)
def _follows_x(nodes: tuple[Node, ...], output: int) -> bool:
    """Whether derivatives lead from the output to x."""
    followed = zip(nodes, reached(nodes, output, by_derivatives=True), strict=True)
    return output == 0 or any(follows and 0 in node.inputs for node, follows in followed)


_recordings = 0
_first_or_last = threading.Lock()
_compilers_stance = contextlib.ExitStack()


@contextlib.contextmanager
def _without_compiled_code() -> Iterator[None]:
    """Lets what torch.compile wrapped run as the Python that it was.

    The compiler's stance is the process's: of recordings on several threads the last puts it back, or it would stay.
    """
    global _recordings
    # Importing the compiler takes seconds; without it, nothing can have been compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _first_or_last:
        if _recordings == 0:
            _compilers_stance.enter_context(torch.compiler.set_stance("force_eager"))
        _recordings += 1
    try:
        yield
    finally:
        with _first_or_last:
            _recordings -= 1
            if _recordings == 0:
                _compilers_stance.close()


@functools.lru_cache(maxsize=256)
def _plan(
    name: str,
    input_shape: Shape,
    nodes: tuple[Node, ...],
    output: int,
    trainable: frozenset[int],
    dtypes: tuple[torch.dtype, ...],
    refusals: tuple[Refusal, ...],
    rewritten: bool,
    fused: bool,
) -> Plan:
    """One Plan per structure: what it works out for itself serves every later call."""
    needed = reached(nodes, output, by_derivatives=False)
    kept = tuple(node for node, need in zip(nodes, needed, strict=True) if need or refusals)
    stated_flops = sum(node.flops for node in kept)
    derived: tuple[Derived, ...] = ()
    if rewritten and not refusals:
        kept = with_single_permutes(with_attention(with_single_permutes(kept, output), output), output)
        kept = with_packed_attention(kept, output)
        kept, derived = rewrite(kept, output, len(dtypes))
    entry = None
    if fused and not refusals:
        kept, derived, entry = shorten(kept, output, derived, dtypes)
        kept = fuse(kept, output)
    trainable |= {index for index, d in enumerate(derived, len(dtypes)) if d.slot in trainable}
    return Plan(name, input_shape, kept, output, trainable, dtypes, derived, stated_flops, refusals, entry)
