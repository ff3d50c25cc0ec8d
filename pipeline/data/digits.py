"""The 1,797 real handwritten digits that scikit-learn bundles (UCI, CC BY 4.0): 8×8 pixels, ten classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.splits import split_rows


def digits(val: float = 0.2, test: float = 0.2, seed: int = 0) -> dict[str, Any]:
    """X float32 [N, 64] in 0..1 and y int64 [N], stratified into train, val and test by `seed`."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    X, y = (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64)
    return {
        **split_rows(X, y, val=val, test=test, seed=seed),
        "class_names": [str(name) for name in bunch.target_names],
        "feature_names": list(bunch.feature_names),
        "source": "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, test part",
        "licence": "CC BY 4.0",
    }
