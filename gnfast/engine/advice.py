"""What to write instead of what the passes refuse: for each reason, the nearest that they take.

tests/engine/test_explain.py holds every reason in the code against this table, and much of the advice against critics.
"""

from gnfast.plan.plan import Refusal

ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    # By operation: a value of x is wanted while there is none.
    (
        ("Tensor.__bool__", "Tensor.item", "Tensor.__float__", "Tensor.__int__", "Tensor.tolist", "Tensor.numpy"),
        "Choose by torch.where(condition, a, b) instead of `if`, compute with tensors instead of numbers, and log "
        "outside of the critic: what it returns has values.",
    ),
    (
        ("Tensor.data",),
        "Write h.detach() for reading, and a function of h instead of changing h.data: h = h.clamp(-1, 1), say.",
    ),
    (
        ("CheckpointFunction",),
        "Say checkpoint(..., use_reentrant=False), or leave it out: gnfast keeps few activations.",
    ),
    (
        ("custom autograd function", "custom autograd Function"),
        "Write what it computes in PyTorch's own functions: what is piecewise linear takes four passes and gains much, "
        "what is smooth six and gains less. A derivative of one's own choosing can often be said with "
        "detach: a straight-through estimator of g is x + (g(x) - x).detach(). examples/own_critic.py is such a case.",
    ),
    (
        ("Tensor.register_hook", "register_hook"),
        "Change the gradient after the step's backward, or put the factor into the forward.",
    ),
    (("matrix_norm", "norm of matrices"), "torch.linalg.vector_norm(h, dim=(-2, -1)) is the Frobenius norm."),
    (("Tensor.forward", "bypasses recording"), "Use the nn.Module or function itself, without torch.jit or torch.ops."),
    (
        ("a call of gnfast",),
        "Pass the critic itself, .net of a GradientNorm; for ‖∇ₓf̂‖ say return_grad_norm=True.",
    ),
    # By reason: in the order of gnfast/plan.
    (
        ("not an operation that the passes know",),
        "Compose it of operations in docs/coverage.md, or teach gnfast the operation: CONTRIBUTING.md has the recipe; "
        "one that autograd differentiates twice is a line.",
    ),
    (
        ("tensors that are views", "statistics that are views"),
        "Give the layer a buffer of its own: a clone of the view.",
    ),
    (("statistics that the same forward",), "Give each use of the normalisation a layer of its own."),
    (("alpha dropout",), "nn.Dropout, or the layer's eval mode."),
    (("tensor to write the result to",), "h = function(...) instead of function(..., out=h)."),
    (
        ("indices of a maximum",),
        "The maximum's values: h.max(dim).values; or h.argmax(dim), a constant for derivatives.",
    ),
    (("axes of what has none",), "Take the maximum before the reduction to a single number."),
    (("an index that is a tensor",), "A Python number: h[:, int(i)], computed outside of the critic."),
    (("one truth value",), "torch.where, or a Python `if` on what does not depend on x."),
    (
        ("index that depends on x", "indices that depend on x"),
        "A product with a mask of the choice: (h.argmax(1)[:, None] == torch.arange(n)).to(h.dtype) @ table.",
    ),
    (("indexing with a",), "An index of integers, slices, truth values, or tensors of these."),
    (
        ("into a tensor that does not depend on x",),
        "torch.cat or torch.stack of the parts, or F.pad, instead of writing into zeros.",
    ),
    (("as another dtype",), "h.to(dtype), which converts values."),
    (("dtype that is not real", "complex numbers"), "Real and imaginary parts: torch.view_as_real(z), or z.abs()."),
    (("change of device",), "A critic on one device; move x before the call."),
    (("lists of axes",), 'An equation: torch.einsum("bi,ij->bj", h, w).'),
    (("drawn at random for every entry",), "F.leaky_relu, or the layer's eval mode."),
    (("a negative slope in place",), "inplace=False."),
    (("truth value", "truth values"), "Numbers: mask.to(h.dtype)."),
    (("division by -0.0",), "A divisor that is not 0."),
    (("rounding_mode",), "torch.floor(h / c), which has no derivative either."),
    (("further arguments that are tensors", "argument that is a tensor"), "Python numbers for them."),
    (("an argument of type",), "A tensor or a number."),
    (
        ("a tensor that does not depend on x", "in a way that derivatives follow"),
        "Return what is computed from x, outside of detach, no_grad and rounding.",
    ),
    (
        ("changes in place a tensor of shape", "views are in use", "changes x in place", "a result of shape"),
        "A new tensor: h = h + y instead of h += y.",
    ),
    (("under no_grad",), "h.detach() where no derivative is wanted, and no writing in place under no_grad."),
    (("inference mode",), "h.detach() where no derivative is wanted."),
    (("saved_tensors_hooks",), "Put the hooks around the whole call; memory='low' keeps fewer activations."),
    (("subclass of Tensor",), "A plain tensor: x.as_subclass(torch.Tensor)."),
    (("tensor of layout",), "w.to_dense()."),
    (
        ("another argument does", "its weight depends on x"),
        "A product that may depend on x on both sides: torch.einsum, torch.matmul or F.conv2d.",
    ),
    # Around the call.
    (("passes have no rule for this transform",), "torch.autograd.grad of what gnfast returns, outside of transforms."),
    (("further arguments", "computed from x"), "Compute it inside the critic, from x, or hand over a detached copy."),
    (("hook on x", "would not see"), "A forward hook, or the gradients of the parameters after backward."),
    (("it has no values",), "A tensor with data."),
    (("third derivatives",), "The norm without return_grad_norm, of an f̂ computed again, or impl='reference'."),
    (("recording it raised",), "The error shows what of x the network wanted that a recording does not have."),
    (("asked twice",), "A counter or a list with an index instead of an iterator."),
)
"""Words of a refusal, and what to write instead; the first that is found counts."""


def advice(refusal: Refusal) -> str:
    """What to write instead; empty where the table has nothing."""
    said = f"{refusal.operation}: {refusal.reason}"
    return next((text for words, text in ADVICE if any(word in said for word in words)), "")
