"""Every parser with damaged files: each gives a value or a typed refusal, within a gigabyte of memory.

`make test` takes some examples of each parser, the same every time; `make test-fuzz` new ones for ten minutes in all.
FIVEGATE_FUZZ_SECONDS is the time of one parser, FIVEGATE_FUZZ_SEED the first seed. A failing example is printed with
its seed, which finds it again.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import io
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from checklists.resolve import CHECKS, resolve_check
from diagnostics import playbook
from diagnostics.logs.read import read
from diagnostics.logs.report import diagnose_log
from pipeline.checkpoints import generation
from pipeline.checkpoints.codec import unpack
from pipeline.commands import status
from pipeline.data import test_openings
from pipeline.data.sources.delimited import csv_table
from pipeline.data.sources.npz import npz
from pipeline.data.sources.parquet import parquet_table
from pipeline.drift import reference
from pipeline.drift.compare import Live, compare
from pipeline.drift.features import Feature, Observations
from pipeline.errors import FivegateError
from pipeline.foreign_files import parse_json
from pipeline.release import registry
from pipeline.release.bundle import check_layout
from pipeline.reporting.page import write_report
from pipeline.reporting.panels import panels
from pipeline.results import canonical, digest, tagged
from pipeline.run_store import checklist
from pipeline.run_store import plan as plans
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.ledger import GENESIS
from pipeline.run_store.run import Run
from pipeline.serving.schema_file import read_schema
from pipeline.serving.standalone import verify as standalone
from pipeline.trials import worker
from tests.integrations import FOLDER
from tests.ledger_fixtures import history, mended

QUICK_EXAMPLES = 150
MEMORY_MB = 1000
SECONDS = float(os.environ.get("FIVEGATE_FUZZ_SECONDS", "35"))
FIRST_SEED = int(os.environ.get("FIVEGATE_FUZZ_SEED", "0")) or random.SystemRandom().randrange(2**32)

NAMES = st.sampled_from(["a", "kind", "step", "loss", "phase", "", "\x00", "é", "[/foo]", "__class__", "\ud800"])
ODD = st.sampled_from(
    [None, True, -1, 0, 2**63, -(2**63) - 1, 10**400, 1.5, -0.0, 1e308, "nan", "", "x" * 300, "\x1b[31m", "\ud800",
     "../..", "/dev/zero", "2020-13-45", [], {}, [[]], {"": {}}, {"a": None}]
)  # fmt: skip
JSON = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
TOKENS = [
    b"NaN", b"-", b"1e400", b"9" * 401, b"[" * 3000, b'{"":' * 500, b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b'"',
    b"\n", b",", b":", b"&a [*a]", b"!!python/object:os.system", b"- ", b"  ", b"null", b"---\n", b"\xe2\x80\xa8",
]  # fmt: skip


def damaged(original: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a few pieces replaced, inserted, removed, repeated, or cut off."""
    places = st.integers(0, len(original))
    edit = st.tuples(
        st.sampled_from(["replace", "insert", "delete", "repeat", "cut"]),
        places,
        st.integers(1, 40),
        st.sampled_from(TOKENS) | st.binary(max_size=6),
    )
    return st.lists(edit, max_size=4).map(lambda edits: _edited(original, edits))


def _edited(content: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, place, length, token in edits:
        piece = content[place : place + length]
        new = {"replace": token, "insert": token + piece, "delete": b"", "repeat": piece * 3, "cut": b""}[kind]
        content = content[:place] + new + (b"" if kind == "cut" else content[place + length :])
    return content


@st.composite
def altered(draw: st.DrawFn, original: Any) -> Any:
    """A JSON value with one to three of its parts replaced, renamed, removed or added."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        value = _alter(draw, value)
    return value


def _alter(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _alter(draw, value[place]), *value[place + 1 :]]
    key = draw(st.sampled_from(sorted(value)))
    action = draw(st.sampled_from(["alter", "alter", "alter", "remove", "rename", "add"]))
    if action == "alter":
        return {**value, key: _alter(draw, value[key])}
    rest = {k: v for k, v in value.items() if k != key}
    if action == "remove":
        return rest
    return {**rest, draw(NAMES): value[key]} if action == "rename" else {**value, draw(NAMES): draw(JSON)}


@st.composite
def archives(draw: st.DrawFn, original: bytes) -> bytes:
    """An NPZ file of which a member is damaged, missing or of another type, with a checksum that is right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original)) as whole, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as members:
        target = draw(st.sampled_from(whole.namelist()))
        for name in whole.namelist():
            content = whole.read(name)
            if name == target:
                array = np.load(io.BytesIO(content))
                dtypes = ["<i8", "<f4", "<f8", "|u1", "<i2", "|b1", "<U3", "<M8[s]", "<c8"]
                other = io.BytesIO()
                np.save(other, array.astype(draw(st.sampled_from(dtypes)), casting="unsafe"))
                content = draw(damaged(content) | st.just(other.getvalue()) | st.none())
            if content is not None:
                members.writestr(name, content)
    return buffer.getvalue()


