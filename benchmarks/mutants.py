"""Which small changes of the code do its tests miss?  `make mutants`

Each mutant changes one expression or statement of a module (inverts a comparison, negates a condition, adds one to a
constant, removes a call) in a copy of the checkout, and runs the tests of that unit. A mutant that no test notices is
printed as SURVIVED: either a test is missing, or the change makes no difference. The command judges nothing.

    benchmarks/mutants.py --count 60 --seed 1     the default
    benchmarks/mutants.py --unit ledger           mutants of one unit alone
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info")
NO_TESTS = 5  # the exit code of pytest where every test is deselected
SECONDS = 300  # a mutant whose tests take longer counts as killed

# The modules of each unit, and the tests of these modules, fast ones first: the first failure ends a mutant.
UNITS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ledger": (
        ("pipeline/run_store/ledger.py", "pipeline/run_store/lock.py", "pipeline/run_store/files.py"),
        ("test_ledger", "test_lock", "test_files", "test_crash"),
    ),
    "gates": (
        ("pipeline/run_store/gate.py", "pipeline/run_store/state.py", "pipeline/run_store/checklist.py",
         "pipeline/orchestration/state_machine.py"),
        ("test_gate", "test_state_machine", "test_bad_input", "test_cli"),
    ),
    "permits": (
        ("pipeline/run_store/permits.py", "pipeline/data/sealed.py"),
        ("test_permits", "test_phase_finalization", "test_engine"),
    ),
    "engine": (
        ("pipeline/engine/loop.py", "pipeline/engine/progress.py", "pipeline/engine/resume.py",
         "pipeline/engine/guard.py", "pipeline/engine/stepper.py", "pipeline/engine/timer.py",
         "pipeline/engine/fit.py", "pipeline/engine/spikes.py"),
        ("test_engine", "test_spikes", "test_stepper", "test_resume", "test_setup", "test_determinism",
         "test_precision"),
    ),
    "release": (
        ("pipeline/release/bundle.py", "pipeline/release/verify.py", "pipeline/release/release.py",
         "pipeline/export/parity.py"),
        ("test_bundle", "test_verify", "test_release_exports", "test_phase_finalization"),
    ),
}  # fmt: skip

OPPOSITE: dict[type[ast.AST], type[ast.AST]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one module: the text between two offsets (in bytes) is replaced."""

    unit: str
    file: str
    line: int
    start: int
    stop: int
    before: str
    after: str

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.stop :]

    def __str__(self) -> str:
        before, after = (" ".join(text.split())[:60] for text in (self.before, self.after))
        return f"{self.file}:{self.line}  {before}  ->  {after}"


def mutated(node: ast.AST) -> str | None:
    """The source of the node after one change that alters what it does; None for nodes that are left alone."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OPPOSITE:
        operator = OPPOSITE[type(node.ops[0])]()
        return ast.unparse(ast.Compare(node.left, [operator], node.comparators))  # type: ignore[list-item]
    if isinstance(node, ast.BoolOp):
        return f"({ast.unparse(ast.BoolOp(OPPOSITE[type(node.op)](), node.values))})"  # type: ignore[arg-type]
    if isinstance(node, ast.BinOp) and type(node.op) in OPPOSITE:
        return f"({ast.unparse(ast.BinOp(node.left, OPPOSITE[type(node.op)](), node.right))})"  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return f"({ast.unparse(node.operand)})"
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return repr(not node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return repr(node.value + 1)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return "..."
    return None


def visited(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those in assertions, annotations, decorators and module constants, which are no behaviour."""
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        stack: list[ast.AST] = list(function.body)
        while stack:
            node = stack.pop()
            if isinstance(node, ast.Assert | ast.AnnAssign | ast.FunctionDef | ast.JoinedStr):
                continue
            yield node
            stack += ast.iter_child_nodes(node)


def mutants(unit: str) -> list[Mutant]:
    """Every mutant of a unit's modules."""
    collected = []
    for file in UNITS[unit][0]:
        source = (ROOT / file).read_bytes()
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        for node in visited(ast.parse(source)):
            after = mutated(node)
            if after is None:
                continue
            start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
            stop = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
            before = source[start:stop].decode()
            collected.append(Mutant(unit, file, node.lineno, start, stop, before, after))  # type: ignore[attr-defined]
    return collected


def noticed(mutant: Mutant, checkout: Path) -> bool:
    """Whether a test of the unit fails on the mutant."""
    path = checkout / mutant.file
    source = path.read_bytes()
    path.write_bytes(mutant.applied(source))
    try:
        return tests_fail(mutant.unit, checkout)
    finally:
        path.write_bytes(source)


def tests_fail(unit: str, checkout: Path) -> bool:
    """Whether a test of the unit fails; the tests that start processes run only where no quick one does."""
    tests = [f"tests/{name}.py" for name in UNITS[unit][1]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for marks in ("not slow and not process", "process and not slow"):
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", marks, *tests]
        try:
            result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return True
        if result.returncode not in (0, NO_TESTS):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="mutants in all, shared evenly by the units")
    parser.add_argument("--seed", type=int, default=1, help="which of the many mutants are drawn")
    parser.add_argument("--unit", choices=UNITS, action="append", help="a unit; may be repeated")
    parser.add_argument("--parallel", type=int, default=2, help="mutants tried at a time")
    arguments = parser.parse_args()
    units = arguments.unit or list(UNITS)
    draw = random.Random(arguments.seed)
    chosen = [m for unit in units for m in draw.sample(mutants(unit), arguments.count // len(units))]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.parallel) as pool:
        checkouts: SimpleQueue[Path] = SimpleQueue()
        for number in range(arguments.parallel):
            copy = Path(scratch) / str(number)
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
            checkouts.put(copy)

        def tried(mutant: Mutant) -> bool:
            checkout = checkouts.get()
            try:
                return noticed(mutant, checkout)
            finally:
                checkouts.put(checkout)

        killed = 0
        for mutant, is_killed in zip(chosen, pool.map(tried, chosen), strict=True):
            killed += is_killed
            print("killed  " if is_killed else "SURVIVED", mutant, flush=True)
    print(f"{killed} of {len(chosen)} mutants were noticed by their unit's tests (seed {arguments.seed})")


if __name__ == "__main__":
    main()
