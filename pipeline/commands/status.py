"""`status [RUN]`: show the gates, the checks that did not pass, the scores, and the command that continues the run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.documents.readiness_score import gate_readiness
from pipeline.errors import Refused, UserError, fault
from pipeline.reporting import tables
from pipeline.reporting.sections.diagnosis import read_diagnoses
from pipeline.reporting.sections.trials import comparisons
from pipeline.reporting.terminal import console, new_table, print_json, styled
from pipeline.results import PHASES, counted, plain
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.next_step import SEED_ITEM, NextStep, next_step, stale_reason
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="run directory or name; without it, all runs")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--gate", choices=PHASES, help="one gate: its checks, and what is missing for them to pass")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def cannot_pass(plan: plans.Plan, phase: str, run: Run, gate: str | None = None) -> dict[str, str]:
    """Return why items of the gate cannot pass as planned, by id, with the command that helps where there is one.

    A signature can be given only where nothing else is missing: the state of the `gate` is pending.
    """
    reasons_of = {}
    for item in plan.checklists[phase]:
        missing = [key for key in item.get("needs") or [] if _lookup(plan.config, key) in (None, "", [], {})]
        reasons = []
        if item.get("not_built"):
            reasons.append(f"not implemented in this version: {item['not_built']}")
        if missing:
            values = " ".join(f"{key}=VALUE" for key in missing)
            reasons.append(f"add: python -m pipeline phase=planning {run.overrides_for('planning')} {values}")
        if item.get("sign_off"):
            approve = f": python -m pipeline approve {run.argument} --who NAME"
            when = {None: f" after phase={phase}", "closed": f", after every other check passed or was waived{approve}"}
            reasons.append(f"needs the {item['sign_off']}'s signature{when.get(gate, approve)}")
        if reasons:
            reasons_of[item["id"]] = "; ".join(reasons)
    return reasons_of


def _count_reasons(plan: plans.Plan, phase: str, lacking: Mapping[str, str]) -> str:
    """Return how many of the items that cannot pass lack each thing; an item counts once, by what is hardest to add."""
    items = [item for item in plan.checklists[phase] if item["id"] in lacking]
    not_built = sum(bool(item.get("not_built")) for item in items)
    config = sum("add: " in lacking[item["id"]] and not item.get("not_built") for item in items)
    signature = len(items) - not_built - config
    parts = []
    if not_built:
        parts.append(f"{not_built} {'is' if not_built == 1 else 'are'} not implemented in this version")
    if config:
        parts.append(f"{config} {'needs' if config == 1 else 'need'} a config value")
    if signature:
        parts.append(f"{signature} {'needs' if signature == 1 else 'need'} a signature")
    return ", ".join(parts)


def _lookup(config: object, key: str) -> object:
    """Return the value of a dotted key, None where it is missing."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def summary(run: Run, state: RunState) -> dict[str, Any]:
    """Return the state of a run as one JSON object."""
    step = next_step(state, run.path)
    return plain(
        {
            "schema": 1,
            "run": run.name,
            "entries": state.seq + 1,
            "head": state.head,
            "revision": state.plan["revision"] if state.plan else None,
            "round": state.round,
            "branch": state.current_branch(),
            "gates": {p: state.gate_label(p) for p in PHASES},
            "items": {p: [{**vars(i), "label": i.label} for i in g.items] for p, g in state.gates.items()},
            "waivers": [vars(w) for w in state.waivers],
            "released": state.released,
            "rolled_back": _last_rollback(run, state),
            "next": next_command(step),
        }
    )


def next_command(step: NextStep) -> dict[str, Any]:
    """Return the next step as JSON."""
    alternatives = [alternative._asdict() for alternative in step.alternatives]
    return {"phase": step.phase, "why": step.why, "command": step.command, "alternatives": alternatives}


