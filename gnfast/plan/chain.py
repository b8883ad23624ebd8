"""Small multilayer perceptrons among the Plans, which run in two kernels."""

from gnfast.kernels.mlp import Chain
from gnfast.plan.ops.activation import LeakyReLU
from gnfast.plan.ops.join import Join
from gnfast.plan.ops.linear import Linear
from gnfast.plan.ops.shape import Reshape
from gnfast.plan.plan import Plan


def chain_of(plan: Plan) -> Chain | None:
    """The Plan as a chain of linear layers with one kind of activation between them; None if it is anything else."""
    weights, biases, slopes = [], [], set()
    value, after_linear = 0, False
    for node in plan.nodes:
        if node.inputs != (value,) or node.further_outputs:
            return None
        value = node.output
        if isinstance(node.op, Reshape) and (not weights or node is plan.nodes[-1]):
            continue
        if isinstance(node.op, Linear) and not after_linear and len(node.input_shapes[0]) == 1:
            weights.append(node.operands[0])
            biases.append(node.operands[1])
            after_linear = True
        elif isinstance(node.op, (LeakyReLU, Join)) and after_linear:
            slopes.add(node.op.slope)
            after_linear = False
        else:
            return None
    if not after_linear or len(slopes) != 1 or len(set(weights)) < len(weights) or value != plan.output:
        return None
    return Chain(slopes.pop(), tuple(weights), tuple(biases))
