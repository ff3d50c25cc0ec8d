"""What does the tracker cost a training?  `benchmarks/tracker.py --case cnn8 --rounds 5`

The same training with and without the process that keeps MLflow up to date, in interleaved pairs, each pair in the
other order than the one before; checkpoints every few seconds, so that there is always something new to send. Prints
steps per second of the training alone (what `fit` takes), by the clock and by the processor time of the training
process (which a busy machine blurs less), their ratios, and how long a mirror of all of it takes.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from statistics import median

from cases import CASES, Planned, planned

from diagnostics.monitor import Monitor
from pipeline.engine.fit import fit
from pipeline.run_store import files
from pipeline.tracking import mlflow, sync_process


def rate(given: Planned, tracked: bool) -> tuple[float, float]:
    """Steps per second, by clock and by processor time, of one training in the run's own folder."""
    run = given.permit.run
    files.remove_folder(run.inside("baseline"))
    tracking = {"kind": "mlflow", "uri": None}
    with sync_process.following(run.path, tracking, print) if tracked else nullcontext():
        if tracked:
            time.sleep(8)  # its start is in the time that planning takes
        began, spent = time.perf_counter(), time.process_time()
        done = fit(given.permit, given.job, [Monitor()], data=given.data, folder=files.folder(run.inside("baseline")))
        rates = done.steps / (time.perf_counter() - began), done.steps / (time.process_time() - spent)
        files.write_bytes(run.inside("baseline", "history.npz"), done.history.to_bytes())
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="cnn8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    asked = parser.parse_args()
    words = (f"trainer.max_epochs={asked.epochs}", "trainer.checkpoint_minutes=0.1")
    with planned(asked.case, *words) as given:
        rate(given, False)
        ratios = []
        for round_ in range(asked.rounds):
            found = {tracked: rate(given, tracked) for tracked in ((False, True), (True, False))[round_ % 2]}
            ratios.append([a / b for a, b in zip(found[True], found[False], strict=True)])
            by_clock = f"without {found[False][0]:.1f}, with {found[True][0]:.1f} steps/s"
            print(f"{by_clock}; ratio {ratios[-1][0]:.3f}, by processor time {ratios[-1][1]:.3f}", flush=True)
        for what, values in zip(("clock", "processor time"), zip(*ratios, strict=True), strict=True):
            span = f"{min(values):.3f} to {max(values):.3f}"
            print(f"{CASES[asked.case].title}, by {what}: median ratio {median(values):.3f}, {span}")
        files.remove(given.permit.run.inside("tracking.json"))
        began = time.perf_counter()
        sent = mlflow.mirror(given.permit.run.path)["sent"]
        print(f"a mirror of {sent} takes {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
