"""`compare`: is one config of a user's own training better than another, or is the difference due to the seed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import UserError, fault
from pipeline.tuning.comparison import Comparison, compare_by_seed
from pipeline.tuning.own_training import NO_NAME, Mode, Train, call_training, greater_is_better, score_of
from pipeline.tuning.paired_test import FEWEST_PAIRS


def compare(
    train: Train,
    a: object,
    b: object,
    seeds: int | Sequence[int] = 7,
    metric: str | None = None,
    *,
    mode: Mode | None = None,
    names: tuple[str, str] = ("a", "b"),
    log: Callable[[str], None] | None = None,
) -> Comparison:
    """Train two configs on the same seeds and return whether `b` is better than `a`: better, not shown or worse.

    `train(config)` returns a score, a mapping of metrics, or a history, of which the last value counts; it may also be
    a generator that yields one per epoch. The seed is passed as `seed=` where `train` takes it, else as the key `seed`
    of the config. Both configs are trained on every seed, and the scores compared in pairs by the exact sign-flip test
    at 5 %: a training whose score is not finite counts as the worst of all.

        from fivegate import compare
        compare(train, {"lr": 0.1}, {"lr": 0.03}, metric="val/accuracy")

    `seeds` is a number of seeds, from 0, or the seeds themselves; fewer than 6 can show nothing. `metric` names what is
    compared; its name says whether higher is better, unless `mode` is `max` or `min`. `log` is called with one line per
    pair, for example `print`. An exception of `train` is raised as it is. Raises UserError for what cannot be compared.
    """
    greater = greater_is_better(metric, mode)
    numbers = _seeds(seeds)
    pairs: list[tuple[float, float]] = []
    for seed in numbers:
        scores = score_of(call_training(train, a, seed), metric), score_of(call_training(train, b, seed), metric)
        pairs.append(scores)
        if log:
            log(f"seed {seed}: {names[0]} {scores[0]:.4g}, {names[1]} {scores[1]:.4g}")
    arms = [first for first, _ in pairs], [second for _, second in pairs]
    return compare_by_seed(arms, [*map(str, numbers)], names, metric or NO_NAME, greater)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return the seeds as numbers, each once. Raises UserError for none, and for one that is there twice."""
    numbers = [*range(seeds)] if isinstance(seeds, int) else [*map(int, seeds)]
    expected = f"a number of seeds, at least {FEWEST_PAIRS} to show anything, or different seeds"
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(
            fault("seeds", "gives no pairs" if not numbers else "repeats a seed", got=seeds, expected=expected)
        )
    return numbers
