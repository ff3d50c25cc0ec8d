"""Train jobs in processes of their own, with the start and the end of each in the ledger and on the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from pipeline.executors.settings import ExecutorSettings
from pipeline.run_store.job import Job
from pipeline.run_store.ledger import Ledger
from pipeline.runtime.announce import Parts, announced
from pipeline.trials.executor import Trial, ending_record, run_jobs
from pipeline.trials.progress import ShowTrials, running_rows


def train_recorded(
    jobs: Sequence[tuple[str, Job]],
    folder: Path,
    *,
    ledger: Ledger,
    round: int,
    log: Callable[[str], None],
    setting: int | str,
    threads: int,
    columns: int = 0,
    executor: ExecutorSettings | None = None,
    study: str | None = None,
    show: ShowTrials | None = None,
) -> dict[str, Trial]:
    """Train every job under `folder/<id>`, and return the trials by id.

    `setting` is the number of processes at the same time, or `auto`. A line of the table of scores, one per seed, is
    printed per `columns` jobs; none for 0 columns. `executor` says where the processes run; by default on this machine.
    `study` names the search that they belong to; trainings of a phase have none. `show` shows how far those are that
    run, on a terminal; without it a line is printed now and then.
    """
    line: list[str] = []
    about: dict[str, object] = {"round": round, "study": study} if study else {"round": round}
    executor = executor or ExecutorSettings()
    parallel = executor.parallel(setting, threads)
    parts = Parts(log, "trainings", len(jobs), at_a_time=parallel)

    def record(trial: Trial) -> None:
        if trial.interrupted:
            log(f"  {trial.id} was taken up once more: its process ended with {trial.interrupted}")
        ledger.append("job.finished", {**about, **ending_record(trial)})
        line.append(f"{trial.value:<8.4f}" if trial.score else "died    " if trial.died else "none    ")
        parts.finish_one(shown=len(line) == columns)
        if len(line) == columns:
            log(f"  {f'seed {trial.job.seed_index}':<8}  " + "  ".join(line).rstrip())
            line.clear()

    for name, job in jobs:
        ledger.append("job.started", {**about, "id": name, "job": job.to_json()})
    at_a_time = f", {parallel} at a time" if executor.on_this_machine or setting != "auto" else ""
    where = {"local": "", "submitit": f" by submitit ({executor.cluster})", "ray": " by Ray"}[executor.kind]
    several = f"{len(jobs)} trainings in processes of their own{at_a_time}{where}"
    text = f"  {'1 training in a process of its own' if len(jobs) == 1 else several}"

    def still() -> str:
        """A line after a long silence: how many trainings have ended, and where those are that run."""
        ended, rows = parts.still(), running_rows(jobs, folder)
        return f"{ended}; {', '.join(row.text() for row in rows)}" if ended and rows else ended

    shown = show(lambda: running_rows(jobs, folder)) if show else nullcontext()
    with shown, announced(log, text, still=None if show else still):
        trials = run_jobs(jobs, folder, parallel=parallel, threads=threads, on_finished=record, settings=executor)
    return {trial.id: trial for trial in trials}
