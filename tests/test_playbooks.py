"""Playbooks: every file is complete and passes its own examples; all faults of a bad file are reported at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import diagnostics
from diagnostics.diagnose import diagnose
from diagnostics.playbook import HEADINGS, Playbook, example_history, load_all, parse
from diagnostics.signals import SIGNALS
from pipeline.errors import UserError
from pipeline.results import CEILINGS

FOLDER = Path(diagnostics.__file__ or "").parent
GUIDE = FOLDER.parent / "phases" / "diagnostics.md"
PLAYBOOKS = load_all()
COMMON = {"nan_loss", "convergence_stall", "overfitting", "underfitting"}


def examples(kind: str) -> list[Any]:
    """Return every example of one kind, with its playbook."""
    return [pytest.param(p, e, id=f"{p.id}-{e['what']}") for p in PLAYBOOKS for e in getattr(p, kind)]


@pytest.mark.parametrize(("playbook", "example"), examples("fires"))
def test_playbook_fires(playbook: Playbook, example: dict[str, Any]) -> None:
    """The symptom is found, and a diagnosis with a cause has at least three fixes."""
    diagnosis = diagnose(example_history(example))

    assert playbook.id in [s.id for s in diagnosis.symptoms]
    assert not diagnosis.root_causes or len(diagnosis.fixes) >= 3


@pytest.mark.parametrize(("playbook", "example"), examples("silent"))
def test_playbook_is_silent(playbook: Playbook, example: dict[str, Any]) -> None:
    """The symptom is not found in a healthy run or in one with another fault."""
    assert playbook.id not in [s.id for s in diagnose(example_history(example)).symptoms]


def test_load_all_finds_every_file() -> None:
    """Every Markdown file in the folder is a playbook."""
    assert sorted(p.stem for p in FOLDER.glob("*.md")) == [p.id for p in PLAYBOOKS]
    assert {p.id for p in PLAYBOOKS} >= COMMON


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda p: p.id)
def test_playbook_is_complete(playbook: Playbook) -> None:
    """A playbook has at least two cited causes with expectations, both kinds of examples, and all five sections."""
    assert len(playbook.causes) >= 2
    assert all(c.cites and c.expect and c.basis in CEILINGS and c.supported_by for c in playbook.causes)
    assert len(playbook.fires) >= 2 and len(playbook.silent) >= 3
    assert HEADINGS == tuple(playbook.sections)
    assert len({c.id for c in playbook.causes}) == len(playbook.causes)
    assert all(f"`{c.id}`" in playbook.sections["Causes"] for c in playbook.causes)


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda p: p.id)
def test_playbook_lists_mitigations_after_cures(playbook: Playbook) -> None:
    """Cures are tried before mitigations."""
    for cause in playbook.causes:
        kinds = [kind for _, kind in cause.cures]
        assert sorted(kinds, key=lambda k: k != "cure") == kinds


def test_guide_defines_every_signal_and_curve() -> None:
    """phases/diagnostics.md has a table row for every signal, and for every name that a playbook's condition uses."""
    rows = [line.split("|")[1] for line in GUIDE.read_text().splitlines() if line.startswith("| `")]
    defined = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    conditions = [c for p in PLAYBOOKS for c in p.when]
    for cause in (cause for p in PLAYBOOKS for cause in p.causes):
        conditions += [*cause.supported_by, *cause.unless, *([cause.expect] if cause.expect else [])]
    used = {name.replace("/*", "/<module>") for condition in conditions for name in condition.of}

    assert set(SIGNALS) - defined == set()
    assert used - defined == set()


def test_load_all_reads_given_folder(tmp_path: Path) -> None:
    """A playbook in another folder is found there."""
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
    unless: [{signal: slop, of: train/loss, above: 1}]
    cures: [lower_lrr]
    cites: x
    basis: gossip
examples:
  fires: [{what: x, train/loss: 1 2 many}]
---

## Meaning

x
"""


def test_parse_reports_every_fault() -> None:
    """Each fault of a file gives one message with its place and the nearest valid word."""
    with pytest.raises(UserError) as caught:
        parse("mine", BAD)

    message = "\n".join(caught.value.faults)
    for expected in [
        "diagnostics/mine.md: severity: unknown severity, got 'blockin'; expected one of advisory, blocking",
        "front matter: unknown key, got 'whem'",
        "when[0].signal: unknown signal, got 'slop'; did you mean 'slope'?",
        "when[1].of: slope takes 1 to 1 curves, got 2",
        "when[2]: unknown key, got 'abov'",
        "when[2].below: is not a number, got 'much'",
        "when[3].last: is not a share of the run, got 2",
        "when[4]: has no bound",
        "causes[0].id: unknown cause, got 'learning_rate_to_high'; did you mean 'learning_rate_too_high'?",
        "causes[1].unless[0].signal: unknown signal, got 'slop'",
        "causes[1].cures[0]: is not a cure of learning_rate_too_high, got 'lower_lrr'",
        "causes[1].basis: unknown basis, got 'gossip'",
        "examples.fires[0]: is not a history",
        "examples: 'silent' is missing or empty",
        "headings: wrong or empty headings, got 'Meaning'; expected ## Meaning, ## Evidence",
    ]:
        assert expected in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Title\n", "no front matter"),
        ("---\na: [1\n---\nx", "front matter cannot be read"),
        ("---\n- a\n---\nx", "front matter is not a mapping"),
        ("---\nwhen: 3\ncauses: [x]\nexamples: 2\n---\nx", r"when: is not a list"),
        ("---\nwhen: [3]\ncauses: 3\n---\nx", r"when\[0\]: is not a condition"),
        *(
            (f"---\nwhen: [{{signal: level, of: x, above: {bound}}}]\n---\nx", r"when\[0\]\.above: is not a number")
            for bound in ("1" + 400 * "0", ".inf", ".nan", "true")
        ),
    ],
)
def test_parse_refuses_other_files(text: str, message: str) -> None:
    """A file that is not a playbook gives a message instead of a traceback."""
    with pytest.raises(UserError, match=message):
        parse("mine", text)


def test_parse_reads_exponents_as_numbers() -> None:
    """`1e-4` in front matter is a number, although plain YAML readers return a string."""
    conditions = [c for p in PLAYBOOKS for cause in p.causes for c in cause.supported_by]

    assert all(isinstance(b, float) for c in conditions for b in (c.above, c.below) if b is not None)
