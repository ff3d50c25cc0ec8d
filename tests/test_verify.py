"""A release is what was signed, and `verify` sees every product that is not as recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from checklists.resolve import resolve_check
from pipeline.adoption.guards import SIZE
from pipeline.errors import Refused
from pipeline.release.bundle import bundle_digest, previous_release
from pipeline.release.release import release
from pipeline.release.verify import faults, verify
from pipeline.results import Evidence, canonical, digest, plain
from pipeline.run_store import checklist, files
from pipeline.run_store import plan as plans
from pipeline.run_store.files import sha256
from pipeline.run_store.gate import Item, Waiver, decide, utc_today
from pipeline.run_store.ledger import GENESIS, Ledger
from pipeline.run_store.next_step import lapsed_signature, release_blocker
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold
from tests.check_helpers import open_items
from tests.conftest import Cli, go

OWNER = "Example Owner"
REVIEWER = "Example Reviewer"
LATER = (utc_today() + timedelta(days=30)).isoformat()
DAY = timedelta(days=1)


def waive(ledger: Ledger, phase: str, item: str, expires: str = LATER) -> None:
    why = "accepted for a rehearsal on synthetic forms"
    ledger.append("waiver", {"phase": phase, "item": item, "who": OWNER, "why": why, "expires": expires})


def judge_real(items: list[Any], evidence: Evidence) -> list[Item]:
    return checklist.judge(items, evidence, resolve_check)


def sign(ledger: Ledger, who: str = REVIEWER) -> None:
    ledger.append("sign_off", fold(ledger.entries).signature("finalization", "owner_approval", who))


@pytest.fixture
def signed(finished: Run) -> Run:
    """A run whose last gate has just opened: everything waivable waived, the bundle signed, nothing released."""
    with opened(finished) as ledger:
        for item in open_items(finished):
            waive(ledger, "finalization", item.id)
        sign(ledger)
    return finished


@pytest.fixture
def released(signed: Run) -> Run:
    with opened(signed) as ledger:
        release(signed, ledger, judge_real)
    return signed


def refused(run: Run, match: str, today: date | None = None) -> None:
    """Releasing is refused in one message, and nothing is recorded or attested."""
    before = run.ledger_path.read_bytes()
    with opened(run) as ledger, pytest.raises(Refused, match=match) as stop:
        release(run, ledger, judge_real, today)
    assert "  Do: python -m pipeline " in str(stop.value)
    assert run.ledger_path.read_bytes() == before


def begin(ledger: Ledger, phase: str) -> int:
    """The phase starts once more; back comes the entry's number."""
    entry = ledger.append("phase.started", {"phase": phase, "round": 1, "basis": 0})
    return int(entry["seq"])


def test_release_writes_the_attestation(released: Run) -> None:
    """The attestation has the digest of the payload on disk, and the ledger has the digest of the attestation."""
    output = released.state().released

    assert output and output["subject"] == bundle_digest(released.inside("bundle", "payload"))
    assert output["attestation"]["path"] == "bundle/attestations/release.json"
    assert output["attestation"]["sha256"] == files.sha256(released.inside("bundle", "attestations", "release.json"))
    assert faults(released)[1] == []


@pytest.mark.parametrize("change", ["a byte", "one file more", "gone"])
def test_release_refuses_a_changed_payload(signed: Run, change: str) -> None:
    """Any other payload than the signed one is refused, and verify reports it."""
    payload = signed.inside("bundle", "payload")
    if change == "a byte":
        path = payload / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    elif change == "one file more":
        (payload / "golden.json").write_text("[]")
    else:
        shutil.rmtree(payload)

    refused(signed, "bundle/payload: is not the bundle that was evaluated and signed")
    assert any(f.startswith("bundle/payload: ") for f in faults(signed)[1])


def test_release_refuses_a_second_release(released: Run) -> None:
    """A released run is not released again; after a rollback the old signature does not count."""
    subject = released.state().released["subject"]
    refused(released, f"it is released already, as {subject[:12]}")
    with opened(released) as ledger:
        ledger.append("rolled_back", {"who": "Example Owner", "why": "", "subject": subject})
    refused(released, "the finalization gate is not open")


