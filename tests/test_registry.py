"""The registry names the champion of each task, and a rollback restores the one before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checklists.checks.operation import rollback_rehearsed
from pipeline.errors import UserError
from pipeline.release import registry
from pipeline.release.bundle import bundle_digest, previous_release
from pipeline.release.rollback_rehearsal import rehearse
from pipeline.results import Evidence
from pipeline.run_store import files
from pipeline.run_store.run import Run
from tests.conftest import Cli


def bundle(root: Path, run: str, content: str) -> str:
    """A payload of one file; its digest."""
    payload = root / run / "bundle" / "payload"
    files.write_text(payload / "plan.yaml", content)
    return bundle_digest(payload)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_move_makes_the_challenger_champion(root: Path) -> None:
    """A release takes the alias of the champion, and is no longer challenger; doing it twice changes nothing."""
    subject = bundle(root, "a", "seed: 1")
    registry.move(root, "digits", "challenger", "a", subject, "")
    registry.move(root, "digits", "champion", "a", subject, "Ada")
    before = (root / "registry.json").read_bytes()
    registry.move(root, "digits", "champion", "a", subject, "Ada")

    model = registry.read(root)["digits"]
    assert set(model["aliases"]) == {"champion"} and model["aliases"]["champion"]["who"] == "Ada"
    assert [m["alias"] for m in model["history"]] == ["challenger", "champion"]
    assert (root / "registry.json").read_bytes() == before


def test_withdraw_restores_the_champion_before(root: Path) -> None:
    """The latest champion that was not withdrawn and is intact takes the alias again; without one nobody has it."""
    first, second, third = (bundle(root, run, run) for run in ("a", "b", "c"))
    for run, subject in (("a", first), ("b", second), ("c", third)):
        registry.move(root, "digits", "champion", run, subject, "Ada")
    (root / "b" / "bundle" / "payload" / "plan.yaml").write_text("changed")

    assert (registry.withdraw(root, "digits", third, "Ada") or {})["subject"] == first
    assert registry.champion(root, "digits") == registry.read(root)["digits"]["aliases"]["champion"]
    assert registry.withdraw(root, "digits", first, "Ada") is None
    assert registry.champion(root, "digits") is None


def test_withdraw_of_another_bundle_changes_nothing(root: Path) -> None:
    """Who withdraws a release that is not the champion leaves the champion as it is."""
    subject = bundle(root, "a", "seed: 1")
    registry.move(root, "digits", "champion", "a", subject, "Ada")
    assert registry.withdraw(root, "digits", "f" * 64, "Ada") == registry.champion(root, "digits")


def test_models_of_two_experiments_are_apart(root: Path) -> None:
    """The champion of one task is not replaced by that of another under the same root."""
    for name in ("digits", "wine"):
        registry.move(root, name, "champion", name, bundle(root, name, name), "Ada")
    assert {name: registry.champion(root, name)["run"] for name in ("digits", "wine")} == {  # type: ignore[index]
        "digits": "digits",
        "wine": "wine",
    }


def test_payload_of_finds_a_replaced_release(root: Path) -> None:
    """A payload that was moved to `bundle/previous` is found there; a changed one is not found at all."""
    subject = bundle(root, "a", "seed: 1")
    registry.move(root, "digits", "champion", "a", subject, "Ada")
    entry = registry.champion(root, "digits")
    assert entry is not None
    moved = previous_release(Run(root / "a"), subject) / "payload"
    moved.parent.mkdir(parents=True)
    (root / "a" / "bundle" / "payload").rename(moved)
    assert registry.payload_of(root, entry) == moved
    (moved / "plan.yaml").write_text("seed: 2")
    assert registry.payload_of(root, entry) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"models": 3}', '{"models": {"a": {"aliases": {"champion": {}}}}}']
)
def test_read_refuses_what_no_registry_wrote(root: Path, content: str) -> None:
    """The message names the file and what to do."""
    files.write_text(root / "registry.json", content)
    with pytest.raises(UserError, match=r"registry\.json: cannot be read as a registry of models.*Do: restore it"):
        registry.read(root)


def judged(found: Any) -> tuple[str, str]:
    result = rollback_rehearsed(Evidence({"rollback": found}), max_seconds=60)
    return result.outcome, result.why


def test_rollback_rehearsed_restores_the_champion(root: Path, tmp_path: Path) -> None:
    """With a champion it comes back; without one, none is left; the real registry stays as it is."""
    assert judged(rehearse(root, "digits", "new", tmp_path / "scratch")) == (
        "passed",
        "no model is in use yet: the rollback of a first release is to switch it off",
    )
    registry.move(root, "digits", "champion", "a", bundle(root, "a", "seed: 1"), "Ada")
    before = (root / "registry.json").read_bytes()
    outcome, why = judged(rehearse(root, "digits", "new", tmp_path / "scratch"))
    assert outcome == "passed" and "was restored, its payload is intact" in why
    assert (root / "registry.json").read_bytes() == before and not (tmp_path / "scratch").exists()


def test_rollback_rehearsed_fails_for_a_damaged_champion(root: Path, tmp_path: Path) -> None:
    """What cannot be restored is no rollback: the payload in use was changed."""
    registry.move(root, "digits", "champion", "a", bundle(root, "a", "seed: 1"), "Ada")
    (root / "a" / "bundle" / "payload" / "plan.yaml").write_text("seed: 2")
    outcome, why = judged(rehearse(root, "digits", "new", tmp_path / "scratch"))
    assert outcome == "failed" and "is missing or was changed" in why


def test_rollback_rehearsed_fails_for_an_unreadable_registry(root: Path, tmp_path: Path) -> None:
    """A registry that cannot be read is the reason of the item, not an error of the phase."""
    files.write_text(root / "registry.json", "{")
    outcome, why = judged(rehearse(root, "digits", "new", tmp_path / "scratch"))
    assert outcome == "failed" and "could not be rehearsed" in why


def test_release_and_rollback_move_the_aliases(released: Run, cli: Cli) -> None:
    """The released bundle is the champion of its experiment; after its rollback nothing is."""
    root, state = released.path.parent, released.state()
    # The fixture copies the run alone: its registry is that of another root.
    registry.move(root, "digits", "champion", "digits", state.released["subject"], "Ada")  # type: ignore[index]

    code, out, _ = cli("rollback", "digits", "--who", "Example Owner", "--why", "wrong forms")

    assert code == 0 and "no release before it is left: switch off what serves this model" in out
    assert registry.champion(root, "digits") is None


def test_released_run_is_registered(_released: Path) -> None:
    """The release itself writes the registry of its root."""
    entry = registry.champion(_released.parent, "digits")
    assert entry is not None and entry["who"] == "Example Reviewer"
    assert registry.payload_of(_released.parent, entry) == _released / "bundle" / "payload"
