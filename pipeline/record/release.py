"""Releasing: the one step behind the last gate, taken when every question is answered and a person has signed."""

from __future__ import annotations

from datetime import date
from typing import Any

from pipeline.errors import Refused, fault
from pipeline.record import files
from pipeline.record.ledger import Ledger
from pipeline.record.run import Run
from pipeline.record.state import fold


def release(run: Run, book: Ledger, today: date | None = None) -> None:
    """The bundle is released: its attestations lie beside the payload, and the ledger says so.

    Raises Refused unless the finalization gate is open today.
    """
    state = fold(book.entries)
    gate = state.gates.get("finalization")
    if gate is None or state.gate("finalization", today) != "open":
        do = f"python -m pipeline status {run.name} --gate finalization"
        raise Refused(fault(run.name, "cannot be released: the finalization gate is not open", do=do))
    attestation: dict[str, Any] = {
        "schema": 1,
        "subject": gate.subject,
        "plan": state.plan,
        "ledger_head": state.head,
        "items": [vars(item) for item in gate.items],
        "waivers": [vars(w) for w in state.waivers],
        "sign_offs": [vars(s) for s in state.valid_sign_offs("finalization")],
        "revisions": list(state.revisions),
    }
    path = run.inside("bundle", "attestations", "release.json")
    files.write_json(path, attestation)
    book.append("released", {"subject": gate.subject, "attestation": run.relative(path), "sha256": files.sha256(path)})
