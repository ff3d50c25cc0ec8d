"""What comes of the programs of examples/programs, as scripts and in the pipeline?  `make programs`

Each program runs on its own, as its author would run it, and then through `phase=baseline`. The table of what both came
to, `examples/programs/README.md`, is written again. Exits with 3 if a program did not come to a score that is better
than its trivial baseline.

    benchmarks/programs.py                     all programs; writes the table
    benchmarks/programs.py gan unet            only these; prints their rows
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.results import compare_with_score

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "programs"
INTRODUCTION = """# Thirty small programs

Each file is a program in plain PyTorch of a kind that people post: a model, its data, and a training loop of its own
below `if __name__ == "__main__":`. Fivegate does not use that loop. It is given the functions and classes of the file
by name: `data`, the model, and where a kind of training needs it a loss, a `step`, a metric or a scheduler.
`conf/experiment/<name>.yaml` does that in a few lines, and `conf/common.yaml` has what all of them share.

    python examples/programs/gan.py
    python -m pipeline phase=baseline --config-dir examples/programs/conf experiment=gan 'trust=[gan]'

`make programs` runs all of them both ways and writes this table. A score that a step computes itself has no interval.

"""


@dataclass(frozen=True)
class Outcome:
    """What a program came to: the last line of the script, and the score of the pipeline or what it printed instead."""

    name: str
    title: str
    script: str
    metric: str = ""
    score: str = ""
    interval: str = ""
    trivial: str = ""
    better: bool = False
    seconds: float = math.nan
    printed: str = ""

    def row(self) -> str:
        """Return the row of the table."""
        link = f"[{self.name}]({self.name}.py)"
        result = [self.metric, self.score, self.interval, self.trivial] if self.metric else ["", self.printed, "", ""]
        return "| " + " | ".join([link, self.title, self.script, *result]) + " |"


def program_names() -> list[str]:
    """Return the names of all programs."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def title_of(name: str) -> str:
    """Return the first sentence of the program's docstring."""
    return (FOLDER / f"{name}.py").read_text().split('"""')[1].splitlines()[0].rstrip(".")


def run_script(name: str) -> str:
    """Run the program on its own and return the number that it prints first; raises CalledProcessError if it fails."""
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()
    fields = next(line for line in lines if line.startswith("validation")).split()
    return f"{float(next(field for field in fields if _is_number(field))):.4g}"


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).replace("e-", "", 1).isdigit()


def run_baseline(name: str, root: Path, overrides: Sequence[str] = ()) -> tuple[int, str]:
    """Run `phase=baseline` of the program in this process; return its exit code and what it printed."""
    from pipeline.__main__ import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(
            [
                "phase=baseline", "--config-dir", str(FOLDER / "conf"), f"experiment={name}", f"trust=[{name}]",
                f"run.root={root}", "tracking=none", *overrides,
            ]
        )  # fmt: skip
    return code, printed.getvalue()


def outcome_of(name: str, root: Path, script: str = "", overrides: Sequence[str] = ()) -> Outcome:
    """Run the program through the pipeline and return what it came to."""
    began = time.perf_counter()
    code, printed = run_baseline(name, root, overrides)
    seconds, title = time.perf_counter() - began, title_of(name)
    path = root / name / "baseline" / "evidence.json"
    if code or not path.exists():
        lines = [line for line in printed.splitlines() if ": " in line or "failed" in line]
        return Outcome(name, title, script, printed=f"exit code {code}: {' '.join(lines[-1:])}", seconds=seconds)
    values = json.loads(path.read_text())["values"]
    score, trivial = values["score"], values["trivial_baseline"]
    low, high = float(score["low"]), float(score["high"])
    return Outcome(
        name,
        title,
        script,
        metric=score["metric"],
        score=f"{score['value']:.4g}",
        interval="" if math.isnan(low) else f"{low:.3g} to {high:.3g}",
        trivial=f"{trivial['value']:.4g} ({trivial['how']})",
        better=compare_with_score(trivial["value"], score) == "worse",
        seconds=seconds,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="programs to run; without one, all of them")
    names = parser.parse_args().names
    outcomes = []
    with tempfile.TemporaryDirectory() as root:
        for name in names or program_names():
            outcome = outcome_of(name, Path(root), run_script(name))
            outcomes.append(outcome)
            print(f"{outcome.row()} {outcome.seconds:.0f} s", flush=True)
    if not names:
        head = ["program", "what it is", "its own loop", "metric", "Fivegate", "95 % interval", "trivial baseline"]
        lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|", *(outcome.row() for outcome in outcomes)]
        (FOLDER / "README.md").write_text(INTRODUCTION + "\n".join(lines) + "\n")
    worse = [outcome.name for outcome in outcomes if not outcome.better]
    print(f"{len(outcomes) - len(worse)} of {len(outcomes)} programs are better than their trivial baseline")
    if worse:
        print(f"not: {', '.join(worse)}")
    return 3 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
