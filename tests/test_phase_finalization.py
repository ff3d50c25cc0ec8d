"""Finalization: 24 questions about the very model that others will run, and no release before they are answered."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Refused
from pipeline.release.verify import faults
from pipeline.run_store import files, permits
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run, opened
from tests.check_helpers import judge, read_evidence, with_values
from tests.conftest import Cli, go

LATER = (date.today() + timedelta(days=30)).isoformat()
OWNER = "Example Owner"
WHY = "accepted for a rehearsal on synthetic forms"


def errored(run: Run) -> list[str]:
    """The items that keep the gate closed: not implemented, or not audited."""
    return [i.id for i in run.state().gates["finalization"].items if i.outcome in ("errored", "inconclusive")]


def record_waivers(run: Run, names: list[str]) -> None:
    """Waive items as `waive` does, without its report after each one."""
    with opened(run) as ledger:
        for name in names:
            ledger.append("waiver", {"phase": "finalization", "item": name, "who": OWNER, "why": WHY, "expires": LATER})


def test_finalization_gate_has_24_items(finished: Run) -> None:
    """Every item has an outcome that its check gave, and the approval is pending."""
    items = finished.state().gates["finalization"].items
    outcomes = {i.id: i.outcome for i in items}

    assert len(items) == 24 and finished.state().gate("finalization") == "closed"
    assert [i for i, o in outcomes.items() if o == "pending"] == ["owner_approval"]
    assert not [i for i in items if i.outcome == "errored"]
    assert outcomes["within_limits"] in ("passed", "inconclusive")  # a busy machine has slow calls
    assert {i for i, o in outcomes.items() if o == "passed"} >= {
        "rollback", "split_integrity", "test_opened_once", "lineage", "target_on_test", "onnx_parity",
        "torchscript_parity", "drift_monitor",
        "bundle_layout", "documents", "corruption", "adversarial",
    }  # fmt: skip


@pytest.mark.process
def test_finalization_exports_onnx_that_runs_without_torch(finished: Run, tmp_path: Path) -> None:
    """The exported graph computes the outputs of the model in a process that cannot import torch."""
    import numpy as np

    from pipeline.data.load import load
    from pipeline.run_store import plan as plans

    rows = load(plans.load(finished).config).val
    np.save(tmp_path / "X.npy", rows.X.numpy())
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, onnxruntime\n"
        "s = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "X = numpy.load(sys.argv[2])\n"
        "numpy.save(sys.argv[3], s.run(None, {s.get_inputs()[0].name: X})[0].argmax(1))\n"
    )
    arguments = [finished.inside("bundle", "payload", "model.onnx"), tmp_path / "X.npy", tmp_path / "y.npy"]

    subprocess.run([sys.executable, "-I", "-c", script, *map(str, arguments)], check=True, timeout=60)
    right = (np.load(tmp_path / "y.npy") == rows.y.numpy()).mean()

    assert right == pytest.approx(read_evidence(finished, "baseline")["score"]["value"], abs=1 / 360)


@pytest.mark.process
def test_finalization_opens_the_test_rows_once(finished: Run) -> None:
    """A second finalization of the same candidate reads the score from the ledger."""
    run, gate, _ = go(finished.path.parent, "phase=finalization", "run.name=digits")
    again = next(i for i in run.state().gates["finalization"].items if i.id == "test_opened_once")

    assert gate == "closed" and len(run.state().test_opened) == 1
    assert again.outcome == "passed"
    assert faults(run)[1] == []


def cut(run: Run, kind: str, *, after: bool) -> None:
    """The ledger as a kill before or after its first entry of a kind would have left it."""
    lines = run.ledger_path.read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == kind)
    run.ledger_path.write_bytes(b"".join(lines[: first + after]))


@pytest.mark.process
def test_test_score_is_read_from_the_ledger(finished: Run) -> None:
    """A changed copy of the score has no effect: the score comes from the ledger, and the copy is written again."""
    path = finished.inside("finalization", "test_score.json")
    honest = json.loads(path.read_text())
    files.write_json(path, {**honest, "score": {**honest["score"], "value": 1.0, "low": 1.0, "high": 1.0}})

    go(finished.path.parent, "phase=finalization", "run.name=digits")

    scored = [e["data"] for e in read_ledger(finished.ledger_path) if e["kind"] == "test.scored"]
    assert [s["score"] for s in scored] == [honest["score"]]
    assert (scored[0]["candidate"], scored[0]["digest"]) == (honest["candidate"], honest["digest"])
    assert (
        read_evidence(finished, "finalization")["test_score"]
        == honest["score"]
        == json.loads(path.read_text())["score"]
    )


@pytest.mark.process
@pytest.mark.parametrize("kind", ["test.opened", "test.scored"])
def test_finalization_resumes_after_a_kill_at_the_opening(finished: Run, kind: str) -> None:
    """A kill right after the opening, or after the score, leads to one opening and the same score."""
    score = read_evidence(finished, "finalization")["test_score"]
    cut(finished, kind, after=True)

    go(finished.path.parent, "phase=finalization", "run.name=digits")

    state, kinds = finished.state(), [e["kind"] for e in read_ledger(finished.ledger_path)]
    once = next(i for i in state.gates["finalization"].items if i.id == "test_opened_once")
    assert (kinds.count("test.opened"), kinds.count("test.scored"), once.outcome) == (1, 1, "passed")
    assert read_evidence(finished, "finalization")["test_score"] == score
    assert faults(finished)[1] == []


@pytest.mark.process
def test_test_score_of_another_metric_is_not_reused(finished: Run) -> None:
    """A score of the same weights for another task is not reused, and the new opening is counted."""
    score = next(e["data"] for e in read_ledger(finished.ledger_path) if e["kind"] == "test.scored")
    cut(finished, "test.scored", after=False)
    with opened(finished) as ledger:
        ledger.append("test.scored", {**score, "task": "0" * 64, "score": {**score["score"], "value": 1.0}})

    go(finished.path.parent, "phase=finalization", "run.name=digits")

    once = next(i for i in finished.state().gates["finalization"].items if i.id == "test_opened_once")
    assert (once.outcome, once.value) == ("failed", 2)
    assert read_evidence(finished, "finalization")["test_score"] == score["score"]


def test_finalization_refuses_other_test_rows(finished: Run) -> None:
    """Rows that are not in the plan get no key, and no opening is counted."""
    cut(finished, "test.opened", after=False)
    with opened(finished) as ledger:
        before = len(ledger.entries)
        with pytest.raises(Refused, match=r"data\.test: are not the test rows that the plan froze"):
            permits.test(finished, ledger, "0" * 64)
        assert len(ledger.entries) == before


def test_test_key_opens_once_for_its_candidate(finished: Run) -> None:
    """A key works for the candidate and the planned rows only, and opens them once."""
    from pipeline.building.builder import build_model, build_training_task
    from pipeline.data.load import load
    from pipeline.data.sealed import SealedTest
    from pipeline.evaluation.evaluate import score_test
    from pipeline.run_store import plan as plans

    cut(finished, "test.opened", after=False)
    plan = plans.load(finished)
    data = load(plan.config)
    sealed, other = data.test, build_model(plan.config, (), 99, data)
    with opened(finished) as ledger:
        key = permits.test(finished, ledger, sealed.digest)
    assert key.candidate == finished.state().candidate["weights"]

    with pytest.raises(Refused, match="is not the candidate that the test rows were opened for"):
        score_test(other, sealed, key, build_training_task(plan.config, other))
    other_rows = SealedTest(data.val.X, data.val.y)
    with pytest.raises(Refused, match=f"are not the test rows that the plan froze, got '{other_rows.digest[:12]}'"):
        other_rows.read(key)
    with opened(finished) as ledger, pytest.raises(Refused, match="are not the test rows that the plan froze"):
        permits.test(finished, ledger, other_rows.digest)
    assert len(sealed.read(key)) == sealed.rows
    with pytest.raises(Refused, match="this key to the test rows was used before"):
        sealed.read(key)


def test_finalization_records_its_files(finished: Run) -> None:
    """Every exported file, the payload's manifest and the copy of the score are in the ledger with their digests."""
    artifacts = finished.state().finished["finalization"]["artifacts"]

    assert set(artifacts) == {
        "model.onnx", "model.torchscript.pt", "model.pt2", "manifest", "test_score", "schema.json", "golden.json",
        "predict.py", "sandbox", "drift_reference.json", "drift_reference.npz",
    }  # fmt: skip
    assert artifacts["manifest"]["path"] == "bundle/payload/manifest.json"
    finished.inside("finalization", "export", "model.onnx").write_bytes(b"other")
    assert [f.split(":")[0] for f in faults(finished)[1]] == ["finalization/export/model.onnx"]


