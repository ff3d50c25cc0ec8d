"""Verify a released bundle from its files alone: `python verify.py [BUNDLE]`, with nothing but Python 3.9 or later.

BUNDLE is the folder with `payload/` and `attestations/`; by default the one around this file. Derived again are the
digests of all files, the payload's digest, what every signature covers, whether every check was satisfied when the
bundle was released, and the Ed25519 signatures. Exit code 0: all agree; 3: something does not. A copy of this file
from a source that you trust verifies more than the one inside the bundle, which could have been changed with it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Point = tuple[int, int, int, int]


def canonical(value: Any) -> str:
    """The one JSON text of a value, as it was digested and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    return sha256(canonical(value).encode())


def read(path: Path) -> Any:
    """The content of an attestation or a manifest, whose bytes have one form only."""
    data = path.read_bytes()
    content = json.loads(data)
    if data != (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode():
        raise ValueError("is not written as a release writes it")
    return content


def payload_faults(payload: Path) -> Iterator[str]:
    """Yield what differs between the files of the payload and its manifest."""
    records = read(payload / "manifest.json")["files"]
    present = {p.relative_to(payload).as_posix(): p for p in payload.rglob("*") if p.is_symlink() or not p.is_dir()}
    for name in sorted({*records, *present} - {"manifest.json"}):
        if name not in present:
            yield f"payload/{name}: is missing"
        elif name not in records or present[name].is_symlink():
            yield f"payload/{name}: is not in the manifest, or is a link"
        elif [len(data := present[name].read_bytes()), sha256(data)] != [records[name][k] for k in ("bytes", "sha256")]:
            yield f"payload/{name}: is not the file of the manifest"


def satisfied(item: Record, waived: set[str], signed: Record) -> bool:
    """Whether a check let the gate open: passed, not applicable, accepted by the plan, waived, or signed."""
    if item["outcome"] in ("passed", "not_applicable") or item.get("accepted_by"):
        return True
    return item["id"] in (signed if item["sign_off"] else waived)


def release_faults(attestations: Path, subject: str) -> Iterator[str]:
    """Yield what differs between the release, its signatures, and the payload with the digest `subject`."""
    release = read(attestations / "release.json")
    if digest({key: value for key, value in release.items() if key != "digest"}) != release["digest"]:
        yield "attestations/release.json: was changed"
    if {release["subject"], release["statement"]["payload"]} != {subject}:
        yield f"attestations/release.json: is of the payload {release['subject'][:12]}, this one is {subject[:12]}"
    files = {p.name: p for p in attestations.iterdir() if p.name != "release.json"}
    if "rollback.json" in files:
        yield f"attestations/rollback.json: {read(files.pop('rollback.json'))['who']} has withdrawn this release"
    for name in sorted({*files, *release["attestations"]}):
        if name not in files or sha256(files[name].read_bytes()) != release["attestations"].get(name):
            yield f"attestations/{name}: is missing, or is not a file of this release"
    day = release["statement"]["time"][:10]
    waived = {w["item"] for w in release["waivers"] if w["phase"] == "finalization" and w["expires"] >= day}
    outcomes = {item["id"]: item["outcome"] for item in release["items"]}
    signed = {s["item"]: s for s in release["sign_offs"]}
    for item in release["items"]:
        if not satisfied(item, waived, signed):
            yield f"check {item['id']}: is {item['outcome']}, and neither accepted, waived nor signed"
    for sign_off in signed.values():
        terms = sorted(sign_off["waivers"], key=canonical)
        covered = digest({"subject": sign_off["digest"], "outcomes": sign_off["outcomes"], "waivers": terms})
        if sign_off["digest"] != subject or covered != sign_off["binding"]:
            yield f"signature of {sign_off['who']}: is of another payload, other outcomes or other waivers"
        if sign_off["outcomes"]["finalization"] != outcomes:
            yield f"signature of {sign_off['who']}: covers other outcomes than the release has"
    for name in sorted(release["attestations"]):
        yield from signature_faults(name, read(attestations / name), signed)


def signature_faults(name: str, attestation: Record, signed: Record) -> Iterator[str]:
    """Yield what differs between an attestation of an approval, its entry in the release, and its Ed25519 signature."""
    about, signature = attestation["statement"], attestation["signature"]
    if about["report"] not in {s["binding"] for s in signed.values()}:
        yield f"attestations/{name}: is of another report than those that the release lists"
    if signature is None:
        return
    kind, key = ssh_key(signature["public_key"])
    if kind != b"ssh-ed25519" or not is_signed(key, canonical(about).encode(), base64.b64decode(signature["value"])):
        yield f"attestations/{name}: its signature is not of this statement"


def report_faults(payload: Path, release: Record) -> Iterator[str]:
    """Yield the checks whose outcome in the payload's report is not the one of the release."""
    path = payload / "report.json"
    outcomes = {item["id"]: item["outcome"] for item in release["items"]}
    for item in json.loads(path.read_bytes())["items"] if path.exists() else ():
        if outcomes.get(item["id"]) != item["outcome"]:
            yield f"payload/report.json: {item['id']} is {item['outcome']}, in the release {outcomes.get(item['id'])}"


def verify(bundle: Path) -> list[str]:
    """Return every fault of a bundle, as sentences; an empty list for one that is as it was released."""
    payload, attestations = bundle / "payload", bundle / "attestations"
    faults: list[str] = []
    try:
        faults += payload_faults(payload)
        files = [path for path in payload.rglob("*") if path.is_file()]
        subject = digest({path.relative_to(payload).as_posix(): sha256(path.read_bytes()) for path in files})
        faults += release_faults(attestations, subject)
        faults += report_faults(payload, read(attestations / "release.json"))
    except FileNotFoundError as error:
        faults.append(f"{error.filename}: is missing; a bundle is released after it was approved")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        faults.append(f"{bundle}: cannot be read as a released bundle ({type(error).__name__}: {error})")
    return faults


def approvals(bundle: Path) -> list[str]:
    """Return a line per approval of an intact bundle: who, when, and the fingerprint of the key that signed it."""
    release = read(bundle / "attestations" / "release.json")
    lines = [f"{bundle}: as it was released, payload {release['subject']}"]
    for name in sorted(release["attestations"]):
        attestation = read(bundle / "attestations" / name)
        about, signature = attestation["statement"], attestation["signature"]
        key = hashlib.sha256(base64.b64decode(signature["public_key"].split()[1])).digest() if signature else b""
        by = f"key SHA256:{base64.b64encode(key).decode().rstrip('=')}" if key else "not signed by a key"
        lines.append(f"approved by {about['who']} at {about['time']}, {by}")
    return lines


# --- Ed25519 (RFC 8032), for a Python without any package ------------------------------------------------------------

P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def ssh_key(line: str) -> tuple[bytes, bytes]:
    """Algorithm and raw key of a line of `authorized_keys`: two fields, each after its length in four bytes."""
    blob = base64.b64decode(line.split()[1], validate=True)
    fields: list[bytes] = []
    while blob:
        size = int.from_bytes(blob[:4], "big")
        fields.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    return fields[0], fields[1]


def add(a: Point, b: Point) -> Point:
    """The sum of two points in extended coordinates."""
    s, t = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, z = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = t - s, z - c, z + c, t + s
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(factor: int, point: Point) -> Point:
    total: Point = (0, 1, 1, 0)
    while factor:
        total = add(total, point) if factor & 1 else total
        point, factor = add(point, point), factor >> 1
    return total


def point_of(data: bytes) -> Point:
    """The point of 32 bytes. Raises ValueError for bytes that are no point."""
    number = int.from_bytes(data, "little")
    y, sign = number & ((1 << 255) - 1), number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if x * x % P == square else x * ROOT % P
    if len(data) != 32 or y >= P or x * x % P != square or (x == 0 and sign):
        raise ValueError("not a point of the curve")
    x = x if x & 1 == sign else P - x
    return x, y, 1, x * y % P


def is_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether this is the Ed25519 signature of the message by the key."""
    s = int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or s >= ORDER:
        return False
    try:
        public, r = point_of(key), point_of(signature[:32])
    except ValueError:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % ORDER
    left, right = times(s, point_of((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))), add(r, times(h, public))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent
    problems = verify(folder)
    print("\n".join([f"not as released: {problem}" for problem in problems] or approvals(folder)))
    sys.exit(3 if problems else 0)