def _last_rollback(run: Run, state: RunState) -> dict[str, Any] | None:
    """Return who returned to the present candidate, or withdrew the release, and why; None without a return."""
    if state.rolled_back_at < 0:
        return None
    entry = read_ledger(run.ledger_path)[state.rolled_back_at]
    return {"seq": entry["seq"], **entry["data"]}


def _show_gate(run: Run, state: RunState, phase: str) -> None:
    screen = console()
    plan = plans.load(run, state)
    items = plan.checklists[phase]
    gate = state.gates.get(phase)
    label = state.gate_label(phase)
    title = "[bold]{run}[/]  gate {phase}: {gate}, {checks}\n"
    texts = {"run": run.name, "phase": phase, "checks": counted(len(items), "check")}
    screen.print(styled(title, gate=tables.GATES.get(label, label), **texts))
    if gate:
        screen.print(tables.items_table(phase, gate.items, state, screen.width))
        if gate_score := gate_readiness(state, items, phase):
            screen.print()
            screen.print(tables.readiness_lines(gate_score), soft_wrap=True)
    else:
        for item in items:
            screen.print(styled("  … {item}  [dim]{ask}[/]", item=item["id"], ask=item["ask"]), soft_wrap=True)
    lacking = cannot_pass(plan, phase, run, state.gate(phase))
    reasons = f": {_count_reasons(plan, phase, lacking)}" if lacking else ""
    screen.print(f"\n{len(lacking)} of {len(items)} checks cannot pass yet{reasons}", soft_wrap=True)
    for name, why in lacking.items():
        screen.print(styled("  {name}: {why}", name=name, why=why), soft_wrap=True)


def _show_unsatisfied(screen: Console, state: RunState, phase: str) -> None:
    """Print the items of a gate that are not satisfied; those that are not built, or not evaluated, share one line."""
    items = state.gates[phase].items if phase in state.gates and state.gate_label(phase) != "not needed" else ()
    unsatisfied = [i for i in items if not tables.satisfied(i, state, phase)]
    not_built = [i for i in unsatisfied if not i.is_built]
    skipped = _not_evaluated(unsatisfied) if phase == PHASES[0] else []
    if not unsatisfied:
        return
    of = "" if state.gate(phase) else f" ({state.gate_label(phase)}: {stale_reason(state, phase)})"
    screen.print(styled("\n[bold]{phase}[/]: checks that did not pass{of}", phase=phase, of=of), soft_wrap=True)
    shown = [i for i in unsatisfied if i not in (*not_built, *skipped)]
    screen.print(tables.items_table(phase, shown, state, screen.width))
    if skipped:
        screen.print(f"{counted(len(skipped), 'check')} not evaluated, since planning stopped at {SEED_ITEM}")
    if not_built:
        names = ", ".join(i.id for i in not_built)
        screen.print(f"– not implemented in this version ({len(not_built)}): {names}")


def _not_evaluated(items: Sequence[Item]) -> list[Item]:
    """Return the items that have no evidence because planning stopped early: it examines no data without a seed."""
    if not any(item.id == SEED_ITEM and item.outcome == "failed" for item in items):
        return []
    return [item for item in items if item.outcome == "errored" and item.why.endswith("was not measured")]


def _show_diagnosis(screen: Console, run: Run) -> None:
    """Print the causes that the newest diagnosis names."""
    for section in read_diagnoses(run, [])[:1]:
        named = [
            f"{tables.in_words(chain.cause['issue'])} ({chain.verdict}, {chain.cause['confidence']:.2f} by "
            f"{chain.cause['basis']})"
            for chain in section.chains
        ]
        template = "\n[bold]diagnosis[/], round {round}: {named}"
        screen.print(styled(template, round=section.round, named=", ".join(named) or "not decided"), soft_wrap=True)


