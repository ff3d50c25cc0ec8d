"""The answer of a comparison of two arms: better, not shown or worse, with effect, interval and noise floor."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import UserError, fault
from pipeline.escaping import visible
from pipeline.trials.stats import replace_failed
from pipeline.tuning import paired_test
from pipeline.tuning.paired_test import ALPHA, FEWEST_PAIRS, PairedTest

MAX_SEEDS_NAMED = 10_000  # an effect that takes more seeds is none for practice

Answer = Literal["better", "not shown", "worse"]
Json = dict[str, object]


@dataclass(frozen=True)
class Pair:
    """The scores of both arms on one seed, NaN for a training without a score."""

    seed: str
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """Whether `b` is better than `a`, and by how much.

    - `answer`: `better` or `worse` where p < 5 %, else `not shown`.
    - `effect`: the mean improvement of b over a per pair, in the metric's unit; positive where b is better, whatever
      the metric's direction. `low` and `high` are its 95 % interval, infinite where there are too few pairs.
    - `p`: two-sided; the exact sign-flip test up to 20 pairs of seeds.
    - `noise_floor`: two trainings of one config differ by more than this, only by their seeds, in 1 of 20 cases; None
      where there is one seed.
    - `basis`: what is paired, such as `7 seeds`.
    - `notes`: what limits the answer.
    """

    answer: Answer
    effect: float
    low: float
    high: float
    p: float
    noise_floor: float | None
    metric: str
    greater_is_better: bool
    names: tuple[str, str]
    means: tuple[float, float]
    basis: str
    pairs: tuple[Pair, ...] = ()
    notes: tuple[str, ...] = ()

    def headline(self) -> str:
        """Return the answer in one line."""
        a, b = self.names
        verdict = {"better": "is better than", "worse": "is worse than", "not shown": "is not shown to differ from"}
        return visible(f"{b} {verdict[self.answer]} {a} in {self.metric}")

    def lines(self) -> list[str]:
        """Return the figures behind the answer, one line each."""
        direction = "higher is better" if self.greater_is_better else "lower is better"
        effect = f"effect: {self.effect:+.4g}, {self.format_interval()}, p = {self.p:.3g}, {self.basis}"
        means = f"means: {self.means[0]:.4g} and {self.means[1]:.4g} ({direction})"
        floor = (
            []
            if self.noise_floor is None
            else [f"noise floor: {self.noise_floor:.4g}; the seed alone moves one training further in 1 of 20 cases"]
        )
        return [effect, means, *floor, *map(visible, self.notes)]

    def format_interval(self) -> str:
        """Return the 95 % interval in words."""
        if not math.isfinite(self.low):
            return "no 95 % interval"
        return f"95 % interval {self.low:+.4g} to {self.high:+.4g}"

    def to_json(self) -> Json:
        """Return all fields as JSON; a number that is not finite is None."""
        numbers = {name: _finite(getattr(self, name)) for name in ("effect", "low", "high", "p", "noise_floor")}
        return {
            "answer": self.answer,
            **numbers,
            "metric": self.metric,
            "greater_is_better": self.greater_is_better,
            "a": {"name": self.names[0], "mean": _finite(self.means[0])},
            "b": {"name": self.names[1], "mean": _finite(self.means[1])},
            "basis": self.basis,
            "pairs": [{"seed": pair.seed, "a": _finite(pair.a), "b": _finite(pair.b)} for pair in self.pairs],
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        return "\n  ".join([self.headline(), *self.lines()])

    def _repr_html_(self) -> str:
        """Return a picture of the interval and a table of the pairs for notebooks; every text is escaped."""
        colour = {"better": "#1a7f37", "worse": "#cf222e", "not shown": "#6e7781"}[self.answer]
        head = f'<p><b style="color:{colour}">{_html(self.answer)}</b>: {_html(self.headline())}</p>'
        figures = "".join(f"<li>{_html(line)}</li>" for line in self.lines())
        rows = "".join(
            f"<tr><td>{_html(pair.seed)}</td><td>{_score(pair.a)}</td><td>{_score(pair.b)}</td></tr>"
            for pair in self.pairs
        )
        columns = f"<tr><th>seed</th><th>{_html(self.names[0])}</th><th>{_html(self.names[1])}</th></tr>"
        return f"{head}{self._picture(colour)}<ul>{figures}</ul>{f'<table>{columns}{rows}</table>' if rows else ''}"

    def _picture(self, colour: str) -> str:
        """Return the interval of the effect as SVG: the effect as a dot, no effect as a line, the noise floor grey."""
        if not math.isfinite(self.low):
            return ""
        floor = self.noise_floor or 0.0
        reach = 1.1 * max(abs(self.low), abs(self.high), floor) or 1.0

        def x(value: float) -> float:
            return round(200 + 190 * value / reach, 1)

        return (
            '<svg width="400" height="44" role="img" aria-label="95 % interval of the effect">'
            f'<rect x="{x(-floor)}" y="6" width="{x(floor) - x(-floor):.1f}" height="20" fill="#d0d7de" opacity="0.6"/>'
            '<line x1="200" x2="200" y1="2" y2="30" stroke="#6e7781" stroke-dasharray="3"/>'
            f'<line x1="{x(self.low)}" x2="{x(self.high)}" y1="16" y2="16" stroke="{colour}" stroke-width="3"/>'
            f'<circle cx="{x(self.effect)}" cy="16" r="5" fill="{colour}"/>'
            '<text x="200" y="40" font-size="10" text-anchor="middle" fill="#6e7781">no effect</text></svg>'
        )


def compare_by_seed(
    scores: tuple[Sequence[float], Sequence[float]],
    seeds: Sequence[str],
    names: tuple[str, str],
    metric: str,
    greater: bool,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare two arms with one score per seed each, NaN for a training that ended without one.

    A training without a score counts as the worst score of both arms. Raises UserError if there are no seeds, or if no
    training has a score.
    """
    every = [*scores[0], *scores[1]]
    if not any(map(math.isfinite, every)):
        got = "no seed in common" if not every else f"{len(every)} trainings without a finite score"
        raise UserError(fault("compare", "has nothing to compare", got=got, expected=f"{metric} of each arm and seed"))
    filled = tuple(replace_failed(arm, every, greater) for arm in scores)
    sign = 1 if greater else -1
    differences = [sign * (b - a) for a, b in zip(*filled, strict=True)]
    test = paired_test.paired_test(differences)
    same = len(seeds) > 1 and all(map(paired_test.all_equal, filled))
    return Comparison(
        answer=answer_of(test) if not same else "not shown",
        effect=test.effect,
        low=test.low if not same else -math.inf,
        high=test.high if not same else math.inf,
        p=test.p if not same else 1.0,
        noise_floor=paired_test.noise_floor(filled) if len(seeds) > 1 else None,
        metric=metric,
        greater_is_better=greater,
        names=names,
        means=(math.fsum(filled[0]) / len(seeds), math.fsum(filled[1]) / len(seeds)),
        basis=f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed",
        pairs=tuple(Pair(*pair) for pair in zip(seeds, *scores, strict=True)),
        notes=(*notes, *_failure_notes(scores, names), *_limits(differences, test, same)),
    )


