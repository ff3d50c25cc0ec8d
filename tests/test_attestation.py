"""Attestations hold the ledger's head outside of the ledger, signed where there is a key."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pipeline.errors import UserError
from pipeline.release import attestation, signatures
from pipeline.release.bundle import bundle_digest
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run, opened
from tests.conftest import Cli
from tests.test_anchors import better_item, rewrite
from tests.test_verify import REVIEWER, waive

WITH_PASSPHRASE = """
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABAbmYFvWq
AFPxVhs2xDzXjjAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIKUp9wJTZ3bh/K9W
uzUjRmiJiDbwSA6huu3Akq/WGJ+oAAAAkAUESwtHlusoeHdhACZS6eVApqrIkzeOQ9lIKV
MmyqSrtWgOoglw+f0kIZpt+daRoKzP/yJkruoL6ntsYL38pHIj6MxW98UR0bLzL5LXTpdO
OToN8foIs1hPTS3jGR+yIgk8NyZao0Fk23HANqIq2n8IMgmRSayChzbdrpRLX6rnNrfyO0
0ay5xBGSMRBPLffg==
"""  # by `ssh-keygen -t ed25519 -N secret`, without its first and last line


def key_file(path: Path, key: PrivateKeyTypes | None = None) -> Path:
    """Write a private key as `ssh-keygen` writes it."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return path


def key_with_passphrase(path: Path) -> None:
    frame = "-----{} OPENSSH PRIVATE KEY-----"
    path.write_text(frame.format("BEGIN") + WITH_PASSPHRASE + frame.format("END") + "\n")


@pytest.fixture
def waiting(finished: Run) -> Run:
    """A run of which only the signature is missing."""
    gate = finished.state().gates["finalization"]
    with opened(finished) as ledger:
        for item in gate.items:
            if item.outcome in ("errored", "failed", "inconclusive"):
                waive(ledger, "finalization", item.id)
    return finished


@pytest.fixture
def approved(waiting: Run, cli: Cli, tmp_path: Path) -> Run:
    """The run, signed with a key and released by the next command."""
    code, out, err = cli("approve", "digits", "--who", REVIEWER, "--key", key_file(tmp_path / "key"))
    assert code == 0 and "phase=finalization run.name=digits" in out, err
    assert cli("phase=finalization", "run.name=digits")[0] == 0
    return waiting


def sign_off(run: Run) -> tuple[Path, dict[str, Any]]:
    """The attestation of the signature, and its content."""
    (path,) = run.path.glob("bundle/attestations/sign_off-*.json")
    return path, json.loads(path.read_text())


def found(run: Run) -> list[str]:
    return attestation.faults(run, read_ledger(run.ledger_path))


def test_approve_attests_bundle_ledger_and_report(approved: Run, cli: Cli, tmp_path: Path) -> None:
    """The attestation names payload, ledger, report and person, and its signature is by the key that was given."""
    entries = read_ledger(approved.ledger_path)
    signed = next(entry for entry in entries if entry["kind"] == "sign_off")
    _, content = sign_off(approved)
    about = content["statement"]

    assert about["payload"] == bundle_digest(approved.inside("bundle", "payload")) == signed["data"]["digest"]
    assert about["ledger"] == {"seq": signed["seq"] - 1, "hash": signed["prev"]}
    assert (about["report"], about["who"], about["type"]) == (signed["data"]["binding"], REVIEWER, "sign_off")
    public = signatures.read_key(tmp_path / "key").public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert content["signature"]["public_key"] == public.decode()
    released = json.loads(approved.inside("bundle", "attestations", "release.json").read_text())
    assert released["statement"]["ledger"]["seq"] == entries[-1]["seq"] - 1 and released["statement"]["who"] == [
        REVIEWER
    ]

    code, out, _ = cli("verify", "digits")
    assert code == 0
    assert f"signed with the key {signatures.fingerprint(public.decode())}" in out


