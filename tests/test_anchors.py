"""The ledger's decisions are anchored in the tracker, so that a ledger with new hashes does not verify."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.results import canonical, digest
from pipeline.run_store.ledger import GENESIS, Entry, read_ledger
from pipeline.run_store.run import Run, opened
from pipeline.tracking.anchors import ANCHORED, Comparison, _from_client, _from_sqlite, compare
from pipeline.tracking.connection import TrackerUnavailable, tracking_uri
from pipeline.tracking.mirror import mirror
from tests.conftest import Cli
from tests.ledger_fixtures import CONFIG, baseline_done, freeze


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was sent to a local tracker, made once."""
    run = baseline_done(tmp_path_factory.mktemp("sent") / "runs", "demo")
    mirror(run.path)
    return run.path.parent


@pytest.fixture
def run(sent: Path) -> Run:
    """A run whose decisions are in the tracker beside it."""
    shutil.copytree(sent, "runs")
    return Run.at("runs", "demo")


def rewrite(run: Run, change: Callable[[list[Entry]], object]) -> None:
    """Forge the ledger: change its entries, and give every one a new hash."""
    entries, head = read_ledger(run.ledger_path), GENESIS
    change(entries)
    for seq, entry in enumerate(entries):
        entry["seq"], entry["prev"] = seq, head
        head = entry["hash"] = digest({name: value for name, value in entry.items() if name != "hash"})
    run.ledger_path.write_text("".join(canonical(entry) + "\n" for entry in entries))


def compared(run: Run) -> Comparison:
    return compare(run, read_ledger(run.ledger_path))


def last(entries: list[Entry], kind: str) -> Entry:
    return next(entry for entry in reversed(entries) if entry["kind"] == kind)


def better_item(entries: list[Entry]) -> None:
    last(entries, "item.evaluated")["data"]["value"] = 0.9999


def another_start(entries: list[Entry]) -> None:
    entries[0]["data"]["experiment"] = "another"


def another_time(entries: list[Entry]) -> None:
    entries[0]["time"] = "2020-01-01T00:00:00.000000+00:00"


def inserted(entries: list[Entry]) -> None:
    entries.insert(1, Entry(**{**entries[0], "kind": "stopped", "data": {"why": ""}}))


def truncated(entries: list[Entry]) -> None:
    del entries[-4:]


def test_compare_finds_every_decision(run: Run) -> None:
    """Every decision of the ledger is in the tracker; one that the tracker does not have yet is no fault."""
    decisions = sum(entry["kind"] in ANCHORED for entry in read_ledger(run.ledger_path))
    with opened(run) as ledger:
        freeze(run, ledger, {**CONFIG, "seed": 8})

    faults, note = compared(run)

    assert not faults and decisions >= 4
    assert note == f"{decisions} anchors compared with the tracker sqlite:///{Path('runs/mlflow.db').resolve()}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (better_item, "it was rewritten"),
        (inserted, "it was rewritten"),
        (truncated, "it was truncated"),
        (another_start, "began there with another entry 0: the ledger was rewritten"),
    ],
)
def test_compare_finds_forged_ledger(run: Run, change: Callable[[list[Entry]], None], what: str) -> None:
    """A ledger that is intact in itself, and not the one that was sent, is found."""
    rewrite(run, change)

    assert what in compared(run).faults[0]


def test_compare_with_ledger_of_another_start_says_that_it_is_unknown(run: Run) -> None:
    """A run that began at another time is another run, of which the tracker knows nothing."""
    rewrite(run, another_time)

    faults, note = compared(run)

    assert not faults and note.startswith("no anchor compared: ") and note.endswith("has none of this run")


def test_verify_refuses_forged_ledger(finished: Run, cli: Cli) -> None:
    """`verify` agrees with a run that was sent; with a better item and new hashes it does not, exit 3."""
    mirror(finished.path)
    code, out, _ = cli("verify", "digits")
    assert code == 0 and " anchors compared with the tracker sqlite:///" in out

    rewrite(finished, better_item)
    code, out, _ = cli("verify", "digits")
    assert code == 3 and "the ledger has another one: it was rewritten, or another copy of this run went on" in out


def test_verify_says_that_nothing_was_compared(finished: Run, cli: Cli) -> None:
    """Without a tracker `verify` agrees, and says that it compared no anchor."""
    code, out, _ = cli("verify", "digits")

    assert code == 0
    assert "no anchor compared: the run has no tracker" in out and "no attestation compared: nothing was signed" in out


def test_mirror_keeps_anchors_of_rewritten_ledger(run: Run) -> None:
    """Sending a rewritten ledger changes no anchor, also where the memory of what was sent is lost."""
    rewrite(run, better_item)
    (run.path / "tracking.json").unlink()

    with pytest.raises(TrackerUnavailable, match=r"it has another entry [0-9]+ of this run"):
        mirror(run.path)

    assert "it was rewritten" in compared(run).faults[0]


def test_compare_of_renamed_run(run: Run) -> None:
    """A run that was renamed has its anchors, before and after it is sent again under its new name."""
    renamed = Run(run.path.rename(run.path.with_name("renamed")))
    _, note = compared(renamed)
    assert " anchors compared with " in note

    mirror(renamed.path)
    assert compared(renamed) == ([], note)
    with sqlite3.connect("runs/mlflow.db") as database:
        names = database.execute("SELECT value FROM tags WHERE key = 'fivegate.run'").fetchall()
    assert names == [("renamed",)]


def test_compare_of_copied_run(run: Run) -> None:
    """A copy goes its own way: it gets a run of its own in the tracker, and neither is taken for a forgery."""
    copy = Run(run.path.with_name("copy"))
    shutil.copytree(run.path, copy.path)
    assert compared(copy).note.endswith("knows demo, of which this folder is a copy")

    for seed, changed in ((8, run), (9, copy)):
        with opened(changed) as ledger:
            freeze(changed, ledger, {**CONFIG, "seed": seed})
        mirror(changed.path)
    for changed in (run, copy):
        faults, note = compared(changed)
        assert not faults and " anchors compared with " in note


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
def test_compare_with_unreadable_tracker_says_so(run: Run, content: bytes | None) -> None:
    """A tracker that is gone or damaged is no fault of the run, and is said in one line."""
    database = Path("runs/mlflow.db")
    database.unlink()
    if content is not None:
        database.write_bytes(content)

    faults, note = compared(run)

    assert not faults and note.startswith("no anchor compared: the tracker sqlite:///") and "\n" not in note


def test_compare_does_not_wait_for_absent_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses is said within seconds, without the password in its URI."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")

    faults, note = compared(run)

    assert not faults and note.startswith("no anchor compared: the tracker http://127.0.0.1:9 cannot be read (")
    assert "secret" not in note


def test_compare_asks_other_trackers_by_client(run: Run) -> None:
    """What MLflow's client reads is what SQLite reads."""
    entries, uri = read_ledger(run.ledger_path), tracking_uri(run.path.parent)

    assert list(_from_client(uri, "", entries)) == list(_from_sqlite(uri, run, entries))


def test_compare_changes_no_file(run: Run) -> None:
    """Comparing leaves every file as it is, and makes none."""
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}

    compared(run)

    assert before == {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
