"""What `optimize` found: the accepted config, its proof, and what was tried and did not help."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.escaping import visible
from pipeline.tuning.comparison import Comparison

SHOWN = 5  # trials in the text; the notebook's table and `trials` have all of them

Config = Mapping[str, object]


@dataclass(frozen=True)
class TriedConfig:
    """One trial: its values of the space, its score (NaN without one), and how it ended.

    `outcome` is `scored`, `pruned` (stopped early, with the score of its last epoch) or `failed`, for the reason `why`.
    """

    number: int
    values: Config
    score: float
    outcome: str
    why: str = ""


@dataclass(frozen=True)
class Optimization:
    """The result of a search.

    - `accepted`: whether a config was shown to be better than the reference on fresh seeds.
    - `config`: that config; the reference, unchanged, where none was.
    - `candidate`: the best of the search, also where it was not accepted; None where no trial beat the reference.
    - `comparison`: of reference and candidate on fresh seeds; None without a candidate.
    - `without`: the score of the candidate with one change taken back, by the name of the change.
    - `notes`: what the trials say about the space, and which changes were dropped.
    """

    accepted: bool
    config: Config
    reference: Config
    candidate: Config | None
    comparison: Comparison | None
    trials: tuple[TriedConfig, ...]
    without: Mapping[str, float]
    metric: str
    greater_is_better: bool
    notes: tuple[str, ...]

    def headline(self) -> str:
        """Return the outcome in one line."""
        changes = _changes(self.candidate or {}, self.reference)
        if self.accepted:
            return visible(f"accepted: {changes}")
        why = "no trial was better than the reference" if self.candidate is None else f"{changes} was not shown better"
        return visible(f"the reference stays: {why}")

    def lines(self) -> list[str]:
        """Return the proof, the notes, and the trials that did not help, one line each."""
        scored = self._by_score()
        proof = self.comparison.lines() if self.comparison else []
        searched = f"searched: {len(self.trials)} trials, {len(scored)} of them scored to the end"
        alone = self._ablation()
        rest = scored if self.candidate is None else scored[1:]
        others = [f"{self._compared(trial)}: {_format(trial.values)}: {trial.score:.4g}" for trial in rest[:SHOWN]]
        more = [f"and {len(rest) - SHOWN} more, in .trials"] if len(rest) > SHOWN else []
        failed = [trial for trial in self.trials if trial.outcome == "failed"]
        lost = [f"failed: {_format(trial.values)}: {trial.why}" for trial in failed[:SHOWN]]
        return [*proof, searched, *map(visible, (*alone, *others, *more, *lost, *self.notes))]

    def _ablation(self) -> list[str]:
        """Return the score without each change of the candidate, one line each."""
        return [f"without the change of {name}: {score:.4g}" for name, score in self.without.items()]

    def _compared(self, trial: TriedConfig) -> str:
        """Return how a trial that was not chosen compares with the reference, which is the first trial."""
        if trial.number == 0:
            return "reference"
        gain = (trial.score - self.trials[0].score) * (1 if self.greater_is_better else -1)
        return "did not help" if gain <= 0 else "helped less"

    def _by_score(self) -> list[TriedConfig]:
        scored = [trial for trial in self.trials if trial.outcome == "scored"]
        return sorted(scored, key=lambda trial: -trial.score if self.greater_is_better else trial.score)

    def __repr__(self) -> str:
        return "\n  ".join([self.headline(), *self.lines()])

    def _repr_html_(self) -> str:
        """Return outcome, proof and the table of all trials for notebooks; every text is escaped."""
        names = [*self.trials[0].values] if self.trials else []
        head = "".join(f"<th>{_html(name)}</th>" for name in ("trial", *names, self.metric, "outcome"))
        rows = ""
        for trial in [*self._by_score(), *(t for t in self.trials if t.outcome != "scored")]:
            score = f"{trial.score:.4g}" if math.isfinite(trial.score) else ""
            end = f"{trial.outcome}: {trial.why}" if trial.why else trial.outcome
            cells = (trial.number, *(_value(trial.values[name]) for name in names), score, end)
            rows += f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in cells)}</tr>"
        notes = "".join(f"<li>{_html(note)}</li>" for note in (*self._ablation(), *self.notes))
        proof = self.comparison._repr_html_() if self.comparison else ""
        return f"<p><b>{_html(self.headline())}</b></p>{proof}<ul>{notes}</ul><table><tr>{head}</tr>{rows}</table>"


def _changes(config: Config, reference: Config) -> str:
    return _format({name: value for name, value in config.items() if reference.get(name) != value}) or "no change"


def _format(values: Config) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _html(text: object) -> str:
    return html.escape(visible(text))