def test_release_evaluates_every_gate_again(signed: Run) -> None:
    """A gate that is no longer open prevents the release of a signed bundle."""
    gate = signed.state().gates["baseline"]
    with opened(signed) as ledger:
        failed = {**vars(gate.items[0]), "outcome": "failed"}
        ledger.append("item.evaluated", {"phase": "baseline", "round": 1, **failed})
        verdict = {"phase": "baseline", "round": 1, "revision": gate.revision, "basis": gate.basis, "subject": None}
        ledger.append("gate.decided", {**verdict, "state": "closed"})

    assert signed.state().gate("finalization") == "pending"
    assert lapsed_signature(signed.state(), "finalization").startswith("signed before loss_at_init_measured changed")
    refused(signed, "the baseline gate is not open, it is closed")


def test_release_evaluates_the_branch_again(signed: Run) -> None:
    """A branch that depends on a waiver prevents the release after the waiver has expired."""
    with opened(signed) as ledger:
        decided = {"phase": "baseline", "round": 1, "target": False, "trivial": True, "symptoms": []}
        ledger.append("branch.decided", {**decided, "branch": "insufficient"})
    refused(signed, "the branch is insufficient")
    with opened(signed) as ledger:
        waive(ledger, "baseline", "branch", utc_today().isoformat())
    refused(signed, "the branch is insufficient and has no valid waiver", utc_today() + DAY)
    refused(signed, "the finalization gate is not open")  # the branch and its waiver are younger than the signature
    with opened(signed) as ledger:
        sign(ledger)
    assert release_blocker(signed.state(), utc_today()) is None
    refused(signed, "the branch is recorded as insufficient, the baseline evidence gives sufficient")


def evidence_record(run: Run) -> dict[str, str]:
    file = run.inside("baseline", "evidence.json")
    return {"path": run.relative(file), "sha256": sha256(file)}


def test_verify_finds_a_release_that_the_gates_did_not_permit(finished: Run) -> None:
    """A release behind a closed gate is reported, and so is one of another bundle."""
    with opened(finished) as ledger:
        seq = ledger.append("released", {"subject": "0" * 64, "attestation": evidence_record(finished)})["seq"]

    output = faults(finished)[1]

    assert f"entry {seq}: released, although the finalization gate is not open" in output
    assert f"bundle: the payload {'0' * 12} that entry {seq} released is missing" in output


def test_verify_finds_a_replaced_release(released: Run) -> None:
    """After another payload replaced it, the released one is found under previous."""
    payload, subject = released.inside("bundle", "payload"), released.state().released["subject"]
    shutil.copytree(payload, previous_release(released, subject) / "payload")
    shutil.rmtree(payload)

    assert [f.split(",")[0] for f in faults(released)[1] if f.startswith("bundle:")] == []
    shutil.rmtree(previous_release(released, subject))
    assert any(f"the payload {subject[:12]} that entry" in f for f in faults(released)[1])


PRODUCTS = [
    "bundle/attestations/release.json", "bundle/payload/manifest.json", "finalization/export/model.onnx",
    "finalization/test_score.json", "finalization/evidence.json", "baseline/history.npz",
]  # fmt: skip


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("what", ["is not the file that entry", "is missing, entry"])
def test_verify_covers_every_file(released: Run, product: str, what: str) -> None:
    """A recorded file is reported when it was changed, and when it is missing."""
    path = released.path / product
    if "missing" in what:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")

    assert any(f.startswith(f"{product}: ") and what in f for f in faults(released)[1])


def test_verify_covers_the_weights_of_the_candidate(finished: Run) -> None:
    """Every {path, sha256} pair in an entry is compared with the disk, also that of the candidate's checkpoint."""
    candidate = {k: v for k, v in finished.state().candidate.items() if k != "seq"}
    path = f"{candidate['checkpoint']}/weights.safetensors"
    with opened(finished) as ledger:
        file = {"path": path, "sha256": files.sha256(finished.path / path)}
        ledger.append("candidate.chosen", {**candidate, "file": file})
    assert faults(finished)[1] == []

    (finished.path / path).write_bytes(b"other")

    assert any(f.startswith(f"{path}: is not the file") for f in faults(finished)[1])


