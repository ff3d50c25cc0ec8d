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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import HERE, WAYS, Case, cases
from repair import repaired
from run_case import answered
from score import Answer, counted, scored
from side_by_side import asked
from table import compared, markdown

from pipeline.causes import load as vocabulary

STORED = HERE / "table.json"
WHOLE, VOICES = "gates and playbooks", ("planning", "baseline", "playbooks")
Said = dict[str, Any]
Pairs = list[tuple[Case, Answer]]


def answers(chosen: list[Case]) -> list[Said]:
    """What the product says of each case, shown as it comes; a case that broke it says nothing."""
    found = []
    for case, said in zip(chosen, asked(answered, [(case,) for case in chosen]), strict=True):
        found.append({"accused": [], "seconds": 0.0, "error": "", **said})
        broken, accused = found[-1]["error"], found[-1]["accused"]
        mark = "!" if broken else " " if bool(accused) != case.healthy else "?"
        heard = broken or ", ".join(f"{cause} {sure:.2f}" for cause, sure, _ in accused[:3]) or "nothing"
        print(f"{mark} {case.id:<40} {'well' if case.healthy else case.causes[0]:<32} {heard}", flush=True)
    return found


def heard(said: Said, voices: Sequence[str] = VOICES) -> Answer:
    """The accusations of these voices alone; a cause that several name counts once, where it comes first."""
    accused: dict[str, float] = {}
    for cause, sure, by in said["accused"]:
        if by in voices:
            accused.setdefault(cause, float(sure))
    return Answer(tuple(accused.items()), float(said["seconds"]))


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
    """How many failing experiments a plain rerun and random search mend, and which."""
    failing = [case for case in chosen if not case.healthy and case.way == "experiment"]
    found = list(asked(repaired, [(case,) for case in failing]))
    counts = {way: counted([bool(one.get(way)) for one in found]) for way in ("rerun", "random_search")}
    return counts | {"cases": {case.id: one for case, one in zip(failing, found, strict=True)}}


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
    said = list(zip(chosen, answers(chosen), strict=True))
    pairs = [(case, heard(one)) for case, one in said]
    rows = {"playbooks alone": scored([(case, heard(one, ["playbooks"])) for case, one in said])}
    rows[WHOLE] = scored(pairs)
    for part in ("tuning", "held_out"):
        rows[f"{WHOLE}, {part}"] = scored([(c, a) for c, a in pairs if c.part == part])
    for way in WAYS:
        rows[f"{WHOLE}, {way}"] = scored([(c, a) for c, a in pairs if c.way == way])
    rows |= {name: scored(pairs) for name, pairs in baselines(pairs).items()}
    table = {
        "cases": {"faulty": sum(not c.healthy for c in chosen), "healthy": sum(c.healthy for c in chosen)},
        "rows": rows,
        "repairs": repairs(chosen) if args.repairs else None,
        "minutes": (time.perf_counter() - started) / 60,
        "answers": {
            c.id: {"truth": c.causes, "harmless": c.harmless, "accused": one["accused"], "error": one["error"]}
            for c, one in said
        },
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
