"""Passes: what a few rows, forward and backward through the model, show. No weight moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.data.tree import to
from pipeline.engine.backward import backward
from pipeline.engine.setup import TrainingComponents
from pipeline.error_attribution import attributed_to
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import device_of, evaluating, forward, measured
from pipeline.evaluation.step import answered
from pipeline.runtime.seeds import derive, reseed
from pipeline.sanity_checks.context import CheckContext, NotApplicable

BATCHES = 8  # looked at before a parameter is said to get no gradient: on one of them a ReLU may be silent
ROWS = 8
FLAT = 1e-3  # outputs that vary by less than this share of their size are held against that


def gradients(bench: CheckContext) -> dict[str, Any]:
    """The parameters that train and get no gradient: `none` (the loss does not depend on them) or `zero`."""
    with bench.conditions() as setup:
        model = bench.model
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        silent, seen = dict.fromkeys(trained, "none"), 0
        setup.feed.start()
        try:
            model.train()
            for seen, window in enumerate(setup.feed.accumulation_groups(1), start=1):
                reseed(derive(bench.seed, "proof.gradients", seen), setup.device, foreign=True)
                for parameter in trained.values():
                    parameter.grad = None
                with setup.autocast(), attributed_to("model or loss"):
                    _, loss = setup.task.forward(model, window[0].inputs, window[0].targets)
                backward(setup.scale.scaled(loss) if setup.scale else loss)
                silent = {name: _how(trained[name], until_now) for name, until_now in silent.items()}
                silent = {name: how for name, how in silent.items() if how}
                if not silent or seen == BATCHES:
                    break
        finally:
            setup.feed.close()
            for parameter in trained.values():
                parameter.grad = None
            with torch.no_grad():
                for name, buffer in model.named_buffers():  # a pass in train mode moves running statistics
                    buffer.copy_(before.get(name, buffer))
    total = sum(p.numel() for p in trained.values())
    share = sum(trained[name].numel() for name in silent) / max(1, total)
    return {"parameters": len(trained), "silent": silent, "share": share, "batches": seen}


def _how(parameter: Tensor, until_now: str) -> str:
    """Whether a parameter has no gradient, one of zeros, or (empty) one that would move it."""
    if parameter.grad is None:
        return until_now
    gradient = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
    return "" if bool((gradient != 0).any()) else "zero"


def _outputs(bench: CheckContext, setup: TrainingComponents, rows: Split, draw: str) -> Tensor | None:
    """What the model in eval mode says to these rows, random numbers drawn from `draw`; None: a step gives none."""
    reseed(derive(bench.seed, draw), setup.device, foreign=True)
    if setup.task.step is None:
        return forward(bench.model, rows.X).detach().cpu().double()
    device = device_of(bench.model)
    with evaluating(bench.model), attributed_to("task.step"):
        given = answered(setup.task.step(bench.model, (to(rows.X, device), to(rows.y, device))))
    outputs: Tensor | None = given.get("outputs")
    return None if outputs is None else outputs.detach().cpu().double()


def evaluation_repeats(bench: CheckContext) -> dict[str, Any]:
    """The same validation rows twice through the model in eval mode: in how many of them the outputs differ."""
    rows = bench.data.val.take(torch.arange(min(8 * ROWS, len(bench.data.val))))
    with bench.conditions() as setup:
        one, other = (_outputs(bench, setup, rows, f"proof.eval/{turn}") for turn in (1, 2))
        if one is None or other is None:
            figures = [_figures(bench, setup, rows, f"proof.eval/{turn}") for turn in (1, 2)]
            return {"rows": len(rows), "differing": int(figures[0] != figures[1]) * len(rows), "of": "loss and metrics"}
    if one.shape != other.shape:
        return {"rows": len(rows), "differing": len(rows), "of": "shape of the outputs"}
    same = (one == other) | (one.isnan() & other.isnan())
    differing = int((~same).flatten(1).any(1).sum()) if same.ndim > 1 else int((~same).sum())
    return {"rows": len(rows), "differing": differing, "of": "outputs"}


def _figures(bench: CheckContext, setup: TrainingComponents, rows: Split, draw: str) -> str:
    reseed(derive(bench.seed, draw), setup.device, foreign=True)
    found = measured(bench.model, rows.X, rows.y, setup.task)
    return repr((found.loss, sorted(found.values.items())))  # as words, in which NaN equals itself


def rows_apart(bench: CheckContext) -> dict[str, Any]:
    """How far a row's outputs in eval mode move when every other row of its batch is replaced, and when it is alone.

    `difference` and `alone` are shares of how far the outputs of different rows lie apart; the first and the last row
    of a batch are looked at, since what runs along the batch may reach only one of them. `alone_fails` says what a
    batch of one row does to a model that cannot take it.
    """
    val, count = bench.data.val, min(ROWS, len(bench.data.val) // 2)
    if count < 2:
        raise NotApplicable("validation has too few rows to replace")
    with bench.conditions() as setup:
        usual = _outputs(bench, setup, val.take(torch.arange(count)), "proof.rows")
        if usual is None:
            raise NotApplicable("the step gives no outputs to look at")
        again = _outputs(bench, setup, val.take(torch.arange(count)), "proof.rows/again")
        if again is None or not torch.equal(usual, again):
            raise NotApplicable("the outputs vary by themselves, or are not finite")
        found, fails = {"difference": 0.0, "alone": 0.0}, ""
        for row in (0, count - 1):
            order = torch.arange(count) + count
            order[row] = row
            others = _outputs(bench, setup, val.take(order), "proof.rows")
            assert others is not None
            found["difference"] = max(found["difference"], _moved(usual, row, others[row : row + 1]))
            try:
                alone = _outputs(bench, setup, val.take(torch.tensor([row])), "proof.rows")
                assert alone is not None
                found["alone"] = max(found["alone"], _moved(usual, row, alone))
            except (UserError, ValueError) as error:
                fails = str(error)
    return {"rows": count, **found, "alone_fails": fails}


def _moved(usual: Tensor, row: int, now: Tensor) -> float:
    """The largest change of a row's outputs, over the distance between rows. Raises ValueError for another shape."""
    if now.shape != usual[row : row + 1].shape:
        raise ValueError(f"one row gives outputs of shape {tuple(now.shape)}, not {tuple(usual[row : row + 1].shape)}")
    apart = max(float((usual - usual.mean(0)).abs().max()), FLAT * float(usual.abs().max()))
    change = float((now - usual[row : row + 1]).abs().max())
    return change / apart if apart else float(change > 0)


def parameters_per_row(bench: CheckContext) -> dict[str, Any]:
    """How many numbers the model can choose for each row, and for each number, that it is to fit."""
    trained = sum(p.numel() for p in bench.setup.model.parameters() if p.requires_grad)
    rows, targets = len(bench.data.train), bench.data.train.y.numel()
    return {"parameters": trained, "rows": rows, "per_row": trained / rows, "per_target": trained / max(1, targets)}
