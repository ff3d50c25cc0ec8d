"""A training that takes more than half an hour is compared on one seed, by the losses of the same validation rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.adoption.one_seed import FILE, ONE_SEED, row_p_values
from pipeline.release.verify import faults
from pipeline.reporting.page import write_report
from pipeline.run_store.run import Run
from tests.check_helpers import read_evidence
from tests.conftest import SMALL, go, in_this_process

HOT = ("experiment=digits_hot", *SMALL[1:], "task.target=0.5", "phases.optimization.parallel=1")


@pytest.mark.slow
def test_optimization_adopts_by_validation_rows_where_a_training_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair is trained, its p-value is that of the rows, all say that it is one seed, and `verify` derives it."""
    monkeypatch.setattr("pipeline.trials.executor.Workers.run", in_this_process)
    for phase in ("baseline", "diagnostics"):
        go(tmp_path, f"phase={phase}", *HOT)
    monkeypatch.setattr("pipeline.adoption.round.LONG_MINUTES", 0.0)
    go(tmp_path, "phase=optimization", "run.name=digits_hot")

    run = Run(tmp_path / "digits_hot")
    evidence = read_evidence(run, "optimization", 1)
    winner, folder = evidence["winner"], run.inside("optimization", 1)
    assert evidence["one_seed"] and evidence["seeds_per_arm"] == 1 and len(winner["values"]) == 1
    assert winner["change"] == "optimizer.lr=0.01" and winner["p"] < 1e-6 and winner["effect"] > 0.1
    items = {item.id: item for item in run.state().gates["optimization"].items}
    assert all(item.outcome in ("passed", "not_applicable") for item in items.values()), items
    pages = [(folder / name).read_text().lower() for name in ("recommendations.md", "incident.md")]
    pages.append(write_report(run.path).read_text().lower())
    assert [ONE_SEED in page for page in pages] == [True, True, True]
    assert faults(run)[1] == []

    control, chosen = (folder / "trials" / f"{arm}-1" / FILE for arm in ("control", winner["id"]))
    assert row_p_values(control, [chosen], "accuracy") == [winner["p"]]
    chosen.write_bytes(control.read_bytes())
    assert any(FILE in fault for fault in faults(run)[1])
