"""Whether every value of a run so far was finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Self

from pipeline.errors import FivegateError


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
