"""A job: one training, described by its change against the plan, its seed and its number of steps."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.results import plain, tagged, untagged

DIAGNOSTICS = "diagnostics"  # the purpose of an experiment; what it is for may follow: `diagnostics.profile`
DIAGNOSTICS_SEEDS = range(1, 10)  # its seed indices


@dataclass(frozen=True)
class Delta:
    """A change against the plan: overrides of existing keys, surgery on the model, changes of the train rows.

    Validation and test rows never change.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    surgery: tuple[Mapping[str, Any], ...] = ()
    train_rows: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.overrides or self.surgery or self.train_rows)

    def overlaps(self, other: Delta) -> bool:
        """Whether both set the same key, or one a key of a section that the other replaces, or do the same surgery."""
        pairs = ((a, b) for a in self.overrides for b in other.overrides)
        same_keys = any(a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.") for a, b in pairs)
        return same_keys or bool(self.surgery and self.surgery == other.surgery)

    def describe(self) -> str:
        """The change in one line, as on the command line."""
        parts = [f"{k}={v}" for k, v in self.overrides.items()]
        parts += [f"surgery: {next(iter(s))}" for s in self.surgery]
        parts += [f"train rows: {k}={v}" for k, v in self.train_rows.items()]
        return ", ".join(parts) or "no change"


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """Replace an existing dotted key. Raises UserError when the config has no such key."""
    *path, last = key.split(".")
    node: Any = config
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        raise UserError(fault(key, "is not a key of the frozen plan", expected="a key that the plan has"))
    node[last] = value


@dataclass(frozen=True)
class Job:
    """One training: its plan, its purpose, its change, the index of its derived seed, and its maximum of steps."""

    plan_digest: str
    purpose: str
    delta: Delta = field(default_factory=Delta)
    seed_index: int = 0
    max_steps: int | None = None

    def config(self, plan_config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the plan's config with the change applied."""
        config = copy.deepcopy(dict(plan_config))
        for key, value in self.delta.overrides.items():
            _set(config, key, copy.deepcopy(value))  # a later key may change a part of it
        config["surgery"] = [*(config.get("surgery") or []), *map(dict, self.delta.surgery)]
        return config

    def to_json(self) -> dict[str, Any]:
        """The job as JSON; `from_json` gives the same job, also where an override is NaN or infinite."""
        body: dict[str, Any] = plain(self)
        body["delta"]["overrides"] = tagged(self.delta.overrides)
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Job:
        delta = body["delta"]
        change = Delta(untagged(delta["overrides"]), tuple(delta["surgery"]), delta["train_rows"])
        return cls(body["plan_digest"], body["purpose"], change, body["seed_index"], body["max_steps"])


def run_seed(master: int, seed_index: int) -> int:
    """The seed of a training: the master seed itself for index 0, else derived from it (63 bits of SHA-256)."""
    if seed_index == 0:
        return master
    return int.from_bytes(hashlib.sha256(f"{master}/trial/{seed_index}".encode()).digest()[:8], "big") >> 1