def answer_of(test: PairedTest) -> Answer:
    """Return the answer of a test at 5 %."""
    if test.p >= ALPHA or not test.effect:
        return "not shown"
    return "better" if test.effect > 0 else "worse"


def _failure_notes(scores: tuple[Sequence[float], Sequence[float]], names: tuple[str, str]) -> list[str]:
    failed = {name: sum(not math.isfinite(v) for v in arm) for name, arm in zip(names, scores, strict=True)}
    return [
        f"{n} of {name}'s trainings ended without a score, and count as the worst" for name, n in failed.items() if n
    ]


def _limits(differences: Sequence[float], test: PairedTest, same: bool) -> list[str]:
    """Return why nothing was shown, and what would show it."""
    if same:
        return ["every seed gave the same score: the training does not use its seed, so that the pairs are one pair"]
    if answer_of(test) != "not shown":
        return []
    if len(differences) < FEWEST_PAIRS:
        return [f"{len(differences)} pairs cannot show a difference at 5 %; {FEWEST_PAIRS} are the fewest that can"]
    needed = paired_test.pairs_needed(differences)
    return (
        [f"an effect of this size takes about {needed} seeds to show"] if needed and needed <= MAX_SEEDS_NAMED else []
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _score(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "none"


def _html(text: str) -> str:
    return html.escape(visible(text))
