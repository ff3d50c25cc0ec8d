"""The `verify.py` of a bundle finds every change by the files of the bundle alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run_store import files
from pipeline.run_store.run import Run
from pipeline.serving.standalone import verify as standalone
from tests.conftest import Cli

SAMPLED_PAYLOAD_BYTES = 2_000


@pytest.fixture
def bundle(released: Run) -> Path:
    return released.path / "bundle"


def flips(path: Path, places: list[int]) -> Iterator[int]:
    """Change one byte after the other in the file, and put it back after each."""
    intact = path.read_bytes()
    for place in places:
        changed = bytearray(intact)
        changed[place] ^= 1 << place % 8
        path.write_bytes(bytes(changed))
        yield place
    path.write_bytes(intact)


def undetected(bundle: Path, path: Path, places: list[int]) -> list[str]:
    """The changed bytes with which the bundle still verifies."""
    return [f"{path.name}:{place}" for place in flips(path, places) if not standalone.verify(bundle)]


def records(bundle: Path) -> list[Path]:
    return [bundle / "payload" / "manifest.json", *sorted((bundle / "attestations").iterdir())]


@pytest.mark.process
def test_standalone_verify_runs_without_this_project(bundle: Path, tmp_path: Path) -> None:
    """A Python without packages verifies the intact bundle, and names who approved it with which key."""
    script = tmp_path / "verify.py"
    script.write_bytes(Path(standalone.__file__).read_bytes())
    command = [sys.executable, "-I", "-S", str(script), str(bundle)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    assert "approved by Example Reviewer" in done.stdout and "key SHA256:" in done.stdout
    (bundle / "payload" / "plan.yaml").write_text("seed: 2\n")
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 3 and "payload/plan.yaml: is not the file of the manifest" in again.stdout


def test_verify_command_accepts_a_bundle_without_its_run(bundle: Path, tmp_path: Path, cli: Cli) -> None:
    """The command checks a copy of the bundle alone, as its script does."""
    copy = bundle.rename(tmp_path / "received")
    assert cli("verify", copy)[0] == 0
    (copy / "payload" / "note.txt").write_text("hello")
    code, out, _ = cli("verify", copy)
    assert code == 3 and "payload/note.txt: is not in the manifest" in out


def test_standalone_verify_detects_flipped_bytes(bundle: Path) -> None:
    """Of every record and of the payload, some bytes are changed one by one."""
    draw = random.Random(0)
    payload = [p for p in sorted((bundle / "payload").iterdir()) if p.name != "manifest.json"]
    for path in [*records(bundle), *payload]:
        size = path.stat().st_size
        assert undetected(bundle, path, draw.sample(range(size), min(size, 8))) == []


@pytest.mark.slow
def test_standalone_verify_detects_every_flipped_byte(bundle: Path) -> None:
    """Every byte of manifest and attestations, and 2,000 bytes drawn from the payload."""
    for path in records(bundle):
        assert undetected(bundle, path, list(range(path.stat().st_size))) == []
    draw = random.Random(0)
    payload = [p for p in sorted((bundle / "payload").iterdir()) if p.name != "manifest.json"]
    sizes = [p.stat().st_size for p in payload]
    drawn = draw.choices(payload, weights=sizes, k=SAMPLED_PAYLOAD_BYTES)
    for path in payload:
        places = [draw.randrange(path.stat().st_size) for chosen in drawn if chosen == path]
        assert undetected(bundle, path, places) == []


def rewritten(bundle: Path, name: str, change: dict[str, object]) -> None:
    """Rewrite an attestation as somebody would who also derives its digest again."""
    path = bundle / "attestations" / name
    content = {**json.loads(path.read_bytes()), **change}
    content = {key: value for key, value in content.items() if key != "digest"}
    files.write_json(path, {**content, "digest": standalone.digest(content)})


def test_standalone_verify_needs_every_check_satisfied(bundle: Path) -> None:
    """A release that lists a failed check without a waiver is named, although its digest is right."""
    release = json.loads((bundle / "attestations" / "release.json").read_bytes())
    items = [{**item, "outcome": "failed"} if item["id"] == "lineage" else item for item in release["items"]]

    rewritten(bundle, "release.json", {"items": items})
    faults = standalone.verify(bundle)

    assert "check lineage: is failed, and neither accepted, waived nor signed" in faults
    assert "signature of Example Reviewer: covers other outcomes than the release has" in faults


def test_standalone_verify_needs_the_signed_payload(bundle: Path) -> None:
    """A changed file with a new manifest and a new release has the signature of another payload."""
    payload = bundle / "payload"
    (payload / "plan.yaml").write_text("seed: 2\n")
    manifest = json.loads((payload / "manifest.json").read_bytes())
    data = (payload / "plan.yaml").read_bytes()
    manifest["files"]["plan.yaml"] |= {"bytes": len(data), "sha256": standalone.sha256(data)}
    files.write_json(payload / "manifest.json", manifest)
    subject = standalone.digest({p.name: standalone.sha256(p.read_bytes()) for p in payload.iterdir()})
    release = json.loads((bundle / "attestations" / "release.json").read_bytes())
    rewritten(bundle, "release.json", {"subject": subject, "statement": {**release["statement"], "payload": subject}})

    assert any("is of another payload, other outcomes or other waivers" in f for f in standalone.verify(bundle))


def test_standalone_verify_says_that_a_release_was_withdrawn(released: Run, cli: Cli) -> None:
    """After a rollback the bundle is intact, and no longer a release."""
    assert cli("rollback", "digits", "--who", "Example Owner", "--why", "wrong forms")[0] == 0
    faults = standalone.verify(released.path / "bundle")
    assert faults == ["attestations/rollback.json: Example Owner has withdrawn this release"]


def test_standalone_verify_needs_a_release(finished: Run) -> None:
    """A bundle that nobody approved is not a release."""
    (fault,) = standalone.verify(finished.path / "bundle")
    assert "release.json: is missing; a bundle is released after it was approved" in fault


@given(st.binary(max_size=200), st.integers(0, 2**16))
def test_is_signed_agrees_with_cryptography(message: bytes, flip: int) -> None:
    """Signatures of `cryptography` are valid, and with one changed bit they are not."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    key, signature = private.public_key().public_bytes_raw(), bytearray(private.sign(message))

    assert standalone.is_signed(key, message, bytes(signature))
    signature[flip % 64] ^= 1 << flip % 8
    assert not standalone.is_signed(key, message, bytes(signature))
