"""Whatever a plan or JSON file of a run has become, every command that reads it answers or refuses: no traceback.

The file is changed alone, and once more with a ledger that was rewritten so that it records the changed file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from pipeline import safe_yaml
from pipeline.errors import FivegateError
from pipeline.release.release import release
from pipeline.results import tagged
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run, opened
from tests.conftest import Cli, examples
from tests.test_fuzz import altered
from tests.test_verify import LATER, OWNER, judge_real, rewrite, sign, waive

pytestmark = pytest.mark.slow

READ_ONLY = (["report"], ["status"], ["status", "--gate", "optimization"], ["explain"], ["checklist"], ["verify"])
PERSON = ["--who", OWNER]
CUT = st.sampled_from([b"", b"null", b"[]", b"{}", b'{"values": null}', b"[" * 3000, b"\xff", b"\x00", b"7"])


class Runs(NamedTuple):
    """The folders of a run of all phases, of one with everything waived, and of the same one when released."""

    mended: Path
    ready: Path
    released: Path


@pytest.fixture(scope="module")
def runs(_mended: Path, _finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("malformed")
    mended, ready, released = (Run(root / name / "digits") for name in Runs._fields)
    shutil.copytree(_mended, mended.path)
    shutil.copytree(_finished, ready.path)
    for run in (mended, ready):
        (run.path / "tracking.json").write_text('{"abc": {"uri": "u", "run": "r", "params": []}}')
    with opened(ready) as ledger:
        for item in ready.state().gates["finalization"].items:
            if item.outcome in ("errored", "failed", "inconclusive") and not item.accepted_by:
                waive(ledger, "finalization", item.id)
    shutil.copytree(ready.path, released.path)
    with opened(released) as ledger:
        sign(ledger)
        release(released, ledger, judge_real)
    return Runs(mended.path, ready.path, released.path)


def structured_files(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in (*run.rglob("*.json"), *run.glob("plan/*.yaml")))


@st.composite
def malformed(draw: st.DrawFn, run: Path) -> tuple[str, bytes]:
    """A plan or a JSON file of the run, most often one that people read, and what became of it."""
    names = structured_files(run)
    often = [name for name in names if "evidence" in name or "diagnosis" in name or name.startswith(("bundle", "plan"))]
    name = draw(st.sampled_from(often) | st.sampled_from(names))
    original = (run / name).read_bytes()
    value = tagged(yaml.load(original, yaml.CSafeLoader)) if name.endswith(".yaml") else json.loads(original)
    whole = altered(value).map(lambda value: json.dumps(value).encode())  # JSON is YAML, too
    cut = st.integers(0, len(original)).map(lambda end: original[:end])
    return name, draw(whole | cut | CUT)


def digest_of_plan(path: Path) -> str:
    """The digest that the ledger has of a plan with this content; empty for what is none."""
    try:
        body = safe_yaml.load(path.read_text(), path.name)
        return plans.Plan(1, body["config"], body["checklists"], body["facts"]).digest
    except (FivegateError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return ""


def agreeing(run: Run, name: str) -> None:
    """Rewrite the ledger so that it records the file as it is now; a plan by the digest of what it says."""
    sha256, plan = files.sha256(run.path / name), digest_of_plan(run.path / name)

    def update(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("file") == name and plan:
                value["digest"] = plan
            if value.get("path") == name and "sha256" in value:
                value["sha256"] = sha256
            for part in value.values():
                update(part)
        elif isinstance(value, list):
            for part in value:
                update(part)

    rewrite(run, lambda entry: update(entry["data"]))


@pytest.fixture
def attempt(cli: Cli, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs commands on a copy of a run with one malformed file."""
    monkeypatch.setattr("pipeline.reporting.plots.inline_svg", lambda *_: Markup("<svg></svg>"))

    def run_commands(source: Path, name: str, content: bytes, forged: bool, commands: Any) -> None:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        run = Run(tmp_path / "runs" / "digits")
        shutil.copytree(source, run.path)
        (run.path / name).write_bytes(content)
        if forged:
            agreeing(run, name)
        for command, *options in commands:
            code, out, err = cli(command, "digits", *options)
            assert code in (0, 2, 3), (command, out, err)
            assert (code == 0) == (not err) or command == "verify", (command, err)
            assert all("  Do: " in line for line in err.splitlines() if code), err
            if code == 3 and command == "report":
                assert name in err
            if command == "verify" and code and not forged:
                assert name.rpartition("/")[2] in out or "bundle" in out, out

    return run_commands


LAW = settings(
    max_examples=examples(5, 100), phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)


@LAW
@given(data=st.data(), forged=st.booleans())
def test_commands_read_malformed_files(
    attempt: Callable[..., None], runs: Runs, data: st.DataObject, forged: bool
) -> None:
    """Reports, states and verifications of a run with a file that is malformed."""
    attempt(runs.mended, *data.draw(malformed(runs.mended)), forged, [*READ_ONLY, ["diff", str(runs.ready)]])


@LAW
@given(data=st.data(), forged=st.booleans())
def test_decisions_about_malformed_files(
    attempt: Callable[..., None], runs: Runs, data: st.DataObject, forged: bool
) -> None:
    """Waivers, signatures and withdrawals in a run with a file that is malformed."""
    terms = [*PERSON, "--why", "it was looked at by hand", "--expires", LATER]
    waivers = [["waive", item, *terms] for item in ("documents", "enough_rows", "branch")]
    attempt(runs.ready, *data.draw(malformed(runs.ready)), forged, [*waivers, ["approve", *PERSON]])
    attempt(runs.released, *data.draw(malformed(runs.released)), forged, [["rollback", *PERSON, "--why", "a fault"]])
