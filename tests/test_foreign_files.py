from __future__ import annotations

import io
import json
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diagnostics.logs.read import read
from pipeline.errors import UserError
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.history import History
from tests.conftest import Cli

META: dict[str, Any] = {"schema": 1, "columns": [["step", "loss", 3]], "facts": {}, "events": []}


def archive(**arrays: Any) -> bytes:
    """An NPZ file with the arrays of a history, of which some are replaced; `meta` is JSON."""
    meta = arrays.pop("meta", META)
    meta = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    buffer = io.BytesIO()
    whole = {"index": np.arange(3), "values": np.zeros(3, np.float32), "meta": np.frombuffer(meta, np.uint8)}
    np.savez(buffer, **{**whole, **arrays})
    return buffer.getvalue()


def with_header(header: str, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    """An NPZ file whose index has this header."""
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header) if length is None else length)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("index.npy", b"\x93NUMPY" + version + size + header.encode())
        with zipfile.ZipFile(io.BytesIO(archive())) as whole:
            for name in ("values.npy", "meta.npy"):
                members.writestr(name, whole.read(name))
    return buffer.getvalue()


def bomb() -> bytes:
    """An NPZ file of a few hundred kilobytes whose index has two hundred megabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("index.npy", bytes(200 << 20))
        members.writestr("values.npy", b"")
        members.writestr("meta.npy", b"")
    return buffer.getvalue()


NPZ: dict[str, tuple[Callable[[], bytes], str]] = {
    "an empty file": (lambda: b"", "not a zip file"),
    "a pickle": (lambda: b"\x80\x04]K\x01a.", "not a zip file"),
    "two dimensions": (lambda: archive(index=np.zeros((3, 1), np.int64)), "is not a history"),
    "objects": (lambda: archive(index=np.array([1, "x", None], object)), r"is of type '\|O', not int64"),
    "another type": (lambda: archive(values=np.zeros(3)), "is of type '<f8', not float32"),
    "a bomb": (bomb, "more than 134,217,728"),
    "a claimed shape": (lambda: with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000,)}"),
                        "the 10000000000 values that it claims"),
    "a huge header": (lambda: with_header("", b"\x02\x00", 0xFFFFFFF0), "a header of 4,294,967,292 bytes"),
    "an expression": (lambda: with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (9**9,)}"), "malformed"),
    "brackets": (lambda: with_header("(" * 9000), "is not a history"),
    "deep meta": (lambda: archive(meta=b"[" * 200_000), "meta: is nested too deeply"),
    "meta as a list": (lambda: archive(meta=[1]), "is not a history"),
    "a huge fact": (lambda: archive(meta={**META, "facts": {"a": 10**400}}), "too large to convert"),
    "a column twice": (lambda: archive(meta={**META, "columns": [["step", "a", 2], ["step", "a", 1]]}), "a new name"),
    "a negative size": (lambda: archive(meta={**META, "columns": [["step", "a", -3]]}), "a number of values"),
    "a number as name": (lambda: archive(meta={**META, "columns": [["step", 7, 3]]}), "a new name"),
    "an event without kind": (lambda: archive(meta={**META, "events": [{}]}), "no 'kind'"),
    "a step as text": (lambda: archive(meta={**META, "events": [{"kind": "a", "step": "x"}]}), "the step 'x'"),
    "an overflowing index": (lambda: archive(index=np.array([2**62, -(2**62), 5])), "does not go forward"),
}  # fmt: skip


@pytest.mark.parametrize("name", NPZ)
def test_read_refuses_histories_of_others(tmp_path: Path, cli: Cli, name: str) -> None:
    """A damaged or hostile history gives one message with its file, exit code 2, and needs little memory."""
    content, message = NPZ[name]
    path = tmp_path / "history.npz"
    path.write_bytes(content())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    code, out, err = cli("diagnose", path)
    assert (code, out) == (2, "") and "history.npz" in err


def test_read_bytes_limits_the_size(tmp_path: Path) -> None:
    """A file above the limit is refused after reading no more than that."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, "text", 5) == b"12345"
    with pytest.raises(UserError, match="is too large, got 'more than 4 bytes'"):
        read_bytes(path, "text", 4)


def test_parse_json_limits_the_depth() -> None:
    """Nesting of a hundred levels is read, and more is refused, however deep."""
    assert parse_json("[" * 99 + "]" * 99, "a")
    for depth in (101, 5000, 500_000):
        with pytest.raises(UserError, match="a: is nested too deeply"):
            parse_json("[" * depth + "]" * depth, "a")


def test_history_of_a_run_is_read_back() -> None:
    """What `to_bytes` wrote is read as it was, compressed or not."""
    history = History()
    history.log_steps(1, {"loss": [1.0, float("nan")]})
    history.event("a", 1, b=[None, 2])
    for compressed in (False, True):
        assert History.from_bytes(history.to_bytes(compressed=compressed)).digest() == history.digest()
