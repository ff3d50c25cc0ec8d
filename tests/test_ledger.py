"""The ledger keeps what was acknowledged, and tells every change of what it keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations, count, groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Refused
from pipeline.results import canonical, digest
from pipeline.run_store import files
from pipeline.run_store.ledger import GENESIS, Ledger, read_ledger, scan_ledger
from pipeline.run_store.lock import RunLock
from tests.conftest import examples

FACTS = st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.floats() | st.text(max_size=8), max_size=4)


@contextmanager
def _writing(path: Path) -> Iterator[Ledger]:
    with RunLock(path.parent) as lock:
        yield Ledger(path, lock)


def _written(folder: Path, facts: list[dict]) -> Path:
    with _writing(folder / "ledger.jsonl") as ledger:
        for fact in facts:
            ledger.append("job.finished", fact)
    return ledger.path


def test_ledger_is_written_under_its_lock_only(tmp_path: Path) -> None:
    """Without the lock, with another run's, or after it was given back, nothing is appended."""
    (tmp_path / "other").mkdir()
    path = tmp_path / "ledger.jsonl"

    with pytest.raises(TypeError, match="only while the lock of its run is held"):
        Ledger(path, RunLock(tmp_path))
    with RunLock(tmp_path / "other") as lock, pytest.raises(TypeError, match="only while the lock"):
        Ledger(path, lock)
    with _writing(path) as ledger:
        ledger.append("job.finished", {"n": 1})
    with pytest.raises(TypeError, match="only while the lock"):
        ledger.append("job.finished", {"n": 2})

    assert [e["data"]["n"] for e in read_ledger(path)] == [1]


def test_ledger_reads_appended_entries(tmp_path: Path) -> None:
    """Reading gives the entries in order, each chained to the one before."""
    path = _written(tmp_path, [{"n": 1}, {"n": 2}])

    entries = read_ledger(path)

    assert [e["data"] for e in entries] == [{"n": 1}, {"n": 2}]
    assert entries[1]["prev"] == entries[0]["hash"]
    assert entries[0]["prev"] == GENESIS


@settings(max_examples=examples(30))
@given(facts=st.lists(FACTS, min_size=1, max_size=4))
def test_ledger_keeps_any_json_data(tmp_path_factory: pytest.TempPathFactory, facts: list[dict]) -> None:
    """Whatever a fact holds (NaN, huge numbers, any text), it is one canonical line and reads back intact."""
    path = _written(tmp_path_factory.mktemp("ledger"), facts)

    assert [canonical(e["data"]) for e in read_ledger(path)] == [canonical(f) for f in facts]


def test_read_ledger_detects_every_changed_byte(tmp_path: Path) -> None:
    """Whichever byte is changed, to whatever, the entry it belongs to (or the one behind it) is named."""
    path = _written(tmp_path, [{"n": 1, "text": "two words"}, {"n": 2}])
    raw = path.read_bytes()
    ends = [i for i, byte in enumerate(raw) if byte == 10]

    for position in range(len(raw)):
        entry = sum(end < position for end in ends)
        for replacement in {(raw[position] + 1) % 256, 10, 32, 48} - {raw[position]}:
            path.write_bytes(raw[:position] + bytes([replacement]) + raw[position + 1 :])

            scan = scan_ledger(path)

            assert scan.fault and scan.fault.startswith(f"entry {entry} "), (position, replacement, scan)


def test_ledger_records_torn_tail(tmp_path: Path) -> None:
    """The beginning of an entry without its end is no tampering: the next writer keeps it apart and says so."""
    path = _written(tmp_path, [{"n": 1}, {"n": 2}])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])

    with _writing(path) as ledger:
        pass

    assert [e["kind"] for e in ledger.entries] == ["job.finished", "ledger.torn"]
    torn = tmp_path / ledger.entries[1]["data"]["file"]
    assert whole.endswith(torn.read_bytes() + whole[-9:])
    assert read_ledger(path) == ledger.entries