def test_verify_names_an_interrupted_phase(finished: Run) -> None:
    """A file changed by a phase that was started again and killed is reported, with the remedy."""
    with opened(finished) as ledger:
        seq = begin(ledger, "finalization")
    shutil.rmtree(finished.inside("bundle", "payload"))

    output = [f for f in faults(finished)[1] if f.startswith("bundle/payload: is missing")]

    assert len(output) == 1 and f"(entry {seq} started the finalization phase again, and it did not finish" in output[0]


def test_verify_ignores_files_that_a_later_run_replaced(finished: Run) -> None:
    """For a phase that ran again and finished, only the newest files count."""
    finished.inside("baseline", "history.npz").unlink()
    assert any(f.startswith("baseline/history.npz: ") for f in faults(finished)[1])
    with opened(finished) as ledger:
        ledger.append("phase.started", {"phase": "baseline", "round": 1, "revision": 1})
        finish = {"phase": "baseline", "round": 1, "evidence": evidence_record(finished)}
        ledger.append("phase.finished", finish)
    assert not any(f.startswith("baseline/history.npz: ") for f in faults(finished)[1])


@pytest.fixture(params=["Etc/GMT-14", "Etc/GMT+12"])  # one of the two has another day than UTC, at any hour
def far_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_utc_today_does_not_depend_on_the_time_zone(far_away: None) -> None:
    """Gates use the day in UTC, as the ledger does, in every time zone."""
    today = datetime.now(UTC).date()
    item = Item("a", "?", "failed")

    assert utc_today() == today
    for days, gate in ((0, "open"), (-1, "closed")):
        waiver = Waiver("planning", "a", "Ada", "because", (today + timedelta(days=days)).isoformat())
        assert decide([item], [waiver]) == gate


def test_fold_uses_the_utc_day(signed: Run, far_away: None) -> None:
    """`state`, `verify` and `release` agree on a waiver's last day."""
    today = datetime.now(UTC).date()
    with opened(signed) as ledger:
        decided = {"phase": "baseline", "round": 1, "target": False, "trivial": True, "symptoms": []}
        ledger.append("branch.decided", {**decided, "branch": "insufficient"})
        waive(ledger, "baseline", "branch", today.isoformat())
        assert fold(ledger.entries).sufficient() and fold(ledger.entries).sufficient(today)
        assert fold(ledger.entries).valid_waivers("baseline") == fold(ledger.entries).valid_waivers("baseline", today)


def test_signature_does_not_cover_later_waivers(finished: Run, cli: Cli) -> None:
    """A signature of a bundle with open checks does not release it after they were waived; a new one does."""
    errored = [i.id for i in open_items(finished)]
    assert errored
    with opened(finished) as ledger:
        sign(ledger)
        for item in errored:
            waive(ledger, "finalization", item)
        with pytest.raises(Refused, match="the finalization gate is not open"):
            release(finished, ledger, judge_real)
    code, _, _ = cli("phase=auto", "run.name=digits")

    assert code == 4 and finished.state().released is None
    given = f"signed before {len(errored)} waivers"
    reason = f"waits for a person to sign again: {given} were given: finalization/{errored[0]}, "
    assert reason in cli("status", "digits")[1] and given in cli("explain", "digits")[1]
    assert cli("approve", "digits", "--who", REVIEWER)[0] == 0
    assert cli("phase=auto", "run.name=digits")[0] == 0 and finished.state().released
    assert faults(finished)[1] == []


def test_approve_refuses_to_sign_before_the_waivers(finished: Run, cli: Cli) -> None:
    """Nothing is signed while checks are open, since a later waiver would not be covered; the message names them."""
    before = finished.ledger_path.read_bytes()
    code, _, err = cli("approve", "digits", "--who", REVIEWER)

    open_first = open_items(finished)
    assert code == 3 and f"{len(open_first)} checks first must pass or be waived: {open_first[0].id}, " in err
    assert "Do: python -m pipeline explain digits --gate finalization" in err
    assert finished.ledger_path.read_bytes() == before


