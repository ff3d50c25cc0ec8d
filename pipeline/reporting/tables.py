"""How records look in a terminal: gates, checks, the scores against the target, and the command that continues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.documents.readiness_score import Readiness
from pipeline.errors import Refused, fault
from pipeline.escaping import visible
from pipeline.reporting.terminal import TextTable, new_table, styled
from pipeline.results import PHASES, compared
from pipeline.run_store import gate as gates
from pipeline.run_store.gate import Item
from pipeline.run_store.next_step import NextStep
from pipeline.run_store.records import FailureRecord
from pipeline.run_store.state import RunState

OUTCOMES = {
    name: styled(template)
    for name, template in {
        "passed": "[green]✓ passed[/]",
        "warning": "[yellow]⚠ passed with warning[/]",
        "failed": "[red]✗ failed[/]",
        "inconclusive": "[yellow]? inconclusive[/]",
        "errored": "[red]! errored[/]",
        "pending": "[cyan]… pending[/]",
        "not_applicable": "[dim]– not applicable[/]",
        "waived": "[yellow]~ waived[/]",
        "accepted": "[yellow]~ accepted[/]",
        "signed": "[green]✓ signed[/]",
    }.items()
}
GATES = {"open": styled("[green]open[/]"), "closed": styled("[red]closed[/]"), "pending": styled("[cyan]pending[/]")}
TEST_ITEM = "target_on_test"  # the check of finalization that compares the test score with the target
TABLE_WIDTH = 100  # from which on a table of checks has room for their details
VALUE_CHARS = 24  # of a value in a table; a longer one is cut


def number(value: object) -> str:
    """Return a value as text: four significant digits, an empty string for None, at most `VALUE_CHARS` characters."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, float | int) for v in value):
        return f"{number(value[0])} to {number(value[1])}"
    text = str(value)
    return text if len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 3] + "…"


def in_words(identifier: str) -> str:
    """Return an identifier with spaces instead of underscores."""
    return str(identifier).replace("_", " ")


def failure(record: FailureRecord) -> str:
    """Return why a phase failed on one line, its faults separated by semicolons."""
    return visible("; ".join(record["why"].split("\n")))


def satisfied(item: Item, state: RunState, phase: str) -> bool:
    """Return whether the item lets its gate open today: passed, not applicable, accepted, signed or waived."""
    subject = state.gates[phase].subject
    return gates.satisfied(item, state.valid_waivers(phase), state.valid_sign_offs(phase), subject, gates.utc_today())


def format_outcome(item: Item, state: RunState, phase: str) -> Text:
    """Return the item's outcome, or the signature, waiver or statement of the plan that lies over it, in colour."""
    if item.outcome not in ("passed", "not_applicable"):
        if any(s.item == item.id for s in state.valid_sign_offs(phase)):
            return OUTCOMES["signed"]
        if any(w.item == item.id for w in state.valid_waivers(phase)):
            return styled("{waived} [dim]({label})[/]", waived=OUTCOMES["waived"], label=item.label)
        if item.accepted_by:
            return styled("{accepted} [dim]({label})[/]", accepted=OUTCOMES["accepted"], label=in_words(item.outcome))
    return outcome_of(item) if item.is_built else styled("[dim]– {label}[/]", label=item.label)


def outcome_of(item: Item) -> Text:
    """Return the item's own outcome in colour."""
    return OUTCOMES["warning" if item.warns else item.outcome]


def format_value(item: Item) -> str:
    """Return the item's value with its unit."""
    return f"{number(item.value)} {item.unit}".strip() if item.value is not None else ""


def format_required(item: Item) -> str:
    """Return what passing requires of the value, such as `>= 20` or `is an integer`; empty without a bound."""
    return f"{item.relation} {number(item.bound)}".strip() if item.bound is not None else ""


def items_count(answered: int, items: Sequence[Item]) -> tuple[str, int]:
    """Return how many items of a gate are satisfied by an answer, as text, and how many do not apply.

    Where none of them applies, as where nothing was compared, the text says so.
    """
    idle = sum(item.outcome == "not_applicable" for item in items)
    return "none applies" if items and idle == len(items) else f"{answered}/{len(items)}", idle


