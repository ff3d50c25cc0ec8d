"""The plan of a study, which a person accepts before it is paid where `phases.optimization.review` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.adoption.context import Round, frozen_plan
from pipeline.errors import PendingReview, fault
from pipeline.escaping import code_span, markdown
from pipeline.results import digest, plain
from pipeline.run_store import files
from pipeline.trials.study import Arm

PLAN, PAGE = "study_plan.json", "study_plan.md"


def require_accepted(
    ctx: Round, arms: Sequence[Arm], search: float, confirmation: Sequence[int], times: Sequence[str], effect: str
) -> None:
    """Stop with PendingReview until a person has accepted the plan of this study, where the config asks for it.

    `search` and `confirmation` are what both cost, in planned trainings; `times` say how long they take on this
    machine, which is not a part of what is accepted. `effect` is what a change must show to be adopted.
    """
    if not ctx.settings.get("review"):
        return
    plan = study_plan(ctx, arms, search, confirmation, effect)
    subject, review = digest(plan), ctx.state.review
    if review is not None and review["digest"] == subject and review.get("who"):
        ctx.log(f"  the plan of this study was accepted by {review['who']}")
        return
    path = ctx.folder / PLAN
    files.write_json(path, plan)
    files.write_text(ctx.folder / PAGE, _page(plan, times))
    if review is None or review["digest"] != subject:
        record = {"phase": "optimization", "round": ctx.round, "digest": subject, "file": ctx.artifact(path)}
        ctx.ledger.append("review.requested", record)
    do = f"python -m pipeline approve {ctx.run.argument} --who NAME"
    what = f"the plan of the study waits for a person: {ctx.run.relative(ctx.folder / PAGE)}"
    raise PendingReview(fault(f"optimization, round {ctx.round}", what, do=do))


def study_plan(
    ctx: Round, arms: Sequence[Arm], search: float, confirmation: Sequence[int], effect: str
) -> dict[str, Any]:
    """Return what a person accepts: the candidates with what is expected of each, the cost, and the effect to show."""
    candidates = [
        {"id": arm.id, "change": arm.delta.describe(), "why": arm.reason(), "expected": _expected(arm)} for arm in arms
    ]
    plan = {
        "schema": 1,
        "plan": frozen_plan(ctx).digest,
        "round": ctx.round,
        "candidates": candidates,
        "search_trainings": round(search, 2),
        "confirmation_trainings": list(confirmation),
        "adopted_if": effect,
    }
    return dict(plain(plan))


def _expected(arm: Arm) -> str:
    """Return what is expected of a candidate before it is tried."""
    if arm.restored is not None:
        return f"it restored {min(arm.restored, 1.0):.0%} of what is missing in an experiment of the diagnosis"
    if arm.cause:
        return f"the symptoms of {arm.cause} are gone"
    return "not known before it is tried"


def format_range(first: int, last: int) -> str:
    """Return two numbers as `14 to 21`, or one where they are the same."""
    return f"{first} to {last}" if last > first else str(first)


def _page(plan: dict[str, Any], times: Sequence[str]) -> str:
    """Return the plan as a page for the person who decides."""
    lines = ["| id | change | why | expected |", "|---|---|---|---|"]
    for arm in plan["candidates"]:
        cells = (code_span(arm["change"]), markdown(arm["why"]), markdown(arm["expected"]))
        lines.append(f"| {arm['id']} | {' | '.join(cells)} |")
    cost = [
        f"- the search: at most {plan['search_trainings']:g} trainings' worth of steps, {times[0]}",
        f"- the confirmation: {format_range(*plan['confirmation_trainings'])} trainings, {times[1]}",
    ]
    effect = f"A change is adopted if it shows {markdown(plan['adopted_if'])}."
    parts = [f"# The study of round {plan['round']}", "\n".join(lines), "## Cost", "\n".join(cost), effect]
    return "\n\n".join(parts) + "\n"
