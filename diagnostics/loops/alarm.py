"""What a loop is told while it runs: whether its values are finite, and the symptoms that appear."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Self

from diagnostics.diagnosis import Diagnosis
from pipeline.errors import FivegateError

OnSymptom = Literal["record", "warn", "stop"]
GROWTH = 1.25  # from one look to the next, so that looking costs the less the longer the run is
LEAST_VALIDATIONS = 2  # before a curve counts as a symptom; what is wrong by definition counts at once


class NonFiniteError(FivegateError, FloatingPointError):
    """The loss, a gradient or a weight is NaN or infinite."""


class Verdict(NamedTuple):  # one is made in every step, and a dataclass takes three times as long
    """Whether every value so far was finite; a verdict is false once one was not."""

    ok: bool = True
    step: int = 0  # of the first non-finite value, or the last step that was read back
    why: str = ""
    what: str = ""  # loss, gradient or weights, the first that was not finite
    where: str = ""  # its module; empty for a loss

    @classmethod
    def of_values(cls, step: int, values: Mapping[str, float]) -> Self:
        """Return the verdict on the measurements of a step, in their order: loss, gradients, weights."""
        for name, value in values.items():
            kind, _, module = name.partition("/")
            what = {"train": "loss", "grad_norm": "gradient", "weight_norm": "weights"}.get(kind)
            if what and module and not math.isfinite(value):
                where = "" if what == "loss" else module
                why = f"step {step}: the {what}{where and f' of {where}'} is {value}"
                return cls(False, step, why, what, where)
        return cls(True, step)

    def __bool__(self) -> bool:
        return self.ok


class SymptomWarning(UserWarning):
    """The training shows a symptom that rarely goes away by itself."""


class SymptomError(FivegateError, RuntimeError):
    """The training was stopped because of a symptom."""


class Alarm:
    """Looks at a run now and then, and says each symptom once.

    `notify` gets the diagnosis. If it fails, a warning says so, and the training goes on.
    """

    def __init__(self, on_symptom: OnSymptom, notify: Callable[[Diagnosis], object] | None) -> None:
        if on_symptom not in ("record", "warn", "stop"):
            raise ValueError(f"on_symptom is 'record', 'warn' or 'stop', got {on_symptom!r}")
        self._on_symptom, self._notify = on_symptom, notify
        self._next_look = 0
        self._said: set[str] = set()

    @property
    def silent(self) -> bool:
        return self._on_symptom == "record" and self._notify is None

    def look(self, updates: int, every: int, broken: bool, validations: int, diagnose: Callable[[], Diagnosis]) -> None:
        """Diagnose the run so far if it is time or a value is not finite. Raises SymptomError for 'stop'."""
        urgent = broken and "nonfinite" not in self._said
        if self.silent or (updates < self._next_look and not urgent):
            return
        self._next_look = max(updates + every, int(updates * GROWTH))
        diagnosis = diagnose()
        certain = [cause for cause in diagnosis.root_causes if cause.confidence.basis == "definition"]
        new = {cause.issue: f"{cause.issue}: {cause.evidence[0]}" for cause in certain}
        if broken or validations >= LEAST_VALIDATIONS:
            first = diagnosis.root_causes[0].issue if diagnosis.root_causes else "not certain"
            blocking = [symptom for symptom in diagnosis.symptoms if symptom.severity == "blocking"]
            new |= {symptom.id: f"{symptom.title} (most likely cause: {first})" for symptom in blocking}
        self._say({name: text for name, text in new.items() if name not in self._said}, updates, diagnosis)
        self._said |= {*new, *(["nonfinite"] if broken else [])}

    def _say(self, new: dict[str, str], updates: int, diagnosis: Diagnosis) -> None:
        if not new:
            return
        self._said |= set(new)
        message = f"after {updates} updates: {'; '.join(new.values())}"
        if self._notify is not None:
            try:
                self._notify(diagnosis)
            except Exception as error:
                warnings.warn(f"notify failed: {type(error).__name__}: {error}", SymptomWarning, stacklevel=4)
        if self._on_symptom == "warn":
            warnings.warn(message, SymptomWarning, stacklevel=4)
        if self._on_symptom == "stop":
            raise SymptomError(f"the training was stopped {message}")
