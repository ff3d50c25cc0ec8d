"""Does every case do what its truth says?  `make verify-faults`

Each form of a case is trained with five seeds, including the one that `bench.py` uses, and with five fresh seeds that
were not used while the case was written. Of each five, a faulty form must fail at least four times, a mended form must
pass at least four times, and a healthy form must pass five times. The command lists the forms that do not, or that a
gate refuses to train, and then exits with 1. A case is removed from the benchmark for no other reason. If you change a
case after looking at its results, choose other fresh seeds. The logs of a loop have no training of their own, so that
the loop speaks for them.

    benchmarks/faults/verify.py [CASE ...] [--way experiment|loop] [--sample N]
"""

from __future__ import annotations

import argparse
import sys

from cases import WAYS, Case, cases
from run_case import train_form
from side_by_side import TIMEOUT, run_each

SEEDS, FRESH = (0, 1, 2, 3, 4), (401, 402, 403, 404, 405)
Form = int | None  # None: the case itself; K: its K-th mended form


def forms(case: Case) -> list[Form]:
    """Return the case as it is, and each of its mended forms."""
    return [None, *range(len(case.mended))]


def deviation(case: Case, form: Form, scores: list[float | None]) -> str:
    """Return how the form deviates from its truth; empty if it does not."""
    for name, five in (("seeds", scores[:5]), ("fresh seeds", scores[5:])):
        passed = sum(case.well(score) for score in five)
        if case.healthy and passed < 5:
            return f"healthy, but passes only {passed} of 5 {name}"
        if not case.healthy and form is None and passed > 1:
            return f"faulty, but fails only {5 - passed} of 5 {name}"
        if form is not None and passed < 4:
            return f"mended, but passes only {passed} of 5 {name}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="CASE", help="cases or families; all by default")
    parser.add_argument("--way", choices=WAYS[:2], help="only experiments, or only loops")
    parser.add_argument("--sample", type=int, metavar="N", help="every N-th case")
    args = parser.parse_args()
    trained = [case for case in cases() if case.way != "logs" and args.way in (None, case.way)]
    selected = [case for case in trained if not args.only or case.id in args.only or case.family in args.only]
    selected_forms = [(case, form) for case in selected[:: args.sample or 1] for form in forms(case)]
    trainings = [(case, SEEDS + FRESH, form) for case, form in selected_forms]
    results = run_each(train_form, trainings, timeout=len(SEEDS + FRESH) * TIMEOUT)
    wrong = 0
    for (case, form), scores in zip(selected_forms, results, strict=True):
        message = scores["error"] if isinstance(scores, dict) else deviation(case, form, scores)
        wrong += bool(message)
        values = "" if isinstance(scores, dict) else " ".join("-" if v is None else f"{v:.3g}" for v in scores)
        name = case.id if form is None else f"{case.id} mended {form}"
        print(f"{'WRONG' if message else 'right'}  {name:<44} {values}  {message}", flush=True)
    print(f"{len(selected_forms) - wrong} of {len(selected_forms)} forms do what their truth says")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
