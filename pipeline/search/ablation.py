"""An ablation table on request: what each named setting of the plan contributes, by turning it off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.adoption.context import Round, frozen_plan
from pipeline.adoption.proposals import config_of
from pipeline.adoption.round import terms_of, train
from pipeline.errors import UserError, fault
from pipeline.repair.config_edits import MISSING, get
from pipeline.run_store.job import Delta, Job
from pipeline.trials.executor import Trial
from pipeline.trials.study import Arm, ArmResult, compare_arms, with_change

ABLATION = "ablation"  # the purpose of its jobs
FIRST_SEED = 10  # the first seed index of the search: nothing is adopted by an ablation, so it may share those seeds


def ablation_table(ctx: Round, start: Delta) -> tuple[list[ArmResult], dict[str, Trial]]:
    """Train the plan with each key of `phases.optimization.ablate` turned off, and compare it with the unchanged plan.

    Returns the rows, control first, with all trainings; nothing where no key is named. An effect below 0 is what the
    setting contributes. Raises UserError for keys that the plan lacks or that are off already.
    """
    keys = list(ctx.settings.get("ablate") or ())
    if not keys:
        return [], {}
    plan, seeds = frozen_plan(ctx), int(ctx.settings["seeds_per_arm"])
    config = config_of(start, plan.config)
    arms = [Arm("ablate0", start)]
    for place, (key, off) in enumerate(turned_off(config, keys).items(), 1):
        arms.append(Arm(f"ablate{place}", with_change(start, {"overrides": {key: off}}), why=key))
    terms = terms_of(ctx, arms)
    ctx.log(f"optimization: ablation of {', '.join(keys)}, {seeds} seeds each")
    jobs = [
        (f"{arm.id}-{i}", Job(plan.digest, ABLATION, arm.delta, FIRST_SEED + i - 1, terms.budget))
        for i in range(1, seeds + 1)
        for arm in arms
    ]
    trials = train(ctx, jobs, 0)
    rows = compare_arms(arms, trials, seeds, terms.greater)
    for line in format_table(rows):
        ctx.log(f"  {line}")
    return rows, trials


def turned_off(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return each key with the value that turns it off: none, false or 0. Raises UserError with every wrong key."""
    values, faults = {}, []
    for key in keys:
        value = get(config, key)
        if value is MISSING:
            faults.append(fault("phases.optimization.ablate", "is not a key of the plan", got=key))
        elif value in (None, "none", False, 0):
            faults.append(fault("phases.optimization.ablate", f"names {key}, which is off already", got=value))
        else:
            values[key] = "none" if isinstance(value, str) else None if isinstance(value, Mapping) else type(value)()
    if faults:
        raise UserError(*faults)
    return values


def format_table(rows: Sequence[ArmResult]) -> list[str]:
    """Return the table as lines of text: the setting that was off, the mean score, and the difference with its test."""
    lines = [f"{'with everything':<40} {rows[0]['mean']:.4g}"]
    for row in rows[1:]:
        lines.append(f"{row['change']:<40} {row['mean']:.4g}  {row['effect']:+.4g}, p = {row['p']:.3g} after Holm")
    return lines
