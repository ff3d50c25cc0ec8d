"""`explain RUN [CHECK]`: explain why a gate is not open: a paragraph per check, with the command that helps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TypedDict

from pipeline.errors import UserError, fault
from pipeline.escaping import visible
from pipeline.reporting import tables
from pipeline.reporting.terminal import console, print_json, print_lines
from pipeline.results import PHASES, counted
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item
from pipeline.run_store.next_step import lapsed_signature, next_step, stale_reason
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState


class Explanation(TypedDict):
    """One check in words: its value and bound with their units, its finding, and the command that helps.

    `satisfied` says whether it lets its gate open; `next` is then empty.
    """

    phase: str
    id: str
    outcome: str
    satisfied: bool
    question: str
    result: str
    required: str
    details: str
    cause: str
    people: list[str]
    next: str


class ExplainAnswer(TypedDict):
    """What `explain --json` prints: the checks that are not satisfied, or the one that was asked for."""

    schema: int
    run: str
    gates: dict[str, str]
    checks: list[Explanation]
    failed: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument(
        "item", metavar="CHECK", nargs="?", help="id of one check; without it, every check that is not satisfied"
    )
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--gate", choices=PHASES, help="one gate only")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _what_to_do(run: Run, state: RunState, phase: str, item: Item) -> str:
    place = run.argument
    if item.sign_off:
        lapse = lapsed_signature(state, phase)
        approve = f"python -m pipeline approve {place} --who NAME"
        others = [i for i in state.gates[phase].items if i is not item and not tables.satisfied(i, state, phase)]
        last = "after the other checks: a signature covers the waivers before it; " if others else ""
        return f"{f'{lapse}; ' if lapse else ''}{last}{approve}"
    waive = f"python -m pipeline waive {place} {item.id} --who NAME --why '...' --expires YYYY-MM-DD"
    # A check that is not implemented fails in every run, so that running the phase again cannot help.
    if not item.is_built:
        return f"not implemented in this version; to continue, a named person can waive it: {waive}"
    repair = f"correct what it says, then: python -m pipeline phase={phase} {run.overrides_for(phase, state)}"
    if item.id == tables.TEST_ITEM and item.outcome == "failed":
        repair = _train_another(run, state)
    return (
        f"{repair}\n            or accept it: {waive}"
        if item.waivable
        else f"{repair}\n            it cannot be waived"
    )


def _train_another(run: Run, state: RunState) -> str:
    """Return what helps against a test score below the target: the score of a model is final, so another model."""
    scored = len({opening["candidate"] for opening in state.test_opened})
    checks = plans.load(run, state).checklists[PHASES[-1]]
    limits = [check["with"]["max_candidates"] for check in checks if "max_candidates" in check["with"]]
    left = max(0, min(limits, default=1) - scored)
    if not left:
        return "the test score of this model is final, and no other model may be scored on these test rows"
    models = f"{left} more {'model' if left == 1 else 'models'} may be scored on these test rows"
    change = f"python -m pipeline phase=baseline {run.overrides_for('baseline', state)} KEY=VALUE"
    return f"the test score of this model is final; train another ({models}): {change}"


def explain_item(run: Run, state: RunState, phase: str, item: Item) -> Explanation:
    """Return the question, the value, the reason, waivers and signatures, and what to do."""
    is_satisfied = tables.satisfied(item, state, phase)
    return Explanation(
        phase=phase,
        id=item.id,
        outcome=item.label,
        satisfied=is_satisfied,
        question=item.ask,
        result=tables.format_value(item),
        required=tables.format_required(item),
        details=item.why,
        cause=_cause(item),
        people=_people(state, phase, item),
        next="" if is_satisfied else _what_to_do(run, state, phase, item),
    )


def _cause(item: Item) -> str:
    if not item.cause:
        return ""
    from pipeline.repair.causes import load

    return f"{item.cause}: {load()[item.cause].means}"


def _people(state: RunState, phase: str, item: Item) -> list[str]:
    """Return who accepted, waived or signed the item, each as a line with its label."""
    lines = [f"accepted: by {item.accepted_by}"] if item.accepted_by else []
    waivers = [w for w in state.valid_waivers(phase) if w.item == item.id]
    lines += [f"waived:   by {w.who} until {w.expires}: {w.why}" for w in waivers]
    ended = [w for w in state.expired_waivers(phase) if w.item == item.id]
    lines += [f"waived:   no longer; the waiver by {w.who} ended with {w.expires} (UTC)" for w in ended]
    return lines + [f"signed:   by {s.who}" for s in state.valid_sign_offs(phase) if s.item == item.id]


def format_item(run: Run, state: RunState, phase: str, item: Item) -> str:
    """Return the explanation of an item as a paragraph."""
    explanation = explain_item(run, state, phase, item)
    lines = [f"{phase}/{item.id}: {explanation['outcome']}", f"  question: {explanation['question']}"]
    labelled = {
        "result": explanation["result"],
        "required": explanation["required"],
        "details": explanation["details"],
        "cause": explanation["cause"],
    }
    lines += [f"  {f'{label}:':<9} {text}" for label, text in labelled.items() if text]
    lines = [visible(line) for line in [*lines, *(f"  {line}" for line in explanation["people"])]]
    return "\n".join([*lines, *([f"  next:     {explanation['next']}"] if explanation["next"] else [])])


def _format_not_built(run: Run, phase: str, items: Sequence[Item]) -> str:
    """Return one paragraph for the items of a gate that are not built, with the command that waives one of them."""
    place = run.argument
    waive = f"python -m pipeline waive {place} CHECK --who NAME --why '...' --expires YYYY-MM-DD"
    lines = [f"{phase}: {counted(len(items), 'check')} not implemented in this version"]
    lines += [visible(f"  {item.id}: {item.ask}") for item in items]
    return "\n".join([*lines, f"  next:     to continue, a named person can waive each of them: {waive}"])


def _format_planned_item(run: Run, state: RunState, name: str) -> str:
    """Return what an item will ask when its phase has run. Raises UserError for an id that no gate of the plan has."""
    lists = plans.load(run, state).checklists if state.plan else {}
    planned = {item["id"]: (phase, item) for phase, items in lists.items() for item in items}
    if name not in planned:
        raise UserError(fault("CHECK", "no gate has a check of this id", got=name, among=planned))
    phase, item = planned[name]
    step = next_step(state, run.path)
    until = " since the plan or the training changed" if state.stale(phase) else ""
    return f"{phase}/{name}: not evaluated yet{until}\n  question: {visible(item['ask'])}\n  next:     {step.command}"


def _format_without_items(run: Run, state: RunState, phase: str, asked: bool) -> str:
    """Return what is known of a gate without valid items: stale, not needed or not reached; "" where it has some.

    The last two are left out unless they are asked for by name, since most runs have them.
    """
    label = state.gate_label(phase)
    if state.gate(phase) is not None or (label != "stale" and not asked):
        return ""
    lines = [f"{phase}: {label}"]
    if label == "stale":
        lines.append(f"  why:      {stale_reason(state, phase)}")
    elif label == "not needed":
        lines.append("  why:      the branch leads to finalization without it")
    else:
        lines.append("  why:      the phase has not run")
    step = next_step(state, run.path)
    return "\n".join([*lines, f"  next:     {step.command}"])


def _print_answer(run: Run, state: RunState, shown: Sequence[tuple[str, Item]]) -> None:
    answer = ExplainAnswer(
        schema=1,
        run=run.name,
        gates={phase: state.gate_label(phase) for phase in PHASES},
        checks=[explain_item(run, state, phase, item) for phase, item in shown],
        failed=f"{state.failed['phase']}: {tables.failure(state.failed)}" if state.failed else "",
    )
    print_json(answer, indent=2)


def run(args: argparse.Namespace) -> int:
    run = Run.find(args.run, args.root)
    state = run.state()
    phases = [args.gate] if args.gate else PHASES
    current = [p for p in phases if state.gate(p) is not None]
    items = [(p, i) for p in current for i in state.gates[p].items]
    if args.item:
        shown = [(p, i) for p, i in items if i.id == args.item]
        planned = "" if shown else _format_planned_item(run, state, args.item)
        if planned and not args.json:
            print_lines(planned)
            return 0
    else:
        shown = [(p, i) for p, i in items if not tables.satisfied(i, state, p)]
    if args.json:
        _print_answer(run, state, shown)
        return 0
    not_built = [] if args.item else [(p, i) for p, i in shown if not i.is_built]
    for phase, item in shown:
        if (phase, item) not in not_built:
            print_lines(format_item(run, state, phase, item) + "\n")
    for phase in dict.fromkeys(phase for phase, _ in not_built):
        print_lines(_format_not_built(run, phase, [i for p, i in not_built if p == phase]) + "\n")
    for phase in phases:
        if text := _format_without_items(run, state, phase, asked=bool(args.gate)):
            print_lines(text + "\n")
    if not current and not args.gate:
        print_lines("no gate has been evaluated for the present plan\n")
    elif state.failed:
        print_lines(f"{state.failed['phase']} failed: {tables.failure(state.failed)}\n")
    elif current and not shown:
        print_lines(f"every evaluated check is satisfied: {', '.join(current)}\n")
    if not args.item:
        console().print(tables.score_lines(state), soft_wrap=True)
    return 0
