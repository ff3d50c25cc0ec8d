"""What changed since the last good run, and arms that undo a part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import FivegateError
from pipeline.experiments.arms.arm import Arm
from pipeline.repair.config_edits import format_override_value
from pipeline.run_store import plan as plans
from pipeline.run_store.job import Delta
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

SECTIONS = ("model", "loss", "optimizer", "scheduler", "loader", "trainer", "preprocess", "surgery")
NO_EFFECT = ("trainer.max_minutes", "trainer.checkpoint_minutes", "trainer.checkpoint_steps", "trainer.guard",
             "loader.num_workers")  # fmt: skip
MAX_RUNS = 20  # other runs under the same root that are looked at, the newest first
# The cause that a changed number speaks for, where it has become larger and where it has become smaller.
DIRECTIONS = {
    "optimizer.lr": ("learning_rate_too_high", "learning_rate_too_low"),
    "scheduler.max_lr": ("learning_rate_too_high", "learning_rate_too_low"),
    "optimizer.weight_decay": ("regularization_too_strong", "regularization_missing"),
    "model.dropout": ("regularization_too_strong", "regularization_missing"),
    "loss.label_smoothing": ("regularization_too_strong", "regularization_missing"),
    "loader.batch_size": ("batch_size_too_large", "batch_size_too_small"),
    "trainer.max_epochs": ("too_many_epochs", "too_few_epochs"),
    "trainer.max_steps": ("too_many_epochs", "too_few_epochs"),
}
CAUSES = {  # of other changes
    "trainer.gradient_clip_val": "gradient_clip_too_tight",
    "trainer.precision": "precision_overflow",
    "loader.shuffle": "data_not_shuffled",
    "loader.sampler": "class_imbalance",
    "loader.augment": "augmentation_too_strong",
    "preprocess.standardize": "inputs_not_normalized",
    "preprocess.targets": "targets_not_scaled",
    "scheduler": "scheduler_decays_too_early",
    "optimizer": "optimizer_mismatch",
    "loss": "loss_mismatch",
}


@dataclass(frozen=True)
class LastGood:
    """The newest earlier training that reached its target on the same rows: its name, and what changed since then.

    `changes` are config keys with (old, new) values. Undoing one is an override of the present config.
    """

    name: str
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def format_changes(self) -> list[str]:
        """Return each change as `key old → new`."""
        return [f"{key} {_format_value(old)} → {_format_value(new)}" for key, (old, new) in self.changes.items()]


def last_good(run: Run, state: RunState, present: Plan, config: Mapping[str, Any]) -> LastGood | None:
    """Return the last good training before this one: an earlier plan of the run, or else another run beside it.

    `config` is that of the training to explain. Plans that cannot be read are passed over.
    """
    for name, plan in _good_plans(run, state):
        if _rows(plan) == _rows(present):
            return LastGood(name, dict(changes_between(plan.config, config)))
    return None


def _good_plans(run: Run, state: RunState) -> Iterator[tuple[str, Plan]]:
    """Yield plans under which a target was reached, the newest first: those of the run, then those of other runs."""
    yield from _of_run(run, state, "revision {}", before=state.plan["revision"] if state.plan else 0)
    others = [p for p in run.path.parent.glob("*/ledger.jsonl") if p.parent.name != run.path.name]
    for path in sorted(others, key=_changed_at, reverse=True)[:MAX_RUNS]:
        other = Run(path.parent)
        try:
            known = other.state()
        except FivegateError:
            continue
        if known.experiment == state.experiment:
            yield from _of_run(other, known, f"run {other.name}")


def _of_run(run: Run, state: RunState, name: str, before: int | None = None) -> Iterator[tuple[str, Plan]]:
    for branch in reversed(state.branches):
        if branch["branch"] != "sufficient" or branch["phase"] != "baseline":
            continue  # after an optimization the candidate is not what the plan says
        revisions = [record["revision"] for record in state.revisions if record["seq"] < branch["seq"]]
        if revisions and (before is None or revisions[-1] < before):
            try:
                yield name.format(revisions[-1]), plans.load(run, state, revisions[-1])
            except FivegateError:
                continue


def _changed_at(path: Path) -> float:
    return path.stat().st_mtime


def _rows(plan: Plan) -> dict[str, str]:
    return {name: split["digest"] for name, split in plan.facts.get("splits", {}).items()}


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the keys that differ in what trains, as (old, new); a section of another kind is one change."""
    for section in SECTIONS:
        if section in old and section in new:
            for key, values in _changes(section, old[section], new[section]):
                if key not in NO_EFFECT:
                    yield key, values


def _changes(key: str, old: Any, new: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if not plans.differences({key: old}, {key: new}):
        return
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    if both and (key in ("loader", "trainer", "preprocess") or _same_kind(old, new)):
        for name in new:
            if name in old:  # a key of a later version has its old behaviour
                yield from _changes(f"{key}.{name}", old[name], new[name])
    else:
        yield key, (old, new)


def _same_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return set(old) == set(new) and old.get("_target_") == new.get("_target_")


def undoing(good: LastGood, keys: Sequence[str]) -> Arm:
    """Return the arm that gives these keys their earlier values; several keys speak for no cause of the vocabulary."""
    numbers = "_".join(str(list(good.changes).index(key)) for key in keys)
    texts = [f"{key} {_format_value(good.changes[key][1])} → {_format_value(good.changes[key][0])}" for key in keys]
    cause = cause_of(keys[0], *good.changes[keys[0]]) if len(keys) == 1 else None
    return Arm(
        f"undo_{numbers}",
        (cause,) if cause else (),
        f"as in the last good training ({good.name}): {', '.join(texts)}",
        Delta({key: good.changes[key][0] for key in keys}),
        reason="unusual",
    )


def cause_of(key: str, old: object, new: object) -> str | None:
    """Return the cause that a change speaks for; None where the vocabulary has none for it."""
    numbers = [value for value in (old, new) if isinstance(value, int | float) and not isinstance(value, bool)]
    if key in DIRECTIONS and len(numbers) == 2:
        return DIRECTIONS[key][0 if numbers[1] > numbers[0] else 1]
    return CAUSES.get(key)


def _format_value(value: object) -> str:
    """A value on one line: of a section its `_target_`."""
    if isinstance(value, Mapping) and value.get("_target_"):
        return str(value["_target_"])
    return format_override_value(value)
