"""Arms that change the model or its loss: head and loss, activations, weights, normalization, a reference model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.config.conf_dir import LOSSES, loss_target
from pipeline.experiments.arms.arm import Arm, Reason, Subject
from pipeline.run_store.job import Delta

REFERENCE: dict[str, Any] = {
    "_target_": "pipeline.models.mlp.MLP",
    "in_features": "auto",
    "out_features": "auto",
    "hidden": [128, 128],
}
OUTPUTS = ("Softmax", "LogSoftmax", "Softmax2d", "Softmin")  # activations that no hidden layer has
SATURATING = ("Sigmoid", "Tanh", "Softsign", "Hardsigmoid", "Hardtanh", "LogSigmoid", "Tanhshrink")
DEEP = 4  # layers, from which normalization can matter


def head_and_loss(subject: Subject) -> Iterator[Arm]:
    """{own, raw output} × {own, reference loss}, and an output layer as wide as the classes."""
    about, kind = subject.description, subject.description["kind"]
    if kind not in LOSSES or subject.value("task.step") or not subject.value("loss"):
        return
    target = loss_target(kind)
    name = target.rpartition(".")[2]
    other_loss = name != about["loss"] or bool(subject.value("loss.reduction"))
    raw: Any = ({"raw_output": {}},)
    reference = {"loss": {"_target_": target}}
    if about["transforms_output"]:
        outer = ("output_activation_mismatch",) if other_loss else ("redundant_softmax",)
        text = "the output of the last layer as it is"
        yield Arm("raw_output", outer, text, Delta(surgery=raw), reason="unusual")
    if other_loss:
        cause = _loss_cause(subject, name)
        yield Arm("reference_loss", (cause,), f"{name} as the loss", Delta(reference), reason="unusual")
    if about["transforms_output"] and other_loss:
        both = ("output_activation_mismatch",)
        text = f"the output of the last layer as it is, and {name}"
        yield Arm("raw_output_reference_loss", both, text, Delta(reference, raw), reason="unusual")
    classes, shape = about["classes"], about["output_shape"]
    if kind == "classification" and classes and len(shape) == 1 and shape[0] != classes:
        change = Delta(reference, (*raw, {"resize_output": {"out_features": classes}}))
        text = f"{classes} outputs instead of {shape[0]}"
        yield Arm("output_per_class", ("output_width_mismatch",), text, change, reason="unusual")


def _loss_cause(subject: Subject, reference: str) -> str:
    """The cause that a reference loss removes: another reduction, a value that was not finite, or another loss."""
    if subject.value("loss.reduction") or subject.description["loss"] == reference:
        return "loss_reduction_or_sign"
    return "loss_numerically_unstable" if subject.stopped == "nonfinite" else "loss_mismatch"


def body(subject: Subject) -> Iterator[Arm]:
    """New weights, other activations, normalization, trained parameters, and a reference model."""
    about, depth = subject.description, len(subject.description["layers"])
    reason: Reason = "unusual" if about["unusual_weights"] else "suspicion"
    change = Delta(surgery=({"reinitialize": {}},))
    yield Arm("fresh_weights", ("weight_init_bad",), "weights initialized by torch's rules", change, reason=reason)
    yield from _activations(subject)
    if not about["normalized"] and depth >= DEEP:
        change = Delta(surgery=({"insert_normalization": {"kind": "layer"}},))
        text = "layer normalization after every hidden layer"
        yield Arm("normalized_body", ("model_too_deep",), text, change, reason="general")
    if depth > 2 * DEEP:
        change = Delta(surgery=({"shrink_depth": {}},))
        yield Arm(
            "shallower", ("model_too_deep",), f"one hidden layer instead of {depth - 1}", change, reason="unusual"
        )
    if about["batch_norm"]:
        change = Delta(surgery=({"replace_normalization": {"kind": "group"}},))
        text = "group normalization instead of batch norm"
        yield Arm("group_norm", ("normalization_misused",), text, change, reason="unusual")
    reason = "unusual" if about["frozen"] else "suspicion"
    change = Delta(surgery=({"keep_gradients": {}},))
    text = "every parameter trained, and no detach"
    yield Arm("all_trained", ("parameters_not_trained",), text, change, reason=reason)
    if about["kind"] in LOSSES and about["kind"] != "language_model":
        change = Delta({"model": REFERENCE, "surgery": []})
        text = "a multilayer perceptron of 2 × 128 units as the model"
        yield Arm("reference_model", ("model_too_small",), text, change, kind="context", reason="general")


def _activations(subject: Subject) -> Iterator[Arm]:
    """Other activations, and activations where there are none."""
    about, depth = subject.description, len(subject.description["layers"])
    hidden = [name for name in about["activations"] if name not in OUTPUTS]
    for name in about["activations"]:
        if name in SATURATING and depth > 1:
            change = Delta(surgery=({"swap_activation": {"from": name, "to": "ReLU"}},))
            reason: Reason = "general" if depth > 2 and name in hidden else "suspicion"
            text = f"ReLU instead of {name}"
            yield Arm(f"relu_for_{name.lower()}", ("hidden_activation_saturating",), text, change, reason=reason)
        if name == "ReLU":
            change = Delta(surgery=({"swap_activation": {"from": "ReLU", "to": "LeakyReLU"}},))
            yield Arm("leaky_relu", ("dead_relu",), "LeakyReLU instead of ReLU", change)
    if sum(about["modules"][name] for name in hidden) < depth - 1:
        change = Delta(surgery=({"insert_activations": {}},))
        text = "ReLU after every hidden layer"
        yield Arm("activations_inserted", ("hidden_activation_missing",), text, change, reason="unusual")
