"""A bigram language model as a baseline: the probability of a token given the token before it, from train rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.splits import Split

Ids = NDArray[np.int64]


def vocabulary_size(kind: str, data: Data) -> int | None:
    """Return the number of tokens where rows are windows of a text and targets the next tokens; None for other data.

    Windows whose target is a class look like a table of integers. They are taken for text if the target of a window
    is the first token of the next window, as it is where a text is cut into windows without gaps.
    """
    X, y = data.train.X, data.train.y
    if not isinstance(X, Tensor) or X.ndim != 2 or data.train.dataset is not None or y.is_floating_point():
        return None
    if kind == "language_model":
        return max(int(ids.max()) for ids in (X, y, data.val.X, data.val.y)) + 1
    classes = data.classes
    if kind != "classification" or not classes or len(X) < 2:
        return None
    integers = bool((X.round() == X).all()) and float(X.min()) >= 0 and float(X.max()) < classes
    continued = float((X[1:, 0] == y[:-1]).float().mean()) if integers else 0.0
    return classes if continued > 0.9 and classes > 2 else None


def token_rows(split: Split) -> Ids:
    """Return windows and their next tokens as rows of token ids [N, context + 1]."""
    assert isinstance(split.X, Tensor)
    last = split.y if split.y.ndim == 1 else split.y[:, -1]
    return torch.cat([split.X.long(), last.long()[:, None]], dim=1).numpy()


def bigram_probabilities(rows: Ids, vocabulary: int) -> NDArray[np.float64]:
    """Return P(next token | token) [vocabulary, vocabulary] from token rows [N, L]; no probability is 0.

    Interpolated with how often each token occurs (add-one), by Witten and Bell's weights (IEEE Trans. Inf. Theory 37,
    1991): the more different tokens follow a token, the more weight the shorter context gets.
    """
    counts = np.zeros((vocabulary, vocabulary))
    np.add.at(counts, (rows[:, :-1].ravel(), rows[:, 1:].ravel()), 1)
    unigram = (counts.sum(axis=0) + 1) / (counts.sum() + vocabulary)
    weight = np.maximum((counts > 0).sum(axis=1, keepdims=True), 1)  # a token that train lacks has the unigram alone
    probabilities: NDArray[np.float64] = (counts + weight * unigram) / (counts.sum(axis=1, keepdims=True) + weight)
    return probabilities
