"""Training is a pure function of its plan: new processes that differ in everything else give the same bits.

FIVEGATE_KILLS above 10, as in `make test-crash`, tries every cell;
`make test-process` tries four that differ in everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.user_package import WORDS, write_package

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[1]
EVERY = int(os.environ.get("FIVEGATE_KILLS", "6")) > 10

# Plans as a user would, then trains; what observers measure is left out of the history, since they may be away.
TRAINING = """
import json, sys
from pathlib import Path
from diagnostics.monitor import Monitor
from pipeline.__main__ import main
from pipeline.engine.fit import fit
from pipeline.run_store.job import Job
from pipeline.run_store import permits
from pipeline.run_store.run import Run
from tests.user_package import trace

words, watched, tracked = json.loads(sys.argv[1])
name = "tracked" if tracked else "plain"
words = [*words, f"run.name={name}", "tracking=" + ("mlflow" if tracked else "none")]
assert main([("phase=baseline" if tracked else "phase=planning"), *words]) == 0
run = Run.find(name)
folder = run.inside("baseline")
folder.mkdir(exist_ok=True)
permit = permits.train(run)
done = fit(permit, Job(permit.plan.digest, "baseline"), [Monitor()] if watched else [], folder=folder)
own = {"train/loss", "lr", *done.history.epoch}
done.history.step = {name: column for name, column in done.history.step.items() if name in own}
done.history.facts = {}
print("LEFT", json.dumps({**trace(folder), "history": done.history.digest()}, sort_keys=True))
"""


def cell(
    folder: Path, name: str, environment: dict[str, str], arguments: list[str], watched: bool, tracked: bool
) -> str:
    """Return what a training in a new process of this kind leaves."""
    place = folder / name
    place.mkdir()
    write_package(place)
    training = json.dumps([[*WORDS, "+data.items=true", *arguments], watched, tracked])
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, training],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rsplit("LEFT", 1)[1]


QUICK: dict[str, tuple[dict[str, str], list[str], bool, bool]] = {
    "as it is": ({"PYTHONHASHSEED": "0"}, [], True, False),
    "one-worker": ({"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu"}, ["loader.num_workers=1"], True, False),
    "unwatched": ({"LC_ALL": "C"}, ["loader.num_workers=2", "trainer.checkpoint_steps=1"], False, False),
    "tracked": ({"PYTHONHASHSEED": "random"}, ["loader.num_workers=4", "trainer.checkpoint_steps=7"], True, True),
}
MORE: dict[str, tuple[dict[str, str], list[str], bool, bool]] = {
    f"{seed}-{workers}-{steps}-{watched}": (
        {"PYTHONHASHSEED": seed, "TZ": zone},
        [f"loader.num_workers={workers}", f"trainer.checkpoint_steps={steps}"],
        watched,
        False,
    )
    for seed, zone in (("0", "UTC"), ("random", "America/St_Johns"))
    for workers in (0, 1, 2, 4)
    for steps in ("1", "50", "null")
    for watched in (True, False)
}


def test_training_gives_same_digest_in_fresh_processes(own_folder: Path) -> None:
    """Hash seed, folder, time zone, workers, checkpoint interval, observers and tracker change no bit."""
    cells = {**QUICK, **MORE} if EVERY else QUICK
    left = {name: cell(own_folder, name, *kind) for name, kind in cells.items()}
    assert len(set(left.values())) == 1, left
    print(f"{len(left)} fresh processes, one digest")


def test_training_with_another_seed_differs(own_folder: Path) -> None:
    """The comparison can fail: another seed gives another result."""
    first = cell(own_folder, "first", {}, ["trainer.max_epochs=1"], True, False)
    other = cell(own_folder, "other", {}, ["trainer.max_epochs=1", "seed=6"], True, False)
    assert first != other
