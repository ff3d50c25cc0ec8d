"""Measures what healthy trainings look like at rest: `healthy_ranges.py` writes `pipeline/inspection/healthy.yaml`.

The healthy trainings are the bundled experiments, the healthy cases of the tuning part, and the mended forms of its
faulty cases. With `--check` nothing is written, and the findings of every case of the tuning part are printed instead.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from cases import HERE, Case, cases

from pipeline.errors import FivegateError
from pipeline.inspection.finding import HEALTHY, Inspections, Measured, meanings
from pipeline.run_store import files

TRUST = ("planted",)
DIGITS = 4
HEADER = """\
# Values of healthy trainings before their first step, by quantity and sorted: the bundled experiments, and the healthy
# cases and mended forms of the fault benchmark's tuning part. `make healthy-ranges` measures them again.
"""


def inspect_experiment(overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[Inspections, list[Measured]]:
    """Inspect an experiment's training before its first step. Raises FivegateError if it cannot be built."""
    from pipeline.building.auto_values import load_resolved
    from pipeline.config.compose import compose
    from pipeline.run_store.plan import with_resolved
    from pipeline.sanity_checks.context import CheckContext
    from pipeline.sanity_checks.forward_checks import batch_independence, eval_determinism, gradient_flow
    from pipeline.sanity_checks.inspections import inspect_plan
    from pipeline.sanity_checks.run_checks import run_check

    config = compose([*overrides, "tracking=none"], config_dirs)
    data, resolved = load_resolved(config, TRUST, lambda line: None)
    context = CheckContext(with_resolved(config, {"resolved": resolved}), TRUST, data, config["phases"]["baseline"])
    checks = (gradient_flow, batch_independence, eval_determinism)
    return inspect_plan(context, {check.__name__: run_check(check, context) for check in checks})


def healthy_trainings() -> Iterator[tuple[str, list[str], list[Path], set[str]]]:
    """Yield name, overrides and config folders of every healthy training, and the flaws that its truth says it has.

    A healthy form of a faulty case may still have the fault and do well by other means.
    """
    for path in sorted((HERE.parents[1] / "conf" / "experiment").glob("*.yaml")):
        if path.stem not in ("csv", "digits_hot"):  # a template, and one whose rate is broken
            yield path.stem, [f"experiment={path.stem}"], [], set()
    for case in tuning_experiments():
        forms = [()] if case.healthy else case.mended
        for number, overrides in enumerate(forms):
            yield f"{case.id}/{number}", [*_of_case(case), *overrides], [HERE / "conf"], {*case.harmless, *case.causes}


def tuning_experiments() -> list[Case]:
    """Return the cases of the tuning part that are experiments."""
    return [case for case in cases() if case.part == "tuning" and case.way == "experiment"]


def _of_case(case: Case) -> list[str]:
    return [f"experiment={case.id}", "trust=[planted]"]


def measure() -> dict[str, list[float]]:
    """Return the values of all healthy trainings by quantity, rounded and sorted.

    A quantity of a training whose truth says that it has such a flaw is left out.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for name, overrides, folders, flaws in healthy_trainings():
        try:
            inspections, measured = inspect_experiment(overrides, folders)
        except FivegateError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        for entry in inspections.not_checked:
            print(f"{name}: {entry.what} not checked, {entry.why}", file=sys.stderr)
        for finding in inspections.findings:
            if finding.kind == "definition":
                print(f"{name}: {finding.cause} by definition: {finding.sentence}", file=sys.stderr)
        for quantity in measured:
            if flaws & {meaning.cause for meaning in meanings().get(quantity.quantity, ())}:
                continue
            values[quantity.quantity].append(float(f"{quantity.value:.{DIGITS}g}"))
    return {name: sorted(measured) for name, measured in sorted(values.items())}


def format_ranges(values: dict[str, list[float]]) -> str:
    """Return the values as YAML, one quantity after the other."""
    lines = [HEADER.rstrip(), "quantities:"]
    for name, measured in values.items():
        lines.append(f"  {name}:")
        row = "    ["
        for position, value in enumerate(measured):
            text = f"{value:g}{']' if position == len(measured) - 1 else ','}"
            if len(row) + len(text) > 118:
                lines.append(row.rstrip())
                row = "     "
            row += f"{text} "
        lines.append(row.rstrip())
    return "\n".join(lines) + "\n"


def check(only: Sequence[str]) -> None:
    """Print what is found in each case of the tuning part, and whether its cause is among it."""
    counts: dict[str, int] = defaultdict(int)
    for case in tuning_experiments():
        if only and case.id not in only:
            continue
        began = time.perf_counter()
        try:
            inspections, _ = inspect_experiment(_of_case(case), [HERE / "conf"])
        except FivegateError as error:
            print(f"{case.id}: {error}")
            continue
        seconds = time.perf_counter() - began
        found = list(inspections.findings)
        named = [finding.cause for finding in found]
        if case.healthy:
            wrong = [cause for cause in named if cause not in case.harmless]
            verdict = f"ACCUSED {', '.join(wrong)}" if wrong else "silent"
        else:
            first = next((i for i, cause in enumerate(dict.fromkeys(named)) if cause in case.causes), None)
            verdict = "MISSED" if first is None else f"found at {first + 1}"
        counts[f"{'healthy' if case.healthy else 'faulty'}: {verdict.split()[0]}"] += 1
        print(f"{case.id} ({', '.join(case.causes) or 'healthy'}): {verdict}, {seconds:.1f} s")
        for finding in found:
            print(f"    {finding.abnormality:.3f} {finding.kind[:3]} {finding.cause}: {finding.sentence}")
        for entry in inspections.not_checked:
            print(f"    not checked: {entry.what}: {entry.why}")
    print(dict(counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", nargs="*", metavar="CASE", help="print the findings of these cases, or of all")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(HERE))
    if args.check is not None:
        check(args.check)
    else:
        files.write_text(HEALTHY, format_ranges(measure()))


if __name__ == "__main__":
    main()
