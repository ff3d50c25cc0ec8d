"""The release on disk: `bundle/payload/` with a manifest, and the files that it may contain.

    model.onnx  model.torchscript.pt  model.pt2     the model, in each exported format
    weights.safetensors  plan.yaml                  its weights and its plan
    MODEL_CARD.md  DATA_SHEET.md  DEPLOYMENT.md     what it is for, what it was trained on, how to run it
    report.json  REPORT.md                          the answers of the last gate, for programs and for people
    provenance.json  sbom.cdx.json  LICENSES.md     where it comes from, and what it depends on
    schema.json  golden.json  drift_reference.*     columns and classes, rows with known outputs, statistics of the data
    predict.py  verify.py                           scripts that need nothing of this project
    manifest.json                                   size and SHA-256 of each file

`bundle/attestations/` is written later, about the payload's digest, and is not part of the payload.
When a released payload is replaced, it is moved with its attestations to `bundle/previous/<digest>/`.
No torch: the recipient of a bundle can check it without.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.release.safe_formats import ARCHIVES, SCRIPTS_FOLDER, format_faults
from pipeline.results import digest
from pipeline.run_store import files
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.permits import ExportPermit, require
from pipeline.run_store.run import Run

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**20  # it lists less than a dozen files
REQUIRED = ("model.onnx", "weights.safetensors", "plan.yaml", MANIFEST)
SCRIPTS = ("predict.py", "verify.py")
DOCUMENTS = (
    "MODEL_CARD.md", "DATA_SHEET.md", "DEPLOYMENT.md", "LICENSES.md", "REPORT.md", "report.json", "provenance.json",
    "sbom.cdx.json",
)  # fmt: skip
SERVING = ("schema.json", "golden.json", "drift_reference.json", "drift_reference.npz", *SCRIPTS)
OPTIONAL = (*ARCHIVES, *DOCUMENTS, *SERVING)


class FileRecord(TypedDict):
    """A file in the manifest; `runs_code` marks an archive that runs code when torch loads it."""

    bytes: int
    sha256: str
    runs_code: bool


def write_payload(permit: ExportPermit, contents: Mapping[str, bytes | Path]) -> Path:
    """Write `bundle/payload/` of the permit's run with exactly these files and their manifest, and return its path.

    A value is the file's bytes, or the path of a file to copy. The folder is committed by one rename, so that a crash
    leaves the old payload or none; a released payload is saved first. Raises UserError, before anything is written, for
    a file name that a payload cannot have.
    """
    permit = require(permit, ExportPermit)
    known = [name for name in (*REQUIRED, *OPTIONAL) if name != MANIFEST]
    unknown = [name for name in contents if name not in known]
    if unknown:
        raise UserError(*(fault("bundle/payload", "cannot contain a file", got=n, among=known) for n in unknown))
    final = permit.run_dir / "bundle" / "payload"
    temporary = final.with_name(f".payload.{os.getpid()}.tmp")
    files.remove_folder(temporary)
    try:
        for name, content in contents.items():
            files.write_bytes(temporary / name, content if isinstance(content, bytes) else content.read_bytes())
        records = {name: describe(temporary / name) for name in sorted(contents)}
        source = {"run": permit.run.name, "plan": permit.plan.digest}
        files.write_json(temporary / MANIFEST, {"schema": 1, "source": source, "files": records})
        # Before the rename: a crash between the two leaves the released payload in both places.
        _save_released(permit.run, bundle_digest(temporary))
        files.commit_folder(temporary, final)
    finally:
        files.remove_folder(temporary)
    return final


def scripts() -> dict[str, Path]:
    """Return the stand-alone scripts of this version that a payload contains, by name."""
    return {name: SCRIPTS_FOLDER / name for name in SCRIPTS if (SCRIPTS_FOLDER / name).is_file()}


def previous_release(run: Run, subject: str) -> Path:
    """Return the folder of a released bundle whose payload was replaced."""
    return run.inside("bundle", "previous", subject[:12])


def _save_released(run: Run, next_digest: str) -> None:
    """Copy the current payload with its attestations to `bundle/previous/`, if it was released and will be replaced."""
    payload, attestations = run.inside("bundle", "payload"), run.inside("bundle", "attestations")
    released = {e["data"]["subject"] for e in read_ledger(run.ledger_path) if e["kind"] == "released"}
    current = bundle_digest(payload)
    final = previous_release(run, current)
    if current == next_digest or current not in released or bundle_digest(final / "payload") == current:
        return
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    files.remove_folder(temporary)
    for folder in (payload, attestations):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            files.write_bytes(temporary / path.relative_to(payload.parent), path.read_bytes())
    files.commit_folder(temporary, final)


def describe(path: Path) -> FileRecord:
    """Return a file's record in the manifest."""
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path), "runs_code": path.name in ARCHIVES}


def bundle_digest(payload: Path) -> str:
    """Return one SHA-256 for a payload on disk: over the name and digest of every file, including the manifest."""
    inside = sorted(p for p in payload.rglob("*") if p.is_file())
    return digest({p.relative_to(payload).as_posix(): files.sha256(p) for p in inside})


def check_layout(payload: Path) -> list[str]:
    """Return the faults of a payload folder: missing, unknown or changed files, and contents of another format.

    Reads the files and runs no code in them.
    """
    if not payload.is_dir() or payload.is_symlink():
        return [f"{payload.name}: is not a folder"]
    entries = sorted(payload.iterdir())
    names = {entry.name for entry in entries}
    faults = [f"{name}: is missing" for name in REQUIRED if name not in names]
    for entry in entries:
        # A link could lead out of the bundle, and its target can change after the signature.
        if entry.is_symlink() or not entry.is_file():
            faults.append(f"{entry.name}: is not a plain file")
        elif entry.name not in (*REQUIRED, *OPTIONAL):
            faults.append(f"{entry.name}: cannot be in a payload")
        else:
            faults += format_faults(entry)
    if MANIFEST in names and (payload / MANIFEST).is_file():
        faults += manifest_faults(payload)
    return faults


def manifest_faults(payload: Path) -> list[str]:
    """Return which files of a payload are not those that its manifest describes."""
    names = {entry.name for entry in payload.iterdir()}
    try:
        content = read_bytes(payload / MANIFEST, "a manifest", MAX_MANIFEST_BYTES)
        listed = parse_json(content, MANIFEST)["files"]
        rows = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST}: cannot be read as a manifest"]
    faults = [f"{name}: is in the manifest and missing" for name in sorted(set(rows) - names)]
    for name in sorted(names - {MANIFEST}):
        path = payload / name
        if name not in rows:
            faults.append(f"{name}: is not in the manifest")
        elif path.is_file() and (path.stat().st_size, files.sha256(path)) != rows[name]:
            faults.append(f"{name}: is not the file that the manifest describes")
    return faults
