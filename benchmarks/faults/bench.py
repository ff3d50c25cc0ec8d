"""What does the product say of each case, and what is that worth?  `make bench-faults`

Every case is trained and explained once, two at a time, one thread each. The table goes to the screen and to
`--out` as Markdown and JSON, beside the last stored one (`table.json`), so that what got worse is seen; `--store`
replaces that. What is said of single cases is shown for the tuning part alone, unless `--part held_out` asks for it.

    benchmarks/faults/bench.py [--part tuning|held_out] [--sample N] [--repairs] [--out DIR] [--store]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import HERE, PARTS, WAYS, Case, cases
from repair import repaired
from run_case import answered
from score import Answer, Pairs, counted, scored
from side_by_side import asked
from table import compared, markdown

from pipeline.repair.causes import load as vocabulary

STORED = HERE / "table.json"
ALONE = {"playbooks alone": "playbooks", "playbooks, not told the target": "blind"}
WHOLE, VOICES = "gates and playbooks", ("planning", "baseline", "playbooks")
Said = dict[str, Any]


def answers(chosen: list[Case], show: Sequence[str]) -> list[Said]:
    """What the product says of each case; shown as it comes where its part is to be shown."""
    found = []
    for case, said in zip(chosen, asked(answered, [(case,) for case in chosen]), strict=True):
        found.append({"accused": [], "seconds": 0.0, "value": None, "error": "", **said})
        if case.part in show:
            print(_line(case, found[-1]), flush=True)
    return found


def _line(case: Case, said: Said) -> str:
    accused = heard(said).accused
    ids = [cause for cause, _ in accused if cause not in case.harmless]
    mark = "!" if said["error"] else " " if bool(ids) != case.healthy else "?"
    told = said["error"] or ", ".join(f"{cause} {sure:.2f}" for cause, sure in accused[:3]) or "nothing"
    return f"{mark} {case.id:<40} {'well' if case.healthy else case.causes[0]:<32} {told}"


def heard(said: Said, voices: Sequence[str] = VOICES) -> Answer:
    """The accusations of these voices alone; a cause that several name counts once, where it comes first."""
    accused: dict[str, float] = {}
    for cause, sure, by in said["accused"]:
        if by in voices:
            accused.setdefault(cause, float(sure))
    return Answer(tuple(accused.items()), float(said["seconds"]), bool(said["error"]))


def baselines(chosen: list[Case]) -> dict[str, Pairs]:
    """Answers that know nothing of the training: the rate, any three causes, the commonest three of the tuning part."""
    ids = sorted(vocabulary())
    draw = np.random.default_rng(0)
    common = Counter(fault[0] for case in cases() if case.part == "tuning" for fault in case.faults)
    ways = {
        "always learning_rate_too_high": lambda: ("learning_rate_too_high",),
        "three causes at random": lambda: tuple(map(str, draw.choice(ids, 3, replace=False))),
        "always the three commonest": lambda: tuple(cause for cause, _ in common.most_common(3)),
    }
    return {
        name: [(case, Answer(tuple((cause, 0.5) for cause in way()))) for case in chosen] for name, way in ways.items()
    }


def repairs(chosen: list[Case]) -> dict[str, Any]:
    """How many failing experiments a plain rerun and random search mend, and which; not those that are too good."""
    failing = [c for c in chosen if not c.healthy and c.way == "experiment" and None in (c.at_least, c.at_most)]
    found = dict(zip((case.id for case in failing), asked(repaired, [(case,) for case in failing]), strict=True))
    whole = [one for one in found.values() if "error" not in one]
    counts = {way: counted([one[way] for one in whole]) for way in ("rerun", "random_search")}
    return {**counts, "broke": len(found) - len(whole), "cases": found}


def rows(said: list[tuple[Case, Said]]) -> dict[str, Any]:
    """The table: what stands first is the playbooks as they are."""
    pairs = [(case, heard(one)) for case, one in said]
    found = {name: [(case, heard(one, [by])) for case, one in said] for name, by in ALONE.items()} | {WHOLE: pairs}
    found |= {f"{WHOLE}, {part}": [(c, a) for c, a in pairs if c.part == part] for part in PARTS}
    found |= {f"{WHOLE}, {way}": [(c, a) for c, a in pairs if c.way == way] for way in WAYS}
    return {name: scored(told) for name, told in (found | baselines([case for case, _ in said])).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="one part of the families")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every N-th case")
    parser.add_argument("--repairs", action="store_true", help="also what a rerun and random search mend")
    parser.add_argument("--out", type=Path, help="where table.md and table.json go")
    parser.add_argument("--store", action="store_true", help=f"keep the table as {STORED.name} beside this file")
    args = parser.parse_args()
    whole = args.sample == 1 and not args.part
    if args.store and not whole:
        parser.error("--store: a table of some of the cases is none to compare with; leave out --sample and --part")
    started = time.perf_counter()
    chosen = [case for case in cases() if not args.part or case.part == args.part][:: args.sample]
    said = list(zip(chosen, answers(chosen, [args.part or "tuning"]), strict=True))
    table = {
        "cases": {"faulty": sum(not c.healthy for c in chosen), "healthy": sum(c.healthy for c in chosen)},
        "rows": rows(said),
        "repairs": repairs(chosen) if args.repairs else None,
        "minutes": (time.perf_counter() - started) / 60,
        "answers": {
            case.id: {
                "part": case.part,
                "truth": case.causes,
                "harmless": case.harmless,
                "as_verified": bool(one["error"]) or case.well(one["value"]) == case.healthy,
                "value": one["value"] if one["value"] is not None and math.isfinite(one["value"]) else None,
                "accused": one["accused"],
                "error": one["error"],
            }
            for case, one in said
        },
    }
    page = markdown(table)
    print(f"\n{page}")
    if STORED.is_file() and whole:
        print("\n".join(compared(json.loads(STORED.read_text()), table)))
    for folder in [args.out] * bool(args.out) + [HERE] * args.store:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        (folder / "table.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
