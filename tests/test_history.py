"""The history: sparse tables that survive the disk bit by bit."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.history import History
from pipeline.run_store import files

names = st.text(min_size=1, max_size=12)
numbers = st.floats(width=32, allow_nan=True)
columns = st.dictionaries(st.integers(0, 2**40), numbers, max_size=8)
tables = st.dictionaries(names, columns, max_size=4)
events = st.lists(st.tuples(st.sampled_from(["spike", "clip"]), st.integers(0, 99), numbers), max_size=3)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Any history at all."""
    history = History()
    for log, table in ((history.log_step, draw(tables)), (history.log_epoch, draw(tables))):
        for name, column in table.items():
            for at in sorted(column):
                log(at, {name: column[at]})
    history.facts.update(draw(st.dictionaries(names, st.floats(allow_nan=True), max_size=3)))
    for kind, step, value in draw(events):
        history.event(kind, step, value=value)
    return history


@given(histories())
def test_history_round_trips(history: History) -> None:
    """What is saved is what is loaded: names, indices, values with their NaNs, facts, events, digest."""
    again = History.from_bytes(history.to_bytes())

    assert history.names() == again.names()
    for name in history.names():
        for ours, theirs in zip(history.series(name), again.series(name), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert history.events == again.events
    assert history.digest() == again.digest()
    assert history.to_bytes() == again.to_bytes()


@given(histories(), names, numbers)
def test_digest_depends_on_every_measurement(history: History, name: str, value: float) -> None:
    """One more number changes the digest, unless it is a time."""
    before = history.digest()
    index, _ = history.series(name)

    history.log_step(int(index.max(initial=0)) + 1 if name in history.step else 0, {f"x{name}": value})
    after = history.digest()
    history.log_epoch(0, {"time/epoch": value})
    history.facts["time/total"] = value
    history.event("slow", 1, **{"time/step": value})

    assert before != after
    assert after != history.digest()  # the event itself is news
    history.events.pop()
    assert after == history.digest()


def test_digest_ignores_logging_order_and_nan_bits() -> None:
    """Two runs that measured the same have the same digest."""
    a, b = History(), History()
    a.log_step(0, {"lr": 1.0, "train/loss": math.nan})
    b.log_step(0, {"train/loss": -math.nan})
    b.log_step(0, {"lr": 1.0})
    a.facts["target"], b.facts["target"] = 1, 1.0

    assert a.digest() == b.digest()


def test_series_leaves_out_steps_without_measurement() -> None:
    """A column has its own index; a step at which it was not logged is not there."""
    history = History()
    history.log_step(0, {"train/loss": 1.0, "grad_norm": 2.0})
    history.log_step(1, {"train/loss": math.nan})

    index, values = history.series("train/loss")
    assert [0, 1] == index.tolist() and math.isnan(values[1])
    assert [0] == history.series("grad_norm")[0].tolist()
    assert [] == history.series("val/loss")[0].tolist()
    assert "step" == history.table("grad_norm") and history.table("val/loss") is None


def test_series_prefers_steps() -> None:
    """A name in both tables is read from the step table."""
    history = History()
    history.log_epoch(0, {"train/loss": 5.0})
    history.log_step(0, {"train/loss": 1.0})

    assert [1.0] == history.series("train/loss")[1].tolist()


def test_log_step_replaces_last_value() -> None:
    """Logging the last index again corrects it; going back is refused and changes nothing."""
    history = History()
    history.log_step(3, {"lr": 1.0})
    history.log_step(3, {"lr": 2.0})

    with pytest.raises(ValueError, match="got index 2 after 3"):
        history.log_step(2, {"lr": 9.0})
    with pytest.raises(TypeError):
        history.log_step(4, {"lr": "much"})  # type: ignore[dict-item]

    assert ([3], [2.0]) == tuple(x.tolist() for x in history.series("lr"))


def test_history_stores_float32() -> None:
    """Values beyond float32 become infinite rather than being refused: a run that explodes is still recorded."""
    history = History()
    history.log_step(0, {"train/loss": 1e300})

    assert math.inf == history.series("train/loss")[1][0]


@pytest.mark.parametrize("cut", [0, 1, 30, 200])
def test_from_bytes_refuses_broken_files(cut: int) -> None:
    """A file that is not a history is named, with what was expected."""
    history = History()
    history.log_step(0, {"lr": 1.0})

    with pytest.raises(UserError, match=r"runs/x\.npz: is not a history .*; expected the \.npz that a run wrote"):
        History.from_bytes(history.to_bytes()[:cut], "runs/x.npz")


def test_from_bytes_refuses_pickles() -> None:
    """An npz that holds a pickled object is refused."""
    buffer = io.BytesIO()
    np.savez(buffer, index=np.array([print], object), values=np.zeros(1, np.float32), meta=np.zeros(1, np.uint8))

    with pytest.raises(UserError, match="is not a history"):
        History.from_bytes(buffer.getvalue())


def test_from_bytes_refuses_inconsistent_columns() -> None:
    """A table whose columns overlap or go back is not loaded."""
    history = History()
    history.log_step(0, {"a": 1.0})
    history.log_step(1, {"a": 1.0})
    with np.load(io.BytesIO(history.to_bytes())) as file:
        arrays = dict(file)
    arrays["index"] = np.array([1, 0])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)

    with pytest.raises(UserError, match="'a' does not go forward"):
        History.from_bytes(buffer.getvalue())


def test_load_reads_file(tmp_path: Path) -> None:
    """A history goes through a file; a missing one is named."""
    history = History()
    history.log_epoch(0, {"val/loss": 0.5})
    files.write_bytes(tmp_path / "h.npz", history.to_bytes())

    assert history.digest() == History.load(tmp_path / "h.npz").digest()
    with pytest.raises(UserError, match=r"none\.npz: does not exist"):
        History.load(tmp_path / "none.npz")


@pytest.mark.process
def test_history_loads_without_torch() -> None:
    """Reading a history imports neither torch nor anything that does."""
    code = "import sys, pipeline.history; print('torch' in sys.modules)"
    root = Path(__file__).parent.parent

    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)

    assert "False" == completed.stdout.strip()