def chained(entries: list[Any]) -> bytes:
    """A ledger of these entries, with the numbers and hashes that a person who rewrites it would compute."""
    lines, prev = [], GENESIS
    for seq, entry in enumerate(entries):
        if isinstance(entry, dict):
            entry = {**{k: v for k, v in entry.items() if k != "hash"}, "seq": seq, "prev": prev}
            entry["hash"] = prev = digest(entry)
        lines.append(canonical(entry).encode() + b"\n")
    return b"".join(lines)


# --- the parsers -----------------------------------------------------------------------------------------------------


class Parser(NamedTuple):
    """The file that a parser reads, the contents that it is tried with, and what reads it."""

    name: str
    contents: Callable[[], st.SearchStrategy[bytes]]
    parse: Callable[[Path], object]


@cache
def example_run() -> Path:
    """A run in a folder of this process, with files of all kinds; the parsers read what takes their places."""
    folder = Path(tempfile.mkdtemp(prefix="fivegate-fuzz-"))
    run = mended(folder)
    job = Job("0" * 64, "trial", Delta({"optimizer.lr": float("inf")}, ({"scale": {"by": 2}},)), 3, 20)
    (run.path / "job.json").write_text(json.dumps(job.to_json()))
    return run.path


def entries() -> list[Any]:
    return [json.loads(line) for line in (example_run() / "ledger.jsonl").read_bytes().splitlines()]


def read_run(path: Path) -> None:
    """What `status`, `verify` and `report` read of a run."""
    run = Run(path.parent)
    state = run.state()
    status.summary(run, state)
    with contextlib.redirect_stdout(io.StringIO()):
        status.show(run, state)
    write_report(run.path)


def read_plan(path: Path) -> None:
    """The plan of a run, once as a changed file, and once as one whose digest the ledger has."""
    run = Run(example_run())
    state = run.state()
    changed = path.read_bytes()
    original = run.inside("plan", "1.yaml").read_bytes()
    try:
        run.inside("plan", "1.yaml").write_bytes(changed)
        plans.load(run, state)
    finally:
        run.inside("plan", "1.yaml").write_bytes(original)


def read_manifest(path: Path) -> None:
    assert all(isinstance(message, str) for message in check_layout(path.parent))


def read_state(path: Path) -> None:
    """The state of a checkpoint, with a digest that fits where it has one."""
    value = generation.state_of(path.parent)
    with contextlib.suppress(KeyError):  # a tensor that is missing, as its callers expect
        unpack(value, {})


def read_playbook(path: Path) -> None:
    playbook.load_all.__wrapped__(path.parent)


def read_log(path: Path) -> None:
    for run in read(path).runs:
        panels(run.history)
    diagnose_log(path).page()


def read_checklist(path: Path) -> None:
    checklist.read(path, {"task": {"target": 0.5}, "plan": {}}, resolve_check)


