"""The tables that scikit-learn bundles, each read in the function of its name: real rows, and nothing to download."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.splits import split_rows

UCI = "CC BY 4.0"


def breast_cancer(val: float = 0.2, test: float = 0.2, seed: int = 0) -> dict[str, Any]:
    """569 tumours, 30 measures of cell nuclei each: X float32 [N, 30], y 0 malignant or 1 benign, stratified."""
    source = "scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic)"
    return _split(_loaded("load_breast_cancer"), source, UCI, val, test, seed)


def wine(val: float = 0.2, test: float = 0.2, seed: int = 0) -> dict[str, Any]:
    """178 wines of three growers, 13 chemical measures each: X float32 [N, 13], y int64 [N], stratified."""
    return _split(_loaded("load_wine"), "scikit-learn load_wine: UCI Wine", UCI, val, test, seed)


def iris(val: float = 0.2, test: float = 0.2, seed: int = 0) -> dict[str, Any]:
    """150 flowers of three species, four lengths in cm each: X float32 [N, 4], y int64 [N], stratified."""
    return _split(_loaded("load_iris"), "scikit-learn load_iris: UCI Iris", UCI, val, test, seed)


def diabetes(val: float = 0.2, test: float = 0.2, seed: int = 0) -> dict[str, Any]:
    """442 patients, ten measures each: X float32 [N, 10], y float32 [N], the disease after a year, 25 to 346.

    The measures are as they were taken: scikit-learn's usual form of them is centred and scaled over all rows.
    """
    source = "scikit-learn load_diabetes(scaled=False): Efron et al., Least Angle Regression, 2004"
    return _split(_loaded("load_diabetes", scaled=False), source, None, val, test, seed)


def _loaded(name: str, **options: Any) -> Any:
    from sklearn import datasets

    return getattr(datasets, name)(**options)


def _split(bunch: Any, source: str, licence: str | None, val: float, test: float, seed: int) -> dict[str, Any]:
    """Three sides of scikit-learn's bunch, as it was measured; values are no classes."""
    X, y = np.asarray(bunch.data, np.float32), np.asarray(bunch.target)
    names = [str(name) for name in bunch.feature_names]
    classes = [str(name) for name in bunch.target_names] if "target_names" in bunch else None
    y = y.astype(np.int64 if classes else np.float32)
    return {
        **split_rows(X, y, val=val, test=test, seed=seed),
        "class_names": classes,
        "feature_names": names,
        "source": source,
        "licence": licence,
    }