def test_finalization_refuses_an_insufficient_model(trained: Run) -> None:
    """Below its target the phase is refused, unless a named person waives the branch."""
    with pytest.raises(Refused, match="cannot run yet, since on validation: target missed"):
        go(trained.path.parent, "phase=finalization", "run.name=digits")
    assert not trained.inside("finalization").exists() and not trained.state().test_opened


def test_finalization_refuses_changed_weights(finished: Run) -> None:
    """Other weights than those of the candidate stop the phase before the test rows are opened."""
    checkpoint = finished.path / finished.state().candidate["checkpoint"] / "weights.safetensors"
    raw = bytearray(checkpoint.read_bytes())
    raw[-1] ^= 1
    checkpoint.write_bytes(bytes(raw))

    with pytest.raises(Refused, match=r"weights\.safetensors: is not what was saved"):
        go(finished.path.parent, "phase=finalization", "run.name=digits")


def test_finalization_releases_and_withdraws(finished: Run, cli: Cli) -> None:
    """With every waivable item waived, an approver's signature releases the bundle; the owner withdraws it."""
    *others, first, last = errored(finished)
    record_waivers(finished, others)
    for name in (first, last):
        code, out, _ = cli("waive", "digits", name, "--who", OWNER, "--why", WHY, "--expires", LATER)
        assert code == 0 and f"{name} waived by {OWNER} until {LATER}" in " ".join(out.split())
    assert finished.state().gate("finalization") == "pending"
    assert cli("phase=auto", "run.name=digits")[0] == 4

    code, out, _ = cli("approve", "digits", "--who", "Example Reviewer", "--note", "looked at the card")
    assert code == 0 and "phase=finalization run.name=digits" in out and finished.state().released is None
    code, out, _ = cli("phase=auto", "run.name=digits")
    state = finished.state()
    message = json.loads(finished.inside("bundle", "attestations", "release.json").read_text())

    assert code == 0 and "released" in out
    assert state.released and message["subject"] == state.released["subject"] == state.gates["finalization"].subject
    assert (
        len(message["waivers"]) == len([*others, first, last]) and message["sign_offs"][0]["who"] == "Example Reviewer"
    )
    assert faults(finished)[1] == []
    assert cli("phase=auto", "run.name=digits")[0] == 0
    assert cli("rollback", "digits", "--who", "Ada")[0] == 2
    code, out, _ = cli("rollback", "digits", "--who", "Example Owner", "--why", "wrong forms")
    assert code == 0 and finished.state().released is None
    assert cli("rollback", "digits", "--who", "Example Owner")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["approve", "digits", "--who", "Mallory"], 2, "expected one of Example Owner, Example Reviewer"),
        (["approve", "digits", "--who", "Example Ownr"], 2, "did you mean 'Example Owner'?"),
        (["approve", "digits", "--who", OWNER], 2, "this is the owner, and the plan names approvers, got"),
        (["approve", "digits", "--who", OWNER], 2, "expected Example Reviewer  Do: ask one of them"),
        (["approve", "digits"], 2, "--who: is missing"),
        (["waive", "digits", "slices", "--who", "A", "--why", WHY, "--expires", "2020-01-01"], 2, "is in the past"),
        (
            ["waive", "digits", "slices", "--who", "A", "--why", "ok", "--expires", "soon"],
            2,
            "--expires: is not a date",
        ),
        (["waive", "digits", "slices", "--who", "A", "--why", "ok", "--expires", LATER], 2, "is not a justification"),
        (["waive", "digits", "slices"], 2, "--why: is missing; expected a sentence of at least 10 characters"),
        (["waive", "digits", "slices"], 2, "--expires: is missing; expected a date, YYYY-MM-DD"),
        (["waive", "digits", "slices"], 2, "--who: is missing"),
        (["waive", "digits", "slcies", "--who", "A", "--why", WHY, "--expires", LATER], 2, "did you mean 'slices'?"),
        (["waive", "digits", "owner_approval", "--who", "A", "--why", WHY, "--expires", LATER], 3, "cannot be waived"),
        (["waive", "digits", "seeds_fixed", "--who", "A", "--why", WHY, "--expires", LATER], 3, "cannot be waived"),
        (
            ["waive", "digits", "branch", "--who", "A", "--why", WHY, "--expires", LATER],
            3,
            "no model has missed",
        ),
    ],
)
def test_approve_and_waive_refuse_wrong_input(
    finished: Run, cli: Cli, arguments: list[str], code: int, says: str
) -> None:
    """A wrong name, reason, date or item is refused in one message, and nothing is recorded."""
    before = finished.ledger_path.read_bytes()

    ended, _, err = cli(*arguments)

    assert (ended, says in err) == (code, True), err
    assert finished.ledger_path.read_bytes() == before


