"""All inspections of one training: what is wrong by definition, and what is unusual beside healthy trainings.

Nothing is trained, and neither weights nor random numbers change. An inspection that fails says why and takes no other
one with it, since a model, a loss and data of the user's own may fail in any way.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.tree import Tree, leaves, map_leaves, tensors, to_device
from pipeline.error_attribution import reraise_stop, text_of
from pipeline.evaluation.evaluate import eval_mode
from pipeline.inspection.activations import inspect_activations
from pipeline.inspection.attention import inspect_attention, inspect_axes
from pipeline.inspection.evaluation import inspect_metric, inspect_modes
from pipeline.inspection.finding import Finding, Inspections, Measured, NotChecked, contradiction, judge
from pipeline.inspection.losses import inspect_loss
from pipeline.inspection.outputs import inspect_outputs
from pipeline.inspection.rows import inspect_order, inspect_rows, inspect_targets
from pipeline.inspection.settings import inspect_settings, inspect_update
from pipeline.inspection.subject import Subject, observe, untouched
from pipeline.inspection.weights import inspect_membership, inspect_weights
from pipeline.results import counted

if TYPE_CHECKING:
    from pipeline.data.dataset import Data
    from pipeline.engine.setup import TrainingComponents

ROWS = 256  # of the forward pass at most
AUGMENTED_ROWS = 600
ROWS_SECONDS = 1.0  # that a comparison of the splits may take

DEPTH = (
    "rows_apart", "rows_apart_saturating", "first_over_last_gradient", "first_over_last_gradient_saturating",
)  # fmt: skip
WEIGHTS = (*DEPTH, "dead_at_start", "reach_of_updates", "affine_model")
EXPLAINED = {  # by inspection, what it explains
    "inputs_normalized_twice": WEIGHTS,
    "splits_told_apart": ("augmented_told_apart", "signal_missing_in_train", "signal_reduced_in_train"),
    "signal_missing_in_train": ("accuracy_gained_on_validation",),
    "dead_at_start": (*DEPTH, "reach_of_updates"),
    "units_alike": WEIGHTS,
    "weights_zero": WEIGHTS,
    "gain_low": DEPTH,
    "gain_high": (*DEPTH, "saturated_at_start"),
    "batch_share": ("updates",),
    "train_rows": ("updates", "batch_share", "reach_of_updates", "epochs"),
    "loss_growth": ("first_update_ratio",),
    "first_layer_rms": ("first_update_ratio", "saturated_at_start"),
    "feature_lost_on_validation": ("accuracy_lost_on_validation",),
    "trained_rows_told_apart": ("signal_in_features", "signal_in_labels"),
    "extreme_targets": ("target_spread_low", "target_spread_high", "target_mean_over_one"),
    "accuracy_by_exchanging_classes": ("accuracy_lost_on_validation",),
}

Yields = Iterator[Finding | Measured]
Found = tuple[list[Finding], list[Measured], list[NotChecked]]


def inspect_training(
    setup: TrainingComponents, data: Data, measured: Sequence[Measured] = (), seconds: float = math.inf
) -> tuple[Inspections, list[Measured]]:
    """Inspect a training before its first step; return the findings, and everything that was measured.

    `measured` are quantities that others measured, which are judged with the rest. `seconds` are left for it: without
    them the rows of the splits are not compared, which takes nearly all the time.
    """
    collected: Found = ([], [*measured], [])
    with untouched(setup.model):  # also by a batch norm that stays in training mode when the model is evaluated
        _inspect_training(setup, data, seconds, collected)
    return _conclude(collected), collected[1]


def _inspect_training(setup: TrainingComponents, data: Data, seconds: float, collected: Found) -> None:
    subject = _attempt("forward pass", lambda: _observe(setup, data), collected)
    if subject is not None:
        _collect(_inspections_of_model(subject), collected)
        _collect(
            {
                "settings": lambda: inspect_settings(subject, setup),
                "modes": lambda: inspect_modes(subject, setup),
                "metric": lambda: inspect_metric(subject),
                "targets": lambda: inspect_targets(subject),
            },
            collected,
        )
    kind = setup.task.kind
    of_rows: dict[str, Callable[[], Yields]] = {
        "finite values": lambda: _inspect_values(setup, subject),
        "finite rows": lambda: _inspect_finite(setup, data),
        "order of rows": lambda: inspect_order(setup),
    }
    if seconds >= ROWS_SECONDS:
        of_rows["rows"] = lambda: inspect_rows(data.train, data.val, _augmented(setup), kind)
    else:
        collected[2].append(NotChecked("rows", f"time: {max(0.0, seconds):.1f} s of the allowance are left"))
    _collect(of_rows, collected)


def inspect_model(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    inputs: Tree = None,
    targets: Tree = None,
    outputs: Tensor | None = None,
    loss: Tensor | None = None,
) -> Inspections:
    """Inspect a model in a training loop of the user's own, with a batch and its loss, best before the first update.

    `backward` may have been called: the gradients are inspected then, and the graph of the loss still says which
    operations it consists of. Without a loss only the weights and their membership in the optimizer are inspected.
    """
    collected: Found = ([], [], [])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    subject = Subject(model, inputs, targets, outputs, loss, optimizer, gradients=gradients)
    inspections = _inspections_of_model(subject)
    inspections["targets"] = lambda: inspect_targets(subject)
    if optimizer is not None and gradients:
        inspections["update"] = lambda: inspect_update(subject, optimizer, None, None)
    if loss is None or loss.grad_fn is None:
        inspections = {name: inspections[name] for name in ("weights", "membership")}
        collected[2].append(NotChecked("outputs", "there is no loss with its graph"))
    _collect(inspections, collected)
    return _conclude(collected)


def _inspections_of_model(subject: Subject) -> dict[str, Callable[[], Yields]]:
    return {
        "membership": lambda: inspect_membership(subject.model, subject.optimizer),
        "weights": lambda: inspect_weights(subject),
        "outputs": lambda: inspect_outputs(subject),
        "loss": lambda: inspect_loss(subject),
        "axes": lambda: inspect_axes(subject),
        "attention": lambda: inspect_attention(subject),
        "activations": lambda: inspect_activations(subject),
    }


def _observe(setup: TrainingComponents, data: Data) -> Subject:
    """Return the model with one batch of train rows, not augmented, so that all rows of the batch are known."""
    generator = torch.Generator().manual_seed(0)
    rows = data.train.take(torch.randperm(len(data.train), generator=generator)[:ROWS])
    inputs = to_device(rows.X, setup.device)
    trial = None if setup.task.step is not None else _outputs(setup, map_leaves(lambda leaf: leaf[:2], inputs))
    targets = setup.task.loss_targets(to_device(rows.y, setup.device), trial)
    with setup.autocast():
        return observe(setup.model, setup.task, inputs, targets, setup.optimizer)


def _outputs(setup: TrainingComponents, inputs: Tree) -> Tensor | None:
    """Return the outputs of some rows in eval mode; None if they are no tensor."""
    with eval_mode(setup.model):
        outputs = setup.model(inputs)
    return outputs if isinstance(outputs, Tensor) else None


def _inspect_values(setup: TrainingComponents, subject: Subject | None) -> Yields:
    """Outputs that half precision alone makes infinite, and a loss that is not finite for finite outputs."""
    if subject is None or subject.outputs is None or subject.loss is None:
        return
    if not all(bool(torch.isfinite(part).all()) for part in tensors((subject.inputs, subject.targets))):
        return  # the rows are at fault
    if not bool(torch.isfinite(subject.outputs).all()):
        full = observe(setup.model, setup.task, subject.inputs, subject.targets, None)
        if full.outputs is not None and bool(torch.isfinite(full.outputs).all()):
            precision = setup.config.trainer.precision
            sentence = f"The outputs of the first batch are finite in full precision and not in {precision}."
            yield contradiction("precision_overflow", "finite_values", sentence)
    elif not bool(torch.isfinite(subject.loss)):
        sentence = f"The loss of the first batch is {float(subject.loss)} although its outputs and targets are finite."
        yield contradiction("loss_numerically_unstable", "finite_values", sentence)


def _inspect_finite(setup: TrainingComponents, data: Data) -> Yields:
    """Rows with NaN or infinity, for which the model has no finite outputs, spoil every batch that they are in."""
    parts = [leaf.reshape(len(leaf), -1) for leaf in leaves(data.train.X) if leaf.is_floating_point() and leaf.numel()]
    if not parts or setup.task.step is not None:
        return
    broken = torch.cat([~torch.isfinite(part).all(dim=1, keepdim=True) for part in parts], 1).any(dim=1)
    rows = broken.nonzero().flatten()
    if not len(rows):
        return
    outputs = _outputs(setup, to_device(data.train.take(rows[:2]).X, setup.device))
    if outputs is not None and not bool(torch.isfinite(outputs).all()):
        sentence = (
            f"{counted(len(rows), 'train row')} with NaN or infinity, the first is row {int(rows[0])}: the model's "
            "outputs are not finite there."
        )
        yield contradiction("nonfinite_inputs", "finite_rows", sentence, float(len(rows)), "rows")


def _augmented(setup: TrainingComponents) -> tuple[Tree, Tensor] | None:
    """Return train rows as the model receives them; None where that is how the split has them."""
    if not setup.config.loader.augment or setup.train.dataset is not None:
        return None
    parts, count = [], 0
    for group in setup.batches.accumulation_groups(1):
        for batch in group:
            parts.append(batch)
            count += len(batch)
        if count >= AUGMENTED_ROWS:
            break
    inputs = [batch.inputs for batch in parts]
    if not all(isinstance(part, Tensor) for part in inputs):
        return None
    rows = torch.cat([torch.as_tensor(batch.rows) for batch in parts])
    return torch.cat(inputs).cpu(), setup.train.y[rows]


def _sided(finding: Finding) -> str:
    """Return the key of what a finding explains: its cause where the inspection has two sides, else the inspection."""
    return finding.cause if finding.cause == "inputs_normalized_twice" else finding.inspection


def _attempt(what: str, call: Callable[[], Subject], collected: Found) -> Subject | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except BaseException as error:
        reraise_stop(error)
        collected[2].append(NotChecked(what, text_of(error)))
        return None


def _collect(inspections: dict[str, Callable[[], Yields]], collected: Found) -> None:
    """Run inspections one by one, and record why one has no answer."""
    findings, measured, not_checked = collected
    for name, inspection in inspections.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for result in inspection():
                    if isinstance(result, Finding):
                        findings.append(result)
                    else:
                        measured.append(result)
        except BaseException as error:
            reraise_stop(error)
            not_checked.append(NotChecked(name, text_of(error)))


def _conclude(collected: Found) -> Inspections:
    findings, measured, not_checked = collected
    every: Sequence[Finding] = [*findings, *itertools.chain.from_iterable(map(judge, measured))]
    return Inspections(without_explained(every), tuple(not_checked))


def without_explained(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, most abnormal first; of one inspection and cause only the most abnormal one.

    What another finding explains is left out: rows that hardly differ in tiny inputs say nothing about the depth.
    """
    best: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = finding.cause, finding.inspection
        if key not in best or finding.abnormality > best[key].abnormality:
            best[key] = finding
    names = {finding.inspection for finding in best.values()}
    explained = {name for finding in best.values() for name in EXPLAINED.get(_sided(finding), ()) if name in names}
    remaining = [finding for finding in best.values() if finding.inspection not in explained]
    return tuple(sorted(remaining, key=lambda f: (f.kind != "definition", -f.abnormality)))