def record_gate_again(ledger: Ledger, **outcomes: str) -> None:
    """The last gate is evaluated again, with these outcomes changed."""
    gate = fold(ledger.entries).gates["finalization"]
    for item in gate.items:
        changed = {**vars(item), "outcome": outcomes.get(item.id, item.outcome)}
        ledger.append("item.evaluated", {"phase": "finalization", "round": 1, **changed})
    about = {"phase": "finalization", "round": 1, "revision": gate.revision, "basis": gate.basis}
    state = fold(
        [*ledger.entries, {**ledger.entries[-1], "kind": "gate.decided", "data": {**about, "subject": gate.subject}}]
    )
    ledger.append("gate.decided", {**about, "subject": gate.subject, "state": state.gate("finalization")})


def test_signature_survives_the_same_outcomes_only(signed: Run) -> None:
    """A gate that is evaluated again with the same outcomes stays open; with another outcome it waits for a person."""
    with opened(signed) as ledger:
        record_gate_again(ledger)
        assert fold(ledger.entries).gate("finalization") == "open"
        record_gate_again(ledger, reproducible="failed")
        state = fold(ledger.entries)

    assert state.gate("finalization") == "pending"
    assert lapsed_signature(state, "finalization") == "signed before reproducible changed from inconclusive to failed"


@pytest.mark.parametrize("phase", ["finalization", "baseline"])
def test_signature_lapses_with_a_renewed_waiver(signed: Run, phase: str) -> None:
    """An expired waiver closes the gate, and its renewal asks for a new signature; so does a waiver of another gate."""
    last = date.fromisoformat(LATER)
    assert signed.state().gate("finalization", last) == "open"
    assert signed.state().gate("finalization", last + DAY) == "closed"
    item = {"finalization": "reproducible", "baseline": "training_repeats"}[phase]
    with opened(signed) as ledger:
        waive(ledger, phase, item, (last + DAY).isoformat())

    assert signed.state().gate("finalization") == "pending"
    expected = f"signed before 1 waiver was given: {phase}/{item}"
    assert lapsed_signature(signed.state(), "finalization") == expected


@pytest.mark.parametrize("part", ["digest", "outcomes", "waivers", "binding", "who", "author"])
def test_signature_must_agree_with_its_parts(finished: Run, part: str) -> None:
    """A signature written into the ledger counts only if it is bound to what stands beside it, by a known person."""
    with opened(finished) as ledger:
        for item in open_items(finished):
            waive(ledger, "finalization", item.id)
        signature = fold(ledger.entries).signature("finalization", "owner_approval", REVIEWER)
        other = {"digest": "0" * 64, "outcomes": {}, "waivers": [], "binding": "0" * 64, "who": "Mallory"}
        changed = {"who": OWNER} if part == "author" else {part: other[part]}
        ledger.append("sign_off", {**signature, **changed})

    assert finished.state().gate("finalization") == "pending"


@pytest.mark.parametrize(
    ("who", "days"),
    [("Mallory", 30), ("", 30), (OWNER, 367), (OWNER, 10**6)],
    ids=["stranger", "nobody", "long", "ever"],
)
def test_waiver_counts_for_known_people_and_a_year(finished: Run, cli: Cli, who: str, days: int) -> None:
    """A waiver by somebody whom the plan does not name, or for more than a year, is refused, also in the ledger."""
    expires = (utc_today() + timedelta(days=days)).isoformat()
    code, _, err = cli("waive", "digits", "slices", "--who", who, "--why", "there are no slices", "--expires", expires)
    assert code == 2 and ("may not waive slices" in err or "more than a year away" in err or "--who: is missing" in err)
    with opened(finished) as ledger:
        data = {"phase": "finalization", "item": "slices", "who": who, "why": "there are none", "expires": expires}
        ledger.append("waiver", data)

    assert finished.state().waivers[0].refusal and finished.state().valid_waivers("finalization") == []


def test_waiver_of_the_branch_counts_for_known_people(trained: Run) -> None:
    """A branch that a stranger waives in the ledger stays insufficient."""
    with opened(trained) as ledger:
        data = {"phase": "baseline", "item": "branch", "who": "Mallory", "why": "there are none", "expires": LATER}
        ledger.append("waiver", data)

    assert not trained.state().sufficient()