def _show_trials(screen: Console, run: Run) -> None:
    """Print the newest comparison of optimization: a row per configuration, and what was said of it."""
    for study in comparisons(read_ledger(run.ledger_path))[-1:]:
        template = "\n[bold]trials[/], round {round}: {why}"
        screen.print(styled(template, round=study.round, why=study.why), soft_wrap=True)
        table = new_table("configuration", "mean", "effect", "p (Holm)", "verdict")
        for row in study.arms:
            arm, effect, p = row.result, "", ""
            if not row.is_control:
                effect, p = f"{float(arm['effect']):+.4g}", tables.number(arm["p"])
            verdict = styled("[green]{said}[/]" if row.tone == "good" else "{said}", said=row.verdict)
            table.add_row(row.name, tables.number(arm.get("mean")), effect, p, verdict)
        if study.arms:
            screen.print(table)


def show(run: Run, state: RunState) -> None:
    """Print the table of gates, the checks that are not satisfied, the scores and the next command."""
    screen = console()
    revision = state.plan["revision"] if state.plan else "–"
    title = "[bold]{run}[/]  plan revision {revision}, {entries} ledger entries\n"
    screen.print(styled(title, run=run.name, revision=revision, entries=state.seq + 1))
    screen.print(tables.gates_table(state))
    for phase in PHASES:
        _show_unsatisfied(screen, state, phase)
    _show_diagnosis(screen, run)
    _show_trials(screen, run)
    screen.print()
    screen.print(tables.score_lines(state))
    for waiver in (w for phase in PHASES for w in state.valid_waivers(phase)):
        screen.print(styled("waived: {phase}/{item} by {who} until {expires}: {why}", **vars(waiver)), soft_wrap=True)
    for waiver in (w for phase in PHASES for w in state.expired_waivers(phase)):
        template = "no longer waived: {phase}/{item}, whose waiver by {who} ended with {expires} (UTC)"
        screen.print(styled(template, **vars(waiver)), soft_wrap=True)
    if rollback := _last_rollback(run, state):
        what = "the release was withdrawn" if "subject" in rollback else "returned to an earlier candidate"
        who, why = rollback["who"] and f" by {rollback['who']}", rollback["why"] and f": {rollback['why']}"
        template = "rolled back, entry {seq}: {what}{who}{why}"
        screen.print(styled(template, seq=rollback["seq"], what=what, who=who, why=why), soft_wrap=True)
    if state.failed:
        template = "the last attempt of {phase} failed: {why}"
        screen.print(styled(template, phase=state.failed["phase"], why=tables.failure(state.failed)), soft_wrap=True)
    screen.print(tables.next_step_line(next_step(state, run.path)), soft_wrap=True)


def _show_all(root: Path, as_json: bool) -> None:
    folders = [path.parent for path in sorted(root.glob("*/ledger.jsonl"))]
    if not folders:
        do = "python -m pipeline phase=baseline experiment=digits"
        raise UserError(fault(str(root), "there is no run yet", do=do))
    states: list[tuple[Run, RunState]] = []
    damaged: list[str] = []
    for folder in folders:
        try:
            run = Run.find(folder.absolute())
            states.append((run, run.state()))
        except (Refused, UserError) as error:  # the other runs are still shown
            damaged += error.faults
    if as_json:
        print_json([summary(*pair) for pair in states], indent=2)
    else:
        _print_runs(states)
    if damaged:
        raise Refused(*damaged)


def _print_runs(states: list[tuple[Run, RunState]]) -> None:
    table = new_table("run", *PHASES, "validation", "next")
    for run, state in states:
        gates = [state.gate_label(phase) for phase in PHASES]
        table.add_row(run.name, *gates, state.branch or "", next_step(state, run.path).why)
    console().print(table)


def run(args: argparse.Namespace) -> int:
    if args.run is None:
        _show_all(Path(args.root), args.json)
        return 0
    run = Run.find(args.run, args.root)
    state = run.state()
    if args.json:
        print_json(summary(run, state), indent=2)
    elif args.gate:
        _show_gate(run, state, args.gate)
    else:
        show(run, state)
    return 0
