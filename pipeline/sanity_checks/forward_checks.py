"""Forward checks: what a few forward and backward passes show about a model. No weight changes."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.data.tree import to_device
from pipeline.engine.setup import TrainingComponents
from pipeline.error_attribution import attributed_step
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import call_in_eval_mode, eval_mode, forward, loss_and_metrics, model_device
from pipeline.evaluation.step import validate_step_output
from pipeline.inspection.weights import unregistered_parameters
from pipeline.runtime.backward import backward
from pipeline.runtime.seeds import derive, reseed
from pipeline.sanity_checks.context import CheckContext, NotApplicable

MAX_BATCHES = 8  # before a parameter counts as one without gradient: a ReLU may be silent on a single batch
ROWS = 8
MIN_SPREAD = 1e-3  # of the outputs' size; changes of nearly constant outputs are compared with this instead


class GradientFlowResult(TypedDict):
    parameters: int
    silent: dict[str, str]
    share: float
    batches: int


class EvalDeterminismResult(TypedDict):
    rows: int
    differing: int
    of: str


class BatchIndependenceResult(TypedDict):
    rows: int
    difference: float
    alone: float
    alone_fails: str


class ParametersPerRowResult(TypedDict):
    parameters: int
    rows: int
    per_row: float
    per_target: float


def gradient_flow(context: CheckContext) -> GradientFlowResult:
    """Return the parameters that are not trained: `none` (not in the loss's graph), `zero`, or `unregistered`.

    An unregistered one gets a gradient, but is in a plain list, tuple or dict: the model does not know it, and no
    optimizer gets it.
    """
    with context.training_conditions() as setup:
        model = context.model
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        unregistered = unregistered_parameters(model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        silent, batches = dict.fromkeys(trainable, "none"), 0
        setup.batches.start()
        try:
            model.train()
            for batches, group in enumerate(setup.batches.accumulation_groups(1), start=1):
                reseed(derive(context.seed, "proof.gradients", batches), setup.device, global_rng=True)
                for parameter in (*trainable.values(), *unregistered.values()):
                    parameter.grad = None
                with attributed_step(model, setup.task):
                    with setup.autocast():
                        _, loss = setup.task.forward(model, group[0].inputs, group[0].targets)
                    backward(setup.loss_scale.scaled(loss) if setup.loss_scale else loss)
                silent = {name: _gradient_state(trainable[name], state) for name, state in silent.items()}
                silent = {name: state for name, state in silent.items() if state}
                if not silent or batches == MAX_BATCHES:
                    break
        finally:
            setup.batches.close()
            unregistered = {name: p for name, p in unregistered.items() if p.grad is not None}
            for parameter in (*trainable.values(), *unregistered.values()):
                parameter.grad = None
            with torch.no_grad():
                for name, buffer in model.named_buffers():  # a pass in train mode changes running statistics
                    buffer.copy_(before.get(name, buffer))
    trainable |= unregistered
    silent |= dict.fromkeys(unregistered, "unregistered")
    total = sum(p.numel() for p in trainable.values())
    share = sum(trainable[name].numel() for name in silent) / max(1, total)
    return {"parameters": len(trainable), "silent": silent, "share": share, "batches": batches}


def _gradient_state(parameter: Tensor, until_now: str) -> str:
    """Return `until_now` for a parameter without a gradient, `zero` for one of zeros, else an empty string."""
    if parameter.grad is None:
        return until_now
    gradient = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
    return "" if bool((gradient != 0).any()) else "zero"


def _outputs(context: CheckContext, setup: TrainingComponents, rows: Split, draw: str) -> Tensor | None:
    """Return the outputs for these rows in eval mode, with random numbers seeded by `draw`; None if a step has none."""
    reseed(derive(context.seed, draw), setup.device, global_rng=True)
    if setup.task.step is None:
        return forward(context.model, rows.X).detach().cpu().double()
    device = model_device(context.model)
    with eval_mode(context.model), attributed_step(context.model, setup.task):
        batch = to_device(rows.X, device), to_device(setup.task.user_targets(rows.y), device)
        result = validate_step_output(call_in_eval_mode(setup.task.step, context.model, batch))
    outputs: Tensor | None = result.get("outputs")
    return None if outputs is None else outputs.detach().cpu().double()


def eval_determinism(context: CheckContext) -> EvalDeterminismResult:
    """Evaluate the same validation rows twice in eval mode and count the rows whose outputs differ."""
    rows = context.data.val.take(torch.arange(min(8 * ROWS, len(context.data.val))))
    with context.training_conditions() as setup:
        first, second = (_outputs(context, setup, rows, f"proof.eval/{turn}") for turn in (1, 2))
        if first is None or second is None:
            results = [_loss_and_metrics(context, setup, rows, f"proof.eval/{turn}") for turn in (1, 2)]
            differing = int(results[0] != results[1]) * len(rows)
            return {"rows": len(rows), "differing": differing, "of": "loss and metrics"}
    if first.shape != second.shape:
        return {"rows": len(rows), "differing": len(rows), "of": "shape of the outputs"}
    same = (first == second) | (first.isnan() & second.isnan())
    differing = int((~same).flatten(1).any(1).sum()) if same.ndim > 1 else int((~same).sum())
    return {"rows": len(rows), "differing": differing, "of": "outputs"}


def _loss_and_metrics(context: CheckContext, setup: TrainingComponents, rows: Split, draw: str) -> str:
    reseed(derive(context.seed, draw), setup.device, global_rng=True)
    result = loss_and_metrics(context.model, rows.X, rows.y, setup.task)
    return repr((result.loss, sorted(result.metrics.items())))  # as text, in which NaN equals NaN


def batch_independence(context: CheckContext) -> BatchIndependenceResult:
    """Check that a row's outputs in eval mode do not depend on the other rows of its batch.

    `difference`: the largest change of a row's outputs when all other rows are replaced; `alone`: when it is the only
    row. Both are relative to the spread of outputs over rows. The first and the last row are checked, since an
    operation along the batch (a cumulative sum, a recurrent net with swapped dimensions) may reach only one of them.
    `alone_fails` is the error of a model that cannot take a batch of one row.
    """
    val, count = context.data.val, min(ROWS, len(context.data.val) // 2)
    if count < 2:
        raise NotApplicable("validation has too few rows to replace")
    with context.training_conditions() as setup:
        outputs = _outputs(context, setup, val.take(torch.arange(count)), "proof.rows")
        if outputs is None:
            raise NotApplicable("the step returns no outputs")
        repeated = _outputs(context, setup, val.take(torch.arange(count)), "proof.rows/again")
        if repeated is None or not torch.equal(outputs, repeated):
            raise NotApplicable("the outputs are not deterministic, or not finite")
        difference, alone, alone_fails = 0.0, 0.0, ""
        for row in (0, count - 1):
            order = torch.arange(count) + count
            order[row] = row
            among_others = _outputs(context, setup, val.take(order), "proof.rows")
            assert among_others is not None
            difference = max(difference, _relative_change(outputs, row, among_others[row : row + 1]))
            try:
                single = _outputs(context, setup, val.take(torch.tensor([row])), "proof.rows")
                assert single is not None
                alone = max(alone, _relative_change(outputs, row, single))
            except (UserError, ValueError) as error:
                alone_fails = str(error)
    return {"rows": count, "difference": difference, "alone": alone, "alone_fails": alone_fails}


def _relative_change(outputs: Tensor, row: int, changed: Tensor) -> float:
    """Return the largest change of a row's outputs over the spread of rows. Raises ValueError for another shape."""
    if changed.shape != outputs[row : row + 1].shape:
        shapes = f"{tuple(changed.shape)}, not {tuple(outputs[row : row + 1].shape)}"
        raise ValueError(f"one row gives outputs of shape {shapes}")
    spread = max(float((outputs - outputs.mean(0)).abs().max()), MIN_SPREAD * float(outputs.abs().max()))
    change = float((changed - outputs[row : row + 1]).abs().max())
    return change / spread if spread else float(change > 0)


def parameters_per_row(context: CheckContext) -> ParametersPerRowResult:
    """Return the number of trainable parameters per train row, and per target value."""
    parameters = sum(p.numel() for p in context.setup.model.parameters() if p.requires_grad)
    rows, targets = len(context.data.train), context.data.train.y.numel()
    return {
        "parameters": parameters,
        "rows": rows,
        "per_row": parameters / rows,
        "per_target": parameters / max(1, targets),
    }
