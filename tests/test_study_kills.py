"""A study that is interrupted in its ablation, search or confirmation ends with the same choice and the same model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.release.verify import faults
from pipeline.run_store.ledger import read_ledger, scan_ledger
from pipeline.run_store.run import Run
from tests.phase_walks import NAME, WORDS, Kill, Walks, outcome

pytestmark = pytest.mark.process

# Without experiments of diagnostics, several rates are screened; the ablation table is trained before them.
STUDY = [
    *WORDS, "phases.diagnostics.experiments=false", "phases.optimization.seeds_per_arm=6",
    "phases.optimization.ablate=[optimizer.weight_decay]",
]  # fmt: skip
STAGES = {"ablation": "ablate1-2", "search": "screening-control-1", "confirmation": "control-2"}  # trainings inside


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Walks, Path]]:
    """A run that is diagnosed, in `diagnosed`, and the same after an undisturbed optimization, in `calm`."""
    folder = tmp_path_factory.mktemp("study")
    walks = Walks(folder, STUDY)
    for phase in ("baseline", "diagnostics"):
        ended = walks(folder / "diagnosed", phase)
        assert ended.code == 0, ended.output
    shutil.copytree(folder / "diagnosed", folder / "calm")
    ended = walks(folder / "calm", "optimization")
    assert ended.code == 0, ended.output
    yield walks, folder
    walks.close()


@pytest.mark.parametrize("signal", ["SIGINT", "SIGKILL"])
@pytest.mark.parametrize("stage", STAGES)
def test_study_ends_the_same_after_an_interrupt(study: tuple[Walks, Path], stage: str, signal: str) -> None:
    """Ctrl-C or SIGKILL in the middle of a stage, and the same command again: same trainings, choice and weights."""
    walks, folder = study
    root = folder / f"{stage}-{signal}"
    shutil.copytree(folder / "diagnosed", root)
    run, expected = Run(root / NAME), outcome(Run(folder / "calm" / NAME))

    cut = walks(root, "optimization", Kill("group", ended=STAGES[stage], signal=signal))
    scan = scan_ledger(run.ledger_path)
    decided = [entry for entry in scan.entries if entry["kind"] == "study.decided"]
    assert cut.killed and cut.code == (130 if signal == "SIGINT" else -9), cut.output
    assert scan.fault is None and not decided
    if signal == "SIGINT":
        assert "interrupted: " in cut.output and "Do: python -m pipeline phase=optimization" in cut.output

    again = walks(root, "optimization")
    assert again.code == 0, again.output
    assert outcome(run) == expected and expected["chosen"]["winner"]
    assert faults(run)[1] == []
    ended = [entry["data"]["id"] for entry in read_ledger(run.ledger_path) if entry["kind"] == "job.finished"]
    assert STAGES[stage] in ended and ended[-1] == "fixed"
