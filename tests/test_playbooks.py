"""Playbooks: every file is whole and proves itself by its own examples; a bad one is told all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import diagnostics
from diagnostics.confidence import CEILINGS
from diagnostics.diagnose import diagnose
from diagnostics.playbook import HEADINGS, Playbook, example_history, load_all, parse
from pipeline.errors import UserError

FOLDER = Path(diagnostics.__file__ or "").parent
PLAYBOOKS = load_all()
EVERY_USER_MEETS = {"nan_loss", "convergence_stall", "overfitting", "underfitting"}


def examples(kind: str) -> list[Any]:
    """Every example of one kind, with its playbook."""
    return [pytest.param(p, e, id=f"{p.id}-{e['what']}") for p in PLAYBOOKS for e in getattr(p, kind)]


@pytest.mark.parametrize(("playbook", "example"), examples("fires"))
def test_fires(playbook: Playbook, example: dict[str, Any]) -> None:
    """The symptom is seen, since some step or epoch, and causes and at least three fixes are named where one is."""
    found = diagnose(example_history(example))

    assert playbook.id in [s.id for s in found.symptoms]
    assert not found.root_causes or len(found.fixes) >= 3


@pytest.mark.parametrize(("playbook", "example"), examples("silent"))
def test_silent(playbook: Playbook, example: dict[str, Any]) -> None:
    """A run that is well, or ill in another way, is left alone."""
    assert playbook.id not in [s.id for s in diagnose(example_history(example)).symptoms]


def test_one_file_one_playbook() -> None:
    """Being in the folder is all it takes."""
    assert sorted(p.stem for p in FOLDER.glob("*.md")) == [p.id for p in PLAYBOOKS]
    assert {p.id for p in PLAYBOOKS} >= EVERY_USER_MEETS


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda p: p.id)
def test_complete(playbook: Playbook) -> None:
    """At least three causes, each cited and with something to expect; both kinds of examples; all five sections."""
    assert len(playbook.causes) >= 3
    assert all(c.cites and c.expect and c.basis in CEILINGS and c.supported_by for c in playbook.causes)
    assert len(playbook.fires) >= 2 and len(playbook.silent) >= 3
    assert HEADINGS == tuple(playbook.sections)
    assert len({c.id for c in playbook.causes}) == len(playbook.causes)
    assert all(f"`{c.id}`" in playbook.sections["Causes"] for c in playbook.causes)


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda p: p.id)
def test_mitigations_come_last(playbook: Playbook) -> None:
    """What only relieves is tried after what cures."""
    for cause in playbook.causes:
        kinds = [kind for _, kind in cause.cures]
        assert sorted(kinds, key=lambda k: k != "cure") == kinds


def test_playbooks_of_one_folder(tmp_path: Path) -> None:
    """A playbook dropped into a folder is found there."""
    (tmp_path / "mine.md").write_text((FOLDER / "nan_loss.md").read_text())

    assert ["mine"] == [p.id for p in load_all(tmp_path)]


BAD = """---
symptom: Something
severity: blockin
whem: []
when:
  - {signal: slop, of: train/loss, below: 0}
  - {signal: slope, of: [train/loss, val/loss], below: 0}
  - {signal: slope, of: train/loss, last: 2, below: much, abov: 1}
  - {signal: slope, of: train/loss, last: 2, below: 1e-4}
  - {signal: slope, of: train/loss}
causes:
  - id: learning_rate_to_high
    supported_by: [{signal: level, of: x, above: 0}]
    cures: [lower_lr]
    cites: x
  - id: learning_rate_too_high
    supported_by: []
    cures: [lower_lrr]
    cites: x
    basis: gossip
examples:
  fires: [{what: x, train/loss: 1 2 many}]
---

## Meaning

x
"""


def test_every_fault_at_once() -> None:
    """One message per fault of a file, each with the place and the nearest right word."""
    with pytest.raises(UserError) as caught:
        parse("mine", BAD)

    told = "\n".join(caught.value.faults)
    for expected in [
        "diagnostics/mine.md: severity: unknown severity, got 'blockin'; expected one of advisory, blocking",
        "front matter: unknown key, got 'whem'",
        "when[0].signal: unknown signal, got 'slop'; did you mean 'slope'?",
        "when[1].of: slope takes 1 to 1 curves, got 2",
        "when[2]: unknown key, got 'abov'",
        "when[2].below: is no number, got 'much'",
        "when[3].last: is no share of the run, got 2",
        "when[4]: has no bound",
        "causes[0].id: unknown cause, got 'learning_rate_to_high'; did you mean 'learning_rate_too_high'?",
        "causes[1].cures[0]: is no cure of learning_rate_too_high, got 'lower_lrr'",
        "causes[1].basis: unknown basis, got 'gossip'",
        "examples.fires[0]: is no history",
        "examples: 'silent' is missing or empty",
        "headings: do not fit, got 'Meaning'; expected ## Meaning, ## Evidence",
    ]:
        assert expected in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Title\n", "no front matter"),
        ("---\na: [1\n---\nx", "front matter cannot be read"),
        ("---\n- a\n---\nx", "front matter is no mapping"),
        ("---\nwhen: 3\ncauses: [x]\nexamples: 2\n---\nx", r"when: is no list"),
        ("---\nwhen: [3]\ncauses: 3\n---\nx", r"when\[0\]: is no condition"),
    ],
)
def test_files_that_are_no_playbook(text: str, message: str) -> None:
    """Even a file that is nothing at all is one message and no traceback."""
    with pytest.raises(UserError, match=message):
        parse("mine", text)


def test_small_numbers_are_numbers() -> None:
    """`1e-4` in front matter is a number, as a reader expects."""
    conditions = [c for p in PLAYBOOKS for cause in p.causes for c in cause.supported_by]

    assert all(isinstance(b, float) for c in conditions for b in (c.above, c.below) if b is not None)
