"""Outputs: can the last activation and the number of outputs give what the loss and the targets need?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.evaluation.task import loss_name
from pipeline.inspection import graph
from pipeline.inspection.finding import Finding, Measured, contradiction
from pipeline.inspection.subject import Subject
from pipeline.preprocess.modules import ScaledLoss

CLOSE = 1e-3  # of 1, for shares that add up to one
LEAST_REACHABLE = 0.9  # of the targets' variance; a run that reaches less cannot be good by definition
LOG_PROBABILITY_LOSSES = ("NLLLoss", "nll_loss")


def inspect_outputs(subject: Subject) -> Iterator[Finding | Measured]:
    """Yield what contradicts itself between the last weights, the last activation, the loss and the targets."""
    if subject.loss is None or subject.loss.grad_fn is None:
        return
    yield from _softmax_of_one_unit(subject)
    yield from _softmax_over_rows(subject)
    yield from _activation_twice(subject)
    yield from _log_probabilities(subject)
    yield from _width(subject)
    yield from _reach(subject)


def _split(subject: Subject) -> tuple[list[graph.Operation], list[graph.Operation]]:
    """Return the operations of the model behind its last weights, and those of the loss behind the outputs.

    Where the outputs are not known, all of them count as the loss's. There are none where the loss takes other outputs,
    as that of a generator takes those of its discriminator.
    """
    node = subject.loss.grad_fn if subject.loss is not None else None
    last = subject.outputs.grad_fn if subject.outputs is not None else None
    if node is not None and last is not None and not graph.reaches(node, last):
        return [], []
    of_loss = graph.operations_before_weights(node, until=last)
    return (graph.operations_before_weights(last) if last is not None else []), of_loss


def _length(operation: graph.Operation, outputs: Tensor | None) -> int | None:
    """Return how many values a softmax adds up to one, or None where it is not known."""
    if operation.size is not None or operation.axis is None or outputs is None:
        return operation.size
    return outputs.shape[operation.axis] if -outputs.ndim <= operation.axis < outputs.ndim else None


def _softmax_of_one_unit(subject: Subject) -> Iterator[Finding]:
    of_model, of_loss = _split(subject)
    for operation in (*of_model, *of_loss):
        if operation.name in (*graph.SOFTMAX, *graph.LOG_SOFTMAX) and _length(operation, subject.outputs) == 1:
            yield contradiction(
                "output_activation_mismatch",
                "softmax_of_one_unit",
                "A softmax is over an axis of one unit, so that its output is 1 for every row.",
                1,
                "units",
            )
            return


def _softmax_over_rows(subject: Subject) -> Iterator[Finding]:
    """A softmax along the batch makes the outputs of a row depend on the other rows."""
    outputs = subject.outputs
    if outputs is None or outputs.ndim != 2 or outputs.shape[0] == outputs.shape[1] or not subject.class_ids:
        return
    of_model, of_loss = _split(subject)
    for operations, cause, place in (
        (of_model, "output_activation_mismatch", "The model ends with a softmax"),
        (of_loss, "loss_reduction_or_sign", "The loss applies a softmax"),
    ):
        for operation in operations:
            if operation.name in (*graph.SOFTMAX, *graph.LOG_SOFTMAX) and operation.axis in (0, -2):
                sentence = f"{place} over the {len(outputs)} rows of a batch instead of over the classes."
                yield contradiction(cause, "softmax_over_rows", sentence)
                break


def _activation_twice(subject: Subject) -> Iterator[Measured]:
    """A softmax or sigmoid of the model's before a loss that applies it again squeezes all outputs together."""
    of_model, of_loss = ([o.name for o in operations] for operations in _split(subject))
    applied = [n for n in (*of_model, *of_loss) if n in (*graph.SOFTMAX, *graph.SIGMOID)]
    final = [n for n in of_loss if n in (*graph.LOG_SOFTMAX, *graph.LOSSES_WITH_SIGMOID)]
    shares = any(n in graph.SOFTMAX for n in applied)
    yield Measured("softmax_twice", float((shares and bool(final)) or applied.count("Softmax") > 1))
    sigmoid = any(n in graph.SIGMOID for n in of_model)
    yield Measured("sigmoid_before_softmax", float(sigmoid and any(n in graph.LOG_SOFTMAX for n in final)))
    yield Measured("sigmoid_twice", float(sigmoid and any(n in graph.LOSSES_WITH_SIGMOID for n in final)))
    by_hand = "Log" in of_loss and any(n in (*graph.SOFTMAX, *graph.SIGMOID, "Exp") for n in (*of_model, *of_loss))
    yield Measured("log_of_shares", float(by_hand))
    takes_logits = any(n in (*graph.LOG_SOFTMAX, *graph.LOSSES_WITH_SIGMOID) for n in of_loss)
    last = next((n for n in of_model if n in graph.RANGES), "")
    bounded = takes_logits and last in ("Relu", "Relu6", "Tanh", "Softplus", "Exp", "Hardtanh", "LogSigmoid")
    yield Measured("bounded_logits", float(bounded), where=last.lower() if bounded else "")


