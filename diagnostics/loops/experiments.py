"""Controlled experiments on a loop of the user's own: a copy of the model is trained on the batches that were kept.

The copy begins with the first weights, has an optimizer of the same kind, and a training loop without faults. Each arm
changes one thing. What it is worth is its loss on kept batches that were left out, between that of the unchanged copy
and that of a reference: the same copy with Adam, and a small network with Adam.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.conditions import HistoryView
from diagnostics.diagnose import evaluate_playbooks, needs_mending
from diagnostics.loops.memory import LoopMemory, Loss
from pipeline.errors import FivegateError
from pipeline.experiments.arms.arm import Arm, Reason
from pipeline.experiments.result import ArmResult
from pipeline.experiments.verdict import CONFIRMED, SEEDS, Shortfall, judge
from pipeline.experiments.worker_process import Outcome
from pipeline.models.surgery import apply_surgery
from pipeline.repair.diagnosis_record import GapRecord
from pipeline.run_store.job import Delta, Job

FEWEST_BATCHES = 4
LEFT_OUT = 4  # every fourth batch is left out of training
CONTROL_SEEDS = (1, 2)
SECONDS = 20.0  # of processor time, of all experiments together
STEPS = (1280, 640, 320, 160, 80, 40)  # of one training, the first that fits into the time
TRAININGS = 25  # that are expected: controls, references, arms, and repetitions
WORTH = 0.25  # share of the reference's progress by which the copy must be behind it
LEFT, TIMES = 0.15, 3.0  # or the share of the first loss that it leaves, and how many times that of the reference it is
LEARNED = 0.97  # share of the first loss: a reference that ends above it has learned nothing
LOWER = (0.1, 0.01)  # times the rate
FAR_SPREAD = 4.0  # times the usual spread of 1
SMALL_BATCH, USUAL_BATCH = 8, 32
SATURATING = ("Sigmoid", "Tanh", "Softsign", "Hardsigmoid")
OF_MODEL_AND_OPTIMIZER = (
    "learning_rate_too_high", "learning_rate_too_low", "optimizer_mismatch", "weight_init_bad", "dead_relu",
    "hidden_activation_saturating", "inputs_not_normalized",
)  # fmt: skip
WHAT = "experiments on the loop"
LoopResults = tuple[list[ArmResult], list[GapRecord]]  # results, and what could not be tried


@dataclass(frozen=True)
class Change:
    """What an arm changes of the copy, its optimizer, or its batches."""

    rate: float = 1.0  # factor of the learning rate
    options: Mapping[str, Any] = field(default_factory=dict)  # of the optimizer
    surgery: Sequence[Mapping[str, Any]] = ()
    batches: int = 1  # that are joined into one
    standardize: bool = False
    standardize_targets: bool = False
    adam: bool = False
    model: Callable[[], nn.Module] | None = None


@dataclass(frozen=True)
class LoopCopy:
    """A loop as far as it was kept, with its highest rate and its losses; `steps` are those of one training."""

    model: nn.Module
    optimizer: Optimizer
    rate: float
    losses: Sequence[float]
    memory: LoopMemory
    loss: Loss
    steps: int = STEPS[-1]

    @property
    def train_batches(self) -> list[tuple[Tensor, Tensor]]:
        return [batch for i, batch in enumerate(self.memory.batches) if (i + 1) % LEFT_OUT]

    @property
    def left_out(self) -> list[tuple[Tensor, Tensor]]:
        return [batch for i, batch in enumerate(self.memory.batches) if not (i + 1) % LEFT_OUT]

    def fresh_copy(self) -> nn.Module:
        """Return the model with its first weights."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(dict(self.memory.weights), strict=False)
        return model

    def train(self, change: Change, seed: int, steps: int | None = None) -> float:
        """Return the loss on the batches that were left out after a training with this change."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = change.model() if change.model else apply_surgery(self.fresh_copy(), list(change.surgery))
            optimizer = self._optimizer(model, change)
            train, held_out = _joined(self.train_batches, change.batches), self.left_out
            shift, scale = _scaling([x for x, _ in train]) if change.standardize else (0.0, 1.0)
            centre, spread = _scaling([y for _, y in train]) if change.standardize_targets else (0.0, 1.0)
            model.train()
            order: list[int] = []
            for _ in range(self.steps if steps is None else steps):
                order = order or torch.randperm(len(train)).tolist()
                inputs, targets = train[order.pop()]
                optimizer.zero_grad()
                outputs = _outputs(model, (inputs - shift) / scale if change.standardize else inputs)
                loss = self.loss(outputs, (targets - centre) / spread if change.standardize_targets else targets)
                if not math.isfinite(loss.item()):
                    return math.nan
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            model.eval()
            with torch.no_grad():
                values = []
                for x, y in held_out:
                    outputs = _outputs(model, (x - shift) / scale if change.standardize else x)
                    outputs = outputs * spread + centre if change.standardize_targets else outputs
                    values.append(float(self.loss(outputs, y)))
        return sum(values) / len(values)

    def _optimizer(self, model: nn.Module, change: Change) -> Optimizer:
        trained = [p for p in model.parameters() if p.requires_grad]
        if change.adam or change.model:
            return torch.optim.Adam(trained, lr=3e-3)
        taken = signature(type(self.optimizer)).parameters
        # The constructor does not take every default: AdamW does not take `decoupled_weight_decay`.
        known = [key for key in self.optimizer.defaults if key in taken]
        options = {key: value for key, value in change.options.items() if key in known}
        moved = self.rate / max(float(self.optimizer.param_groups[0]["lr"]), 1e-30)  # back to the highest rate
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        left = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups: list[dict[str, Any]] = []
        for group in self.optimizer.param_groups:
            own = [left.pop(name) for p in group["params"] if (name := names.get(id(p), "")) in left]
            rate = float(group["lr"]) * moved * change.rate
            groups.append({**{key: group[key] for key in known}, **options, "params": own, "lr": rate})
        groups[0]["params"] += left.values()  # what the loop's optimizer does not have, or the change has made anew
        return type(self.optimizer)([group for group in groups if group["params"]], lr=self.rate)  # type: ignore[call-arg]


def experiment_on_loop(
    model: nn.Module, optimizer: Optimizer, memory: LoopMemory | None, view: HistoryView, loss: Loss | None = None
) -> LoopResults:
    """Return the results of the experiments that a loop affords, and what could not be tried, with the reason."""
    if not needs_mending(view, evaluate_playbooks(view)):
        return [], [{"what": WHAT, "why": "the run reaches its target or shows no symptom"}]
    if (why := _why_not(memory)) is not None or memory is None:
        return [], [{"what": WHAT, "why": why or ""}]
    known = memory.loss()
    compute = loss or (known[1] if known else None)
    if compute is None:
        why = "the loss of the first batch is none of torch's; give it: diagnose(experiments=True, loss=criterion)"
        return [], [{"what": WHAT, "why": why}]
    rate = max(view.curve("lr")[1].tolist(), default=optimizer.param_groups[0]["lr"])  # before a schedule moved it
    loop = LoopCopy(model, optimizer, float(rate), view.curve("train/loss")[1].tolist(), memory, compute)
    try:
        return _run_arms(loop)
    except (FivegateError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [], [{"what": WHAT, "why": f"a copy of the loop cannot be trained: {type(error).__name__}: {error}"}]


def _why_not(memory: LoopMemory | None) -> str | None:
    if memory is None:
        return "no weights were kept: the model is too large, or the Monitor has experiments=False"
    if len(memory.batches) < FEWEST_BATCHES:
        had = len(memory.batches)
        return f"{had} batches were kept, {FEWEST_BATCHES} are needed: monitor.step(loss, inputs, targets, outputs)"
    return None


def _run_arms(loop: LoopCopy) -> LoopResults:
    started = time.process_time()
    initial = loop.train(Change(), 1, steps=0)
    loop.train(Change(), 1, steps=5)
    seconds = max((time.process_time() - started) / 6, 1e-5)
    affordable = SECONDS / TRAININGS / seconds
    # One of a few lengths, so that two diagnoses on one machine make the same experiments.
    loop = replace(loop, steps=next((steps for steps in STEPS if steps <= affordable), STEPS[-1]))
    deadline = started + SECONDS
    controls = [loop.train(Change(), seed) for seed in CONTROL_SEEDS]
    references = [value for value in map(lambda change: _value(loop, change, 1), _references(loop)) if value == value]
    if not all(map(math.isfinite, controls)):  # a copy that diverges may need no more than a lower rate
        references += [value for rate in LOWER if (value := _value(loop, Change(rate=rate), 1)) == value]
    goal = min(references, default=math.nan)
    shortfall = Shortfall(tuple(controls), goal, initial, greater_is_better=False)
    if not goal < LEARNED * initial:
        what = f"neither a copy of the loop nor a reference learns its batches ({shortfall.control:.3g}, {goal:.3g})"
        return [], [{"what": WHAT, "why": what}]
    left_over = shortfall.control > LEFT * initial and shortfall.control > TIMES * goal
    end = median(loop.losses[-max(1, len(loop.losses) // 10) :] or [math.inf])
    if end <= goal:
        return _exonerated(loop, "the loop itself, at its end", end, goal), []
    if shortfall.control - goal < WORTH * (initial - goal) and not left_over:
        unchanged = "the unchanged model and optimizer in a loop without faults, on the kept batches"
        return _exonerated(loop, unchanged, sum(controls) / len(controls), goal), []
    results: list[ArmResult] = []
    for arm, change in _arms(loop):
        explained = any(result.verdict == "confirmed" for result in results)
        if arm.reason == "suspicion" and explained:
            continue
        if time.process_time() > deadline:
            break
        values = [_value(loop, change, 1)]
        if shortfall.restored(values[0]) >= CONFIRMED:
            values += [_value(loop, change, seed) for seed in range(2, SEEDS + 1)]
        results.append(judge(arm, [_outcome(value, loop.steps) for value in values], shortfall, whole=True))
    return results, []


def _exonerated(loop: LoopCopy, change: str, value: float, goal: float) -> list[ArmResult]:
    """Return results that refute causes in the model and the optimizer: the copy, or the loop, fits its train rows."""
    too_short = loop.steps > len(loop.losses)
    causes = [c for c in OF_MODEL_AND_OPTIMIZER if c != "learning_rate_too_low" or not too_short]
    return [
        ArmResult(
            id="unchanged_copy",
            causes=(cause,),
            change=change,
            expected="a higher loss than that of a reference",
            control=goal,
            observed=value,
            restored=None,
            verdict="refuted",
            seeds=len(CONTROL_SEEDS),
            steps=loop.steps,
            why=f"{value:.3g}, a reference {goal:.3g}: the cause is in the loop, its rows, or validation",
        )
        for cause in causes
    ]


def _value(loop: LoopCopy, change: Change, seed: int) -> float:
    """The loss of one training; NaN if the change does not fit this model."""
    try:
        return loop.train(change, seed)
    except (FivegateError, RuntimeError, ValueError):
        return math.nan


def _outcome(value: float, steps: int) -> Outcome:
    score = {"value": value} if math.isfinite(value) else None
    stopped = "done" if score else "nonfinite"
    return Outcome("arm", Job("", ""), {"score": score, "steps": steps, "stopped": stopped})


def _references(loop: LoopCopy) -> Iterator[Change]:
    """The same copy with Adam, and where rows and outputs are plain numbers a small network with Adam."""
    yield Change(adam=True)
    outputs, inputs = loop.memory.first_outputs, loop.memory.batches[0][0]
    if outputs is not None and inputs.is_floating_point() and outputs.ndim <= 2:
        features, width = inputs[0].numel(), outputs[0].numel() if outputs.ndim > 1 else 1
        squeeze = outputs.ndim == 1

        def network() -> nn.Module:
            layers = [nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, width)]
            return nn.Sequential(*layers, *([nn.Flatten(0)] if squeeze else []))

        yield Change(model=network)
        yield Change(model=network, standardize=True)


def _arms(loop: LoopCopy) -> Iterator[tuple[Arm, Change]]:
    """The arms that fit this loop: targets, rates, what is unusual in model and batches, and at last the optimizer."""
    group, rate = loop.optimizer.param_groups[0], loop.rate
    if _far_from_unit_scale(torch.cat([y for _, y in loop.memory.alike()])):
        change = Change(standardize_targets=True)
        yield _arm("standardized_targets", "targets_not_scaled", "targets standardized"), change
    for factor in (10.0, 0.1, 100.0, 0.01, 1000.0, 0.001):
        cause = "learning_rate_too_low" if factor > 1 else "learning_rate_too_high"
        yield _arm(f"rate_times_{factor:g}", cause, f"learning rate {rate:g} → {rate * factor:g}"), Change(rate=factor)
    dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in loop.model.modules())
    if group.get("weight_decay") or dropout:
        change = Change(options={"weight_decay": 0.0}, surgery=({"skip_dropout": {}},) if dropout else ())
        yield _arm("no_regularization", "regularization_too_strong", "without weight decay and dropout"), change
    yield (
        _arm("fresh_weights", "weight_init_bad", "weights initialized by torch's rules"),
        Change(surgery=({"reinitialize": {}},)),
    )
    rows = len(loop.memory.batches[0][0])
    if rows < SMALL_BATCH and len(loop.train_batches) * rows >= 2 * USUAL_BATCH:
        joined = max(2, USUAL_BATCH // rows)
        text = f"batches of {joined * rows} rows instead of {rows}"
        yield _arm("larger_batch", "batch_size_too_small", text), Change(batches=joined)
    if loop.memory.batches[0][0].is_floating_point():
        yield _arm("standardized_inputs", "inputs_not_normalized", "inputs standardized"), Change(standardize=True)
    for name in dict.fromkeys(type(m).__name__ for m in loop.model.modules()):
        if name in SATURATING:
            change = Change(surgery=({"swap_activation": {"from": name, "to": "ReLU"}},))
            yield _arm(f"relu_for_{name.lower()}", "hidden_activation_saturating", f"ReLU instead of {name}"), change
        if name == "ReLU":
            change = Change(surgery=({"swap_activation": {"from": "ReLU", "to": "LeakyReLU"}},))
            yield _arm("leaky_relu", "dead_relu", "LeakyReLU instead of ReLU"), change
    if not all(p.requires_grad for p in loop.model.parameters()):
        change = Change(surgery=({"keep_gradients": {}},))
        yield _arm("all_trained", "parameters_not_trained", "every parameter trained, and no detach"), change
    # The last two mend many loops, and are tried where nothing else does.
    wider = ({"widen": {"factor": 4}},)
    if _fits(loop, wider):
        yield _arm("wider", "model_too_small", "hidden layers four times as wide", "suspicion"), Change(surgery=wider)
    if not isinstance(loop.optimizer, torch.optim.Adam | torch.optim.AdamW):
        yield _arm("adam", "optimizer_mismatch", "Adam with rate 0.003", "suspicion"), Change(adam=True)


def _fits(loop: LoopCopy, surgery: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a change of the model can be made, and the model still takes its inputs."""
    try:
        with torch.no_grad():
            apply_surgery(loop.fresh_copy(), list(surgery))(loop.memory.batches[0][0])
    except Exception:  # a model of the user's own may fail in any way, and is then left as it is
        return False
    return True


def _far_from_unit_scale(targets: Tensor) -> bool:
    """Whether numeric targets have a mean or a spread that the outputs of a new model are far from."""
    if not targets.is_floating_point() or targets.numel() < 2:
        return False
    spread, mean = float(targets.std()), abs(float(targets.mean()))
    return spread > FAR_SPREAD or 0 < spread < 1 / FAR_SPREAD or mean > FAR_SPREAD * max(spread, 1.0)


def _arm(name: str, cause: str, change: str, reason: Reason = "general") -> Arm:
    return Arm(name, (cause,), f"{change}, on a copy of the loop", Delta(), reason=reason)


def _joined(batches: Sequence[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, Tensor]]:
    """Join every `count` batches into one; the last ones may be fewer."""
    if count == 1:
        return list(batches)
    groups = [batches[start : start + count] for start in range(0, len(batches), count)]
    return [(torch.cat([x for x, _ in group]), torch.cat([y for _, y in group])) for group in groups]


def _scaling(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column over all rows."""
    rows = torch.cat(list(batches))
    spread = rows.std(0)
    return rows.mean(0), torch.where(spread > 0, spread, torch.ones_like(spread))


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    outputs = model(inputs)
    return getattr(outputs, "logits", outputs)