def test_approve_without_key_attests_too(waiting: Run, cli: Cli) -> None:
    """Without a key the attestation is the same, and `verify` says that nobody signed it with one."""
    assert cli("approve", "digits", "--who", REVIEWER)[0] == 0

    _, content = sign_off(waiting)
    assert waiting.state().released is None  # the next command releases
    assert content["signature"] is None and not found(waiting)
    assert f"{REVIEWER}, not signed by a key" in cli("verify", "digits")[1]


def test_verify_refuses_ledger_that_its_attestations_do_not_know(approved: Run, cli: Cli) -> None:
    """A ledger with new hashes, or without its last entries, does not agree with the attestations."""
    intact = approved.ledger_path.read_bytes()
    rewrite(approved, better_item)
    code, out, _ = cli("verify", "digits")
    assert code == 3 and "and the ledger has another one: it was rewritten" in out

    lines = intact.splitlines(keepends=True)
    approved.ledger_path.write_bytes(b"".join(lines[:-4]))
    code, out, _ = cli("verify", "digits")
    assert code == 3 and f"and the ledger ends with entry {len(lines) - 5}: it was truncated" in out


def test_attestation_refuses_every_changed_byte(approved: Run) -> None:
    """Whatever is changed in the statement or the signature, the signature is not of it any more."""
    path, content = sign_off(approved)
    about, signature = content["statement"], content["signature"]
    changes = [{**about, key: f"{value}x"} for key, value in about.items() if key != "ledger"]
    changes += [{**about, "ledger": {**about["ledger"], "seq": 0}}, {**about, "more": 1}]
    value = bytearray(base64.b64decode(signature["value"]))
    for statement in changes:
        assert not signatures.is_valid(signature, statement)
    for position in range(len(value)):
        value[position] ^= 1
        assert not signatures.is_valid({**signature, "value": base64.b64encode(value).decode()}, about)
        value[position] ^= 1
    for broken in (None, [], {}, {**signature, "public_key": "ssh-ed25519 AAAA"}, {**signature, "algorithm": "none"}):
        assert not signatures.is_valid(broken, about)
    assert signatures.is_valid(signature, about)

    path.write_text(json.dumps({**content, "statement": {**about, "note": "other"}}))
    assert any(fault.endswith("its signature is not of this statement") for fault in found(approved))
    assert any(fault.endswith("has another note") for fault in found(approved))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"statement": {"ledger": {"seq": "x"}}}', "[" * 100_000])
def test_attestation_that_cannot_be_read_is_a_fault(approved: Run, content: str) -> None:
    """A file that is no attestation is named."""
    path, _ = sign_off(approved)
    path.write_text(content)

    assert f"bundle/attestations/{path.name}: cannot be read as an attestation" in found(approved)


def no_access(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: key_file(path, rsa.generate_private_key(65537, 2048)), "has another type, got 'RSA'"),
        (key_with_passphrase, "has a passphrase"),
        (lambda path: shutil.copy(Path(__file__), path), "is not a key"),
        (lambda path: path.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI somebody"), "is a public key"),
        (lambda path: path, "cannot read .*key, got 'No such file or directory'"),
        (no_access, "cannot read .*key, got 'Is a directory'"),
    ],
    ids=["rsa", "passphrase", "text", "public", "missing", "folder"],
)  # fmt: skip
def test_read_key_refuses_other_files(tmp_path: Path, make: Callable[[Path], object], what: str) -> None:
    """Each file that is not an Ed25519 key of OpenSSH without a passphrase is one message with what to do."""
    make(tmp_path / "key")

    with pytest.raises(
        UserError, match=f"--key: {what}.*expected an OpenSSH private key of type Ed25519.*  Do: "
    ) as stop:
        signatures.read_key(tmp_path / "key")
    assert len(stop.value.faults) == 1


def test_approve_with_wrong_key_records_nothing(waiting: Run, cli: Cli, tmp_path: Path) -> None:
    """The key is read before anything is recorded."""
    before = waiting.ledger_path.read_bytes()

    code, _, err = cli("approve", "digits", "--who", REVIEWER, "--key", tmp_path / "absent")

    assert code == 2 and err.startswith("--key: cannot read ") and err.count("\n") == 1
    assert waiting.ledger_path.read_bytes() == before and not waiting.inside("bundle", "attestations").exists()
