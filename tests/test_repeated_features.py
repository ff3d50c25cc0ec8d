"""Features that repeat another one: exact copies are named, and healthy tables, images and codes have none."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from pipeline.data.analysis.quality import float_columns, tables
from pipeline.data.analysis.repeated_features import repeated_features
from pipeline.data.digits import digits
from pipeline.data.load import seal
from pipeline.data.sources import bundled
from tests.test_quality import clouds, read_evidence


def moons() -> Any:
    """Two moons in three splits."""
    from sklearn.datasets import make_moons

    parts = {name: make_moons(200, noise=0.2, random_state=i) for i, name in enumerate(("train", "val", "test"))}
    return {name: (X.astype("float32"), y) for name, (X, y) in parts.items()}


def test_repeated_features_names_exact_copies() -> None:
    """Equal columns and affine copies are named with their equation; a copy with noise is another feature."""
    splits = clouds(features=10)
    train = splits["train"][0]
    train[:, 3] = train[:, 1]
    train[:, 5] = 2.54 * train[:, 0] + 30
    train[:, 6] = -train[:, 2]
    train[:, 7] = train[:, 2] * (1 + 1e-4 * np.sign(train[:, 4]))
    splits["train"][0][:2, 9] = -0.0
    train[:, 8], train[:2, 8] = train[:, 9], 0.0
    found = read_evidence({**splits, "feature_names": list("abcdefghij")})["repeated_features"]
    described = {entry["feature"]: (entry["of"], entry["scale"], entry["shift"]) for entry in found["first"]}
    assert found["count"] == 4 and list(described) == ["d", "f", "g", "j"]
    assert (described["d"], described["g"], described["j"]) == (("b", 1, 0), ("c", -1, 0), ("i", 1, 0))
    assert [entry["equation"] for entry in found["first"]] == ["d = b", "f = 2.54 a + 30", "g = -c", "j = i"]
    assert described["f"] == ("a", pytest.approx(2.54, rel=1e-5), pytest.approx(30, rel=1e-5))


def test_repeated_features_is_silent_where_agreement_is_no_copy() -> None:
    """Constants, both columns of a category, columns that agree in few rows by chance, and grey images are fine."""
    splits = clouds(features=8)
    X = splits["train"][0]
    X[:, :2] = 3.0
    X[:, 2] = np.arange(len(X)) % 2
    X[:, 3] = 1 - X[:, 2]
    X[:, 4] = X[:, 5] = 0.0
    X[:4, 4] = X[:4, 5] = [1, 2, 3, 4]
    X[:, 6] = np.float32(1e7) + np.sign(X[:, 7])  # of which rounding leaves hardly anything
    assert read_evidence(splits)["repeated_features"] == {"count": 0, "first": []}
    grey = {name: (np.repeat(X[:, None, None, :], 3, axis=1), y) for name, (X, y) in clouds().items()}
    assert read_evidence(grey)["repeated_features"]["count"] == 0


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer", "diabetes", "moons"])
def test_repeated_features_is_silent_on_bundled_data(name: str) -> None:
    """No feature of the data of bundled experiments and of the benchmark repeats another one."""
    sources = {"digits": digits, "moons": moons}
    splits = sources.get(name, getattr(bundled, name, None))()
    train = seal(splits, "regression" if name == "diabetes" else "classification").train
    assert repeated_features(tables(float_columns(train)))["count"] == 0


def test_repeated_features_grows_linearly() -> None:
    """Four times the columns, all of them different or all of them equal, take about four times the time."""

    def seconds(values: Any) -> float:
        start = time.process_time()
        repeated_features([(values, str)])
        return time.process_time() - start

    rng = np.random.default_rng(0)
    different = rng.normal(size=(50, 8000)).astype("float32")
    equal = np.repeat(different[:, :1], 8000, axis=1)
    for values in (different, equal):
        seconds(values[:, :100])
        few, many = min(seconds(values[:, :2000]) for _ in range(3)), min(seconds(values) for _ in range(3))
        assert many < 10 * few