def test_expired_waiver_closes_the_gate(finished: Run) -> None:
    """A waiver is valid through its last day and not after."""
    record_waivers(finished, errored(finished))
    state = finished.state()
    last = date.fromisoformat(LATER)

    assert state.gate("finalization", last) == "pending"
    assert state.gate("finalization", last + timedelta(days=1)) == "closed"


def test_waived_branch_leads_to_finalization(trained: Run, cli: Cli) -> None:
    """A release below the target needs a waiver of the branch, which skips the gates in between."""
    with pytest.raises(Refused, match="gate diagnostics: is not open"):
        permits.export(trained)

    code, _, _ = cli("waive", "digits", "branch", "--who", OWNER, "--why", WHY, "--expires", LATER)

    state = trained.state()
    assert code == 0 and state.sufficient() and {"diagnostics", "optimization"} <= set(state.not_needed)
    with pytest.raises(Refused, match="no model of this candidate is frozen for release"):
        permits.export(trained)
    with opened(trained) as ledger:
        ledger.append("candidate.frozen", {**(state.candidate or {}), "phase": "finalization"})
    assert permits.export(trained).head == trained.state().head


REAL = {"max_shared_fraction": 0.0}
PARITY = {"forms": ["onnx"], "tolerance": 1e-4, "max_metric_points": 0.1, "max_metric_relative": 1e-3}
BOUND = {"target": 0.5, "margin": 0.02}
WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("data.split_integrity", {"digests__val": "other"}, REAL, "failed", "not the planned rows: val"),
    ("data.split_integrity", {"shared_fraction__test": 0.1}, REAL, "failed", "rows of test"),
    ("data.test_opened_once", {"openings_for_candidate": 2}, {"max_candidates": 3}, "failed", "more than once"),
    ("data.test_opened_once", {"candidates_that_opened": 4}, {"max_candidates": 3}, "failed", "too many models"),
    ("release.lineage", {"lineage__data": {}}, {"needs": ["data", "seed"]}, "failed", "unknown: data"),
    ("release.lineage", {"lineage": ...}, {"needs": ["seed"]}, "errored", "was not measured"),
    (
        "release.target_on_test",
        {"test_score__value": 0.4},
        BOUND,
        "failed",
        "0.4 < 0.5 (target); lower limit of its 95 % interval",
    ),
    (
        "release.target_on_test",
        {"test_score__low": 0.4},
        BOUND,
        "inconclusive",
        "lower limit of its 95 % interval 0.4 < 0.48 (target - margin 0.02)",
    ),
    (
        "release.target_on_test",
        {"test_score__greater_is_better": False},
        BOUND,
        "failed",
        "upper limit of its 95 % interval",
    ),
    ("release.target_on_test", {}, {"target": 0.5, "margin": None}, "inconclusive", "no margin"),
    ("release.parity", {"parity__onnx": {"error": "no such operator"}}, PARITY, "failed", "no such operator"),
    ("release.parity", {"parity__onnx__worst__largest__size": 0.1}, PARITY, "failed", "outputs differ"),
    ("release.parity", {"parity__onnx__nan_rows": 2}, PARITY, "failed", "NaN for 2 validation rows"),
    ("release.parity", {"parity__onnx__worst__largest_margin": 0.1}, PARITY, "failed", "another class is predicted"),
    ("release.parity", {"parity__onnx__worst__label_changes": 3}, PARITY, "failed", "3 labels"),
    ("release.parity", {"parity__onnx__metric__file": 0.5}, PARITY, "failed", "differs by"),
    ("release.parity", {"parity__onnx__metric": None}, PARITY, "passed", "rows"),
    ("release.parity", {"parity": {}}, PARITY, "not_applicable", "does not ask for onnx"),
    ("release.bundle_layout", {"bundle_faults": ["x.pkl: cannot be in a payload"]}, {}, "failed", "x.pkl"),
]


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_release_checks_fail(
    finished: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On real evidence with one wrong value, the check of that value fails."""
    item = judge(check, with_values(read_evidence(finished, "finalization"), **wrong), **bounds)

    assert item.outcome == outcome
    assert why in item.why


def test_target_on_test_uses_the_direction_of_the_metric(finished: Run) -> None:
    """For a metric where lower is better, the upper end of the interval counts."""
    score = {"metric": "rmse", "value": 0.4, "low": 0.3, "high": 0.51, "n": 9, "greater_is_better": False}
    values = with_values(read_evidence(finished, "finalization"), test_score=score)

    assert judge("release.target_on_test", values, target=0.5, margin=0.02).outcome == "passed"
    assert judge("release.target_on_test", values, target=0.5, margin=0.0).outcome == "inconclusive"
