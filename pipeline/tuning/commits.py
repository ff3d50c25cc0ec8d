"""Two commits of the user's code as two arms: `compare RUN@COMMIT RUN@COMMIT --trust PACKAGE`.

Each arm is the plan of the run, trained with the code of one commit, once per seed. The files of a commit are taken
from the repository into a temporary folder, without its hooks, and nothing in the repository changes. Only packages
that the command itself trusts are imported from there; each training records and checks their digests, as every run.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Refused, UserError, fault
from pipeline.import_guard import child_pythonpath
from pipeline.results import PHASES
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import RunState
from pipeline.tuning.seed_arms import SeedArms

SEEDS = 3
# Without the parts of a baseline that only a release needs.
QUICK = ("tracking=none", "phases.baseline.folds=0", "phases.baseline.reproducibility_steps=0")
# Shares of what the second arm misses of the target, on every seed: those of the experiments of diagnostics.
CONFIRMED, REFUTED = 0.5, 0.1

Log = Callable[[str], None]


@dataclass(frozen=True)
class CommitArm:
    """The code of one commit, by its full hash; `name` is how the command named it."""

    name: str
    commit: str


def parse(arms: Sequence[str]) -> list[tuple[str, str]] | None:
    """Return run and commit of each arm `RUN@COMMIT`; None where no arm is one. Raises UserError for a mixture."""
    parts = [arm.rpartition("@") for arm in arms]
    if not any(at for _, at, _ in parts):
        return None
    if len(arms) != 2 or not all(run and commit for run, _, commit in parts) or len({run for run, _, _ in parts}) != 1:
        expected = "RUN@COMMIT RUN@COMMIT, two commits of one run's code"
        raise UserError(fault("compare", "takes two arms", got=" ".join(arms), expected=expected))
    return [(run, commit) for run, _, commit in parts]


def compare_commits(run: Run, commits: Sequence[str], packages: Sequence[str], log: Log) -> tuple[SeedArms, str | None]:
    """Train the run's plan with the code of two commits on three seeds; return the scores, and what the target says.

    The hypothesis is in the run's ledger before the first training. Raises UserError for a run without code of the
    user's own, for what git does not know and for packages that the command does not trust, Refused for a run whose
    records disagree.
    """
    state = run.state()
    plan = plans.load(run, state)
    repository = _repository(state)
    _require_trust(state, packages)
    arms = [CommitArm(f"{run.name}@{commit}", _resolve(repository, commit)) for commit in commits]
    _state_hypothesis(run, state, arms)
    scores = [_train(state, plan, repository, arm, packages, log) for arm in arms]
    planned = json.loads((run.path / "planning" / "evidence.json").read_text())["values"]
    result = SeedArms(
        (arms[0].name, arms[1].name), (scores[0], scores[1]), str(planned["metric"]), bool(planned["greater_is_better"])
    )
    return result, _restored(result, plan.config["task"].get("target"))


def _repository(state: RunState) -> Path:
    """Return the top folder of the git repository that the run's own code is in."""
    if not state.trust:
        what = "imports no code of your own, so that a commit of it changes nothing"
        raise UserError(fault(state.name, what, expected="a run that was planned with trust=[PACKAGE]"))
    roots = {grant["root"] for grant in state.trust}
    tops = {_git(Path(root), "rev-parse", "--show-toplevel").decode().strip() for root in roots}
    if len(tops) != 1:
        raise UserError(fault("trust", "is code of several repositories", got=", ".join(sorted(tops))))
    return Path(tops.pop())


def _require_trust(state: RunState, packages: Sequence[str]) -> None:
    needed = [grant["package"] for grant in state.trust]
    if missing := [package for package in needed if package not in packages]:
        what = "the code of another commit is imported only where this command trusts it"
        do = "read both commits; if you trust them, add " + " ".join(f"--trust {package}" for package in needed)
        raise Refused(fault("--trust", what, got=", ".join(packages) or "nothing", expected=", ".join(missing), do=do))


def _git(folder: Path, *words: str) -> bytes:
    """Return what git prints, without hooks of the repository. Raises UserError with git's own message."""
    command = ["git", "-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    try:
        completed = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        raise UserError(fault("git", "is not installed", do="install git, and try again")) from None
    except subprocess.CalledProcessError as error:
        messages = error.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            fault(str(folder), f"git says: {messages[-1] if messages else f'exit {error.returncode}'}")
        ) from None
    return completed.stdout


