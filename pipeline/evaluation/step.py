"""Custom steps: a user's `(model, batch) -> {"loss": ..., ...}` for models whose forward pass and loss are one call.

Examples are models that compute their own loss, losses of several terms, and inputs that are changed on the way.
`batch` is `(inputs, targets)`. Besides `loss`, a scalar tensor, the step may return `outputs` [B, ...], from which
metrics are computed as for any task, and further scalars, which are metrics under their own names. Other entries are
ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pipeline.data.tree import Tree, count_rows
from pipeline.errors import UserError, fault

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import Metric

StepOutput = Mapping[str, Any]  # whatever a user's step returns, checked by `validate_step_output`
Step = Callable[[nn.Module, tuple[Tree, Tree]], StepOutput]

EXPECTED = '{"loss": a scalar tensor, ...}'


class CustomStep:
    """The forward pass of a task with a step: returns (outputs or None, loss). Raises UserError without a loss."""

    __slots__ = ("step",)

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, model: nn.Module, inputs: Tree, targets: Tree) -> tuple[Tensor | None, Tensor]:
        result = validate_step_output(self.step(model, (inputs, targets)))
        return result.get("outputs"), result["loss"]


def validate_step_output(result: object) -> StepOutput:
    """Return what a step returned. Raises UserError unless it has a scalar loss and its outputs are one tensor."""
    if not isinstance(result, Mapping):
        raise UserError(fault("task.step", "does not return a dict", got=type(result).__name__, expected=EXPECTED))
    loss = result.get("loss")
    if loss is None:
        got = ", ".join(map(str, result)) or "an empty dict"
        raise UserError(fault("task.step", "returns no loss", got=got, expected=EXPECTED))
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(fault("task.step", "returns a loss that is not a scalar tensor", got=got, expected=EXPECTED))
    outputs = result.get("outputs")
    if outputs is not None and not isinstance(outputs, Tensor):
        got, expected = type(outputs).__name__, "one tensor [B, ...], or no outputs"
        raise UserError(fault("task.step", "returns outputs that are not a tensor", got=got, expected=expected))
    return result


def step_scalars(result: StepOutput) -> dict[str, Tensor | float]:
    """Return every scalar of a step's result by name, including its loss."""
    return {
        str(name): value
        for name, value in result.items()
        if (isinstance(value, Tensor) and not value.ndim) or isinstance(value, int | float)
    }


def build_step(task: Mapping[str, Any], model: nn.Module | None, trust: Sequence[str]) -> Step | None:
    """Return the step of a `task` section, on the model's device; None if it names none.

    Raises UserError if the step is not callable, and for a custom task without a step.
    """
    node = task.get("step")
    if not node:
        if task["kind"] == "custom":
            expected = "a _target_ (model, batch) -> {loss, ...}"
            raise UserError(fault("task.step", "a custom task needs a step", got=node, expected=expected))
        return None
    from pipeline.config.build import build_function

    step: Any = build_function(node, 2, trust=trust, where="task.step")
    if not callable(step):
        expected = "(model, batch) -> {loss, ...}"
        raise UserError(fault("task.step", "is not callable", got=type(step).__name__, expected=expected))
    first = next(model.parameters(), None) if model is not None else None
    return step.to(first.device) if isinstance(step, nn.Module) and first is not None else step


def metric_from_step(metric: Metric, scalars: Mapping[str, float]) -> float:
    """Return the step's scalar of the metric's name. Raises UserError if there is none."""
    if metric.name in scalars:
        return scalars[metric.name]
    expected = f"a scalar '{metric.name}' among what the step returns"
    expected += "" if metric.needs == "step" else ", or the outputs to compute it from"
    got = ", ".join(sorted(scalars))
    raise UserError(fault(metric.where, f"task.step returns no '{metric.name}'", got=got, expected=expected))


def check_step(
    step: Step, metrics: Sequence[Metric], model: nn.Module, inputs: Tree, targets: Tree
) -> tuple[Tensor | None, Tensor]:
    """Run the step once, as training does, and return (outputs or None, loss).

    Raises UserError if a metric could not be computed from what it returns.
    """
    result = validate_step_output(step(model, (inputs, targets)))
    outputs, rows = result.get("outputs"), count_rows(inputs)
    if outputs is not None and (not outputs.ndim or len(outputs) != rows):
        got = f"shape {tuple(outputs.shape)} for {rows} rows"
        raise UserError(fault("task.step", "outputs have no batch dimension", got=got, expected=f"({rows}, ...)"))
    scalars = dict.fromkeys(step_scalars(result), 0.0)  # names suffice to look metrics up
    for metric in metrics:
        if metric.needs == "step" or outputs is None:
            metric_from_step(metric, scalars)
        elif not isinstance(targets, Tensor):
            got, expected = type(targets).__name__, "one tensor of targets, or a scalar that the step returns"
            raise UserError(fault(metric.where, f"'{metric.name}' compares rows", got=got, expected=expected))
    return outputs, result["loss"]