def playbooks() -> st.SearchStrategy[bytes]:
    text = Path(playbook.__file__).with_name("nan_loss.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    rest = text.split("---\n", 2)[2]
    whole = altered(front).map(lambda value: f"---\n{json.dumps(value)}\n---\n{rest}".encode(errors="surrogatepass"))
    return whole | damaged(text.encode())


def checklists_of(phase: str) -> st.SearchStrategy[bytes]:
    text = (CHECKS.parent / f"{phase}.yaml").read_text()
    return altered(yaml.safe_load(text)).map(lambda value: json.dumps(value).encode()) | damaged(text.encode())


def histories() -> st.SearchStrategy[bytes]:
    original = history(breaks_at=7).to_bytes()
    with np.load(io.BytesIO(original)) as arrays:
        whole, meta = dict(arrays), json.loads(arrays["meta"].tobytes())

    def with_meta(value: Any) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **{**whole, "meta": np.frombuffer(json.dumps(value).encode(), np.uint8)})
        return buffer.getvalue()

    return altered(meta).map(with_meta) | archives(original) | damaged(original)


def tables() -> st.SearchStrategy[bytes]:
    rows = b"age,size,label\n" + b"".join(
        b"%d,%s,%s\n" % (i, [b"big", b"", b"3"][i % 3], b"ab"[i % 2 :][:1]) for i in range(24)
    )
    return damaged(rows)


def states() -> st.SearchStrategy[bytes]:
    state = {"schema": generation.SCHEMA, "role": "last", "weights_digest": "0" * 64, "files": {}, "step": 3,
             "optimizer": {"!": "tuple", "of": [1, {"!": "float", "of": "nan"}]}}  # fmt: skip

    def signed(value: Any) -> bytes:
        return json.dumps({**value, "digest": digest(value)} if isinstance(value, dict) else value).encode()

    return altered(state).map(signed) | damaged(signed(state))


def arrays() -> st.SearchStrategy[bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, X=np.arange(60.0).reshape(20, 3), y=np.arange(20) % 2)
    return archives(buffer.getvalue()) | damaged(buffer.getvalue())


LOG_CSV = b"epoch,train_loss,val_loss,lr\n" + b"".join(b"%d,%.3f,%.3f,0.1\n" % (i, 2 / (i + 1), 3) for i in range(12))
LOG_TEXT = (b"dtype = float16\nEpoch 1/2\nstep 0: train loss 2.1, val loss 2.0\niter 10: loss 1.0, lr 1e-3\n"
            b"1/9 [..] - loss: 3.0\r9/9 [==] - loss: 2.0 - val_loss: 1.9\n{'loss': 1.0, 'epoch': 0.5}\n")  # fmt: skip
LOG_LINES = [{"step": i, "loss": 2 / (i + 1), "eval": {"loss": None if i % 3 else 1.5}} for i in range(12)]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def manifests() -> st.SearchStrategy[bytes]:
    manifest = {"schema": 1, "source": {"run": "a"}, "files": {"plan.yaml": {"bytes": 1, "sha256": "a"}}}
    return altered(manifest).map(lambda value: json.dumps(value).encode()) | damaged(json.dumps(manifest).encode())


def jobs() -> st.SearchStrategy[bytes]:
    original = (example_run() / "job.json").read_bytes()
    return altered(json.loads(original)).map(lambda value: json.dumps(value).encode()) | damaged(original)


def plan_files() -> st.SearchStrategy[bytes]:
    original = (example_run() / "plan" / "1.yaml").read_bytes()
    body = yaml.safe_load(original)
    return altered(tagged(body)).map(lambda value: json.dumps(value).encode()) | damaged(original)


ROWS = "5" * 64
OPENING = {"rows": ROWS, "candidate": "a", "run": "first", "identity": "1" * 64, "time": "2026-01-01T00:00:00+00:00"}
OPENINGS = [{**OPENING, "candidate": name, "identity": name * 64} for name in "123"]


def read_openings(path: Path) -> None:
    """The register of a root, by planning and by a run that opens the rows for one more model."""
    run = Run(example_run())
    register = run.path.parent / test_openings.REGISTER
    register.write_bytes(path.read_bytes())
    test_openings.planning_evidence(run, ROWS, 0, lambda text: None)
    test_openings.record(run, ROWS, "4" * 64, budget=4)
    assert "4" * 64 in test_openings.models(test_openings.openings(register.parent, ROWS))


CELLS = {"text": "Bern", "bytes": b"\xff", "date": datetime.date(2026, 1, 1), "decimal": Decimal("1.5"),
         "list": [1, [None]], "array": np.arange(3), "duration": datetime.timedelta(1), "set": {1, 2}}  # fmt: skip
