"""The gates on the page: the line of phases with the branch that was taken, their items, and what is still open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.documents.readiness_score import OTHER, sections_of
from pipeline.reporting.tables import items_count, satisfied
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item
from pipeline.run_store.records import BranchRecord
from pipeline.run_store.state import RunState

SATISFIED_LABELS = ("passed", "passed with warning", "signed", "waived", "accepted", "not applicable")
LOUD_LABELS = ("waived", "accepted", "passed with warning")  # satisfied, yet not folded away


@dataclass(frozen=True)
class ItemRow:
    """One item of a gate; `label` is its outcome, or the signature, waiver or statement that replaces it in the count.

    `details` are its reason, with who signed or accepted it; `section` is that of the readiness score.
    """

    item: Item
    label: str
    tone: str
    details: str
    section: str = ""

    @property
    def is_folded(self) -> bool:
        """Whether the page shows the row only on request, because its question is answered and needs no attention."""
        return self.label in SATISFIED_LABELS and self.label not in LOUD_LABELS


@dataclass(frozen=True)
class PhaseSection:
    """One phase and its gate; `count` says how many items are satisfied, of those that the plan has.

    `reason` says why a phase has no rows; `branch` is the decision after the phase, empty where there was none.
    """

    name: str
    label: str
    tone: str
    round: int | None
    rows: list[ItemRow]
    count: str
    reason: str
    branch: str = ""

    @property
    def shown(self) -> list[ItemRow]:
        return [row for row in self.rows if not row.is_folded]

    @property
    def folded(self) -> list[ItemRow]:
        return [row for row in self.rows if row.is_folded]


def phase_section(state: RunState, phase: str, plan: plans.Plan | None) -> PhaseSection:
    """Return what the page shows of a phase."""
    label = state.gate_label(phase)
    gate = None if label == "not needed" else state.gates.get(phase)
    sections = sections_of(plan.checklists.get(phase, ())) if plan else {}
    rows = [_item_row(item, state, phase, sections.get(item.id, "")) for item in gate.items] if gate else []
    planned = len(plan.checklists.get(phase, ())) if plan else 0
    return PhaseSection(
        name=phase,
        label=label,
        tone={"open": "good", "closed": "bad", "pending": "warn", "stale": "warn"}.get(label, "plain"),
        round=gate.round if gate else None,
        rows=rows,
        count=_count(rows, planned),
        reason=_reason_without_rows(state, label),
        branch=_branch_after(state, phase),
    )


def _branch_after(state: RunState, phase: str) -> str:
    """Return the newest branch that was decided after the phase, for the plan in force."""
    since = state.plan["seq"] if state.plan else -1
    decided: list[BranchRecord] = [b for b in state.branches if b["phase"] == phase and b["seq"] > since]
    return decided[-1]["branch"] if decided else ""


def _count(rows: list[ItemRow], planned: int) -> str:
    """Return how many items are satisfied; of a gate that was not evaluated, only how many there will be."""
    if not rows:
        return f"–/{planned}" if planned else ""
    answered = [row for row in rows if row.label in SATISFIED_LABELS and row.label != "not applicable"]
    count, idle = items_count(len(answered), [row.item for row in rows])
    return f"{count}, {idle} n/a" if idle and "/" in count else count


def _reason_without_rows(state: RunState, label: str) -> str:
    """Return why a gate has no items on record: not evaluated yet, or not needed, and for which reason."""
    if label != "not needed":
        return "Not evaluated yet."
    branch = state.current_branch()
    assert branch is not None
    if branch["branch"] == "sufficient":
        return f"The branch was sufficient after {branch['phase']}."
    return f"The branch was insufficient after {branch['phase']}, and a named person waived it."


def _item_row(item: Item, state: RunState, phase: str, section: str) -> ItemRow:
    label, details = item.label, item.why
    if item.outcome not in ("passed", "not_applicable") and satisfied(item, state, phase):
        signers = [sign_off.who for sign_off in state.valid_sign_offs(phase) if sign_off.item == item.id]
        label = "signed" if signers else "accepted" if item.accepted_by else "waived"
        details = f"signed by {', '.join(signers)}" if signers else details
        details += f"; accepted by {item.accepted_by}" if label == "accepted" else ""
    tones = {"passed": "good", "signed": "good", "failed": "bad", "errored": "bad", "not applicable": "plain"}
    return ItemRow(item, label, tones.get(label, "warn"), details, section)


@dataclass(frozen=True)
class OpenItem:
    """An item that keeps its gate from opening."""

    phase: str
    row: ItemRow


def open_items(phases: Sequence[PhaseSection]) -> list[OpenItem]:
    """Return every item that is not satisfied, of the gates in force; a gate of the past says nothing of today."""
    current = [section for section in phases if section.label in ("closed", "pending")]
    return [
        OpenItem(section.name, row) for section in current for row in section.rows if row.label not in SATISFIED_LABELS
    ]


def by_section(rows: Sequence[ItemRow]) -> list[tuple[str, list[ItemRow]]]:
    """Return the rows of a gate by their section of the readiness score, in the order of the checklist."""
    names = dict.fromkeys(row.section or OTHER for row in rows)
    return [(name, [row for row in rows if (row.section or OTHER) == name]) for name in names]
