"""N-grams: what comes next in a text, from how often it followed the last tokens in the train rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.splits import Split

Ids = NDArray[np.int64]
ORDER = 3  # a trigram: two tokens of context


@dataclass(frozen=True, eq=False)
class NGrams:
    """Counts of one to `ORDER` tokens over a vocabulary.

    A gram is one number in base vocabulary + 1, whose last digit value stands for "before the window". `contexts[k]`
    and `grams[k]` are sorted, with how often each was seen; of a context also how many different tokens followed it.
    """

    vocabulary: int
    grams: tuple[tuple[Ids, Ids], ...]
    contexts: tuple[tuple[Ids, Ids, Ids], ...]

    def probabilities(self, context: Ids, following: Ids) -> NDArray[np.float64]:
        """[M, K] of the tokens `following` [M, K] after contexts [M, ORDER - 1], none of them zero.

        Witten and Bell's interpolation (IEEE Trans. Inf. Theory 37, 1991): the more different tokens followed a
        context, the more is left to the shorter one; below one token all are equally likely.
        """
        found = np.full(following.shape, 1.0 / self.vocabulary)
        for k in range(ORDER):
            keys = _key(context[:, ORDER - 1 - k :], self.vocabulary)
            known, times, kinds = self.contexts[k]
            seen, different = (_looked_up(known, values, keys)[:, None] for values in (times, kinds))
            counts = _looked_up(*self.grams[k], keys[:, None] * (self.vocabulary + 1) + following)
            found = np.where(seen > 0, (counts + different * found) / np.maximum(seen + different, 1), found)
        return found

    def every(self, context: Ids) -> NDArray[np.float64]:
        """[M, vocabulary] of whatever may follow contexts [M, ORDER - 1]."""
        return self.probabilities(context, np.tile(np.arange(self.vocabulary), (len(context), 1)))

    def commonest(self, context: Ids) -> Ids:
        """[M] of the likeliest token after contexts [M, ORDER - 1]; each different one is looked up once."""
        _, first, which = np.unique(_key(context, self.vocabulary), return_index=True, return_inverse=True)
        found = [self.every(context[some]).argmax(axis=1) for some in np.array_split(first, 1 + len(first) // 1000)]
        return np.concatenate(found)[which]

    def likely(self, context: Ids, following: Ids) -> NDArray[np.float64]:
        """[M] of what did follow; each different gram is looked up once."""
        keys = _key(np.concatenate([context, following[:, None]], axis=1), self.vocabulary)
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        return self.probabilities(context[first], following[first, None])[:, 0][which]


def _key(tokens: Ids, vocabulary: int) -> Ids:
    """[M, k] as one number per row; 0 for no tokens at all."""
    key = np.zeros(len(tokens), np.int64)
    for column in tokens.T:
        key = key * (vocabulary + 1) + column
    return key


def _looked_up(known: Ids, values: Ids, keys: Ids) -> Ids:
    """The value of each key, 0 for one that is not known."""
    place = np.searchsorted(known, keys).clip(max=len(known) - 1)
    return np.where(known[place] == keys, values[place], 0)


def vocabulary(kind: str, data: Data) -> int | None:
    """The number of tokens where rows are windows of a text and targets what follows; None for all else.

    A text that a class is asked of looks like a table of whole numbers, but for one thing: a window goes on where the
    target of the one before it stands.
    """
    X, y = data.train.X, data.train.y
    if not isinstance(X, Tensor) or X.ndim != 2 or data.train.items is not None or y.is_floating_point():
        return None
    if kind == "language_model":
        return max(int(side.max()) for side in (X, y, data.val.X, data.val.y)) + 1
    classes = data.classes
    if kind != "classification" or not classes or len(X) < 2:
        return None
    whole = bool((X.round() == X).all()) and float(X.min()) >= 0 and float(X.max()) < classes
    goes_on = float((X[1:, 0] == y[:-1]).float().mean()) if whole else 0.0
    return classes if goes_on > 0.9 and classes > 2 else None


def windows(rows: Ids, vocabulary: int) -> tuple[Ids, Ids]:
    """Contexts [N · (L - 1), ORDER - 1] and what followed each, of rows [N, L]; short ones begin before the window."""
    padding = np.full((len(rows), ORDER - 2), vocabulary, np.int64)
    padded = np.concatenate([padding, rows], axis=1)
    places = rows.shape[1] - 1
    context = np.stack([padded[:, i : i + places] for i in range(ORDER - 1)], axis=-1)
    return context.reshape(-1, ORDER - 1), rows[:, 1:].reshape(-1)


def counted(rows: Ids, vocabulary: int) -> NGrams:
    """The n-grams of token rows [N, L]."""
    context, following = windows(rows, vocabulary)
    grams, contexts = [], []
    for k in range(ORDER):
        before = _key(context[:, ORDER - 1 - k :], vocabulary)
        known, times = np.unique(before * (vocabulary + 1) + following, return_counts=True)
        grams.append((known, times))
        parents, kinds = np.unique(known // (vocabulary + 1), return_counts=True)
        contexts.append((parents, np.unique(before, return_counts=True)[1], kinds))
    return NGrams(vocabulary, tuple(grams), tuple(contexts))


def sequences(split: Split) -> NDArray[np.int64]:
    """Windows and what follows them as rows of tokens [N, context + 1]."""
    assert isinstance(split.X, Tensor)
    last = split.y if split.y.ndim == 1 else split.y[:, -1]
    return torch.cat([split.X.long(), last.long()[:, None]], dim=1).numpy()


def perplexity(likely: NDArray[np.float64], seed: int) -> tuple[float, tuple[float, float]]:
    """exp of the mean negative log probability, with a bootstrap interval over rows."""
    per_row = -likely.mean(axis=1)
    draw = np.random.Generator(np.random.Philox(seed))
    means = [float(per_row[draw.integers(0, len(per_row), len(per_row))].mean()) for _ in range(1000)]
    low, high = np.exp(np.percentile(means, [2.5, 97.5]))
    return float(np.exp(per_row.mean())), (float(low), float(high))
