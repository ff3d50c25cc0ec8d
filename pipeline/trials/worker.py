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


def _performance(fit_result: Any) -> dict[str, float]:
    """Return what the training cost: parameters, ms per step, peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "params": sum(p.numel() for p in fit_result.model.parameters()),
        "step_ms": 1000 * fit_result.seconds / max(fit_result.steps, 1),
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
        fit_result = fit(permit, job, observers(), folder=folder)
        assert fit_result.checkpoint is not None
        identity = state_of(fit_result.checkpoint)["identity"]
        files.write_bytes(folder / "history.npz", fit_result.history.to_bytes())
        result = {
            "score": fit_result.score,
            "steps": fit_result.steps,
            "stopped": fit_result.stop_reason,
            "seed": identity["seed"],
            "threads": identity["threads"],
            "weights": fit_result.weights_digest,
            "checkpoint": run.relative(fit_result.checkpoint),
            "performance": _performance(fit_result),
        }
        files.write_json(folder / "result.json", result)
