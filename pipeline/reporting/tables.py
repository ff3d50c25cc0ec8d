"""How records look in a terminal: gates, items, and the line that says what comes next."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.results import PHASES
from pipeline.run_store import gate as gates
from pipeline.run_store.gate import Item
from pipeline.run_store.next_step import HOME, NextStep
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

MARKS = {
    "passed": "[green]✓ passed[/]",
    "failed": "[red]✗ failed[/]",
    "inconclusive": "[yellow]? inconclusive[/]",
    "errored": "[red]! errored[/]",
    "pending": "[cyan]… pending[/]",
    "not_applicable": "[dim]– not applicable[/]",
    "waived": "[yellow]~ waived[/]",
    "signed": "[green]✓ signed[/]",
}
GATES = {"open": "[green]open[/]", "closed": "[red]closed[/]", "pending": "[cyan]pending[/]"}


def console(stderr: bool = False) -> Console:
    """The terminal; what is piped into a file is 120 columns wide unless COLUMNS says otherwise."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=width)


def number(value: Any) -> str:
    """A value as people read it: four significant digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, float | int) for v in value):
        return f"{number(value[0])} to {number(value[1])}"
    text = str(value)
    return text if len(text) <= 24 else text[:21] + "…"


def phase_state(state: RunState, phase: str) -> str:
    """One word for a phase's gate: open, closed, pending, stale, not needed, or not reached."""
    if state.stale(phase):
        return "stale"
    gate = state.gate(phase)
    if gate:
        return gate
    return "not needed" if state.passed(phase) else "not reached"


def place(run: Run) -> str:
    """The run as a command names it: its name under the usual root, its folder elsewhere."""
    return run.name if run.shown_root == HOME else f"{run.shown_root}/{run.name}"


def satisfied(item: Item, state: RunState, phase: str) -> bool:
    """Whether the item lets its gate open today: passed, not applicable, signed or waived."""
    subject = state.gates[phase].subject
    return gates.satisfied(item, state.valid_waivers(phase), state.valid_sign_offs(phase), subject, gates.utc_today())


def mark(item: Item, state: RunState, phase: str) -> str:
    """The item's outcome, or the valid waiver or signature that lies over it."""
    if item.outcome not in ("passed", "not_applicable"):
        if any(s.item == item.id for s in state.valid_sign_offs(phase)):
            return MARKS["signed"]
        if any(w.item == item.id for w in state.valid_waivers(phase)):
            return f"{MARKS['waived']} [dim]({item.outcome})[/]"
    return MARKS[item.outcome]


def gates_table(state: RunState) -> Table:
    """Phases, their gates and how many of their items are satisfied."""
    questions = (state.plan or {}).get("questions", {})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("phase", "gate", "items", "plan", "round"):
        table.add_column(name, justify="right" if name in ("items", "plan", "round") else "left")
    for phase in PHASES:
        gate = state.gates.get(phase)
        word = phase_state(state, phase)
        if gate:
            good = sum(satisfied(i, state, phase) for i in gate.items)
            table.add_row(
                phase,
                GATES.get(word, f"[dim]{word}[/]"),
                f"{good}/{len(gate.items)}",
                str(gate.revision),
                str(gate.round),
            )
        else:
            table.add_row(phase, f"[dim]{word}[/]", f"[dim]–/{questions.get(phase, '?')}[/]", "", "")
    return table


def items_table(phase: str, items: Iterable[Item], state: RunState) -> Table:
    """One gate's items with outcome, value, bound and the sentence why."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("item", "outcome", "found", "why"):
        table.add_column(name, overflow="fold", no_wrap=name in ("item", "outcome"))
    for item in items:
        table.add_row(item.id, mark(item, state, phase), found(item), item.why)
    return table


def found(item: Item) -> str:
    """The value with its unit, and the bound it was judged by."""
    value = f"{number(item.value)} {item.unit}".strip() if item.value is not None else ""
    return f"{value} (bound {number(item.bound)})".strip() if item.bound is not None else value


def branch_line(state: RunState) -> str:
    """The branch in words, with what it was decided on."""
    branch = state.current_branch()
    if branch is None:
        return "branch: not decided yet"
    parts = [
        "target reached" if branch["target"] else "target missed",
        "better than trivial" if branch["trivial"] else "no better than trivial",
        "symptoms: " + (", ".join(branch["symptoms"]) or "none"),
    ]
    colour = "green" if branch["branch"] == "sufficient" else "yellow"
    return f"branch: [{colour}]{branch['branch']}[/] ({'; '.join(parts)})"


def advice_line(advice: NextStep) -> str:
    return f"next: {advice.why}\n  [bold]{advice.command}[/]"
