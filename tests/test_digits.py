"""The bundled digits are those of scikit-learn, read without importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import digits as bundled


def test_digits_equals_load_digits() -> None:
    """Pixels, digits and all names are equal to those of `load_digits`, from the file and from the loader."""
    from sklearn.datasets import load_digits

    path, bunch, data = bundled._bundled_file(), load_digits(), bundled.digits()
    assert path is not None
    np.testing.assert_array_equal(bundled._read(path), np.column_stack([bunch.data, bunch.target]))
    assert data["class_names"] == [str(name) for name in bunch.target_names]
    assert data["feature_names"] == list(bunch.feature_names)


def test_digits_falls_back_to_scikit_learn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scikit-learn that keeps its digits in another place gives the same splits."""
    expected = bundled.digits()
    monkeypatch.setattr(bundled, "BUNDLED", str(tmp_path / "gone"))
    data = bundled.digits()
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(data[split][0], expected[split][0])
        np.testing.assert_array_equal(data[split][1], expected[split][1])


@pytest.mark.process
def test_digits_does_not_import_scikit_learn() -> None:
    """The import would take most of a second before the first step."""
    code = "import sys; from pipeline.data.digits import digits; digits(); sys.exit('sklearn' in sys.modules)"
    assert not subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=Path(bundled.__file__).parents[2]
    ).returncode
