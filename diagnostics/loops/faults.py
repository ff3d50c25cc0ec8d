"""Faults of a training loop, from what the Monitor saw of it.

A finding is a `definition` where the loop contradicts itself, such as a step with gradients of the step before. What
some loops do on purpose, such as adding losses up, is an abnormality in a run without a symptom, which is not accused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from diagnostics.diagnose import evaluate_playbooks, needs_mending, view_of
from diagnostics.loops.judgement import LIKELY, SURE, listed, without_refuted
from diagnostics.loops.memory import LoopMemory
from diagnostics.loops.output_gradient import CLOSE
from diagnostics.loops.schedules import schedule_findings
from diagnostics.loops.watch import FIRST_UPDATES, LoopWatch
from pipeline.history import History
from pipeline.inspection.finding import Finding, Measured, contradiction, judge, unusual

SAME = 1e-4  # relative difference of two norms of the same gradient
LEAST_CLIP = 2e-3  # no loop clips the norm of a gradient to less; a bound of 1 over a loss scale of 65536 is less
TWICE = ("softmax_twice", "sigmoid_twice")  # what some healthy runs do, but none that learns too little
CAUGHT_UP, LEAST_UPDATES = 0.9, 100  # share of the way of running statistics; updates before it is judged
FORGETS = 0.5  # momentum of a batch norm: the share of the latest batch in its running statistics
SCALED = 16  # times: a loss that is multiplied by so much carries the scale of half precision
WRITES = (3, 4)  # of a parameter: by its layer, a checkpoint, and what came after; steps of an optimizer are more
MOVED = 0.5  # standard deviations by which frozen statistics have moved if the batches are other ones than before
CLIPPED = (0.1, 0.02)  # share of the gradient norm that is left by a tight clip bound, and by one far too tight
GUESSES = 0.9  # share of the loss of guessing from which on a model knows nothing


def loop_findings(
    watch: LoopWatch,
    history: History,
    config: Mapping[str, Any] | None = None,
    memory: LoopMemory | None = None,
    inspected: Iterable[Finding] = (),
) -> tuple[Finding, ...]:
    """Return the faults of a loop, certain ones first; the target in `config` tells whether the run is good enough.

    The batches in `memory` are looked at, too, and `inspected` is what the first step showed.
    """
    from pipeline.inspection.inspect import without_explained  # it imports all inspections

    findings = [*inspected]
    for inspection in (_not_zeroed, _without_gradient, _left_out, _frozen, _evaluation, _workers, _scaling, _half):
        findings += inspection(watch)
    if missing := list(_missing_values(watch, history)):  # whatever its gradients are, they say nothing of the loop
        findings = [*missing, *(finding for finding in findings if finding.inspection != "gradients_nonzero")]
    findings += [*_clipping(watch, history), *_resume(watch), *_overwritten(watch, history)]
    findings += [*_not_loaded(watch, history), *_running_statistics(watch, history)]
    findings += [*schedule_findings(watch.schedules, watch.optimizer, history, watch.epochs)]
    if memory is not None:
        from diagnostics.loops.kept_batches import kept_findings

        findings += kept_findings(watch.model, memory, history)
    findings = without_refuted(findings, history)
    certain = [finding for finding in findings if finding.abnormality == SURE or finding.inspection in TWICE]
    if certain:
        view = view_of(history, config)
        if needs_mending(view, evaluate_playbooks(view)):
            findings = [replace(f, kind="definition", abnormality=1.0) if f in certain else f for f in findings]
    return without_explained(findings)


def _not_zeroed(watch: LoopWatch) -> Iterator[Finding]:
    """The first backward after a step finds the gradients of that step, and nothing clears them before the next."""
    intervals = [[float(ratio) for ratio in interval] for interval in watch.leftovers]
    kept = [r for r in intervals if r and abs(r[0] - 1) < SAME and all(ratio > 0 for ratio in r)]
    if len(kept) == len(intervals) == FIRST_UPDATES - 1:
        sentence = (
            "The gradients of an update are still there when the next backward pass adds its own, and nothing clears "
            "them before the next step: optimizer.zero_grad() is missing."
        )
        yield contradiction("gradients_not_zeroed", "gradients_cleared", sentence)


def _missing_values(watch: LoopWatch, history: History) -> Iterator[Finding]:
    steps = [step for step, missing in watch.missing_values if bool(missing)]
    broken = [event["step"] for event in history.events if event["kind"] == "nonfinite"]
    if not steps and broken and history.facts.get("batch_nonfinite", 0) > 0:
        steps = broken[:1]
    if steps:
        sentence = f"The batch of step {steps[0]} holds NaN or infinity before the model has seen it."
        yield contradiction("nonfinite_inputs", "finite_batch", sentence, float(len(steps)), "batches")


def _without_gradient(watch: LoopWatch) -> Iterator[Finding]:
    """Parameters that the optimizer has and that no backward pass reaches."""
    if len(watch.silent) < FIRST_UPDATES or not watch.trained:
        return
    silent = set.intersection(*watch.silent)
    if len(silent) == len(watch.trained):
        sentence = (
            f"No parameter has a gradient when the optimizer steps, {FIRST_UPDATES} times in a row: the loss is "
            "detached from the model, or backward is not called."
        )
        yield contradiction("parameters_not_trained", "gradients_exist", sentence, 1.0, "share of parameters")
    elif watch.norms and len(watch.norms) >= FIRST_UPDATES and not any(map(float, watch.norms.values())):
        sentence = (
            "The gradients of all parameters are exactly 0 at every step that was looked at: they are cleared between "
            "backward and the step, or the loss goes through a step function such as round or argmax."
        )
        yield contradiction("parameters_not_trained", "gradients_nonzero", sentence, 1.0, "share of parameters")
    elif silent:
        share = sum(p.numel() for n, p in watch.trained if n in silent) / sum(p.numel() for _, p in watch.trained)
        yield from judge(Measured("share_silent", share, listed(sorted(silent))))


def _left_out(watch: LoopWatch) -> Iterator[Finding]:
    """Parameters that are not in the optimizer and that do not change; without the head, this is not a choice."""
    names = [name for name, p, version in watch.left_out if p._version == version]
    if not watch.trained or not names or len(names) < len(watch.left_out):
        return  # another optimizer has them
    rest = sum(p.numel() for _, p, _ in watch.left_out)
    share = rest / (rest + sum(p.numel() for _, p in watch.trained))
    sentence = f"{share:.0%} of the trainable parameters are not in the optimizer ({listed(names)}) and never change."
    abnormality = SURE if watch.last in names else LIKELY
    yield unusual("parameters_not_trained", "left_out", sentence, abnormality, share, "share of parameters", names[0])


def _frozen(watch: LoopWatch) -> Iterator[Finding]:
    """Parameters that were to stay as they are and do not."""
    cause, parts = "frozen_parameters_trained", watch.frozen
    attribute, pretended = parts.seemingly_frozen()
    if pretended:
        sentence = (
            f"`{attribute}` freezes nothing: {listed(pretended)} are trained. Call requires_grad_(False), or set "
            "requires_grad of each parameter."
        )
        yield contradiction(cause, "frozen_by_name", sentence, float(len(pretended)), "tensors", pretended[0])
    if parts.changed:
        names = sorted(parts.changed)
        sentence = f"The optimizer changes {listed(names)}, though requires_grad is False there."
        yield contradiction(cause, "frozen_stay", sentence, float(len(names)), "tensors", names[0])
    if parts.thawed:
        sentence = (
            f"{listed(parts.thawed)} were frozen when the training was set up, and are trained from the first update "
            "on: something sets requires_grad to True again."
        )
        yield unusual(cause, "frozen_at_first", sentence, SURE, float(len(parts.thawed)), "tensors", parts.thawed[0])
    if parts.moving:
        names, shift = sorted(parts.moving), parts.shift()
        sentence = (
            f"The weights of {listed(names)} are frozen, but its running statistics follow each batch and have moved "
            f"by {shift:.2g} standard deviations: put frozen normalization in eval mode."
        )
        abnormality = SURE if shift > MOVED else LIKELY
        yield unusual(cause, "frozen_statistics", sentence, abnormality, shift, "standard deviations", names[0])


def _evaluation(watch: LoopWatch) -> Iterator[Finding]:
    in_training_mode, others = watch.evaluations
    if in_training_mode and not others:
        sentence = (
            f"Validation runs the model in training mode, {in_training_mode} of {in_training_mode} times: dropout and "
            "batch statistics are those of training. Call model.eval() before it."
        )
        yield contradiction("eval_mode_missing", "mode_of_validation", sentence, float(in_training_mode), "validations")


def _running_statistics(watch: LoopWatch, history: History) -> Iterator[Finding]:
    """Batch norm whose running statistics cannot have come to those of its batches, or are those of the last one."""
    updates = len(history.series("train/loss")[1])
    for name, module in watch.model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not module.track_running_stats:
            continue
        momentum = module.momentum
        covered = 1.0 if momentum is None else 1 - (1 - momentum) ** updates
        if covered < CAUGHT_UP and updates >= LEAST_UPDATES:
            sentence = (
                f"With momentum {momentum:g}, the running statistics of {name} have come {covered:.0%} of the way to "
                f"those of the batches in {updates} updates, and validation uses them."
            )
            yield unusual("normalization_misused", "running_statistics", sentence, SURE, covered, "of the way", name)
            return
        if momentum is not None and momentum > FORGETS:
            sentence = (
                f"With momentum {momentum:g}, the running statistics of {name} are mostly those of the latest batch. "
                "In torch, momentum is the share of the new batch; in other frameworks it is that of the old ones."
            )
            yield unusual("normalization_misused", "norm_momentum_high", sentence, LIKELY, momentum, "momentum", name)
            return


def _workers(watch: LoopWatch) -> Iterator[Finding]:
    """Workers that draw the same random numbers give the same batch one after another."""
    groups: list[int] = []
    for number, batch in enumerate(watch.batches):
        before = watch.batches[number - 1] if number else None
        if before is not None and before.shape == batch.shape and torch.equal(before, batch):
            groups[-1] += 1
        else:
            groups.append(1)
    repeats = groups[0] if groups else 0
    if 1 < repeats == watch.workers and len(groups) > 2 and all(size == repeats for size in groups[:-1]):
        sentence = (
            f"The batches of {repeats} workers are equal, {len(groups) - 1} times in a row: each worker draws the same "
            "random numbers."
        )
        yield contradiction("worker_seed_shared", "batches_differ", sentence, float(repeats), "equal batches")


def _scaling(watch: LoopWatch) -> Iterator[Finding]:
    """What the loop does with the loss before backward, and with the gradients before the step."""
    summed, parts = 0, 0
    clipped: list[float] = []
    for update, pairs in watch.scales.items():
        scales = [float(scale) for scale, remainder in map(torch.Tensor.tolist, pairs) if remainder < CLOSE]
        if len(scales) != len(pairs):
            continue
        if len(scales) == watch.calls.get(update) and len(scales) > 1 and all(abs(s - 1) < CLOSE for s in scales):
            summed, parts = summed + 1, len(scales)
        norm = float(watch.norms.get(update, torch.tensor(math.inf)))
        if len(scales) == 1 and scales[0] >= SCALED and norm < LEAST_CLIP:
            clipped.append(norm * scales[0])
    if summed >= 2:
        sentence = (
            f"Each of the {parts} losses of an update goes into backward undivided, so that the update has the sum of "
            f"{parts} mean gradients. Divide each loss by {parts}."
        )
        yield unusual("accumulation_not_divided", "accumulated_scale", sentence, SURE, float(parts), "losses")
    if len(clipped) >= FIRST_UPDATES and max(clipped) - min(clipped) < 0.02 * max(clipped):
        sentence = (
            f"Times the scale of the loss, the gradient norm is {clipped[0]:.3g} at every step: it is clipped while it "
            "still carries the scale. Call scaler.unscale_(optimizer) before clipping."
        )
        yield unusual("clip_before_unscale", "norm_times_scale", sentence, SURE, clipped[0], "gradient norm")


def _clipping(watch: LoopWatch, history: History) -> Iterator[Finding]:
    """Every update has a gradient of one norm, far below those of the losses, with an optimizer that feels it."""
    if any(float(scale) >= SCALED for pairs in watch.scales.values() for scale, _ in pairs):
        return  # a gradient that carries the scale of half precision is judged with it
    raw = dict(zip(*history.series("grad_norm"), strict=True))
    pairs = [(float(norm), float(raw[update])) for update, norm in watch.norms.items() if update in raw]
    if len(pairs) < FIRST_UPDATES or {"betas", "alpha", "lr_decay"} & watch.optimizer.defaults.keys():
        return  # an adaptive optimizer takes steps of one size, whatever the norm is
    applied = [norm for norm, _ in pairs]
    shares = sorted(norm / before for norm, before in pairs if before > 0)
    if len(shares) == len(pairs) and max(applied) - min(applied) < CLOSE * max(applied) and shares[-1] < CLIPPED[0]:
        share = shares[len(shares) // 2]
        sentence = (
            f"At every update that was looked at, the gradient is clipped to a norm of {applied[0]:.3g}, {share:.2g} "
            f"of what it was: {type(watch.optimizer).__name__} moves so much less far."
        )
        abnormality = SURE if share < CLIPPED[1] else LIKELY
        yield unusual("gradient_clip_too_tight", "clipped_share", sentence, abnormality, share, "of the gradient norm")


def _half(watch: LoopWatch) -> Iterator[Finding]:
    """Weights in float16 whose optimizer divides by a root plus `eps`, which is 0 in that format."""
    for group in watch.optimizer.param_groups:
        eps = float(group.get("eps", math.inf))
        names = {id(p): name for name, p in watch.trained if p.dtype == torch.float16}
        half = [names[id(p)] for p in group["params"] if id(p) in names]
        if half and not float(torch.tensor(eps, dtype=torch.float16)):
            sentence = (
                f"{listed(half)} are float16, where eps={eps:g} of {type(watch.optimizer).__name__} is 0, so that it "
                "divides by 0: keep the weights in float32 and use autocast."
            )
            yield unusual("precision_overflow", "eps_in_half_precision", sentence, SURE, eps, "eps", half[0])
            return


def _overwritten(watch: LoopWatch, history: History) -> Iterator[Finding]:
    """Every parameter was written three times before the first step, and the model guesses: what was loaded is gone."""
    first, guessing = history.facts.get("loss_at_init", math.nan), history.facts.get("loss_expected", math.nan)
    if WRITES[0] <= watch.writes and first > GUESSES * guessing:
        sentence = (
            f"Every parameter was written {watch.writes} times before the training, as by a layer, a checkpoint and "
            f"another initialization, and the first loss of {first:.3g} is that of guessing."
        )
        abnormality = SURE if watch.writes <= WRITES[1] else LIKELY
        yield unusual("checkpoint_not_loaded", "weights_written", sentence, abnormality, float(watch.writes), "writes")


def _not_loaded(watch: LoopWatch, history: History) -> Iterator[Finding]:
    """Epochs that go on from an earlier run, with a model that guesses: the checkpoint did not arrive."""
    first, guessing = history.facts.get("loss_at_init", math.nan), history.facts.get("loss_expected", math.nan)
    if _goes_on(watch.epochs) and first > GUESSES * guessing:
        sentence = (
            f"The first epoch is {watch.epochs[0]}, but the first loss of {first:.3g} is that of guessing: no weights "
            "of a checkpoint reached the model. load_state_dict(..., strict=False) leaves out keys with another "
            "prefix, as `module.` or `_orig_mod.`, without a word: look at what it returns."
        )
        yield unusual("checkpoint_not_loaded", "loss_on_resume", sentence, SURE, first, "loss")


def _goes_on(epochs: list[int]) -> bool:
    """Whether the first epoch is that of a training that goes on, and not 0 or 1 or one interval of validations."""
    return len(epochs) > 1 and epochs[1] > epochs[0] > max(epochs[1] - epochs[0], 1)


def _resume(watch: LoopWatch) -> Iterator[Finding]:
    """Epochs that go on from an earlier run, with an optimizer that begins anew."""
    if watch.started_empty and watch.optimizer.state and _goes_on(watch.epochs):
        sentence = (
            f"The first epoch is {watch.epochs[0]}, but the optimizer began with no state: what it knew of the "
            "gradients was lost on resume. Load its state_dict with that of the model."
        )
        yield unusual("resume_state_lost", "state_of_optimizer", sentence, SURE, float(watch.epochs[0]), "epochs")