def _resolve(repository: Path, commit: str) -> str:
    """Return the full hash of a commit; a name that begins with a dash is not taken for an option."""
    return _git(repository, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()


def _state_hypothesis(run: Run, state: RunState, arms: Sequence[CommitArm]) -> None:
    """Record what is changed and what is expected, before any training."""
    assert state.plan is not None
    hypothesis = {
        "round": state.round,
        "plan": state.plan["digest"],
        "id": f"code_{arms[0].commit[:12]}_{arms[1].commit[:12]}",
        "causes": [],
        "change": f"the code of commit {arms[0].commit} instead of {arms[1].commit}",
        "delta": {},
        "expected": f"with the code of {arms[0].name} the run reaches its goal",
        "success": f"at least half of what {arms[1].name} misses is restored on {SEEDS} of {SEEDS} seeds",
        "failure": "less than a tenth of that",
        "cost": 2 * SEEDS,
    }
    with opened(run) as ledger:
        if not any(e["kind"] == "hypothesis.stated" and e["data"] == hypothesis for e in ledger.entries):
            ledger.append("hypothesis.stated", hypothesis)


@contextmanager
def _files_of(repository: Path, commit: str) -> Iterator[Path]:
    """The files of a commit in a temporary folder; links are left out, since no digest covers what they point to."""
    with tempfile.TemporaryDirectory(prefix="fivegate-commit-") as folder:
        place = Path(folder).resolve() / "code"
        with tarfile.open(fileobj=io.BytesIO(_git(repository, "archive", "--format=tar", commit))) as archive:
            for member in archive:
                target = (place / member.name).resolve()
                if member.isfile() and target.is_relative_to(place) and (content := archive.extractfile(member)):
                    files.write_bytes(target, content.read())
        yield place


def _train(
    state: RunState, plan: Plan, repository: Path, arm: CommitArm, packages: Sequence[str], log: Log
) -> dict[str, float]:
    """Train the plan with the code of a commit, once per seed; return the validation scores, NaN without one."""
    assert state.plan is not None
    scores = {}
    with _files_of(repository, arm.commit) as code, tempfile.TemporaryDirectory(prefix="fivegate-arms-") as root:
        folders = [_in_commit(Path(folder), repository, code) for folder in state.plan.get("config_dirs", [])]
        for seed in range(plan.seed, plan.seed + SEEDS):
            own = [o for o in state.plan.get("overrides", []) if o.lstrip("+").partition("=")[0] != "seed"]
            overrides = ["phase=baseline", *own, *QUICK, f"seed={seed}", f"trust=[{','.join(packages)}]"]
            overrides += [f"run.root={root}", f"run.name=seed-{seed}"]
            options = [word for folder in folders for word in ("--config-dir", str(folder))]
            command = [sys.executable, "-P", "-m", "pipeline", *options, *overrides]
            environment = {**os.environ, "PYTHONPATH": child_pythonpath()}
            completed = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
            trained = Run(Path(root) / f"seed-{seed}")
            scores[str(seed)] = score = _score(trained)
            why = "" if math.isfinite(score) else f": {_why_no_score(trained, completed.stderr)}"
            log(f"  {arm.name}, seed {seed}: {score:.4g}{why}")
    return scores


def _in_commit(folder: Path, repository: Path, code: Path) -> Path:
    """The folder of the config as the commit has it; one outside of the repository, or new since then, as it is."""
    inside = code / folder.relative_to(repository) if folder.is_relative_to(repository) else folder
    return inside if inside.is_dir() else folder


def _score(run: Run) -> float:
    """The validation score of a baseline; NaN where it has none."""
    path = run.path / "baseline" / "evidence.json"
    try:
        score = json.loads(path.read_text())["values"]["score"]
        return float(score["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.nan


def _why_no_score(run: Run, errors: str) -> str:
    """Return the last line of the errors of a training, or which gate is closed."""
    if errors.strip():
        return errors.strip().splitlines()[-1]
    state = run.state() if run.exists() else RunState()
    return next((f"the {phase} gate is closed" for phase in PHASES if state.gate(phase) == "closed"), "no score")


def _restored(arms: SeedArms, target: float | None) -> str | None:
    """Return how much of what the second commit misses of the target the first one restores, and what that says."""
    first, second = arms.scores
    if target is None:
        return None
    sign = 1 if arms.greater else -1
    missed = {seed: sign * (target - value) for seed, value in second.items()}
    if any(gap <= 0 for gap in missed.values()):
        return None
    shares = [_share(sign * (target - first[seed]), missed[seed]) for seed in missed]
    verdict = "inconclusive"
    if min(shares) >= CONFIRMED:
        verdict = "confirmed: the cause is in the code between the two commits"
    elif max(shares) < REFUTED:
        verdict = "refuted: the code between the two commits is not the cause"
    return f"{min(shares):.2f} to {max(shares):.2f} of what {arms.names[1]} misses of {target:g} is restored; {verdict}"


def _share(left: float, missed: float) -> float:
    """Return the share of what is missed that is restored; an arm without a score restores nothing, or misses all."""
    if math.isnan(left):
        return 0.0
    return float(left <= 0) if math.isnan(missed) else (missed - left) / missed