def _log_probabilities(subject: Subject) -> Iterator[Finding]:
    """`NLLLoss` takes log-probabilities, whose exponentials add up to one; anything else has no minimum."""
    task, outputs = subject.task, subject.outputs
    if task is None or task.step is not None or outputs is None or outputs.ndim < 2:
        return
    if loss_name(task.loss) in LOG_PROBABILITY_LOSSES:
        sums = outputs.detach().double().logsumexp(dim=1).exp()
        worst = float((sums - 1).abs().max())
        if worst > CLOSE:
            sentence = (
                f"{loss_name(task.loss)} takes log-probabilities, but the exponentials of a row's outputs add up to "
                f"{float(sums.flatten()[0]):.3g} instead of 1."
            )
            yield contradiction("loss_mismatch", "log_probabilities", sentence, worst, "of 1")


def _width(subject: Subject) -> Iterator[Finding]:
    """Class ids from 0 to the number of outputs minus 1 are the only ones that outputs can name."""
    outputs, targets = subject.outputs, subject.targets
    if not subject.class_ids or outputs is None or outputs.ndim != 2 or not len(targets):
        return
    classes, highest, lowest = outputs.shape[1], int(targets.max()), int(targets.min())
    if classes > 1 and highest >= classes:
        sentence = f"Class {highest} is among the targets, but {classes} outputs name the classes 0 to {classes - 1}."
        yield contradiction("output_width_mismatch", "width", sentence, highest, "class id")
    ignored = getattr(getattr(subject.task, "loss", None), "ignore_index", -100)
    if lowest < 0 and lowest != ignored:
        sentence = f"Class {lowest} is among the targets; class ids begin with 0."
        yield contradiction("labels_misencoded", "width", sentence, lowest, "class id")


def _reach(subject: Subject) -> Iterator[Finding | Measured]:
    """Compare the range of the last activation with the range of values that the outputs must take."""
    outputs, task = subject.outputs, subject.task
    if outputs is None or task is None or task.kind not in ("regression", "autoencoder") or task.step is not None:
        return
    of_model, of_loss = _split(subject)
    if any(operation.name in (*graph.LOG_SOFTMAX, *graph.LOSSES_WITH_SIGMOID) for operation in of_loss):
        return  # the outputs are logits, which have no unit of the targets
    last = next((operation.name for operation in of_model if operation.name in graph.RANGES), None)
    targets = subject.targets
    if last is None or not isinstance(targets, Tensor) or subject.outputs is None:
        return
    if isinstance(task.loss, ScaledLoss):
        targets = task.loss.standardize(targets)
    low, high = graph.RANGES[last]
    following = of_model[: [operation.name for operation in of_model].index(last)]
    if following:  # values are scaled or shifted after it
        return
    targets = targets.detach().double()
    reachable = targets.clamp(low, high)
    total = float((targets - targets.mean()).square().mean())
    lost = float((targets - reachable).square().mean()) / total if total > 0 else 0.0
    share = float((targets != reachable).double().mean())
    yield Measured("targets_out_of_reach", lost, where=last.lower())
    if 1 - lost < LEAST_REACHABLE and math.isfinite(lost):
        sentence = (
            f"The last activation ({last}) gives values from {low:g} to {high:g}, but {share:.0%} of the targets are "
            "outside of it."
        )
        yield contradiction("output_activation_mismatch", "reach", sentence, share, "share of targets")


def ideal_outputs(subject: Subject, targets: Tensor, wrong: Tensor | None = None) -> Tensor | None:
    """Return outputs [like the model's] that predict these targets with certainty; None where that is not known.

    With `wrong` [B] the rows that it marks predict something else: the next class, or a value far away.
    """
    task, outputs = subject.task, subject.outputs
    if task is None or task.step is not None or outputs is None or len(outputs) != len(targets):
        return None
    marked = torch.zeros(len(targets), dtype=torch.bool) if wrong is None else wrong
    if subject.class_ids and outputs.ndim == 2 and outputs.shape[1] > 1:
        classes = outputs.shape[1]
        if int(targets.min()) < 0 or int(targets.max()) >= classes:
            return None
        named = torch.where(marked, (targets + 1) % classes, targets)
        return _as_taken(torch.nn.functional.one_hot(named, classes).double() * 12 - 6, task.takes)
    if task.kind in ("binary", "multilabel") and outputs.numel() == targets.numel():
        values = targets.reshape(outputs.shape).double()
        shaped = marked.reshape(-1, *[1] * (outputs.ndim - 1))
        return _as_taken(torch.where(shaped, 1 - values, values) * 12 - 6, task.takes)
    if task.kind == "regression" and outputs.numel() == targets.numel():
        values = targets.reshape(outputs.shape).double()
        spread = float(values.std()) or 1.0
        return torch.where(marked.reshape(-1, *[1] * (outputs.ndim - 1)), values + 3 * spread, values)
    return None


def _as_taken(logits: Tensor, takes: str) -> Tensor:
    """Return logits as what the loss takes: logits, probabilities or log-probabilities."""
    single = logits.ndim == 1 or logits.shape[1] == 1
    if takes == "probabilities":
        return logits.sigmoid() if single else logits.softmax(1)
    if takes == "log_probabilities":
        return logits.log_softmax(1)
    return logits
