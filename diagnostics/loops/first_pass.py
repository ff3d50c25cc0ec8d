"""What a copy of a loop's model shows: its first pass, module by module, and two answers to one batch in eval mode."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.loops.judgement import SURE
from diagnostics.loops.memory import LoopMemory
from pipeline.inspection.activations import inspect_activations
from pipeline.inspection.attention import inspect_axes, sees_the_future
from pipeline.inspection.finding import Finding, judge, unusual
from pipeline.inspection.settings import inspect_regularizers
from pipeline.inspection.subject import Subject, pass_once

ROWS = 128  # of the pass that is looked at
RANDOM = 0.05  # share of the spread of outputs that is more than rounding
SHIFTED = 0.98  # of the targets that are the next token of their row


def inspect_copy(model: nn.Module, memory: LoopMemory) -> list[Finding]:
    """Return what copies of a model show: with its first weights, as in `inspect_training`, and with those of now."""
    findings: list[Finding] = []
    try:
        with warnings.catch_warnings(action="ignore"):  # of shapes that broadcast, which the loop has seen itself
            subject = _observe(model, memory)
        future = sees_the_future(subject) if _predicts_next_token(memory) else ()
        for result in (*inspect_axes(subject), *future, *inspect_activations(subject), *inspect_regularizers(subject)):
            if isinstance(result, Finding):
                findings.append(result)
            elif result.quantity == "affine_model" and result.value:
                sentence = "Several layers compute an affine function of the inputs, as one layer would."
                findings.append(unusual("hidden_activation_missing", result.quantity, sentence, SURE, result.value))
            else:
                findings += judge(result)
    except Exception:  # a model of the user's own may fail in any way, and does so in the loop if it matters there
        findings = []
    spread = spread_of_answers(model, memory.inputs[0])
    if spread > RANDOM:
        sentence = (
            f"In eval mode, two forward passes of the same batch differ by {spread:.0%} of the outputs' spread: "
            "something random stays on in validation, as F.dropout does without training=self.training."
        )
        findings += [unusual("eval_mode_missing", "answers_in_eval_mode", sentence, SURE, spread, "of the spread")]
    return findings


@torch.no_grad()
def spread_of_answers(model: nn.Module, inputs: Tensor) -> float:
    """Return how much two answers of a model in eval mode differ, as a share of the outputs' standard deviation.

    0 if the model does not take the inputs alone or does not return a tensor.
    """
    try:
        evaluated = copy.deepcopy(model).eval()
        with torch.random.fork_rng():
            first, second = evaluated(inputs), evaluated(inputs)
    except Exception:  # a model of the user's own may fail in any way
        return 0.0
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.numel() < 2:
        return 0.0
    spread = float((first - second).float().std() / first.float().std().clamp_min(1e-12))
    return spread if math.isfinite(spread) else 0.0


def _observe(model: nn.Module, memory: LoopMemory) -> Subject:
    """Pass rows through a copy of the model as it was at first, with gradients where the loss is known."""
    first = copy.deepcopy(model)
    first.load_state_dict(dict(memory.weights), strict=False)
    inputs, targets = memory.inputs[0], None
    if memory.batches:
        batches = memory.alike()[: max(1, ROWS // max(1, len(inputs)))]
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    known = memory.loss()

    def forward() -> tuple[Any, Tensor | None]:
        outputs = first(inputs)
        return outputs, known[1](outputs, targets) if known is not None and targets is not None else None

    with torch.enable_grad():
        outputs, loss, calls, gradients = pass_once(first, forward)
    return Subject(first, inputs, targets, outputs, loss, calls=calls, gradients=gradients)


def _predicts_next_token(memory: LoopMemory) -> bool:
    if not memory.batches:
        return False
    ids, targets = memory.batches[0]
    if ids.ndim != 2 or ids.is_floating_point() or targets.is_floating_point() or ids.shape[1] < 2:
        return False
    return targets.shape == ids.shape and float((targets[:, :-1] == ids[:, 1:]).float().mean()) > SHIFTED
