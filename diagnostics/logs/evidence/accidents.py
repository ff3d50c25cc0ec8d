"""What a log, a traceback, a config or the source of a model says in words: errors, warnings, and lines of a program.

An error that ended the training is a fact. A warning, and what is read off a source without running it, is unusual.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.inspection.finding import Finding, contradiction

MAX_ACCIDENTS = 50
LIKELY, HINT = 0.995, 0.95  # the abnormality of a warning, and of a line of a source


@dataclass(frozen=True)
class _Words:
    """Words of an error or a warning, the cause that they name, and what they mean."""

    pattern: re.Pattern[str]
    cause: str
    means: str
    certain: bool = True


def _words(pattern: str, cause: str, means: str, *, certain: bool = True) -> _Words:
    return _Words(re.compile(pattern), cause, means, certain)


KNOWN = (
    _words(r"out of memory|OutOfMemoryError|DefaultCPUAllocator: can't allocate|oom-kill|CUBLAS_STATUS_ALLOC_FAILED",
           "out_of_memory", "the memory of the device did not suffice"),
    _words(r"Target \S+ is out of bounds|Assertion `?t >= 0 && t < n_classes|IndexError: Target|label value of \S+ "
           r"which is outside the valid range", "labels_misencoded", "a label is none of the classes"),
    _words(r"expected scalar type Long but found (?:Float|Double|Int)|Expected .* Long.* but got .*Float",
           "labels_misencoded", "ids were needed, and numbers with decimals came"),
    _words(r"Using a target size \(.*\) that is different to the input size", "loss_mismatch",
           "outputs and targets have different shapes, and the loss compares each with each", certain=False),
    _words(r"Expected input batch_size \(\d+\) to match target batch_size|The size of tensor a \(\d+\) must match the "
           r"size of tensor b|ValueError: Target size \(.*\) must be the same as input size",
           "output_width_mismatch", "outputs and targets do not fit each other"),
    _words(r"Function '(?:Log|Log1P|LogSoftmax|Exp|Sqrt|Div|Pow|Norm|LinalgVectorNorm|Acos|Asin|BinaryCrossEntropy)\w*"
           r"Backward\d*' returned nan", "loss_numerically_unstable", "the report of anomalies names this operation"),
    _words(r"element 0 of tensors does not require grad", "parameters_not_trained",
           "the loss does not depend on any parameter"),
    _words(r"optimizer got an empty parameter list", "parameters_not_trained", "the optimizer has no parameters"),
    _words(r"Expected more than 1 value per channel when training", "normalization_misused",
           "batch normalization got a batch of one row"),
    _words(r"all elements of input should be between 0 and 1|Assertion `?input_val >= zero && input_val <= one",
           "output_activation_mismatch", "the loss needs probabilities, and the model gives others"),
    _words(r"`?lr_scheduler\.step\(\)`? before `?optimizer\.step\(\)`?", "scheduler_misstepped",
           "the schedule moves before the optimizer", certain=False),
    _words(r"Gradient overflow\.\s+Skipping step", "precision_overflow", "steps were skipped", certain=False),
    _words(r"Input contains (?:NaN|infinity)|contains NaN, infinity or a value too large", "nonfinite_inputs",
           "the data hold values that are not finite"),
    _words(r"Missing key\(s\) in state_dict|size mismatch for \S+: copying a param", "checkpoint_not_loaded",
           "weights of the checkpoint do not fit the model", certain=False),
)  # fmt: skip
ANY = re.compile("|".join(f"(?:{accident.pattern.pattern})" for accident in KNOWN))
_HINTS = re.compile(r"memory|Memory|CUBLAS|oom|Target|target|Assertion|label|scalar|Long|size|returned nan|"
                    r"require grad|empty param|per channel|elements of|scheduler|overflow|contains|"
                    r"Missing key")  # fmt: skip


def may_hold_accident(text: str) -> bool:
    """Whether any of the lines of a text may say something of an error: a quick look, for which most logs have none."""
    return _HINTS.search(text) is not None


def accident_in(text: str) -> _Words | None:
    """Return what a line of a log says of an error; None for most lines."""
    if not may_hold_accident(text) or not ANY.search(text):
        return None
    return next(accident for accident in KNOWN if accident.pattern.search(text))


def accidents_in(text: str, where: str) -> list[Finding]:
    """Return the findings of a text, such as a traceback, each cause once."""
    findings: dict[str, Finding] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if accident := accident_in(line):
            findings.setdefault(accident.cause, finding_of(accident, f"line {number} of {where}", line))
    return list(findings.values())


def finding_of(accident: _Words, where: str, line: str) -> Finding:
    """Return the finding that the words of a line support."""
    sentence = f"{where} says {line.strip()[:120]!r}: {accident.means}"
    if accident.certain:
        return contradiction(accident.cause, "recorded error", sentence)
    return Finding(accident.cause, "recorded warning", "abnormality", LIKELY, None, None, "", sentence)


# --- the source of a model or of a loop ------------------------------------------------------------------------------


def source_findings(text: str, where: str) -> list[Finding]:
    """Return what a program says of itself, read and not run; nothing for a text that is not Python.

    These are hints: what a program does elsewhere, or in another way, is not seen.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return list(_hints(tree, where))


def _hints(tree: ast.AST, where: str) -> Iterator[Finding]:
    called = {_name(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if "backward" in called and "step" in called and not {"zero_grad", "fit", "set_to_none"} & called.keys():
        yield _hint("gradients_not_zeroed", where, called["backward"], "backward() and step() without zero_grad()")
    twice = {"CrossEntropyLoss", "cross_entropy"} & called.keys()
    softmax = next((called[name] for name in ("Softmax", "LogSoftmax") if name in called), None)
    if twice and softmax is not None:
        yield _hint("redundant_softmax", where, softmax, "the model has a softmax, and cross-entropy applies it again")
    modal = {"Dropout", "Dropout2d", "BatchNorm1d", "BatchNorm2d"} & called.keys()
    if modal and {"no_grad", "inference_mode"} & called.keys() and "eval" not in called and "backward" in called:
        yield _hint("eval_mode_missing", where, called[min(modal)], "eval() is never called, and the model needs it")
    yield from _lists_of_layers(tree, where)


def _lists_of_layers(tree: ast.AST, where: str) -> Iterator[Finding]:
    """Layers in a plain list are none of the module's: `self.layers = [nn.Linear(4, 4) for _ in range(3)]`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.List | ast.ListComp):
            continue
        parts = [node.value.elt] if isinstance(node.value, ast.ListComp) else node.value.elts
        layers = [part for part in parts if isinstance(part, ast.Call) and _name(part.func) in LAYERS]
        target = node.targets[0]
        of_self = isinstance(target, ast.Attribute) and _name(target.value) == "self"
        if layers and of_self:
            yield _hint("parameters_not_trained", where, node, "layers in a list do not belong to the model")


LAYERS = ("Linear", "Conv1d", "Conv2d", "LSTM", "GRU", "TransformerEncoderLayer", "Sequential", "Embedding")


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _hint(cause: str, where: str, node: ast.AST, what: str) -> Finding:
    sentence = f"line {getattr(node, 'lineno', 0)} of {where}: {what}"
    return Finding(cause, "source", "abnormality", HINT, None, None, "", sentence)
