"""Attestations: what people decided about a bundle, next to its payload, with the head of the ledger at that moment.

`bundle/attestations/` is not part of the payload's digest. It has `sign_off-<seq>.json` for each signature (the number
of its ledger entry), `release.json`, and after a rollback `rollback.json`. The first two have:

    {"schema": 1,
     "statement": {"type": "sign_off", "run": NAME, "payload": DIGEST, "ledger": {"seq": 40, "hash": HASH},
                   "report": DIGEST, "item": "owner_approval", "who": NAME, "note": TEXT, "time": UTC},
     "signature": {"algorithm": "ssh-ed25519", "public_key": "ssh-ed25519 AAAA...", "value": BASE64}}

`ledger` is the last entry before the decision: an anchor outside of the ledger, with which a ledger that was rewritten
or truncated does not agree. `payload` is the digest of the bundle's payload, `report` that of the bundle with the
outcomes of all items and the waivers in force. The signature is by an OpenSSH Ed25519 key over the canonical JSON of
`statement` (sorted keys, no spaces, ASCII); without a key it is null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from pipeline.release import signatures
from pipeline.release.signatures import Signature
from pipeline.run_store import files
from pipeline.run_store.ledger import Entry, Ledger
from pipeline.run_store.records import FileRecord
from pipeline.run_store.run import Run

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEMA = 1


class Anchor(TypedDict):
    """An entry of the ledger: its number and its hash."""

    seq: int
    hash: str


class Attestation(NamedTuple):
    """A file of `bundle/attestations/` as read: its path in the run, its statement, and its signature if it has one."""

    path: str
    statement: Mapping[str, Any]
    signature: Any


def head_of(ledger: Ledger) -> Anchor:
    """Return the last entry of a ledger."""
    return Anchor(seq=len(ledger.entries) - 1, hash=ledger.head)


def statement(
    run: Run, ledger: Ledger, signature: Mapping[str, Any], kind: str, *, who: str | Sequence[str]
) -> dict[str, Any]:
    """Return what is attested: `signature` is the data of an entry `sign_off`, which knows bundle and report."""
    return {
        "type": kind,
        "run": run.name,
        "payload": signature["digest"],
        "ledger": head_of(ledger),
        "report": signature["binding"],
        "who": who,
        "time": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def attest_sign_off(
    run: Run, ledger: Ledger, signature: Mapping[str, Any], key: Ed25519PrivateKey | None = None
) -> FileRecord:
    """Write the attestation of a signature that is recorded next, and return its record for that entry."""
    made = statement(run, ledger, signature, "sign_off", who=signature["who"])
    made |= {"item": signature["item"], "note": signature["note"]}
    path = run.inside("bundle", "attestations", f"sign_off-{len(ledger.entries)}.json")
    by_key: Signature | None = signatures.sign(key, made) if key else None
    files.write_json(path, {"schema": SCHEMA, "statement": made, "signature": by_key})
    return FileRecord(path=run.relative(path), sha256=files.sha256(path))


def faults(run: Run, entries: Sequence[Entry]) -> list[str]:
    """Return what the attestations of a run say otherwise than its ledger. Reads only."""
    problems, by_path = [], {}
    for path in _paths(run):
        attestation = _read(run, path)
        if attestation is None:
            problems.append(f"{run.relative(path)}: cannot be read as an attestation")
            continue
        by_path[attestation.path] = attestation
        if why := anchor_fault(attestation.statement.get("ledger"), entries):
            problems.append(f"{attestation.path}: {why}")
        if attestation.signature is not None and not signatures.is_valid(attestation.signature, attestation.statement):
            problems.append(f"{attestation.path}: its signature is not of this statement")
    return [*problems, *_sign_off_faults(entries, by_path)]


def anchors(run: Run) -> list[str]:
    """Return one line per attestation: the entry that it names, who decided, and the key of the signature."""
    lines = []
    for attestation in filter(None, (_read(run, path) for path in _paths(run))):
        about, by = attestation.statement, "not signed by a key"
        if isinstance(attestation.signature, Mapping):
            by = f"signed with the key {signatures.fingerprint(str(attestation.signature.get('public_key')))}"
        who = about["who"] if isinstance(about.get("who"), str) else ", ".join(map(str, about.get("who") or []))
        lines.append(f"{attestation.path}: entry {about['ledger']['seq']}, by {who or 'nobody'}, {by}")
    return lines


def anchor_fault(anchor: object, entries: Sequence[Entry]) -> str:
    """Return why an anchor does not fit the ledger, as what follows its place; empty where it fits."""
    if not isinstance(anchor, Mapping) or not isinstance(anchor.get("seq"), int):
        return "names no entry of the ledger"
    seq, known = int(anchor["seq"]), str(anchor.get("hash"))
    if seq >= len(entries):
        return f"names entry {seq}, and the ledger ends with entry {len(entries) - 1}: it was truncated"
    if seq < 0 or entries[seq]["hash"] != known:
        return f"names entry {seq} with the hash {known[:12]}, and the ledger has another one: it was rewritten"
    return ""


def _paths(run: Run) -> list[Path]:
    """Return the attestations of the bundle and of those before it, without those of rollbacks."""
    folders = [run.inside("bundle", "attestations"), *run.path.glob("bundle/previous/*/attestations")]
    return sorted(p for folder in folders for p in folder.glob("*.json") if p.name != "rollback.json")


def _read(run: Run, path: Path) -> Attestation | None:
    try:
        content = json.loads(path.read_bytes())
        made, signature = content["statement"], content.get("signature")
        readable = (
            isinstance(made, dict) and isinstance(made["ledger"], dict) and isinstance(made["ledger"]["seq"], int)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Attestation(run.relative(path), made, signature) if readable else None


def _sign_off_faults(entries: Sequence[Entry], by_path: Mapping[str, Attestation]) -> Iterator[str]:
    """Yield the signatures in the ledger that say otherwise than their attestations."""
    for entry in entries:
        record = entry["data"].get("attestation") if entry["kind"] == "sign_off" else None
        attestation = by_path.get(record["path"]) if record else None
        if attestation is None:  # a missing file is a fault of its own
            continue
        recorded = {"payload": "digest", "report": "binding", "who": "who", "item": "item", "note": "note"}
        about, data = attestation.statement, entry["data"]
        differing = [key for key, name in recorded.items() if about.get(key) != data.get(name)]
        if differing:
            yield f"entry {entry['seq']}: {attestation.path} has another {', '.join(differing)}"
