"""Whether every value of a run so far was finite."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import FivegateError


class NonFiniteError(FivegateError, FloatingPointError):
    """The loss, a gradient or a weight is NaN or infinite."""


@dataclass(frozen=True)
class Verdict:
    """Whether every value so far was finite; a verdict is false once one was not."""

    ok: bool = True
    step: int = 0  # of the first non-finite value, or the last step that was read back
    why: str = ""

    def __bool__(self) -> bool:
        return self.ok
