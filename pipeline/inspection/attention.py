"""Axes: do rows of a batch, or tokens of a row, see what they must not see?

Recurrent and attention layers of torch take [T, B, F] unless `batch_first` is set, and a swapped batch raises no error.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.evaluation.evaluate import eval_mode
from pipeline.inspection.finding import Finding, Measured, contradiction
from pipeline.inspection.graph import name_of
from pipeline.inspection.subject import Subject

MAX_NODES = 5000
ROWS = 8  # of a batch in which tokens are exchanged
FEWEST_TOKENS, FEWEST_CHANGED = 4, 0.2  # tokens of a row, and share of them that another row has
SEEN = 1e-4  # relative change of an output that another token causes; less is rounding


def inspect_axes(subject: Subject) -> Iterator[Finding]:
    """Yield layers that take the first axis for time, although the model's rows are on it."""
    rows = len(subject.outputs) if subject.outputs is not None else 0
    for call in subject.calls:
        module, shape = call.module, call.inputs.shape
        if not isinstance(module, nn.RNNBase | nn.MultiheadAttention) or getattr(module, "batch_first", True):
            continue
        if len(shape) == 3 and shape[0] == rows != shape[1]:
            sentence = (
                f"{call.name or type(module).__name__} has batch_first=False and gets {list(shape)}: it takes the "
                f"{rows} rows of the batch for time, so that rows see each other. Set batch_first=True."
            )
            yield contradiction("batch_axis_swapped", "batch_first", sentence, float(rows), "rows", call.name)
            return


def inspect_attention(subject: Subject) -> Iterator[Finding | Measured]:
    """Yield attention that sees tokens which it must predict or none of a row, and scores that are not scaled."""
    if subject.kind == "language_model":
        yield from sees_the_future(subject)
    yield from _unseen_tokens(subject)
    if subject.loss is not None and subject.loss.grad_fn is not None:
        unscaled = _unscaled(subject)
        if unscaled is not None:
            yield Measured("attention_unscaled", float(unscaled))


def sees_the_future(subject: Subject) -> Iterator[Finding]:
    """Yield whether outputs at earlier positions change where the last token of every row is exchanged."""
    ids, outputs = subject.inputs, subject.outputs
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2 or outputs is None or outputs.ndim != 3:
        return
    if ids.shape[1] < 3 or len(ids) < 2:
        return
    rows = ids[:ROWS]
    changed = rows.clone()
    other = rows[:, -1].roll(1)
    changed[:, -1] = torch.where(other == rows[:, -1], rows[:, 0], other)
    if bool((changed == rows).all()):
        return
    with eval_mode(subject.model):
        before, after = (subject.model(part).double() for part in (rows, changed))
    moved = float((before[:, :-1] - after[:, :-1]).abs().max()) / max(float(before.std()), 1e-30)
    if moved > SEEN:
        sentence = (
            "Outputs at earlier positions change with the last token of a row: the model sees the tokens that it has "
            "to predict. Mask the future."
        )
        yield contradiction("attention_misbuilt", "sees_the_future", sentence, moved, "of the outputs' spread")


def _unseen_tokens(subject: Subject) -> Iterator[Finding]:
    """Yield whether the outputs stay the same, bit by bit, where each row gets the inner tokens of another row.

    The most frequent last token is taken for padding, and stays where it is: a mask may be made from it. Where weights
    start at 0, as at the end of residual branches, attention may see nothing before the first update.
    """
    ids, attention = subject.inputs, [m for m in subject.model.modules() if isinstance(m, nn.MultiheadAttention)]
    if not attention or not all(module.batch_first for module in attention) or not isinstance(ids, Tensor):
        return
    if ids.is_floating_point() or ids.ndim != 2 or ids.shape[1] < FEWEST_TOKENS or len(ids) < 2:
        return
    if any(not name.endswith("bias") and not parameter.any() for name, parameter in subject.model.named_parameters()):
        return
    padding, ids = ids[:, -1].mode().values, ids[:ROWS]
    others = ids.roll(1, 0)
    inner = (ids != padding) & (others != padding)
    inner[:, 0] = inner[:, -1] = False
    changed = torch.where(inner, others, ids)
    if float((changed != ids).double().mean()) < FEWEST_CHANGED:
        return
    with eval_mode(subject.model):
        before, after = subject.model(ids), subject.model(changed)
    if isinstance(before, Tensor) and bool(torch.isfinite(before).all()) and torch.equal(before, after):
        sentence = (
            "The outputs stay the same where the inner tokens of each row are those of another row: attention sees "
            "none of them. In a padding mask of torch, True marks what is not attended to."
        )
        yield contradiction("attention_misbuilt", "sees_no_tokens", sentence, 0.0, "of the outputs' spread")


def _unscaled(subject: Subject) -> bool | None:
    """Return whether a softmax over a product of two activations has no scale before it; None without attention."""
    assert subject.loss is not None
    unscaled: bool | None = None
    waiting, seen = [subject.loss.grad_fn], set[object]()
    while waiting and len(seen) < MAX_NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
        if name_of(node) in ("Softmax", "SafeSoftmax"):
            names = _towards_product(node)
            if names is not None:
                unscaled = bool(unscaled) or not {"Div", "Mul"} & set(names)
    return unscaled


def _towards_product(node: object) -> list[str] | None:
    """Return the operations between a softmax and the product of activations before it; None if there is none."""
    names: list[str] = []
    current = [node]
    for _ in range(12):
        following = [f for n in current for f, _ in n.next_functions if f is not None]  # type: ignore[attr-defined]
        operations = [name_of(f) for f in following]
        names += operations
        if any(name in ("Bmm", "Baddbmm") for name in operations):
            return names + _before_product(following)
        if not following or any(name in ("Addmm", "Mm", "Convolution") for name in operations):
            return None
        current = following[:4]
    return None


def _before_product(nodes: list[object]) -> list[str]:
    """Return the operations just before a product, where queries may have been scaled."""
    names: list[str] = []
    current = nodes
    for _ in range(5):
        current = [f for n in current for f, _ in n.next_functions if f is not None][:8]  # type: ignore[attr-defined]
        names += [n for n in map(name_of, current) if n in ("Div", "Mul")]
    return names
