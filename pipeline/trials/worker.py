"""One trial in a process of its own: `python -m pipeline worker JOB`, the only way work starts in another process.

JOB is a folder with a `job.json` inside a run. The worker issues its own permit from the ledger, writes nothing
outside its folder, and dies with its parent.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.run_store import files, permits
from pipeline.run_store.job import Job
from pipeline.run_store.lock import sole_writer
from pipeline.run_store.run import Run


def run_around(folder: Path) -> Run:
    """Return the run that a folder lies in. Raises UserError where there is none."""
    for parent in folder.parents:
        if (parent / "ledger.jsonl").is_file():
            return Run(parent)
    raise UserError(fault(str(folder), "is not inside a run directory", expected="a job folder that a run made"))


def read_job(folder: Path) -> Job:
    """Return the job of a folder. Raises UserError for a file that is no job."""
    path = folder / "job.json"
    try:
        return Job.from_json(parse_json(read_bytes(path, "a job.json that a run wrote"), str(path)))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            fault(str(path), "is not a job", got=str(error), expected="a job.json that a run wrote")
        ) from error


def _performance(fit: Any) -> dict[str, float]:
    """What the training cost: parameters, ms per step, peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "params": sum(p.numel() for p in fit.model.parameters()),
        "step_ms": 1000 * fit.seconds / max(fit.steps, 1),
        "memory_mb": peak / (2**20 if sys.platform == "darwin" else 2**10),
    }


def work(folder: Path, observers: Callable[[], Sequence[Any]]) -> None:
    """Train the folder's job, from its last checkpoint on where there is one, and write `result.json` into the folder.

    Raises Interrupted when a signal asked it to stop (the same call takes the training up again), UserError for a
    folder that is no job, Refused when the ledger does not permit training.
    """
    folder = folder.resolve()
    run = run_around(folder)
    job = read_job(folder)
    permit = permits.train(run)

    from pipeline.checkpoints.generation import state_of
    from pipeline.engine.fit import fit
    from pipeline.trust import grants as trust

    state = run.state()
    trust.activate_recorded(state.trust, run.path, run.overrides_for("planning", state))
    with sole_writer(folder):
        done = fit(permit, job, observers(), folder=folder)
        assert done.checkpoint is not None
        ran = state_of(done.checkpoint)["identity"]
        files.write_bytes(folder / "history.npz", done.history.to_bytes())
        result = {
            "score": done.score,
            "steps": done.steps,
            "stopped": done.stop_reason,
            "seed": ran["seed"],
            "threads": ran["threads"],
            "weights": done.weights_digest,
            "checkpoint": run.relative(done.checkpoint),
            "performance": _performance(done),
        }
        files.write_json(folder / "result.json", result)
