"""The step: a training step of the user's own, `(model, batch) -> {"loss": ..., ...}`, where model and loss cannot
be called apart: a model that computes its own loss, a loss of several terms, inputs that are changed on the way.

`batch` is `(inputs, targets)`. Beside `loss`, a scalar, the answer may hold `outputs` [B, ...], from which metrics are
computed as for any task, and further scalars, which are metrics by their own name. What else it holds is not read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pipeline.data.tree import Tree, rows_of
from pipeline.errors import UserError, fault

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import Metric

Step = Callable[[nn.Module, tuple[Tree, Tree]], Mapping[str, Any]]

EXPECTED = '{"loss": a scalar tensor, ...}'


class CustomStep:
    """The forward pass of a task with a step: (outputs or None, loss). Raises UserError for an answer without loss."""

    __slots__ = ("step",)

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, model: nn.Module, inputs: Tree, targets: Tree) -> tuple[Tensor | None, Tensor]:
        given = answered(self.step(model, (inputs, targets)))
        return given.get("outputs"), given["loss"]


def answered(given: Any) -> Mapping[str, Any]:
    """What a step answered, if it can be used. Raises UserError for one without a scalar loss."""
    if not isinstance(given, Mapping):
        raise UserError(fault("task.step", "returns no dict", got=type(given).__name__, expected=EXPECTED))
    loss = given.get("loss")
    if loss is None:
        got = ", ".join(map(str, given)) or "an empty dict"
        raise UserError(fault("task.step", "returns no loss", got=got, expected=EXPECTED))
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(fault("task.step", "returns a loss that is no scalar", got=got, expected=EXPECTED))
    outputs = given.get("outputs")
    if outputs is not None and not isinstance(outputs, Tensor):
        got, expected = type(outputs).__name__, "one tensor [B, ...], or no outputs"
        raise UserError(fault("task.step", "returns outputs that are no tensor", got=got, expected=expected))
    return given


def scalars(given: Mapping[str, Any]) -> dict[str, Tensor | float]:
    """Every number that a step answered, by name, its loss among them."""
    return {
        str(name): value
        for name, value in given.items()
        if (isinstance(value, Tensor) and not value.ndim) or isinstance(value, int | float)
    }


def build_step(task: Mapping[str, Any], model: nn.Module | None, trust: Sequence[str]) -> Step | None:
    """The step of a `task` section, on the model's device; None where it asks for none.

    Raises UserError for what is no callable, and for a custom task without a step.
    """
    node = task.get("step")
    if not node:
        if task["kind"] == "custom":
            expected = "a _target_ (model, batch) -> {loss, ...}"
            raise UserError(fault("task.step", "a custom task needs a step", got=node, expected=expected))
        return None
    from pipeline.config.build import ALLOWED, build, locate

    name = node.get("_target_") if isinstance(node, Mapping) else None
    if isinstance(name, str) and inspect.isfunction(locate(name, (*ALLOWED, *trust), "task.step._target_")):
        node = {"_partial_": True, **node}  # a function takes (model, batch) later
    step: Any = build(dict(node) if isinstance(node, Mapping) else node, trust=trust, where="task.step")
    if not callable(step):
        expected = "(model, batch) -> {loss, ...}"
        raise UserError(fault("task.step", "is not callable", got=type(step).__name__, expected=expected))
    first = next(model.parameters(), None) if model is not None else None
    return step.to(first.device) if isinstance(step, nn.Module) and first is not None else step


def of_step(metric: Metric, given: Mapping[str, float]) -> float:
    """A metric as the scalar that the step gave by its name. Raises UserError where it gave none."""
    if metric.name in given:
        return given[metric.name]
    got = ", ".join(sorted(given))
    expected = f"a scalar '{metric.name}' among what the step returns"
    expected += "" if metric.needs == "step" else ", or the outputs to compute it from"
    raise UserError(fault(metric.where, f"task.step returns no '{metric.name}'", got=got, expected=expected))


def tried(
    step: Step, metrics: Sequence[Metric], model: nn.Module, inputs: Tree, targets: Tree
) -> tuple[Tensor | None, Tensor]:
    """One pass as training makes it, which also shows that every metric can be had. Raises UserError where not."""
    given = answered(step(model, (inputs, targets)))
    outputs, rows = given.get("outputs"), rows_of(inputs)
    if outputs is not None and (not outputs.ndim or len(outputs) != rows):
        got = f"shape {tuple(outputs.shape)} for {rows} rows"
        raise UserError(fault("task.step", "outputs have no batch dimension", got=got, expected=f"({rows}, ...)"))
    named = dict.fromkeys(scalars(given), 0.0)
    for metric in metrics:
        if metric.needs == "step" or outputs is None:
            of_step(metric, named)
        elif not isinstance(targets, Tensor):
            got, expected = type(targets).__name__, "one tensor of targets, or a scalar that the step returns"
            raise UserError(fault(metric.where, f"'{metric.name}' compares rows", got=got, expected=expected))
    return outputs, given["loss"]
