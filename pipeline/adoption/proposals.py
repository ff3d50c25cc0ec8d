"""The candidates of a round: what experiments confirmed, then remedies of named causes, then general changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from pipeline.adoption.general import RATES, general_changes, wider_model
from pipeline.repair.config_edits import MISSING, get
from pipeline.repair.diagnosis_record import DiagnosisRecord
from pipeline.results import digest
from pipeline.run_store.job import Delta, Job
from pipeline.trials.candidates import untried
from pipeline.trials.study import Arm, Origin, added_overrides, with_change

COMBINED = 3  # the best single changes, whose pairs are candidates too
NEEDS_A_SCALE = ("preprocess.standardize", "preprocess.impute")  # remedies that token ids and class ids cannot have
SCALABLE = frozenset({"optimizer.lr", "model.width", "model.hidden"})  # settings whose step may be repeated
ENLARGE_MODEL = "enlarge_model"  # a cure whose size the diagnosis does not know


@dataclass(frozen=True)
class Experiment:
    """A change that diagnostics tested in an experiment, with its verdict; `restored` is a share of the shortfall."""

    delta: Delta
    causes: tuple[str, ...]
    verdict: str
    restored: float


@dataclass(frozen=True)
class Known:
    """What the candidates of a round are proposed from.

    `config` includes `start`, the change that earlier rounds adopted. `inputs_have_a_scale` is False for integer ids.
    """

    diagnosis: DiagnosisRecord
    start: Delta
    config: Mapping[str, Any]
    tested: Sequence[Experiment] = ()
    suggested_rate: float | None = None
    inputs_have_a_scale: bool = True


def propose(known: Known, tried: Set[str]) -> list[Arm]:
    """Return the candidates that are worth a trial, best founded first, each with its rank by size in `order`.

    First come changes that an experiment confirmed, then remedies of the causes that the diagnosis names, then their
    combinations. Only where none of them is left are general changes tried, which have no cause. What an
    experiment refuted, what was `tried` (digests of changes) and what cannot apply is left out.
    """
    believed = [*_confirmed(known), *_remedies(known)]
    believed += list(_combinations(believed))
    refuted = {
        digest(with_change(known.start, vars(experiment.delta)))
        for experiment in known.tested
        if experiment.verdict == "refuted"
    }
    left = _distinct(known, believed, tried | refuted)
    if not left:
        general = [
            Arm("", with_change(known.start, vars(delta)), "", "", origin="general", why=reason)
            for reason, delta in general_changes(known.config, known.suggested_rate)
        ]
        pairs = [arm for arm in _combinations(general) if "trainer.max_epochs" not in arm.delta.overrides]
        left = _distinct(known, [*general, *pairs], tried | refuted)
    return ranked(known, left)


def _confirmed(known: Known) -> list[Arm]:
    """Return the confirmed experiments, the largest share of the shortfall first."""
    confirmed = [
        experiment
        for experiment in known.tested
        if experiment.verdict == "confirmed" and experiment.causes and not experiment.delta.train_rows
    ]
    return [
        Arm(
            id="",
            delta=with_change(known.start, vars(experiment.delta)),
            cause=experiment.causes[0],
            origin="experiment",
            causes=experiment.causes,
            restored=experiment.restored,
        )
        for experiment in sorted(confirmed, key=lambda experiment: -round(experiment.restored, 2))
    ]


def _remedies(known: Known) -> list[Arm]:
    """Return the cures of named causes, and further doublings of a model that is too small."""
    arms = []
    for arm in untried(known.diagnosis, known.start, set()):
        arms.append(replace(arm, causes=(arm.cause,)))
        if arm.cure == ENLARGE_MODEL:
            for _, delta in wider_model(known.config):
                arms.append(replace(arm, delta=with_change(known.start, vars(delta)), causes=(arm.cause,)))
    return arms


def _combinations(singles: Sequence[Arm]) -> Iterator[Arm]:
    """Yield the pairs of the first changes of different causes that touch different parts of the config."""
    first = [
        arm for i, arm in enumerate(singles) if arm.causes not in [a.causes for a in singles[:i]] or not arm.causes
    ]
    for first_arm, second_arm in combinations(first[:COMBINED], 2):
        if first_arm.delta.overlaps(second_arm.delta):
            continue
        overrides = {**first_arm.delta.overrides, **second_arm.delta.overrides}
        surgery = (*first_arm.delta.surgery, *(s for s in second_arm.delta.surgery if s not in first_arm.delta.surgery))
        why = " and ".join(filter(None, (first_arm.why, second_arm.why)))
        parts = (first_arm.delta, second_arm.delta)
        origin: Origin = "general" if first_arm.origin == second_arm.origin == "general" else "combination"
        causes = tuple(dict.fromkeys((*first_arm.causes, *second_arm.causes)))
        cause = " and ".join(causes)
        yield Arm("", Delta(overrides, surgery), cause, origin=origin, causes=causes, why=why, parts=parts)


def _distinct(known: Known, arms: Sequence[Arm], leave_out: Set[str]) -> list[Arm]:
    """Return the arms that can apply, each change once, without those of these digests."""
    seen, distinct = {*leave_out, digest(known.start)}, []
    for arm in arms:
        if digest(arm.delta) not in seen and applies(arm.delta, known):
            seen.add(digest(arm.delta))
            distinct.append(arm)
    return distinct


def applies(delta: Delta, known: Known) -> bool:
    """Whether a change can apply to this run: its keys exist, and scaling is not asked of integer ids."""
    if not known.inputs_have_a_scale and any(key in NEEDS_A_SCALE for key in delta.overrides):
        return False
    return all(get(known.config, key) is not MISSING for key in delta.overrides)


def ranked(known: Known, arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms with ids in their order, and with their rank by size in `order`: 1 is the smallest change."""
    sizes = [(*_size(arm.delta, known), place) for place, arm in enumerate(arms)]
    ranks = {size: rank for rank, size in enumerate(sorted(sizes), 1)}
    return [
        replace(arm, id=f"c{i}", order=ranks[sizes[i - 1]], scaled=_factor(arm.delta, known))
        for i, arm in enumerate(arms, 1)
    ]


def _factor(delta: Delta, known: Known) -> float | None:
    """Return by how much a change scales its one setting; None for other changes."""
    added = added_overrides(known.start, delta)
    if len(added) != 1 or not SCALABLE & set(added):
        return None
    ((key, new),) = added.items()
    old = get(known.config, key)
    # Of a list of widths, the first one stands for all.
    before, after = (value[0] if isinstance(value, list | tuple) and value else value for value in (old, new))
    return float(after) / float(before) if _positive(before) and _positive(after) else None


def _size(delta: Delta, known: Known) -> tuple[int, float]:
    """Return how many settings a change replaces, and by how many powers of ten its numbers change in all."""
    added = added_overrides(known.start, delta)
    # A peak rate is scaled with the rate, and counts as the same setting.
    count = sum(len(value) if isinstance(value, Mapping) else 1 for key, value in added.items() if key != RATES[1])
    count += len(delta.surgery) - len(known.start.surgery)
    changes = [(get(known.config, key), new) for key, new in added.items()]
    powers = [abs(math.log10(new / old)) for old, new in changes if _positive(new) and _positive(old)]
    return count, round(sum(powers), 3)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def config_of(start: Delta, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Return the planned config with the change that earlier rounds adopted."""
    return Job("", "", start).config(planned)
