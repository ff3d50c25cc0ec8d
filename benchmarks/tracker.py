"""How much does the tracker slow down a training?  `benchmarks/tracker.py --case cnn8 --rounds 5`

The same training with and without the process that updates MLflow, in interleaved pairs whose order alternates.
Checkpoints are written every few seconds, so that there is always something to send. Prints the steps per second of
`fit`, by the clock and by the processor time of the training process (less affected by other load), their ratios, and
the time that a complete export takes.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from statistics import median

from cases import CASES, PlannedCase, plan_case

from diagnostics.monitor import Monitor
from pipeline.engine.fit import fit
from pipeline.run_store import files
from pipeline.tracking.connection import TrackingConfig
from pipeline.tracking.mirror import mirror
from pipeline.tracking.sync_process import mirror_run


def measure_speed(planned: PlannedCase, tracked: bool) -> tuple[float, float]:
    """Return the steps per second of one training in the folder of its run, by the clock and by processor time."""
    run = planned.permit.run
    files.remove_folder(run.inside("baseline"))
    config = TrackingConfig(kind="mlflow", uri=None)
    with mirror_run(run.path, config, print) if tracked else nullcontext():
        if tracked:
            time.sleep(8)  # the tracker process starts during planning, so its start is not part of the measurement
        folder = files.folder(run.inside("baseline"))
        started, used = time.perf_counter(), time.process_time()
        result = fit(planned.permit, planned.job, [Monitor()], data=planned.data, folder=folder)
        speeds = result.steps / (time.perf_counter() - started), result.steps / (time.process_time() - used)
        files.write_bytes(run.inside("baseline", "history.npz"), result.history.to_bytes())
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="cnn8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    overrides = (f"trainer.max_epochs={args.epochs}", "trainer.checkpoint_minutes=0.1")
    with plan_case(args.case, *overrides) as planned:
        measure_speed(planned, False)  # warm-up
        ratios = []
        for round_ in range(args.rounds):
            speeds = {
                tracked: measure_speed(planned, tracked) for tracked in ((False, True), (True, False))[round_ % 2]
            }
            ratios.append([a / b for a, b in zip(speeds[True], speeds[False], strict=True)])
            by_clock = f"without {speeds[False][0]:.1f}, with {speeds[True][0]:.1f} steps/s"
            print(f"{by_clock}; ratio {ratios[-1][0]:.3f}, by processor time {ratios[-1][1]:.3f}", flush=True)
        for what, values in zip(("clock", "processor time"), zip(*ratios, strict=True), strict=True):
            span = f"{min(values):.3f} to {max(values):.3f}"
            print(f"{CASES[args.case].title}, by {what}: median ratio {median(values):.3f}, {span}")
        files.remove(planned.permit.run.inside("tracking.json"))
        started = time.perf_counter()
        sent = mirror(planned.permit.run.path).sent
        print(f"an export of {sent} takes {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
