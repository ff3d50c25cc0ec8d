"""What does the product say of each case, and what is that worth?  `make bench-faults`

Every case is trained and explained once, two at a time, one thread each. The table goes to the screen and to
`--out` as Markdown and JSON, beside the last stored one (`table.json`), so that what got worse is seen; `--store`
replaces that. Judges nothing and tunes nothing.

    benchmarks/faults/bench.py [--part tuning|held_out] [--sample N] [--repairs] [--out DIR] [--store]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from cases import HERE, Case, cases
from repair import repaired
from run_case import answered
from score import Answer, counted, scored
from side_by_side import asked
from table import compared, markdown

from pipeline.causes import load as vocabulary

STORED = HERE / "table.json"
Pairs = list[tuple[Case, Answer]]


def answers(chosen: list[Case]) -> Pairs:
    """What the product says of each case; a case that broke it says nothing, and is shown."""
    pairs: Pairs = []
    for case, said in zip(chosen, asked(answered, [(case,) for case in chosen]), strict=True):
        broken = said.get("error", "")
        accused = tuple((cause, float(sure)) for cause, sure in said.get("accused", ()))
        pairs.append((case, Answer(accused, float(said.get("seconds", 0.0)), {"error": broken, **said})))
        mark = "!" if broken else " " if bool(accused) != case.healthy else "?"
        heard = broken or ", ".join(f"{cause} {sure:.2f}" for cause, sure in accused[:3]) or "nothing"
        print(f"{mark} {case.id:<40} {'well' if case.healthy else case.causes[0]:<32} {heard}", flush=True)
    return pairs


def baselines(pairs: Pairs) -> dict[str, Pairs]:
    """Answers that know nothing of the training: always the rate, any cause, the commonest of the tuning part."""
    ids = sorted(vocabulary())
    draw = np.random.default_rng(0)
    common = Counter(c.causes[0] for c in cases() if c.part == "tuning" and not c.healthy).most_common(1)
    most = common[0][0] if common else ids[0]
    return {
        "always learning_rate_too_high": [(case, Answer((("learning_rate_too_high", 0.5),))) for case, _ in pairs],
        "a random cause": [(case, Answer(((str(draw.choice(ids)), 0.5),))) for case, _ in pairs],
        f"always {most}": [(case, Answer(((most, 0.5),))) for case, _ in pairs],
    }


def repairs(chosen: list[Case]) -> dict[str, Any]:
    """How many failing experiments a plain rerun and random search mend."""
    failing = [case for case in chosen if not case.healthy and case.way == "experiment"]
    found = list(asked(repaired, [(case,) for case in failing]))
    return {way: counted([bool(one.get(way)) for one in found]) for way in ("rerun", "random_search")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("tuning", "held_out"), help="one part of the families")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every N-th case")
    parser.add_argument("--repairs", action="store_true", help="also what a rerun and random search mend")
    parser.add_argument("--out", type=Path, help="where table.md and table.json go")
    parser.add_argument("--store", action="store_true", help=f"keep the table as {STORED.name} beside this file")
    args = parser.parse_args()
    started = time.perf_counter()
    chosen = [case for case in cases() if not args.part or case.part == args.part][:: args.sample]
    pairs = answers(chosen)
    rows = {"fivegate": scored(pairs)}
    for part in ("tuning", "held_out"):
        rows[f"fivegate, {part}"] = scored([(c, a) for c, a in pairs if c.part == part])
    for way in ("loop", "logs"):
        rows[f"fivegate, {way}"] = scored([(c, a) for c, a in pairs if c.way == way])
    rows |= {name: scored(said) for name, said in baselines(pairs).items()}
    table = {
        "cases": {"faulty": sum(not c.healthy for c, _ in pairs), "healthy": sum(c.healthy for c, _ in pairs)},
        "rows": rows,
        "repairs": repairs(chosen) if args.repairs else None,
        "minutes": (time.perf_counter() - started) / 60,
        "answers": {c.id: {"truth": c.causes, "said": a.accused, "error": a.detail["error"]} for c, a in pairs},
    }
    page = markdown(table)
    print(f"\n{page}")
    if STORED.is_file() and args.sample == 1 and not args.part:
        print("\n".join(compared(json.loads(STORED.read_text()), table)))
    for folder in [args.out] * bool(args.out) + [HERE] * args.store:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        (folder / "table.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
