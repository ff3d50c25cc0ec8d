"""The release on disk: `bundle/payload/` with a manifest, committed whole, and what may stand in it.

    model.onnx  model.torchscript.pt  model.pt2     the model, in each format that was exported
    weights.safetensors  plan.yaml  model_card.md   what it was made from and for
    reference.json  golden.json                     what live data is compared with, and rows with known answers
    manifest.json                                   size and SHA-256 of each of them

`bundle/attestations/` beside it is written later, by people, about the payload's digest, and is no part of it.
A payload that was released is kept as `bundle/previous/<digest>/` with its attestations when another takes its place.
Torch-free: whoever receives a bundle can check it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.results import digest
from pipeline.run_store import files
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.permits import ExportPermit, require
from pipeline.run_store.run import Run

MANIFEST = "manifest.json"
REQUIRED = ("model.onnx", "weights.safetensors", "plan.yaml", MANIFEST)
ARCHIVES = {  # zip archives that run code when torch opens them: part of the member names each must have
    "model.torchscript.pt": ("/code/", "/constants.pkl"),
    "model.pt2": ("/models/", "/archive_format"),
}
OPTIONAL = (*ARCHIVES, "model_card.md", "reference.json", "golden.json")

_CARRIERS = {  # what must not hide under another name
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"#!": "a script",
    b"\x89HDF": "an HDF5 file",
}


def write_payload(permit: ExportPermit, contents: Mapping[str, bytes | Path]) -> Path:
    """`bundle/payload/` of the permit's run holds exactly these files and their manifest; returns its path.

    A value is the file's bytes, or the path of a file to copy. It appears by one rename: a crash leaves the old
    payload or none, and a released one is kept first. Raises UserError, writing nothing, for names that have no place
    in a payload.
    """
    permit = require(permit, ExportPermit)
    known = [name for name in (*REQUIRED, *OPTIONAL) if name != MANIFEST]
    strange = [
        fault("bundle/payload", "has no place for a file", got=n, among=known) for n in contents if n not in known
    ]
    if strange:
        raise UserError(*strange)
    final = permit.run_dir / "bundle" / "payload"
    temporary = final.with_name(f".payload.{os.getpid()}.tmp")
    files.remove_folder(temporary)
    try:
        for name, content in contents.items():
            files.write_bytes(temporary / name, content if isinstance(content, bytes) else content.read_bytes())
        described = {name: describe(temporary / name) for name in sorted(contents)}
        source = {"run": permit.run.name, "plan": permit.plan.digest}
        files.write_json(temporary / MANIFEST, {"schema": 1, "source": source, "files": described})
        _keep_released(permit.run, bundle_digest(temporary))
        files.commit_folder(temporary, final)
    finally:
        files.remove_folder(temporary)
    return final


def kept(run: Run, subject: str) -> Path:
    """Where a released bundle is kept once another payload has taken its place."""
    return run.inside("bundle", "previous", subject[:12])


def _keep_released(run: Run, coming: str) -> None:
    """The payload that stands now is kept, with its attestations, when it was released and another one is coming."""
    payload, attestations = run.inside("bundle", "payload"), run.inside("bundle", "attestations")
    released = {e["data"]["subject"] for e in read_ledger(run.ledger_path) if e["kind"] == "released"}
    standing = bundle_digest(payload)
    final = kept(run, standing)
    if standing == coming or standing not in released or bundle_digest(final / "payload") == standing:
        return
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    files.remove_folder(temporary)
    for folder in (payload, attestations):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            files.write_bytes(temporary / path.relative_to(payload.parent), path.read_bytes())
    files.commit_folder(temporary, final)


def describe(path: Path) -> dict[str, Any]:
    """What the manifest says of a file; `runs_code` marks archives that torch executes on loading."""
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path), "runs_code": path.name in ARCHIVES}


def bundle_digest(payload: Path) -> str:
    """One SHA-256 for the payload as it lies on disk: over every file's name and digest, the manifest's included."""
    inside = sorted(p for p in payload.rglob("*") if p.is_file())
    return digest({p.relative_to(payload).as_posix(): files.sha256(p) for p in inside})


def check_layout(payload: Path) -> list[str]:
    """Every fault of a payload folder: absent, unknown or changed files, and formats that have no place in it.

    Empty when there is none. Reads files, runs nothing of theirs.
    """
    if not payload.is_dir() or payload.is_symlink():
        return [f"{payload.name}: is not a folder"]
    entries = sorted(payload.iterdir())
    names = {entry.name for entry in entries}
    faults = [f"{name}: is absent" for name in REQUIRED if name not in names]
    for entry in entries:
        if entry.is_symlink() or not entry.is_file():
            faults.append(f"{entry.name}: is not a plain file")
        elif entry.name not in (*REQUIRED, *OPTIONAL):
            faults.append(f"{entry.name}: has no place in a payload")
        else:
            faults += _format_faults(entry)
    if MANIFEST in names and (payload / MANIFEST).is_file():
        faults += _manifest_faults(payload, names)
    return faults


def _manifest_faults(payload: Path, names: set[str]) -> list[str]:
    try:
        listed = json.loads((payload / MANIFEST).read_text())["files"]
        rows = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST}: cannot be read as a manifest"]
    faults = [f"{name}: stands in the manifest and is absent" for name in sorted(set(rows) - names)]
    for name in sorted(names - {MANIFEST}):
        path = payload / name
        if name not in rows:
            faults.append(f"{name}: is not in the manifest")
        elif path.is_file() and (path.stat().st_size, files.sha256(path)) != rows[name]:
            faults.append(f"{name}: is not the file that the manifest describes")
    return faults


def _format_faults(path: Path) -> list[str]:
    """What is wrong with a file's content for its name."""
    if path.name in ARCHIVES:
        return _archive_faults(path)
    with path.open("rb") as stream:
        start = stream.read(4096)
    if disguise := _disguise(start):
        return [f"{path.name}: is {disguise}"]
    expects, is_right = _CONTENT[path.suffix]
    return [] if is_right(path, start) else [f"{path.name}: is not {expects}"]


def _disguise(start: bytes) -> str | None:
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return "a pickle, which runs code when it is opened"
    return next((what for magic, what in _CARRIERS.items() if start.startswith(magic)), None)


def _archive_faults(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return [f"{path.name}: is not a torch archive"]
    if broken:
        return [f"{path.name}: its member '{broken}' is damaged"]
    rootless = ["/" + name.split("/", 1)[-1] for name in members]
    if not all(any(name.startswith(part) for name in rootless) for part in ARCHIVES[path.name]):
        return [f"{path.name}: is a zip archive, but not the torch archive of that name"]
    outside = [name for name in members if name.startswith("/") or ".." in name.split("/")]
    return [f"{path.name}: its member '{name}' leads out of the archive" for name in outside]


def _is_safetensors(path: Path, start: bytes) -> bool:
    header = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 8 + header <= path.stat().st_size


def _is_onnx(path: Path, start: bytes) -> bool:
    return start[:1] == b"\x08"  # a protobuf message whose first field is ir_version


def _is_text(path: Path, start: bytes) -> bool:
    try:
        return "\0" not in path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False


def _is_json(path: Path, start: bytes) -> bool:
    try:
        json.load(io.BytesIO(path.read_bytes()))
    except ValueError:
        return False
    return True


_CONTENT: dict[str, tuple[str, Callable[[Path, bytes], bool]]] = {
    ".onnx": ("an ONNX model", _is_onnx),
    ".safetensors": ("a safetensors file", _is_safetensors),
    ".json": ("JSON", _is_json),
    ".yaml": ("text", _is_text),
    ".md": ("text", _is_text),
}
