"""The rows that prove an exported file: edges, all validation rows, and validation rows with seeded perturbations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.export.exported import Batch, Leaf, map_leaves, named_leaves, row_count

PROOF_ROWS = 1000  # perturbed rows are added to the validation rows until there are so many
MIN_PERTURBED = 100
NOISE = 0.1  # standard deviation of the noise, in deviations of the column


class ProofRows(NamedTuple):
    """One batch: `edge` edge rows first, then `validation` and `perturbed` rows."""

    batch: Batch
    edge: int
    validation: int
    perturbed: int

    def name(self, row: int) -> str:
        """Name a row of the batch for a message."""
        if row < self.edge:
            return ("the row of zeros", "the row of minima", "the row of maxima")[row]
        row -= self.edge
        return f"validation row {row}" if row < self.validation else f"perturbed row {row - self.validation}"


def proof_rows(validation: Batch, seed: int) -> ProofRows:
    """Return the rows of a proof; equal seeds give equal rows."""
    count = row_count(validation)
    draws = np.random.default_rng(seed)
    perturbed = perturbed_rows(validation, max(PROOF_ROWS - count, MIN_PERTURBED), draws)
    batch = concatenate(edge_rows(validation), validation, perturbed)
    return ProofRows(batch, 3, count, row_count(perturbed))


def edge_rows(batch: Batch) -> Batch:
    """Return three rows at the edges of a batch's values: zeros, the minimum and the maximum of every column.

    A whole number may be a code, and a code of 0 may not exist: where 0 is outside the values of a column of whole
    numbers, its first row is the minimum as well.
    """

    def edges(leaf: Leaf) -> np.ndarray:
        rows = np.asarray(leaf)
        least, most = (np.minimum, np.maximum) if rows.dtype.kind != "f" else (np.fmin, np.fmax)
        low, high = least.reduce(rows, axis=0), most.reduce(rows, axis=0)
        no_zero = _whole(rows) & ((low > 0) | (high < 0))
        return np.stack([np.where(no_zero, low, np.zeros_like(low)), low, high])

    return map_leaves(batch, edges)


def perturbed_rows(batch: Batch, count: int, draws: np.random.Generator) -> Batch:
    """Return `count` rows of the batch with noise of a tenth of each column's deviation.

    Columns of whole numbers may be codes: their values are drawn from those that occur in the column. A missing value
    stays missing.
    """
    chosen = draws.integers(0, row_count(batch), count)

    def perturb(leaf: Leaf) -> np.ndarray:
        rows = np.asarray(leaf)
        occurring = np.take_along_axis(rows, draws.integers(0, len(rows), (count, *rows.shape[1:])), axis=0)
        if rows.dtype.kind != "f":
            return occurring
        values = rows[chosen]
        finite = np.where(np.isfinite(rows), rows, np.nan)
        counted = np.maximum(np.isfinite(rows).sum(axis=0), 1)
        mean = np.nansum(finite, axis=0, dtype=np.float64) / counted
        deviation = np.sqrt(np.nansum((finite - mean) ** 2, axis=0) / counted)
        noisy = values + (NOISE * deviation * draws.standard_normal(values.shape)).astype(rows.dtype)
        return np.where(_whole(rows), occurring, noisy).astype(rows.dtype)

    return map_leaves(batch, perturb)


def _whole(rows: np.ndarray) -> np.ndarray:
    """Return which columns hold whole numbers only; missing values are left out."""
    if rows.dtype.kind != "f":
        return np.ones(rows.shape[1:], bool)
    return np.asarray(((rows == np.round(rows)) | np.isnan(rows)).all(axis=0))


def concatenate(first: Batch, *others: Batch) -> Batch:
    """Return the rows of several batches of the same nesting in one."""
    rest = [iter(named_leaves(other).values()) for other in others]
    return map_leaves(first, lambda leaf: np.concatenate([np.asarray(leaf), *(np.asarray(next(o)) for o in rest)]))
