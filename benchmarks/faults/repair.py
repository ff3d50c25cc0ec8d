"""Repairs without a diagnosis, for comparison: training once more, and random search.

`repair.py CASE` prints one line of JSON. Both repairs are scored with a seed that was not used to choose anything.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, cases
from run_case import plan_case

from pipeline.runtime.seeds import derive

TRAININGS = 6
RERUN_SEED, CHOICE_SEED, SCORE_SEED = 201, 202, 203  # seed indices
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Adam": {},
    "RMSprop": {},
    "SGD": {"momentum": 0.9},
    "Adagrad": {},
}


def draw_candidate(case: Case, config: dict[str, Any], number: int) -> dict[str, Any]:
    """Draw the overrides of one candidate: learning rate, optimizer, batch size, and epochs relative to the plan."""
    draw = np.random.default_rng(derive(0, "repair", case.id, number))
    name = str(draw.choice(list(OPTIMIZERS)))
    rate = 10 ** float(draw.uniform(-5, 0))
    optimizer = {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": rate, **OPTIMIZERS[name]}
    return {
        "optimizer": optimizer,
        "loader.batch_size": int(draw.choice([8, 16, 32, 64, 128])),
        "trainer.max_epochs": max(1, round(int(config["trainer"]["max_epochs"]) * float(draw.choice([0.5, 1, 2, 4])))),
    }


def try_repairs(case: Case) -> dict[str, bool]:
    """Return whether a rerun, and the best of six random candidates, are healthy; both False if a gate refuses."""
    from pipeline.data.load import load
    from pipeline.engine.fit import fit
    from pipeline.errors import FivegateError
    from pipeline.run_store import permits
    from pipeline.run_store.job import Delta, Job

    with tempfile.TemporaryDirectory() as root:
        run, _ = plan_case(case, 1, None, Path(root))
        if run.state().gate("planning") != "open":
            return {"rerun": False, "random_search": False}
        permit = permits.train(run)
        config = dict(permit.plan.config)
        data = load(config, tuple(grant["package"] for grant in run.state().trust))

        def train(overrides: dict[str, Any], seed: int) -> float:
            try:
                score = fit(permit, Job(permit.plan.digest, "trial", Delta(overrides), seed), data=data).score
            except FivegateError:  # a candidate that does not fit the model is not a repair
                return math.nan
            return score.value if score else math.nan

        better = 1 if case.at_least is not None else -1
        candidates = [draw_candidate(case, config, number) for number in range(TRAININGS)]
        scores = [better * train(overrides, CHOICE_SEED) for overrides in candidates]
        best = candidates[int(np.argmax(np.nan_to_num(scores, nan=-math.inf)))]
        return {"rerun": case.well(train({}, RERUN_SEED)), "random_search": case.well(train(best, SCORE_SEED))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", metavar="CASE")
    args = parser.parse_args()
    [case] = [case for case in cases() if case.id == args.case and case.way == "experiment"]
    json.dump(try_repairs(case), sys.stdout)
    print()


if __name__ == "__main__":
    main()
