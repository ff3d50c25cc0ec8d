from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from pipeline.errors import Refused, UserError
from pipeline.export.formats import export_formats
from pipeline.release.bundle import bundle_digest, check_layout, previous_release, write_payload
from pipeline.release.safe_formats import SCRIPTS_FOLDER
from pipeline.run_store import files, permits
from pipeline.run_store.run import opened
from tests.ledger_fixtures import baseline_done


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | Path]:
    folder = tmp_path_factory.mktemp("made")
    permit = permits.export(baseline_done(folder / "runs"))
    model = nn.Linear(4, 2)
    outcomes = export_formats(permit, model, np.ones((3, 4), np.float32), folder)
    exported = {o.exported.path.name: o.exported.path for o in outcomes.values() if o.exported}
    return {
        **exported,
        "weights.safetensors": save(model.state_dict()),
        "plan.yaml": b"seed: 7\n",
        "MODEL_CARD.md": b"# Card",
    }


@pytest.fixture
def permit(tmp_path: Path) -> permits.ExportPermit:
    return permits.export(baseline_done(tmp_path / "runs"))


@pytest.fixture
def payload(permit: permits.ExportPermit, contents: dict[str, bytes | Path]) -> Path:
    return write_payload(permit, contents)


def relisted(payload: Path, name: str, content: bytes) -> Path:
    """A file replaced together with its line in the manifest: what a careful forger would do."""
    (payload / name).write_bytes(content)
    manifest = json.loads((payload / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": files.sha256(payload / name), "runs_code": False}
    (payload / "manifest.json").write_text(json.dumps(manifest))
    return payload


def zipped(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in members:
            archive.writestr(member, "x")
    return buffer.getvalue()


def torch_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def arrays(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def onnx_model(external: str = "", domain: str = "", note: str = "") -> bytes:
    """A model of one addition, with one thing that no release may have."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if external:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain)
    if note:
        node.metadata_props.add(key="note", value=note)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    return helper.make_model(helper.make_graph([node], "g", value[:1], value[1:], [weight])).SerializeToString()


def test_check_layout_accepts_plain_arrays_and_our_scripts(payload: Path) -> None:
    """An archive of numbers and text, a script of this version and a plain ONNX model are no fault."""
    relisted(payload, "drift_reference.npz", arrays(np.array(["a", "b"])))
    relisted(payload, "verify.py", (SCRIPTS_FOLDER / "verify.py").read_bytes())
    relisted(payload, "model.onnx", onnx_model())
    assert check_layout(payload) == []


def test_check_layout_accepts_a_written_payload(payload: Path, permit: permits.ExportPermit) -> None:
    """The layout is complete, and the manifest says which files run code when they are loaded."""
    assert check_layout(payload) == []
    manifest = json.loads((payload / "manifest.json").read_text())
    assert manifest["source"] == {"run": "digits-hot", "plan": permit.plan.digest}
    runs_code = {name for name, entry in manifest["files"].items() if entry["runs_code"]}
    assert {"model.torchscript.pt", "model.pt2"} == runs_code
    assert [path.name for path in payload.parent.iterdir()] == ["payload"]


def test_write_payload_needs_a_permit(tmp_path: Path) -> None:
    """A bundle cannot be written without an export permit."""
    with pytest.raises(Refused, match="this needs an ExportPermit"):
        write_payload(None, {})  # type: ignore[arg-type]


def test_write_payload_refuses_an_unknown_file(permit: permits.ExportPermit) -> None:
    """An unknown file name is a UserError, and nothing is written."""
    with pytest.raises(UserError, match=r"got 'modell.onnx'.*did you mean 'model.onnx'"):
        write_payload(permit, {"modell.onnx": b""})
    assert not (permit.run_dir / "bundle").exists()


def test_bundle_digest_covers_every_byte(
    payload: Path, permit: permits.ExportPermit, contents: dict[str, bytes | Path]
) -> None:
    """Writing the same files again keeps the digest; one changed bit, another name or one more file changes it."""
    first = bundle_digest(payload)
    assert first == bundle_digest(write_payload(permit, contents))
    attestations = payload.parent / "attestations"
    attestations.mkdir()
    (attestations / "owner.json").write_text("{}")
    assert first == bundle_digest(payload)
    digests = [first]
    for path in sorted(payload.iterdir()):  # each file, the manifest too
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        digests.append(bundle_digest(payload))
        path.write_bytes(content)
    (payload / "MODEL_CARD.md").rename(payload / "card.md")
    digests.append(bundle_digest(payload))
    assert len(set(digests)) == len(digests) > 5


def test_write_payload_is_atomic(
    payload: Path, permit: permits.ExportPermit, contents: dict[str, bytes | Path]
) -> None:
    """Whichever system call before the rename fails, the old payload is unchanged."""
    before = bundle_digest(payload)
    calls: list[str] = []
    with files.fault_points(lambda operation, path: bool(calls.append(operation))):
        write_payload(permit, contents)
    last = len(calls) - 1 - calls[::-1].index("rename")
    for k in range(0, last, 5):
        seen: list[str] = []

        def fail(operation: str, path: Path, k: int = k, seen: list[str] = seen) -> bool:
            seen.append(operation)
            if len(seen) == k + 1:
                raise OSError(28, "No space left on device")
            return False

        with pytest.raises((UserError, OSError)), files.fault_points(fail):
            write_payload(permit, contents)
        assert before == bundle_digest(payload), calls[k]


def test_write_payload_saves_a_released_payload(
    payload: Path, permit: permits.ExportPermit, contents: dict[str, bytes | Path]
) -> None:
    """A released payload is replaced only after it was saved, whichever call fails."""
    released = bundle_digest(payload)
    files.write_json(payload.parent / "attestations" / "release.json", {"subject": released})
    with opened(permit.run) as ledger:
        ledger.append("released", {"subject": released})
    previous = previous_release(permit.run, released)

    write_payload(permit, contents)
    assert not previous.exists()
    other = {**contents, "MODEL_CARD.md": b"# Another"}
    calls: list[str] = []
    last = 0
    for k in range(999):
        calls.clear()

        def fail(operation: str, path: Path, k: int = k) -> bool:
            calls.append(operation)
            if len(calls) == k + 1:
                raise OSError(28, "No space left on device")
            return False

        try:
            with files.fault_points(fail):
                write_payload(permit, other)
        except (UserError, OSError):
            last = k
        assert released in (bundle_digest(payload), bundle_digest(previous / "payload")), calls
        if last != k:
            break

    assert last and bundle_digest(payload) != released == bundle_digest(previous / "payload")
    assert json.loads((previous / "attestations" / "release.json").read_text()) == {"subject": released}
    write_payload(permit, {**contents, "MODEL_CARD.md": b"# A third"})
    assert [p.name for p in previous.parent.iterdir()] == [released[:12]]


FORGERIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an absent file": (lambda p: (p / "model.onnx").unlink(), "model.onnx: is missing"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json: is missing"),
    "an empty manifest": (lambda p: (p / "manifest.json").write_text("[]"), "cannot be read as a manifest"),
    "a stranger": (lambda p: (p / "extra.txt").write_text("hi"), "extra.txt: cannot be in a payload"),
    "a folder": (lambda p: (p / "attestations").mkdir(), "attestations: is not a plain file"),
    "a link": (lambda p: (p / "golden.json").symlink_to("/etc/hostname"), "golden.json: is not a plain file"),
    "a changed byte": (lambda p: (p / "plan.yaml").write_text("seed: 8\n"), "plan.yaml: is not the file"),
    "an unlisted file": (lambda p: (p / "golden.json").write_text("[]"), "golden.json: is not in the manifest"),
    "a pickle as a card": (lambda p: relisted(p, "MODEL_CARD.md", pickle.dumps([1])), "is a pickle"),
    "a pickle as weights": (lambda p: relisted(p, "weights.safetensors", torch_saved({"w": 1})), "is a zip archive"),
    "a pickle as ONNX": (lambda p: relisted(p, "model.onnx", pickle.dumps({})), "is a pickle"),
    "text as ONNX": (lambda p: relisted(p, "model.onnx", b"hello"), "is not an ONNX model"),
    "a script as JSON": (lambda p: relisted(p, "golden.json", b"#!/bin/sh\n"), "is a script"),
    "no JSON": (lambda p: relisted(p, "golden.json", b"{"), "is not JSON"),
    "an old pickle as a card": (
        lambda p: relisted(p, "MODEL_CARD.md", pickle.dumps({"a": [1]}, protocol=0)),
        "MODEL_CARD.md: is a pickle of an old protocol",
    ),
    "a pickle behind the tensors": (
        lambda p: relisted(p, "weights.safetensors", (p / "weights.safetensors").read_bytes() + pickle.dumps([1])),
        "weights.safetensors: is not a safetensors file",
    ),
    "an array of objects": (
        lambda p: relisted(p, "drift_reference.npz", arrays(np.array([{}, []], dtype=object))),
        "drift_reference.npz: its member 'arr_0.npy' is not an array without objects",
    ),
    "another script": (
        lambda p: relisted(p, "verify.py", b"print('all fine')\n"),
        "verify.py: is not the script of this version",
    ),
    "weights outside of the model": (
        lambda p: relisted(p, "model.onnx", onnx_model(external="weights.bin")),
        "model.onnx: its tensor 'w' is in another file",
    ),
    "an operator of somebody": (
        lambda p: relisted(p, "model.onnx", onnx_model(domain="com.example")),
        "model.onnx: its operator com.example::Add is not one of ONNX",
    ),
    "a path in the metadata": (
        lambda p: relisted(p, "model.onnx", onnx_model(note="/home/ada/train.py, line 3")),
        "model.onnx: its note has a path of the machine",
    ),
    "binary text": (lambda p: relisted(p, "MODEL_CARD.md", b"a\0b"), "is not text"),
    "a checkpoint as TorchScript": (
        lambda p: relisted(p, "model.torchscript.pt", torch_saved(nn.Linear(2, 2).state_dict())),
        "not the torch archive of that name",
    ),
    "a bare pickle as TorchScript": (
        lambda p: relisted(p, "model.torchscript.pt", pickle.dumps([1])),
        "model.torchscript.pt: is not a torch archive",
    ),
    "an archive that leads out": (
        lambda p: relisted(p, "model.pt2", zipped("m/models/model.json", "m/archive_format", "m/../../evil")),
        "has a path outside the archive",
    ),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_check_layout_finds_every_fault(payload: Path, case: str) -> None:
    """A missing, added, changed or disguised file is reported in one fault that names it."""
    forge, expected = FORGERIES[case]
    forge(payload)
    assert any(expected in fault for fault in check_layout(payload)), check_layout(payload)


def test_check_layout_needs_a_folder(tmp_path: Path) -> None:
    """A payload that does not exist is a fault and not an exception."""
    assert check_layout(tmp_path / "payload") == ["payload: is not a folder"]