def gates_table(state: RunState) -> Table:
    """Return the phases with their gates, the number of satisfied checks, and of those that do not apply (n/a)."""
    planned = state.plan.get("questions", {}) if state.plan else {}
    table = TextTable(box=None, pad_edge=False, header_style="bold")
    for name in ("phase", "gate", "checks passed", "n/a", "plan revision", "round"):
        table.add_column(name, justify="left" if name in ("phase", "gate") else "right")
    for phase in PHASES:
        gate = state.gates.get(phase)
        label = state.gate_label(phase)
        if gate is None or label == "not needed":
            count = styled("[dim]–/{planned}[/]", planned=planned.get(phase, "?"))
            table.add_row(phase, styled("[dim]{label}[/]", label=label), count, "", "", "")
            continue
        answered = [i for i in gate.items if i.outcome != "not_applicable" and satisfied(i, state, phase)]
        answered_text, idle = items_count(len(answered), gate.items)
        shown = answered_text, f"{idle or ''}", str(gate.revision), str(gate.round)
        table.add_row(phase, GATES.get(label, styled("[dim]{label}[/]", label=label)), *shown)
    return table


def items_table(phase: str, items: Sequence[Item], state: RunState, width: int) -> RenderableType:
    """Return the checks of a gate with outcome, value, what was required, and details; as lines if `width` is small."""
    if width < TABLE_WIDTH:
        return Group(*(part for item in items for part in _item_lines(phase, item, state)))
    table = new_table("check", "outcome", "value", "required", "details")
    for item in items:
        texts = format_value(item), format_required(item), item.why
        table.add_row(item.id, format_outcome(item, state, phase), *texts)
    return table


def _item_lines(phase: str, item: Item, state: RunState) -> Iterator[RenderableType]:
    """Yield a check with its outcome and figures, then its details over the whole width."""
    required = format_required(item)
    figures = "".join(f"  {text}" for text in (format_value(item), required and f"(required {required})") if text)
    yield styled(
        "{check}  {outcome}{figures}", check=item.id, outcome=format_outcome(item, state, phase), figures=figures
    )
    if item.why:
        yield Padding(Text(visible(item.why)), (0, 0, 0, 2))


def readiness_lines(readiness: Readiness) -> Text:
    """Return the readiness score with its weakest section, and the score of every section."""
    score, weakest = number(readiness.score), " and ".join(map(in_words, readiness.weakest))
    line = styled("readiness: [bold]{score}[/], the weakest section: {weakest}\n", score=score, weakest=weakest)
    parts = [f"{in_words(s.name)} {'n/a' if s.score is None else number(s.score)}" for s in readiness.sections]
    return line.append_text(styled("  [dim]{parts}[/]", parts=", ".join(parts)))


def why_not_judged(state: RunState) -> str:
    """Return why validation is not compared with the target yet: a score under a closed gate counts for nothing."""
    gate = state.gate("baseline")
    return f"not judged while the baseline gate is {gate}" if gate in ("closed", "pending") else "not scored yet"


def score_lines(state: RunState) -> Text:
    """Return how the model compares with the target: a line for validation, and one for test once it is scored."""
    branch = state.current_branch()
    if branch is None:
        return Text(f"validation: {why_not_judged(state)}")
    colour = "green" if branch["branch"] == "sufficient" else "yellow"
    line = styled(f"validation: [{colour}]{{conditions}}[/]", conditions=", ".join(gates.branch_conditions(branch)))
    test = compare_test_with_target(state)
    if test is None:
        return line
    outcome, figures = test
    template = f"{{line}}\ntest: [{'green' if outcome == 'passed' else 'red'}]{{figures}}[/]"
    return styled(template, line=line, figures=figures)


def compare_test_with_target(state: RunState) -> tuple[str, str] | None:
    """Return the outcome of the check on the sealed test rows, and whether they reach the target; None before it."""
    gate = state.gates.get("finalization")
    if gate is None or state.stale("finalization"):
        return None
    item = next((i for i in gate.items if i.id == TEST_ITEM and i.value is not None and i.bound is not None), None)
    if item is None:
        return None
    at_least = item.relation != "<="
    reached = {"passed": "target reached", "inconclusive": "target reached, but not with certainty"}
    try:
        figures = compared(item.value, item.bound, at_least)
    except (TypeError, ValueError, OverflowError):
        got = ", ".join(str(value)[:40] for value in (item.value, item.bound))
        raise Refused(fault("ledger.jsonl", f"value and bound of {TEST_ITEM} are not numbers", got=got)) from None
    return item.outcome, f"{reached.get(item.outcome, 'target missed')} ({item.unit} {figures})".replace("( ", "(")


def next_step_line(step: NextStep) -> Text:
    """Return what comes next with its command, and what else a person can do, each as a command."""
    line = styled("next: {why}\n  [bold]{command}[/]", why=step.why, command=step.command)
    for alternative in step.alternatives:
        template, texts = "\nor {why}:\n  [bold]{command}[/]", {"why": alternative.why, "command": alternative.command}
        line = line.append_text(styled(template, **texts))
    return line
