"""The tables that scikit-learn bundles, one function for each: real rows without a download."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.source_data import SourceData
from pipeline.data.splits import split_rows

UCI_LICENCE = "CC BY 4.0"


def breast_cancer(val: float = 0.2, test: float = 0.2, seed: int = 0) -> SourceData:
    """569 tumours with 30 measurements of cell nuclei: X float32 [N, 30], y 0 malignant or 1 benign, stratified."""
    source = "scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic)"
    return _split_bunch(_load_bunch("load_breast_cancer"), source, UCI_LICENCE, val, test, seed)


def wine(val: float = 0.2, test: float = 0.2, seed: int = 0) -> SourceData:
    """178 wines of three growers, 13 chemical measurements: X float32 [N, 13], y int64 [N], stratified."""
    return _split_bunch(_load_bunch("load_wine"), "scikit-learn load_wine: UCI Wine", UCI_LICENCE, val, test, seed)


def iris(val: float = 0.2, test: float = 0.2, seed: int = 0) -> SourceData:
    """150 flowers of three species, four lengths in cm: X float32 [N, 4], y int64 [N], stratified."""
    return _split_bunch(_load_bunch("load_iris"), "scikit-learn load_iris: UCI Iris", UCI_LICENCE, val, test, seed)


def diabetes(val: float = 0.2, test: float = 0.2, seed: int = 0) -> SourceData:
    """442 patients, ten measurements: X float32 [N, 10], y float32 [N], disease progression after a year, 25 to 346.

    The measurements are raw: in scikit-learn's default form they are centred and scaled over all rows, test included.
    """
    source = "scikit-learn load_diabetes(scaled=False): Efron et al., Least Angle Regression, 2004"
    return _split_bunch(_load_bunch("load_diabetes", scaled=False), source, None, val, test, seed)


def _load_bunch(loader: str, **options: bool) -> Any:
    from sklearn import datasets

    return getattr(datasets, loader)(**options)


def _split_bunch(bunch: Any, source: str, licence: str | None, val: float, test: float, seed: int) -> SourceData:
    """The rows of a scikit-learn Bunch in three splits; targets without names are values, not classes."""
    X, y = np.asarray(bunch.data, np.float32), np.asarray(bunch.target)
    classes = [str(name) for name in bunch.target_names] if "target_names" in bunch else None
    y = y.astype(np.int64 if classes else np.float32)
    return {
        **split_rows(X, y, val=val, test=test, seed=seed),
        "class_names": classes,
        "feature_names": [str(name) for name in bunch.feature_names],
        "source": source,
        "licence": licence,
    }
