"""What does Fivegate say of each case, and how often is it right?  `make bench-faults`

Every case is trained and explained once, two at a time, one thread each. The table is printed and written to `--out` as
Markdown and JSON, and compared with the last stored one (`table.json`); `--store` replaces that. Single cases are shown
for the tuning part only, unless `--part held_out` asks for the other one. The benchmark counts and judges nothing.
`--facts DIR` stores what each diagnosis started from; `--again DIR` trains nothing and explains such facts again.

    benchmarks/faults/bench.py [--part tuning|held_out] [--sample N] [--repairs] [--facts DIR | --again DIR]
                               [--out DIR] [--store]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from answers import Known, answer, earned, learned_answers
from cases import HERE, PARTS, WAYS, Case, cases
from facts import load, stored
from repair import try_repairs
from run_case import run_case
from score import Answer, Pairs, count, score_row
from side_by_side import run_each
from table import compare, markdown

from diagnostics.diagnose import diagnose
from pipeline.repair.causes import load as load_causes

STORED = HERE / "table.json"
ALL, SOURCES = "everything", ("planning", "baseline", "diagnosis")
ALONE: dict[str, tuple[str, ...]] = {"inspections alone": ("inspections",), "playbooks alone": ("playbooks",)}
ALONE["inspections and playbooks, no experiment"] = ("inspections", "playbooks")
CaseResult = dict[str, Any]  # as `run_case` returns it, or with `error`


def run_cases(selected: list[Case], shown_parts: Sequence[str], facts: Path) -> list[CaseResult]:
    """Train and explain each case; print a line for each case of the parts that are shown."""
    results = []
    arguments = [(case, 1, None, facts) for case in selected]
    for case, result in zip(selected, run_each(run_case, arguments), strict=True):
        results.append({"accused": [], "seconds": 0.0, "value": None, "error": "", **result})
        if case.part in shown_parts:
            print(_format_case(case, results[-1]), flush=True)
    return results


def _format_case(case: Case, result: CaseResult) -> str:
    accused = answer_of(result).accused
    ids = [cause for cause, _ in accused if cause not in case.harmless]
    mark = "!" if result["error"] else " " if bool(ids) != case.healthy else "?"
    answer = result["error"] or ", ".join(f"{cause} {confidence:.2f}" for cause, confidence in accused[:3]) or "nothing"
    return f"{mark} {case.id:<40} {'healthy' if case.healthy else case.causes[0]:<32} {answer}"


def answer_of(result: CaseResult, sources: Sequence[str] = SOURCES) -> Answer:
    """Return the accusations of these sources. A cause named by several of them counts once, at its first place."""
    accused: dict[str, float] = {}
    for cause, confidence, source in result["accused"]:
        if source in sources:
            accused.setdefault(cause, float(confidence))
    return Answer(tuple(accused.items()), float(result["seconds"]), bool(result["error"]))


def trivial_answers(selected: list[Case]) -> dict[str, Pairs]:
    """Return answers that ignore the training: one fixed cause, random causes, the most frequent of the tuning part."""
    ids = sorted(load_causes())
    draw = np.random.default_rng(0)
    frequency = Counter(fault[0] for case in cases() if case.part == "tuning" for fault in case.faults)
    rules = {
        "always learning_rate_too_high": lambda: ("learning_rate_too_high",),
        "three causes at random": lambda: tuple(map(str, draw.choice(ids, 3, replace=False))),
        "always the three commonest": lambda: tuple(cause for cause, _ in frequency.most_common(3)),
    }
    return {
        name: [(case, Answer(tuple((cause, 0.5) for cause in rule()))) for case in selected]
        for name, rule in rules.items()
    }


def count_repairs(selected: list[Case]) -> dict[str, Any]:
    """Count the failing experiments that a rerun and a random search repair; not those whose score is too good."""
    failing = [c for c in selected if not c.healthy and c.way == "experiment" and None in (c.at_least, c.at_most)]
    results = dict(zip((c.id for c in failing), run_each(try_repairs, [(case,) for case in failing]), strict=True))
    complete = [result for result in results.values() if "error" not in result]
    counts = {way: count([result[way] for result in complete]) for way in ("rerun", "random_search")}
    return {**counts, "broke": len(results) - len(complete), "cases": results}


def score_rows(results: list[tuple[Case, CaseResult]], known: Known, tuning: Known) -> dict[str, Any]:
    """Return the rows of the table. The first ones use some of the facts alone, or another way to use all of them."""
    rows: dict[str, Pairs] = {
        name: [(case, answer(facts, kinds)) for case, facts in known] for name, kinds in ALONE.items()
    }
    rows["a learned classifier on the same facts"] = list(learned_answers(tuning, known)) if tuning else []
    considered = {case.id: answer(facts).considered for case, facts in known}
    pairs = [(case, replace(answer_of(result), considered=considered.get(case.id, ()))) for case, result in results]
    rows[ALL] = pairs
    rows["target not told, no experiment"] = [(case, answer(facts.without_target())) for case, facts in known]
    rows["history alone, target not told"] = [(case, answer(facts.as_log())) for case, facts in known]
    rows |= {f"{ALL}, {part}": [(c, a) for c, a in pairs if c.part == part] for part in PARTS}
    rows |= {f"{ALL}, {way}": [(c, a) for c, a in pairs if c.way == way] for way in WAYS}
    rows |= trivial_answers([case for case, _ in results])
    return {name: score_row(answers) for name, answers in rows.items()}


def explain_again(case: Case, folder: Path) -> CaseResult:
    """Return what the present program says of the stored facts of a case."""
    facts = load(folder, case.id)
    causes = diagnose(facts.history, facts.config, facts.findings, facts.experiments).root_causes
    named = [(cause.issue, cause.confidence.value, "diagnosis") for cause in causes]
    result = {"accused": [*facts.gates, *named], "value": facts.value, "seconds": facts.seconds}
    return {"case": case.id, "error": "", **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="one part of the families")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every N-th case")
    parser.add_argument("--repairs", action="store_true", help="also count what a rerun and a random search repair")
    parser.add_argument("--facts", type=Path, metavar="DIR", help="store what each diagnosis started from in DIR")
    parser.add_argument("--out", type=Path, help="folder for table.md and table.json")
    parser.add_argument("--store", action="store_true", help=f"store the table as {STORED.name} next to this file")
    parser.add_argument("--again", type=Path, metavar="DIR", help="train nothing, and explain the facts in DIR again")
    args = parser.parse_args()
    missing = [case.id for case in cases() if args.again and not (args.again / f"{case.id}.json").is_file()]
    complete = args.sample == 1 and not (args.part or missing)
    if args.store and not complete:
        parser.error(
            "--store: only a table of all cases can be stored; omit --sample and --part, and --again needs all"
        )
    selected = [case for case in cases() if not args.part or case.part == args.part][:: args.sample]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.again or args.facts or Path(temporary)
        table = make_table(selected, folder, args)
    page = markdown(table)
    print(f"\n{page}")
    print(table["phase"] or "phase=diagnostics alone: these facts do not hold its seconds")
    if STORED.is_file() and complete:
        print("\n".join(compare(json.loads(STORED.read_text()), table)))
    for target in [args.out] * bool(args.out) + [HERE] * args.store:
        target.mkdir(parents=True, exist_ok=True)
        (target / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        (target / "table.md").write_text(page + "\n")


def make_table(selected: list[Case], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the table of these cases, whose facts are in a folder afterwards, or already."""
    started = time.perf_counter()
    if args.again:
        selected = [case for case in selected if (folder / f"{case.id}.json").is_file()]
        results = [(case, explain_again(case, folder)) for case in selected]
    else:
        results = list(zip(selected, run_cases(selected, [args.part or "tuning"], folder), strict=True))
    known = list(stored(folder, selected))
    tuning = list(stored(folder, [case for case in cases() if case.part == "tuning"]))
    return {
        "cases": {"faulty": sum(not c.healthy for c in selected), "healthy": sum(c.healthy for c in selected)},
        "rows": score_rows(results, known, tuning),
        "earned": earned([(case, facts) for case, facts in known if not case.healthy]),
        "repairs": count_repairs(selected) if args.repairs else None,
        "minutes": (time.perf_counter() - started) / 60,
        "phase": _format_phase_seconds([facts.phase_seconds for _, facts in known if facts.phase_seconds]),
        "answers": {case.id: _answer_record(case, result) for case, result in results},
    }


def _format_phase_seconds(seconds: Sequence[float]) -> str:
    """Return how long `phase=diagnostics` alone took; empty where no case says so."""
    if not seconds:
        return ""
    times = f"median {median(seconds):.1f} s, longest {max(seconds):.1f} s"
    return f"phase=diagnostics alone: {times}, {len(seconds)} cases"


def _answer_record(case: Case, result: CaseResult) -> dict[str, Any]:
    return {
        "part": case.part,
        "truth": case.causes,
        "harmless": case.harmless,
        "as_verified": bool(result["error"]) or case.well(result["value"]) == case.healthy,
        "value": result["value"] if result["value"] is not None and math.isfinite(result["value"]) else None,
        "accused": result["accused"],
        "error": result["error"],
    }


if __name__ == "__main__":
    main()
