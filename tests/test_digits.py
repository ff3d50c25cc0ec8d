"""The bundled digits are scikit-learn's, read without importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import digits as bundled


def test_the_file_holds_what_scikit_learn_loads() -> None:
    """Pixels, digits and all names are equal to `load_digits`, whichever way they were read."""
    from sklearn.datasets import load_digits

    path, bunch, found = bundled._bundled_file(), load_digits(), bundled.digits()
    assert path is not None
    np.testing.assert_array_equal(bundled._read(path), np.column_stack([bunch.data, bunch.target]))
    assert found["class_names"] == [str(name) for name in bunch.target_names]
    assert found["feature_names"] == list(bunch.feature_names)


def test_without_the_file_scikit_learn_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scikit-learn that keeps its digits elsewhere gives the same splits."""
    expected = bundled.digits()
    monkeypatch.setattr(bundled, "BUNDLED", str(tmp_path / "gone"))
    found = bundled.digits()
    for side in ("train", "val", "test"):
        np.testing.assert_array_equal(found[side][0], expected[side][0])
        np.testing.assert_array_equal(found[side][1], expected[side][1])


@pytest.mark.process
def test_the_digits_are_read_without_scikit_learn() -> None:
    """Importing it would cost most of a second before the first step."""
    code = "import sys; from pipeline.data.digits import digits; digits(); sys.exit('sklearn' in sys.modules)"
    assert not subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=Path(bundled.__file__).parents[2]
    ).returncode
