"""Is every case what its truth says?  `make verify-faults`

Each form is trained under five seeds, the one that `bench.py` trains among them, and under five fresh ones that nobody
had looked at when the case was written. Of each five a faulty form must fail at least four times, a mended one pass
at least four, a healthy one five. What does not, or is refused a training, is named, and the command ends with 1; a
case leaves the benchmark for no other reason. Fresh seeds are fresh once: who mends a case after a look draws others.

    benchmarks/faults/verify.py [CASE ...] [--sample N]
"""

from __future__ import annotations

import argparse
import sys

from cases import Case, cases
from run_case import values
from side_by_side import asked

SEEDS, FRESH = (0, 1, 2, 3, 4), (401, 402, 403, 404, 405)
Form = int | None


def forms(case: Case) -> list[Form]:
    """The case as it is, then each of its mended forms."""
    return [None, *range(len(case.mended))]


def verdict(case: Case, form: Form, values: list[float | None]) -> str:
    """Empty where the form behaves as the truth says, else in what it does not."""
    for name, five in (("seeds", values[:5]), ("fresh seeds", values[5:])):
        passed = sum(case.well(value) for value in five)
        if case.healthy and passed < 5:
            return f"healthy, and passes {passed} of 5 {name}"
        if not case.healthy and form is None and passed > 1:
            return f"faulty, and fails only {5 - passed} of 5 {name}"
        if form is not None and passed < 4:
            return f"mended, and passes only {passed} of 5 {name}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="CASE", help="these cases, or all of a family; all by default")
    parser.add_argument("--sample", type=int, metavar="N", help="every N-th case")
    args = parser.parse_args()
    chosen = [case for case in cases() if not args.only or case.id in args.only or case.family in args.only]
    asked_of = [(case, form) for case in chosen[:: args.sample or 1] for form in forms(case)]
    all_values = asked(values, [(case, SEEDS + FRESH, form) for case, form in asked_of])
    wrong = 0
    for (case, form), found in zip(asked_of, all_values, strict=True):
        said = found["error"] if isinstance(found, dict) else verdict(case, form, found)
        wrong += bool(said)
        shown = "" if isinstance(found, dict) else " ".join("-" if v is None else f"{v:.3g}" for v in found)
        name = case.id if form is None else f"{case.id} mended {form}"
        print(f"{'WRONG' if said else 'right'}  {name:<44} {shown}  {said}", flush=True)
    print(f"{len(asked_of) - wrong} of {len(asked_of)} forms are what their truth says")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