COLUMNS = {
    "age": [20 + i for i in range(12)],
    "town": [{"cell": "text"}] * 12,
    "y": [["yes", "no"][i % 2] for i in range(12)],
}


class StandIn(NamedTuple):
    """A table with what pyarrow's has that our reader uses; its file is JSON, `{"cell": "date"}` is another type."""

    columns: dict[str, Any]

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    @property
    def num_columns(self) -> int:
        return len(self.columns)

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def column(self, name: str) -> StandIn:
        return StandIn({"cells": self.columns[name]})

    def to_pylist(self) -> list[Any]:
        return [CELLS[str(cell["cell"])] if isinstance(cell, dict) and str(cell.get("cell")) in CELLS else cell
                for cell in self.columns["cells"]]  # fmt: skip


def stand_in(path: str) -> StandIn:
    """Read the table, or raise ValueError as pyarrow does."""
    content = json.loads(Path(path).read_bytes())
    if not isinstance(content, dict) or not all(isinstance(cells, list) for cells in content.values()):
        raise ValueError("is not a table")
    if len({len(cells) for cells in content.values()}) > 1:
        raise ValueError("columns differ in length")
    return StandIn(content)


@pytest.fixture
def pyarrow_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pyarrow be imported from where `make test-fuzz` installs it; without it a table stands in for its tables."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER / "packages")])


def read_parquet(path: Path) -> None:
    """The reader of Parquet: with pyarrow where it is installed, else with the table that stands in for it."""
    if importlib.util.find_spec("pyarrow") is not None:
        parquet_table(str(path), "y")
        return
    reader = SimpleNamespace(read_table=stand_in, read_metadata=stand_in)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=reader))
        patch.setitem(sys.modules, "pyarrow.parquet", reader)
        parquet_table(str(path), "y")


def parquet_files() -> st.SearchStrategy[bytes]:
    if importlib.util.find_spec("pyarrow") is None:
        odd = st.sampled_from([{"cell": name} for name in CELLS])
        mixed = st.lists(odd | ODD, min_size=12, max_size=12).map(lambda cells: {**COLUMNS, "town": cells})
        return (altered(COLUMNS) | mixed).map(lambda value: json.dumps(value).encode())
    arrow, parquet = (importlib.import_module(f"pyarrow{part}") for part in ("", ".parquet"))
    buffer = io.BytesIO()
    parquet.write_table(arrow.table({**COLUMNS, "town": ["Bern", None, "Rome"] * 4}), buffer)
    return damaged(buffer.getvalue())


SCHEMA = {
    "schema": 1, "task": "classification", "class_names": ["no", "yes"], "missing": ["", "NA"], "delimiter": ",",
    "ignored": [], "max_rows": 10, "max_bytes": 1000,
    "outputs": [{"name": "output", "dtype": "float", "shape": [None, 2]}],
    "tensors": [{"name": "input", "dtype": "float32", "whole": False}],
    "inputs": [{"name": name, "kind": kind, "tensor": "input", "dtype": "float32", "shape": [], "unknown": None,
                "categories": {"a": 0} if kind == "category" else None, "codes": None, "nan_allowed": False,
                "min": 0.0, "max": None} for name, kind in (("age", "number"), ("town", "category"))],
}  # fmt: skip
MOVE = {"run": "digits", "subject": "1" * 64, "time": "2026-01-01T00:00:00+00:00", "who": "Ada", "why": ""}
MODELS = {
    "schema": 1,
    "models": {"digits": {"aliases": {"champion": MOVE}, "history": [{**MOVE, "alias": "champion"}]}},
}

ROWS_OF_TWO = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
OBSERVED = Observations((Feature("age", "number", "input"), Feature("town", "category", "input")), ROWS_OF_TWO.round(1))
ABOUT: Any = {
    "schema": 1, "task": "classification", "takes": "logits", "model": "1" * 64, "seed": 1,
    "rows": {"train": 30, "val": 0, "inputs": 30, "outputs": 0}, "alpha": 0.01, "min_effect": 0.1, "min_auc": 0.6,
    "bounds": {"age": 0.3}, "tokens": {}, "released": None, "label": None, "features": reference.summaries(OBSERVED),
}  # fmt: skip


