"""The 1,797 real handwritten digits that scikit-learn bundles (UCI, CC BY 4.0): 8×8 pixels, ten classes."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.source_data import SourceData
from pipeline.data.splits import split_rows

BUNDLED = "datasets/data/digits.csv.gz"  # inside scikit-learn; 64 pixels from 0 to 16 and the digit


def digits(val: float = 0.2, test: float = 0.2, seed: int = 0, image: bool = False) -> SourceData:
    """X float32 [N, 64] in 0..1 and y int64 [N], stratified into train, val and test by `seed`.

    With `image` the same rows, in the same splits, are X [N, 1, 8, 8].
    """
    path = _bundled_file()
    table = _read(path) if path else _from_sklearn()
    X, y = (table[:, :64] / 16).astype(np.float32), table[:, 64].astype(np.int64)
    X = X.reshape(-1, 1, 8, 8) if image else X
    return {
        **split_rows(X, y, val=val, test=test, seed=seed),
        "class_names": [str(digit) for digit in range(10)],
        "feature_names": [f"pixel_{row}_{column}" for row in range(8) for column in range(8)],
        "source": "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, test part",
        "licence": "CC BY 4.0",
    }


def _bundled_file() -> Path | None:
    """The file inside the installed scikit-learn, found without importing it, which takes most of a second."""
    spec = importlib.util.find_spec("sklearn")
    path = Path(spec.origin).parent / BUNDLED if spec and spec.origin else None
    return path if path and path.is_file() else None


def _read(path: Path) -> NDArray[np.float64]:
    """Pixels and digit [N, 65] as in the file."""
    return np.loadtxt(gzip.decompress(path.read_bytes()).decode("ascii").splitlines(), delimiter=",")


def _from_sklearn() -> NDArray[np.float64]:
    """The same from scikit-learn's own loader, for a version that keeps the file elsewhere."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
