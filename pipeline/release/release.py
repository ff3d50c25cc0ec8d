"""Release a bundle: the last step of a run, permitted by every gate, by the branch and by a person who signs."""

from __future__ import annotations

from datetime import date
from typing import Any

from pipeline.errors import Refused, fault
from pipeline.release import attestation
from pipeline.release.bundle import bundle_digest
from pipeline.release.verify import refuse_unless_clean
from pipeline.results import digest
from pipeline.run_store import files
from pipeline.run_store.checklist import Judge
from pipeline.run_store.gate import utc_today
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.next_step import release_blocker
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold


def _signed_subject(run: Run, state: RunState) -> str:
    """Return the digest of the bundle that was evaluated and signed. Raises Refused when the payload is another one."""
    subject = state.gates["finalization"].subject
    payload = run.inside("bundle", "payload")
    on_disk = bundle_digest(payload) if payload.is_dir() else "nothing"
    if subject is None or on_disk != subject:
        what = "is not the bundle that was evaluated and signed"
        do = f"python -m pipeline phase=finalization {run.overrides}"
        expected = f"digest {subject[:12]}" if subject else "the digest of a bundle"
        raise Refused(fault("bundle/payload", what, got=on_disk[:12], expected=expected, do=do))
    return subject


def _attestation(run: Run, ledger: Ledger, state: RunState, subject: str) -> dict[str, Any]:
    """Return what is attested about the bundle: plan, items, waivers, signatures, plan revisions, and the ledger.

    `attestations` are the SHA-256 of the files beside it, `digest` is over all other keys.
    """
    signers = [sign_off.who for sign_off in state.valid_sign_offs("finalization")]
    signed = state.signature("finalization", "", "")
    files_of = run.inside("bundle", "attestations").glob("sign_off-*.json")
    release = {
        "schema": attestation.SCHEMA,
        "statement": attestation.statement(run, ledger, signed, "release", who=signers),
        "signature": None,
        "subject": subject,
        "plan": state.plan,
        "ledger_head": state.head,
        "items": [vars(item) for item in state.gates["finalization"].items],
        "waivers": [vars(w) for w in state.waivers],
        "sign_offs": [vars(s) for s in state.valid_sign_offs("finalization")],
        "revisions": list(state.revisions),
        "attestations": {path.name: files.sha256(path) for path in files_of},
    }
    return {**release, "digest": digest(release)}  # a changed byte is found without the ledger, too


def release(run: Run, ledger: Ledger, judge: Judge, today: date | None = None) -> None:
    """Write the attestation next to the payload and record the release.

    Raises Refused unless every gate and the branch permit it today, the payload on disk is the one that was signed, and
    all records of the run are as they were made.
    """
    state = fold(ledger.entries)
    # Not as of the signature: a waiver may have expired between the signature and the release.
    why = release_blocker(state, today or utc_today())
    if why:
        do = f"python -m pipeline status {run.argument} --gate finalization"
        raise Refused(fault(run.name, f"cannot be released: {why}", do=do))
    subject = _signed_subject(run, state)
    refuse_unless_clean(run, judge)
    path = run.inside("bundle", "attestations", "release.json")
    files.write_json(path, _attestation(run, ledger, state, subject))
    record = {"path": run.relative(path), "sha256": files.sha256(path)}
    ledger.append("released", {"subject": subject, "attestation": record})