def drift_files() -> dict[str, bytes]:
    return reference.to_files(reference.Reference(ABOUT, OBSERVED, None))


def read_reference(path: Path) -> None:
    """The reference of a release, one of whose two files is the given one, and a comparison with it."""
    for name, content in drift_files().items():
        if name != path.name:
            (path.parent / name).write_bytes(content)
    known = reference.load(path.parent)
    if known.inputs.features == OBSERVED.features:
        compare(known, Live(OBSERVED, None), np.random.default_rng(0))


MODEL_FILES = {
    "model.onnx": b"weights",
    "report.json": json.dumps({"items": [{"id": "parity", "outcome": "passed"}]}).encode(),
}


def written(value: Any) -> bytes:
    """JSON as a release writes it."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def bundle_in(folder: Path) -> str:
    """Write a payload; return its digest."""
    payload = folder / "payload"
    payload.mkdir(parents=True, exist_ok=True)
    records = {name: {"bytes": len(data), "sha256": standalone.sha256(data)} for name, data in MODEL_FILES.items()}
    for name, data in {**MODEL_FILES, "manifest.json": written({"files": records})}.items():
        (payload / name).write_bytes(data)
    return digest({path.name: standalone.sha256(path.read_bytes()) for path in payload.iterdir()})


@cache
def release_of_bundle() -> dict[str, Any]:
    """What `attestations/release.json` says of that payload: one check that passed, and one signed by a person."""
    subject = bundle_in(Path(tempfile.mkdtemp(prefix="fivegate-fuzz-")))
    items = [{"id": "parity", "outcome": "passed", "sign_off": None, "accepted_by": ""},
             {"id": "approval", "outcome": "pending", "sign_off": "owner", "accepted_by": ""}]  # fmt: skip
    outcomes = {"finalization": {item["id"]: item["outcome"] for item in items}}
    signed = {"item": "approval", "who": "Ada", "digest": subject, "outcomes": outcomes, "waivers": []}
    signed["binding"] = digest({"subject": subject, "outcomes": outcomes, "waivers": []})
    statement = {"payload": subject, "time": "2026-01-01T00:00:00+00:00"}
    return {"subject": subject, "statement": statement, "attestations": {}, "waivers": [], "items": items,
            "sign_offs": [signed]}  # fmt: skip


def released(value: Any) -> bytes:
    """The record with the digest that fits it."""
    return written({**value, "digest": digest(value)} if isinstance(value, dict) else value)


def verify_bundle(path: Path) -> None:
    """`verify.py` of a bundle with this record of its release: each fault is a sentence."""
    bundle = path.parent / "bundle"
    bundle_in(bundle)
    (bundle / "attestations").mkdir(exist_ok=True)
    (bundle / "attestations" / "release.json").write_bytes(path.read_bytes())
    faults = standalone.verify(bundle)
    assert all(isinstance(line, str) for line in faults or standalone.approvals(bundle))


PARSERS = {
    "history": Parser("history.npz", histories, read_log),
    "CSV log": Parser("log.csv", lambda: damaged(LOG_CSV), read_log),
    "JSONL log": Parser("log.jsonl", lambda: altered(LOG_LINES).map(
        lambda rows: lines(rows if isinstance(rows, list) else [rows])) | damaged(lines(LOG_LINES)), read_log),
    "text log": Parser("train.log", lambda: damaged(LOG_TEXT), read_log),
    "trainer_state": Parser("trainer_state.json", lambda: altered({"log_history": LOG_LINES}).map(
        lambda state: json.dumps(state, indent=1).encode("utf-8", "surrogatepass")), read_log),
    "ledger": Parser("ledger.jsonl", lambda: altered(entries()).map(
        lambda rows: chained(rows if isinstance(rows, list) else [rows])) | damaged(chained(entries())), read_run),
    "plan": Parser("plan.yaml", plan_files, read_plan),
    "playbook": Parser("nan_loss.md", playbooks, read_playbook),
    "checklist": Parser("baseline.yaml", lambda: checklists_of("baseline"), read_checklist),
    "manifest": Parser("manifest.json", manifests, read_manifest),
    "checkpoint": Parser("state.json", states, read_state),
    "job": Parser("job.json", jobs, lambda path: worker.read_job(path.parent)),
    "CSV table": Parser("rows.csv", tables, lambda path: csv_table(str(path), "label")),
    "NPZ arrays": Parser("rows.npz", arrays, lambda path: npz(str(path))),
    "Parquet table": Parser("rows.parquet", parquet_files, read_parquet),
    "test openings": Parser("test_openings.jsonl", lambda: altered(OPENINGS).map(
        lambda rows: lines(rows if isinstance(rows, list) else [rows])) | damaged(lines(OPENINGS)), read_openings),
    "schema": Parser("schema.json", lambda: altered(SCHEMA).map(lambda value: json.dumps(value).encode())
        | damaged(json.dumps(SCHEMA).encode()), lambda path: read_schema(path.parent)),
    "registry": Parser("registry.json", lambda: altered(MODELS).map(lambda value: json.dumps(value).encode())
        | damaged(json.dumps(MODELS).encode()), lambda path: registry.read(path.parent)),
    "drift reference": Parser(reference.JSON_FILE, lambda: altered(ABOUT).map(lambda value: json.dumps(value).encode())
        | damaged(drift_files()[reference.JSON_FILE]), read_reference),
    "drift sample": Parser(reference.NPZ_FILE, lambda: archives(drift_files()[reference.NPZ_FILE])
        | damaged(drift_files()[reference.NPZ_FILE]), read_reference),
    "release": Parser("release.json", lambda: altered(release_of_bundle()).map(released)
        | damaged(released(release_of_bundle())), verify_bundle),
    "JSON": Parser("any.json", lambda: st.binary() | damaged(b'{"a": [1, {"b": null}]}'),
                   lambda path: parse_json(path.read_bytes(), "any.json")),
}  # fmt: skip


def attempt_to_parse(parser: Parser, path: Path, content: bytes) -> None:
    """Parse the content. Any other exception than a refusal with messages goes through."""
    path.write_bytes(content)
    try:
        parser.parse(path)
    except FivegateError as refusal:
        assert refusal.faults and all(re.search(r": .", message) for message in refusal.faults), refusal.faults


def fuzz(parser: Parser, folder: Path, examples: int, first: int | None) -> int:
    """Try the parser with so many examples, and return how many were different. Raises what it must not raise."""
    path, seen = folder / parser.name, set()

    @settings(
        max_examples=examples,
        derandomize=first is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
    )
    @given(parser.contents())
    def attempt(content: bytes) -> None:
        seen.add(hash(content))
        attempt_to_parse(parser, path, content)

    (attempt if first is None else seed(first)(attempt))()
    return len(seen)


def peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.usefixtures("pyarrow_if_installed")
@pytest.mark.parametrize("name", PARSERS)
def test_parser_refuses_damaged_files(tmp_path: Path, name: str) -> None:
    """A file that was damaged, rewritten or made up is read or refused with a message, and nothing else happens."""
    assert fuzz(PARSERS[name], tmp_path, QUICK_EXAMPLES, None) > QUICK_EXAMPLES / 10


def test_verify_accepts_the_bundle_that_is_damaged_later(tmp_path: Path) -> None:
    """The undamaged record of the release has no fault, so that damage reaches every line of the verifier."""
    (tmp_path / "release.json").write_bytes(released(release_of_bundle()))
    verify_bundle(tmp_path / "release.json")
    assert standalone.verify(tmp_path / "bundle") == []


@pytest.mark.usefixtures("pyarrow_if_installed")
@pytest.mark.fuzz
@pytest.mark.parametrize("name", PARSERS)
def test_parser_refuses_damaged_files_for_minutes(tmp_path: Path, name: str) -> None:
    """As above with new examples until the time is over; the whole process needs less than a gigabyte."""
    end, count, first = time.monotonic() + SECONDS, 0, FIRST_SEED
    while time.monotonic() < end:
        print(f"{name}: seed {first}", flush=True)
        count += fuzz(PARSERS[name], tmp_path, 500, first)
        first += 1
    print(f"FUZZ {name}: {count:,} examples, at most {peak_memory_mb():.0f} MB", flush=True)
    assert peak_memory_mb() < MEMORY_MB


def lengthened(number: str) -> bytes:
    return b'{"step":1,"loss":' + number.encode() + b"}\n"


# What crashed a parser before, or would have: each is read or refused like any other file.
FOUND: dict[str, list[bytes]] = {
    "text log": [b"", b"\x00", b"loss " + b"9" * 401, b"step 9" + b"9" * 401 + b" loss 1", b"\r" * 2000 + b"loss nan"],
    "trainer_state": [b"{", b'{"log_history": 7}', b'{"log_history": [7, null, {"loss": "x"}]}', b'{"log_history": ['],
    "JSONL log": [
        lengthened("9" * 401), lengthened("9" * 5000), b"[" * 200_000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000, b'{"a":"\\ud800"}',
    ],
    "CSV log": [b"step,loss\n1," + b"a" * 131_073, b'step,loss\n1,"2\n', b"step,loss\n1," + b"9" * 401, b"\x00", b""],
    "CSV table": [b"age,label\n" + b"a" * 131_073 + b",1\n", b'age,label\n"1\n', b"\xff\xfe"],
    "history": [b"", b"PK\x05\x06" + bytes(18), b"\x80\x04]K\x01a."],
    "NPZ arrays": [b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x02\x00\xf0\xff\xff\xff", b"\x80\x04]K\x01a."],
    "JSON": [b"[" * 500_000, b"9" * 5000, b"\xff", b"NaN", b'{"":' * 500],
    "ledger": [b"[" * 100_000 + b"\n", b"1" * 5000 + b"\n", b"null\n", b'{"data":{},"kind":[]}\n'],
    "plan": [b"&a [*a]", b"- " * 5000, b"!!python/object:os.system {}", b"[" * 5000, b"null", b"\xff"],
    "playbook": [b"---\n" + b"[" * 5000, b"---\n&a [*a]\n---\n", b"\xff"],
    "checklist": [b"items: 7", b"- a", b"&a [*a]", b"[" * 5000, b""],
    "manifest": [b"[" * 5000, b'{"files": []}', b'{"files": {"a": null}}', b"null"],
    "checkpoint": [b"[" * 5000, b'{"files": 7}', b"null", b"9" * 5000],
    "job": [b"[" * 5000, b"null", b"{}", b"9" * 5000],
    "test openings": [b"[" * 100_000, b"null\n", b'{"rows": 5}\n', b"1" * 5000, b"\xff\xfe\x00", b"{"],
    "Parquet table": [b"", b"PAR1", b"null", b"{}"],
    "schema": [b"null", b"{}", b"[" * 5000, b'{"tensors": null}', json.dumps({**SCHEMA, "missing": [{}]}).encode()],
    "drift reference": [b"null", b"{}", b"[" * 5000, b"9" * 5000],
    "drift sample": [b"", b"PK\x05\x06" + bytes(18), b"\x80\x04]K\x01a."],
    "release": [b"null", b"{}", b"[" * 5000, released(7), released({"subject": []}), released({"items": None})],
    "registry": [b"null", b"{}", b"[" * 5000, b'{"models": []}', b'{"models": {"a": {"aliases": 7, "history": []}}}'],
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
def test_parser_refuses_what_crashed_it_before(tmp_path: Path, name: str) -> None:
    """Huge numbers and cells, deep nesting, aliases, pickles and empty files give a value or a message."""
    for content in FOUND[name]:
        attempt_to_parse(PARSERS[name], tmp_path / PARSERS[name].name, content)


@pytest.mark.parametrize("steps", [float("nan"), float("inf"), 1e300])
def test_diagnose_reads_a_history_without_a_number_of_steps(tmp_path: Path, steps: float) -> None:
    """A history whose steps per epoch are no number is diagnosed as one that does not have them."""
    broken = history(breaks_at=7)
    broken.facts["steps_per_epoch"] = steps
    (tmp_path / "history.npz").write_bytes(broken.to_bytes())
    read_log(tmp_path / "history.npz")
