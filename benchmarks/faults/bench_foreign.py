"""How well are trainings explained that Fivegate did not run?  `make bench-loops`, `make bench-logs`

A loop is trained once, and its Monitor is told the target and asked for the causes. Its log is written in the formats
of `posted/` and read by `diagnose`. Single cases are shown for the tuning part alone; both parts are counted, each by
itself. With `--facts DIR` the trainings are kept, and with `--again DIR` they are explained again without a training,
which measures a change of a reader or of a playbook in a minute; what the Monitor saw of a loop stays as it was.

    benchmarks/faults/bench_foreign.py loops|logs [--part tuning|held_out] [--untold] [--only TEXT]
                                                  [--facts DIR | --again DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cases import PARTS, Case, cases
from facts import Facts, load, store
from run_case import bound_of, load_script, target_of, write_log
from score import Answer, Pairs, count, score_row
from side_by_side import run_each

from diagnostics.diagnose import diagnose
from diagnostics.diagnosis import Diagnosis
from diagnostics.logs.report import diagnose_log
from pipeline.errors import UserError

BARS = {"loops": ("first", 0.85, 0.03), "logs": ("top3", 0.60, 0.05)}  # what must be right, its share, false alarms
Explained = tuple[Case, Answer, Answer, str]  # named causes; named and considered ones; why a log was refused


def train(script: str, seed: int, folder: Path, targets: Sequence[dict[str, Any] | None]) -> float:
    """Train a loop, store what its Monitor knows with each of the targets that it may be told, and return the score."""
    score, monitor = load_script(script).run(seed, False)
    for number, target in enumerate(targets):
        store(folder, f"{script}@{number}", Facts(monitor.history, target, monitor.findings(target), value=score))
    return float(score)


def explain(case: Case, folder: Path, untold: bool) -> Explained:
    """Return what the Monitor, or the reader of logs, says of a training whose facts are in a folder."""
    facts = load(folder, f"{case.script}@{int(untold)}")
    if case.way == "loop":
        return (case, *_answers(diagnose(facts.history, facts.config, facts.findings)), "")
    target = None if untold else bound_of(case)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            log = write_log(case, facts.history, Path(temporary))
            _, diagnosis = diagnose_log(log, target=target).diagnoses[0]
        except UserError as error:
            return case, Answer((), broke=True), Answer((), broke=True), error.faults[0]
    return (case, *_answers(diagnosis), "")


def _answers(diagnosis: Diagnosis) -> tuple[Answer, Answer]:
    named = tuple((cause.issue, cause.confidence.value) for cause in diagnosis.root_causes)
    considered = tuple((entry.issue, entry.confidence) for entry in diagnosis.considered)
    return Answer(named), Answer((*named, *considered))


def summary(kind: str, part: str, explained: Sequence[Explained]) -> Iterator[str]:
    """Yield the counts of one part, with exact intervals, beside the bars."""
    what, least, most = BARS[kind]
    of_part = [entry for entry in explained if entry[0].part == part]
    if not of_part:
        return
    named: Pairs = [(case, answer) for case, answer, _, _ in of_part]
    ranked: Pairs = [(case, answer) for case, _, answer, _ in of_part if not case.healthy]
    row, all_ranked = score_row(named), score_row(ranked)
    healthy = sum(case.healthy for case, *_ in of_part)
    formats = len({case.format or "csv" for case, *_ in of_part})
    yield f"\n{part}: {len(of_part)} {kind}, {healthy} healthy" + (f", {formats} formats" if kind == "logs" else "")
    yield f"  accepted cause first, named              {_share(row['first'])}" + _bar(
        what == "first", f">= {least:.0%}"
    )
    yield f"  accepted cause in the first three, named {_share(row['top3'])}"
    yield f"  the same, of all that are considered     {_share(all_ranked['top3'])}" + _bar(
        what == "top3", f">= {least:.0%}"
    )
    yield f"  false alarms                             {_share(row['false_alarms'])}" + _bar(True, f"<= {most:.0%}")
    if kind == "logs":
        yield f"  read                                     {_share(count([not why for *_, why in of_part]))}"


def _share(counted: dict[str, float]) -> str:
    if not counted["n"]:
        return "-"
    return f"{counted['k']:3}/{counted['n']:<3} {counted['share']:.0%} ({counted['low']:.0%} to {counted['high']:.0%})"


def _bar(shown: bool, text: str) -> str:
    return f"   bar {text}" * shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(BARS))
    parser.add_argument("--part", choices=PARTS, help="one part of the families")
    parser.add_argument("--untold", action="store_true", help="the diagnosis is not told the target")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this text in their id")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--facts", type=Path, metavar="DIR", help="keep the trainings in DIR")
    parser.add_argument(
        "--again", type=Path, metavar="DIR", help="train nothing, and explain the trainings in DIR again"
    )
    args = parser.parse_args()
    way = "loop" if args.kind == "loops" else "logs"
    selected = [c for c in cases() if c.way == way and args.only in c.id and (not args.part or c.part == args.part)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.again or args.facts or Path(temporary)
        targets = {case.script: (target_of(case), None) for case in selected}
        missing = [name for name in targets if not (folder / f"{name}@1.json").is_file()]
        if args.again:
            selected = [case for case in selected if case.script not in missing]
        else:
            trainings = [(name, args.seed, folder, targets[name]) for name in missing]
            for name, result in zip(missing, run_each(train, trainings), strict=True):
                if isinstance(result, dict):
                    print(f"{name}: {result['error']}", flush=True)
            selected = [case for case in selected if (folder / f"{case.script}@1.json").is_file()]
        explained = [explain(case, folder, args.untold) for case in selected]
    for case, named, ranked, why in explained:
        if case.part == (args.part or "tuning"):
            right = (not named.ids) if case.healthy else bool(set(ranked.ids[:3]) & set(case.causes))
            answer = why or ", ".join(named.ids[:3]) or f"({', '.join(ranked.ids[:3])})"
            print(f"{' ' if right else '!'} {case.id:<48} {'healthy' if case.healthy else case.causes[0]:<28} {answer}")
    for part in PARTS:
        print("\n".join(summary(args.kind, part, explained)))


if __name__ == "__main__":
    main()