def rewrite(run: Run, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the entries of a ledger and give all of them new hashes, as anybody can who has the folder."""
    entries = [json.loads(line) for line in run.ledger_path.read_bytes().splitlines()]
    previous = GENESIS
    for entry in entries:
        change(entry)
        entry["prev"] = previous
        entry["hash"] = previous = digest({key: value for key, value in entry.items() if key != "hash"})
    run.ledger_path.write_text("".join(canonical(entry) + "\n" for entry in entries))


def pass_everything(entry: dict[str, Any]) -> None:
    """All items of the last gate passed, and the test score is .9999."""
    data = entry["data"]
    if entry["kind"] == "item.evaluated" and data["phase"] == "finalization" and not data["sign_off"]:
        data["outcome"] = "passed"
        if data["id"] == "target_on_test":
            data["value"] = 0.9999
    if entry["kind"] == "gate.decided" and data["phase"] == "finalization":
        data["state"] = "pending"


def test_verify_judges_every_item_again(finished: Run, cli: Cli) -> None:
    """A ledger that was rewritten with new hashes agrees with itself, but not with the evidence: each item is named."""
    assert verify(finished, judge_real).faults == []
    undecided = [i for i in finished.state().gates["finalization"].items if i.outcome == "inconclusive"]
    rewrite(finished, pass_everything)
    assert faults(finished)[1] == []

    code, out, _ = cli("verify", "digits")

    assert code == 3 and out.count("is recorded as outcome 'passed', its evidence gives 'inconclusive'") == len(
        undecided
    )
    assert "finalization/target_on_test (gate of entry " in out and "is recorded as value 0.9999, its evidence" in out


@pytest.mark.parametrize("key", ["outcome", "value", "bound", "unit", "waivable", "sign_off", "ask", "relation"])
@pytest.mark.parametrize("phase", ["planning", "baseline", "finalization"])
def test_verify_compares_every_key_of_an_item(finished: Run, phase: str, key: str) -> None:
    """No key of a recorded item can be changed alone, in the gate of any phase."""
    first: list[str] = []

    def change(entry: dict[str, Any]) -> None:
        if entry["kind"] == "item.evaluated" and entry["data"]["phase"] == phase and not first:
            first.append(entry["data"]["id"])
            other = {"outcome": "failed", "waivable": not entry["data"].get("waivable", True)}
            entry["data"][key] = other.get(key, "something else")

    rewrite(finished, change)

    assert any(f.startswith(f"{phase}/{first[0]} (gate of entry ") for f in verify(finished, judge_real).faults)


def test_verify_says_where_a_reason_was_worded_otherwise(finished: Run) -> None:
    """The sentence of a check may change with the version: it is a line, and not a fault."""
    rewrite(finished, lambda entry: entry["data"].update(why="so") if entry["data"].get("id") == "lineage" else None)
    result = verify(finished, judge_real)

    assert result.faults == [] and any("the reason of 1 check, which this version words" in n for n in result.notes)


def test_verify_finds_a_missing_item(finished: Run) -> None:
    """A gate that was decided without one of its checks is reported."""
    entries = [json.loads(line) for line in finished.ledger_path.read_bytes().splitlines()]
    kept = [e for e in entries if e["data"].get("id") != "target_on_test"]
    finished.ledger_path.write_text("".join(canonical(e) + "\n" for e in kept))
    numbers = iter(range(len(kept)))
    rewrite(finished, lambda entry: entry.update(seq=next(numbers)))

    assert any("gate finalization was decided without target_on_test" in f for f in verify(finished, judge_real).faults)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("branch.decided", {"branch": "insufficient"}, "the branch is recorded as insufficient"),
        ("branch.decided", {"symptoms": ["nan_loss"]}, "the branch is recorded as sufficient, the baseline evidence"),
        ("branch.decided", {"target_value": 0.1}, "names another score or target"),
        ("candidate.chosen", {"weights": "0" * 64}, "the candidate is not the one of the baseline evidence"),
        (
            "plan.frozen",
            {"people": {"owner": "Mallory", "approvers": []}},
            "people is not as in revision 1 of the plan",
        ),
        ("plan.frozen", {"rounds": 9}, "rounds is not as in revision 1 of the plan"),
    ],
)
def test_verify_derives_the_decisions_again(finished: Run, kind: str, change: dict[str, Any], says: str) -> None:
    """Branch, candidate and what the entry of a plan says follow from evidence and plan, or are reported."""
    rewrite(finished, lambda entry: entry["data"].update(change) if entry["kind"] == kind else None)

    assert any(says in f for f in verify(finished, judge_real).faults)


@pytest.mark.process
def test_verify_says_what_it_cannot_judge(finished: Run, cli: Cli) -> None:
    """A gate whose evidence was replaced by a later attempt is a line and no fault."""
    go(finished.path.parent, "phase=finalization", "run.name=digits")
    code, out, _ = cli("verify", "digits")

    assert code == 0
    assert "not judged again: 1 earlier gate whose evidence a later attempt replaced" in out


def test_verify_reports_waivers_and_signatures_that_do_not_count(finished: Run) -> None:
    """Entries that no command would have written are reported, although they change no gate."""
    with opened(finished) as ledger:
        data = {"phase": "finalization", "item": "slices", "who": "Mallory", "why": "no slices", "expires": LATER}
        ledger.append("waiver", data)
        sign(ledger, "Mallory")
        sign(ledger, OWNER)
    output = verify(finished, judge_real).faults

    assert any("the waiver of slices does not count: Mallory is neither the owner nor an approver" in f for f in output)
    assert any("the signature of Mallory does not count" in f for f in output)
    own = "Example Owner does not count: the plan names an approver for the owner's work"
    assert any(own in f for f in output)


@pytest.mark.process
def test_verify_imports_neither_torch_nor_hydra_nor_scipy(finished: Run) -> None:
    """A stranger verifies a run within a second: nothing heavy is imported."""
    script = (
        "import sys\nfrom pipeline.__main__ import main\ncode = main(['verify', sys.argv[1]])\n"
        "heavy = {'torch', 'hydra', 'scipy', 'sklearn', 'matplotlib', 'mlflow'} & set(sys.modules)\n"
        "sys.exit(code or bool(heavy))"
    )
    subprocess.run([sys.executable, "-c", script, str(finished.path)], check=True, timeout=60)


@pytest.mark.parametrize("path", ["baseline/history.npz", "finalization/evidence.json"])
def test_release_refuses_damaged_records(signed: Run, cli: Cli, path: str) -> None:
    """One byte more in any recorded file: nothing is signed or released, and the command that mends it is named."""
    file = signed.path / path
    file.write_bytes(file.read_bytes() + b" ")
    refused(signed, f"{path}: is not the file that entry")
    before = signed.ledger_path.read_bytes()

    code, _, err = cli("approve", "digits", "--who", REVIEWER)

    assert code == 3 and f"{path}: is not the file that entry" in err and signed.ledger_path.read_bytes() == before


def rewrite_evidence(run: Run, phase: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the evidence of a phase, and the ledger so that it agrees: digest, items, hashes."""
    path = run.inside(*phase.split("/"), "evidence.json")
    body = json.loads(path.read_text())
    change(body["values"])
    files.write_json(path, body)
    name, state = phase.split("/")[0], run.state()
    questions = plans.load(run, state).checklists[name]
    items = {item.id: plain(vars(item)) for item in judge_real(questions, Evidence.from_json(body))}

    def agree(entry: dict[str, Any]) -> None:
        data = entry["data"]
        if entry["kind"] == "phase.finished" and data["phase"] == name:
            data["evidence"]["sha256"] = files.sha256(path)
        if entry["kind"] == "item.evaluated" and data["phase"] == name:
            data.update(items[data["id"]])

    rewrite(run, agree)


FORGED = [
    ("finalization", lambda values: values["test_score"].update(value=0.9999, low=0.999), "test_score"),
    ("finalization", lambda values: values["lineage"].update(seed=99), "lineage"),
    ("baseline", lambda values: values["score"].update(value=0.9999), "score"),
    ("baseline", lambda values: values["per_class"][0].update(recall=1.5), "per_class"),
    ("planning", lambda values: values["digests"].update(test="0" * 64), "digests"),
]


@pytest.mark.parametrize(("phase", "change", "what"), FORGED, ids=[f"{phase} {what}" for phase, _, what in FORGED])
def test_verify_derives_evidence_from_other_records(finished: Run, phase: str, change: Any, what: str) -> None:
    """Evidence and ledger that were rewritten to agree are still compared with what they were made from."""
    rewrite_evidence(finished, phase, change)

    assert f"{phase}/evidence.json: {what} is not that of the other records" in verify(finished, judge_real).faults


def test_verify_compares_the_arms_again(mended: Run) -> None:
    """The statistics of a study follow from the results that its trainings wrote."""
    assert verify(mended, judge_real).faults == []

    rewrite_evidence(mended, "optimization/1", lambda values: values["arms"][0].update(p=0.001))

    expected = "optimization/1/evidence.json: the comparison is not that of the other records"
    assert expected in verify(mended, judge_real).faults


def test_verify_compares_the_search_again(mended: Run) -> None:
    """The scores by which candidates were chosen are those that their trainings wrote."""
    rewrite_evidence(mended, "optimization/1", lambda values: values["searched"][0].update(values=[0.99]))

    expected = "optimization/1/evidence.json: the search of c1 is not that of the other records"
    assert expected in verify(mended, judge_real).faults


def test_verify_judges_guards_again(mended: Run) -> None:
    """A winner whose guarded figures speak against it cannot be recorded as harmless."""

    def harm(values: dict[str, Any]) -> None:
        size = next(guard for guard in values["arms"][0]["guards"] if guard["what"] == SIZE)
        size["after"] = [1e6]

    rewrite_evidence(mended, "optimization/1", harm)

    found = verify(mended, judge_real).faults
    assert "optimization/1/evidence.json: what c2 harms is not that of the other records" in found
    assert "optimization/1/evidence.json: the winner is not that of the other records" in found


@pytest.mark.parametrize("left_out", ["every result", "one result", "a result and its score"])
def test_verify_is_not_silent_about_missing_results(mended: Run, left_out: str) -> None:
    """A ledger that leaves out results of trainings gives nothing to compare the arms with, which is a fault."""

    def leave_out(entry: dict[str, Any]) -> None:
        data = entry["data"]
        if entry["kind"] == "phase.finished" and data["phase"] == "optimization":
            names = [name for name in data["artifacts"] if name.endswith("/result.json")]
            for name in names if left_out == "every result" else names[:1]:
                del data["artifacts"][name]
        if left_out.endswith("score") and entry["kind"] == "job.finished" and data["id"] == "control-1":
            data.update(score=None, died="exit 1")

    rewrite(mended, leave_out)

    assert any(f.startswith("optimization/1/evidence.json: the ") for f in verify(mended, judge_real).faults)


def test_verify_compares_results_with_the_ledger(mended: Run) -> None:
    """The score of a training is the same in its result and in the ledger."""

    def other_score(entry: dict[str, Any]) -> None:
        if entry["kind"] == "job.finished" and entry["data"]["id"] == "c2-1":
            entry["data"]["score"]["value"] = 0.5

    rewrite(mended, other_score)

    expected = "optimization/1/evidence.json: the list of scores is not that of the other records"
    assert expected in verify(mended, judge_real).faults


@pytest.mark.parametrize(
    ("phase", "name"),
    [("planning", "manifest"), ("baseline", "confusion_matrix.json"), ("diagnostics", "diagnosis")],
)
def test_verify_is_not_silent_about_missing_files(mended: Run, phase: str, name: str) -> None:
    """Evidence whose source the ledger leaves out is not taken for compared."""

    def leave_out(entry: dict[str, Any]) -> None:
        if entry["kind"] == "phase.finished" and entry["data"]["phase"] == phase:
            del entry["data"]["artifacts"][name]

    rewrite(mended, leave_out)

    assert any(
        f"evidence.json: the list of files, without {name}, is not" in f for f in verify(mended, judge_real).faults
    )
