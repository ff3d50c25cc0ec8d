"""What mends a failing training without knowing why: training it once more, and random search.

`repair.py CASE`: one line of JSON. Both are judged under a seed that chose nothing.
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
from run_case import planned

from pipeline.runtime.seeds import derive

TRAININGS = 6
RERUN, CHOSEN_BY, JUDGED_BY = 201, 202, 203  # indices of seeds
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Adam": {},
    "RMSprop": {},
    "SGD": {"momentum": 0.9},
    "Adagrad": {},
}


def drawn(case: Case, config: dict[str, Any], number: int) -> dict[str, Any]:
    """Overrides of one candidate: rate, optimizer, batch size as anybody draws them, epochs around the plan's."""
    draw = np.random.default_rng(derive(0, "repair", case.id, number))
    name = str(draw.choice(list(OPTIMIZERS)))
    rate = 10 ** float(draw.uniform(-5, 0))
    optimizer = {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": rate, **OPTIMIZERS[name]}
    return {
        "optimizer": optimizer,
        "loader.batch_size": int(draw.choice([8, 16, 32, 64, 128])),
        "trainer.max_epochs": max(1, round(int(config["trainer"]["max_epochs"]) * float(draw.choice([0.5, 1, 2, 4])))),
    }


def repaired(case: Case) -> dict[str, bool]:
    """Whether a plain rerun, and the best of six random candidates, are well; nothing is where nothing may train."""
    from pipeline.data.load import load
    from pipeline.engine.fit import fit
    from pipeline.errors import FivegateError
    from pipeline.run_store import permits
    from pipeline.run_store.job import Delta, Job

    with tempfile.TemporaryDirectory() as root:
        run, _ = planned(case, 1, None, Path(root))
        if run.state().gate("planning") != "open":
            return {"rerun": False, "random_search": False}
        permit = permits.train(run)
        config = dict(permit.plan.config)
        data = load(config, tuple(grant["package"] for grant in run.state().trust))

        def value(overrides: dict[str, Any], seed: int) -> float:
            try:
                score = fit(permit, Job(permit.plan.digest, "trial", Delta(overrides), seed), data=data).score
            except FivegateError:  # a candidate may not fit the model; it is no repair then
                return math.nan
            return score.value if score else math.nan

        better = 1 if case.at_least is not None else -1
        tried = [drawn(case, config, number) for number in range(TRAININGS)]
        found = [better * value(overrides, CHOSEN_BY) for overrides in tried]
        best = tried[int(np.argmax(np.nan_to_num(found, nan=-math.inf)))]
        return {"rerun": case.well(value({}, RERUN)), "random_search": case.well(value(best, JUDGED_BY))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", metavar="CASE")
    args = parser.parse_args()
    [case] = [case for case in cases() if case.id == args.case and case.way == "experiment"]
    json.dump(repaired(case), sys.stdout)
    print()


if __name__ == "__main__":
    main()
