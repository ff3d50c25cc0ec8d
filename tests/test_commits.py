"""Two commits of the user's code as two arms."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run
from pipeline.tuning.commits import _restored, parse
from pipeline.tuning.seed_arms import SeedArms
from tests.conftest import Cli

PACKAGE = """
import numpy as np
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.body({inputs})

def load():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 240)
    X = (draw.normal(size=(240, 4)) + 4 * np.eye(4)[y]).astype("float32")
    return {{"train": (X[:120], y[:120]), "val": (X[120:180], y[120:180]), "test": (X[180:], y[180:])}}
"""
EXPERIMENT = """# @package _global_
# python -m pipeline phase=baseline --config-dir conf experiment=clouds trust=[clouds]
defaults: [override /data: null, override /model: null]
seed: 1
data: {_target_: clouds.load}
model: {_target_: clouds.Net}
loader: {batch_size: 20}
optimizer: {lr: 0.02}
trainer: {max_epochs: 8, threads: 1}
phases: {baseline: {folds: 0, reproducibility_steps: 0, overfit_steps: 40}}
task: {target: 0.9}
plan: {purpose: to compare, population: any, assumptions: [none], risks: [none], limits: {size_mb: 1}, owner: nobody}
tracking: {kind: none}
"""


def git(folder: Path, *words: str) -> None:
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *author, "-C", str(folder), *words], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (["digits@abc", "digits"], "takes two arms"),
        (["digits@abc", "wine@abc"], "two commits of one run's code"),
        (["digits@"], "takes two arms"),
    ],
)
def test_parse_takes_two_commits_of_one_run(arms: list[str], says: str) -> None:
    """Anything else with an @ is refused, and arms without one are no commits."""
    with pytest.raises(UserError, match=says):
        parse(arms)
    assert parse(["a", "b"]) is None and parse(["a@1", "a@2"]) == [("a", "1"), ("a", "2")]


@pytest.mark.parametrize(
    ("first", "says"),
    [((0.9, 0.95), "confirmed"), ((0.9, 0.51), "inconclusive"), ((0.5, 0.51), "refuted")],
)
def test_restored_judges_by_the_target(first: tuple[float, float], says: str) -> None:
    """Half of what the second commit misses, on every seed, confirms that the cause is in the code between them."""
    arms = SeedArms(("r@a", "r@b"), ({"1": first[0], "2": first[1]}, {"1": 0.5, "2": 0.5}), "accuracy", True)
    assert says in str(_restored(arms, 0.9))
    assert _restored(arms, 0.4) is None and _restored(arms, None) is None


def test_restored_counts_trainings_without_a_score() -> None:
    """A commit whose training has no score misses everything, which another one restores by reaching the target."""
    nothing = {"1": math.nan, "2": math.nan}
    assert "confirmed" in str(
        _restored(SeedArms(("r@a", "r@b"), ({"1": 0.9, "2": 0.95}, nothing), "accuracy", True), 0.9)
    )
    assert "refuted" in str(_restored(SeedArms(("r@a", "r@b"), (nothing, nothing), "accuracy", True), 0.9))


@pytest.mark.process
def test_compare_trains_two_commits_of_the_code(own_folder: Path, cli: Cli) -> None:
    """The commit before the fault restores what the one with it misses; without trust nothing of them is imported."""
    (own_folder / "conf" / "experiment").mkdir(parents=True)
    (own_folder / "conf" / "experiment" / "clouds.yaml").write_text(EXPERIMENT)
    git(own_folder, "init", "-q")
    for inputs in ("x", "x.mean(1, keepdim=True).expand(-1, 4)"):
        (own_folder / "clouds.py").write_text(PACKAGE.format(inputs=inputs))
        git(own_folder, "add", "clouds.py", "conf")
        git(own_folder, "commit", "-qm", inputs)
    code, _, err = cli("phase=planning", "--config-dir", "conf", "experiment=clouds", "trust=[clouds]")
    assert code in (0, 3), err
    code, _, err = cli("compare", "clouds@HEAD~1", "clouds@HEAD")
    assert code == 3 and "only where this command trusts it" in err and "--trust clouds" in err
    code, out, err = cli("compare", "clouds@HEAD~1", "clouds@HEAD", "--trust", "clouds")
    assert code == 0, err

    assert "clouds@HEAD is" in out and "confirmed: the cause is in the code between the two commits" in out
    stated = [
        e["data"]
        for e in read_ledger(Run(own_folder / "runs" / "clouds").ledger_path)
        if e["kind"] == "hypothesis.stated"
    ]
    assert len(stated) == 1 and stated[0]["change"].startswith("the code of commit ")
