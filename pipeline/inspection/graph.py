"""What autograd recorded of one forward pass: the operations before the loss, functional ones included."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Operations that only arrange values, or scale and shift them by constants: affine in their input.
ARRANGING = {
    "View", "UnsafeView", "Reshape", "T", "Transpose", "Permute", "Expand", "Squeeze", "Unsqueeze", "Select", "Slice",
    "Index", "Clone", "Alias", "AsStrided", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "ToCopy",
    "Contiguous", "ReshapeAlias", "Mean", "Sum", "Neg",
}  # fmt: skip
WEIGHTED = {
    "Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "ConvolutionOverrideable", "SlowConv2D", "MkldnnConvolution",
    "ThnnConv2D", "Embedding", "EmbeddingBag", "MkldnnRnnLayer", "CudnnRnn", "Linear", "MkldnnLinear",
}  # fmt: skip
SOFTMAX, LOG_SOFTMAX = ("Softmax", "SafeSoftmax"), ("LogSoftmax",)
SIGMOID = ("Sigmoid",)
# Activations by the values that they can give.
RANGES: dict[str, tuple[float, float]] = {
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "SafeSoftmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Relu": (0.0, float("inf")),
    "Relu6": (0.0, 6.0),
    "Hardtanh": (-1.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Softplus": (0.0, float("inf")),
    "Exp": (0.0, float("inf")),
    "LogSoftmax": (float("-inf"), 0.0),
    "LogSigmoid": (float("-inf"), 0.0),
    "Elu": (-1.0, float("inf")),
}
LOSSES_WITH_SIGMOID = ("BinaryCrossEntropyWithLogits", "SoftMarginLoss")
MAX_NODES = 20_000  # of a graph that is walked; a longer one is that of an unrolled loop


@dataclass(frozen=True)
class Operation:
    """One recorded operation: its name without torch's suffix, and the axis that it works along, if it has one.

    A negative axis counts from the end. `size` is the length of that axis, or None where it is not known any more.
    """

    name: str
    axis: int | None = None
    size: int | None = None


def operations_before_weights(node: Any, until: Any = None) -> list[Operation]:
    """Return the operations from a node back to the nearest weights, or to the node `until`, the nearest first.

    Operations that only arrange values are left out.
    """
    operations = [_operation(each) for each in _walk(node, until)]
    return [operation for operation in operations if operation.name not in ARRANGING]


def reaches(node: Any, end: Any) -> bool:
    """Return whether the operations from a node back to the nearest weights include, or stop at, the node `end`."""
    met = [node, *_walk(node, end)]
    return node is end or any(following is end for each in met for following, _ in each.next_functions)


def _walk(node: Any, until: Any) -> Iterator[Any]:
    """Yield the nodes from `node` on, in breadth, without those that multiply with weights and all behind them."""
    waiting, seen = deque([node] if node is not None else []), set[Any]()
    while waiting and len(seen) < MAX_NODES:
        current = waiting.popleft()
        if current in seen or current is until:
            continue
        seen.add(current)
        if name_of(current) == "AccumulateGrad" or is_weighted(current):
            continue
        yield current
        waiting.extend(following for following, _ in current.next_functions if following is not None)


def name_of(node: Any) -> str:
    """Return the operation of a node: `Softmax` for `SoftmaxBackward0`."""
    return str(node.name()).rpartition("::")[2].partition("Backward")[0]


def is_weighted(node: Any) -> bool:
    """Return whether an operation multiplies its input with parameters of the model, frozen ones included.

    A frozen parameter has no node: its place in the graph is empty.
    """
    if name_of(node) not in WEIGHTED:
        return False
    return any(following is None or _is_parameter(following) for following, _ in node.next_functions)


def _is_parameter(node: Any) -> bool:
    """Return whether a node is a parameter, maybe transposed or reshaped."""
    for _ in range(4):
        name = name_of(node)
        if name == "AccumulateGrad":
            return True
        if name not in ARRANGING or len(node.next_functions) != 1 or node.next_functions[0][0] is None:
            return False
        node = node.next_functions[0][0]
    return False


def _operation(node: Any) -> Operation:
    name, axis, size = name_of(node), None, None
    if name in (*SOFTMAX, *LOG_SOFTMAX):
        axis = int(node._saved_dim)
        axis = axis - 2**64 if axis >= 2**63 else axis
        try:
            size = int(node._saved_result.shape[axis])
        except RuntimeError:  # a backward pass has freed the values
            size = None
    return Operation(name, axis, size)
