"""N-grams: what comes next in a text, from how often it followed the last tokens in the train rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def probabilities(self, context: Ids) -> NDArray[np.float64]:
        """[M, vocabulary] of the next token after contexts [M, ORDER - 1], none of them zero.

        Witten and Bell's interpolation (IEEE Trans. Inf. Theory 37, 1991): the more different tokens followed a
        context, the more is left to the shorter one; below one token all are equally likely.
        """
        found = np.full((len(context), self.vocabulary), 1.0 / self.vocabulary)
        every = np.arange(self.vocabulary)
        for k in range(ORDER):
            keys = _key(context[:, ORDER - 1 - k :], self.vocabulary)
            known, times, kinds = self.contexts[k]
            seen, different = _looked_up(known, times, keys), _looked_up(known, kinds, keys)
            counts = _looked_up(*self.grams[k], keys[:, None] * (self.vocabulary + 1) + every)
            mixed = (counts + different[:, None] * found) / np.maximum(seen + different, 1)[:, None]
            found = np.where(seen[:, None] > 0, mixed, found)
        return found


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