def test_ledger_keeps_complete_entry_without_newline(tmp_path: Path) -> None:
    """A write that lost only its newline lost no fact."""
    path = _written(tmp_path, [{"n": 1}])
    path.write_bytes(path.read_bytes()[:-1])

    with _writing(path) as ledger:
        ledger.append("job.finished", {"n": 2})

    assert [e["data"]["n"] for e in read_ledger(path)] == [1, 2]


def test_ledger_append_failure_loses_nothing(tmp_path: Path) -> None:
    """After a write that the disk cut short, the same writer goes on, and the ledger is intact."""
    with _writing(tmp_path / "ledger.jsonl") as ledger:
        ledger.append("job.finished", {"n": 1})
        with (
            files.fault_points(lambda operation, _: operation == "write"),
            pytest.raises(files.DiskError, match="cannot append"),
        ):
            ledger.append("job.finished", {"n": 2})
        ledger.append("job.finished", {"n": 3})

    assert [e["kind"] for e in read_ledger(ledger.path)] == ["job.finished", "ledger.torn", "job.finished"]


def append_three(ledger: Ledger) -> None:
    """Append three entries, each again until the disk takes it."""
    for n in range(3):
        for _ in range(9):
            try:
                ledger.append("job.finished", {"n": n})
                break
            except files.DiskError:
                continue


@pytest.mark.parametrize("kind", ["error", "short"])
def test_ledger_is_intact_whichever_two_calls_fail(tmp_path: Path, kind: str) -> None:
    """Two failures at any calls, those of the repair too: the same writer goes on, and the chain has no fault."""
    for first, second in combinations(range(1, 14), 2):
        path, calls = tmp_path / f"{first}-{second}" / "ledger.jsonl", count(1)
        path.parent.mkdir()

        def refuse(operation: str, _: Path, calls=calls, at=(first, second)) -> bool:
            if next(calls) not in at:
                return False
            if kind == "error" or operation != "write":
                raise OSError(5, "Input/output error")
            return True

        with _writing(path) as ledger, files.fault_points(refuse):
            append_three(ledger)
            assert read_ledger(path) == ledger.entries
        numbers = [e["data"]["n"] for e in read_ledger(path) if e["kind"] == "job.finished"]
        assert [n for n, _ in groupby(numbers)] == [0, 1, 2]  # an entry whose sync failed is there twice


def test_read_ledger_detects_an_entry_with_a_new_hash(tmp_path: Path) -> None:
    """An entry whose content and own hash were rewritten no longer leads to the entry after it."""
    path = _written(tmp_path, [{"n": i} for i in range(4)])
    lines = path.read_bytes().splitlines(keepends=True)
    entry = {**json.loads(lines[1]), "data": {"n": 9}}
    entry["hash"] = digest({name: value for name, value in entry.items() if name != "hash"})
    path.write_bytes(b"".join([lines[0], canonical(entry).encode() + b"\n", *lines[2:]]))

    with pytest.raises(Refused, match="entry 2 does not follow the entry before it"):
        read_ledger(path)


@pytest.mark.parametrize("change", ["delete", "swap", "duplicate", "insert"])
def test_read_ledger_detects_moved_entries(tmp_path: Path, change: str) -> None:
    """Deleting, swapping, repeating or inserting a whole entry is told."""
    path = _written(tmp_path, [{"n": i} for i in range(4)])
    lines = path.read_bytes().splitlines(keepends=True)
    forged = canonical({**json.loads(lines[1]), "seq": 9}).encode() + b"\n"
    changed = {
        "delete": [lines[0], *lines[2:]],
        "swap": [lines[1], lines[0], *lines[2:]],
        "duplicate": [lines[0], lines[0], *lines[1:]],
        "insert": [lines[0], forged, *lines[1:]],
    }[change]
    path.write_bytes(b"".join(changed))

    with pytest.raises(Refused, match=r"the ledger was changed: entry \d"):
        read_ledger(path)


def test_read_ledger_of_missing_file_is_empty(tmp_path: Path) -> None:
    """Nothing written yet is no fault."""
    assert read_ledger(tmp_path / "ledger.jsonl") == []
