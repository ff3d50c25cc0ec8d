"""Checklists: reading them, binding their items to check functions, and evaluating them on the evidence of a phase.

A checklist is `items:` of `{id, ask, section, check | sign_off | not_built, with, waivable, needs}`. `check` names a
function `<subject>.<function>`, `with` its thresholds (may interpolate the config, as in `${task.target}`), `needs` the
config keys without which the item can never pass, `section` the part of the readiness score that the item counts in.
This module reads files and calls checks; the caller passes a function that finds a check by its name.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from pipeline import safe_yaml
from pipeline.errors import UserError, fault
from pipeline.json_types import mismatch
from pipeline.results import Acceptable, Evidence, Result, exact, plain
from pipeline.run_store.gate import NOT_BUILT, Item
from pipeline.run_store.records import ChecklistItem

Check = Callable[..., Result]
FindCheck = Callable[[str], Check]
Judge = Callable[[list[ChecklistItem], Evidence], list[Item]]

KEYS = ("id", "ask", "section", "check", "sign_off", "not_built", "with", "waivable", "needs")
ANSWERS = ("check", "sign_off", "not_built")
TIMEOUT_S = 120.0

# Items that an edited checklist must keep, because every other result depends on them, and the number of the last gate.
INDISPENSABLE = {
    "planning": ("seeds_fixed", "splits_disjoint", "test_sealed"),
    "baseline": ("scored_on_validation", "checkpoint_identified"),
    "optimization": ("arms_compared_fairly", "chosen_on_validation"),
    "finalization": ("test_opened_once", "target_on_test", "owner_approval"),
}
RELEASE_QUESTIONS = 24


def read(path: Path, config: Mapping[str, Any], find: FindCheck) -> list[ChecklistItem]:
    """Read the items of a checklist and resolve their thresholds against the config, as the plan freezes them.

    Raises UserError with every fault of the file: unknown keys, an item without an answer, a check that does not
    exist, unknown and missing thresholds.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        known = [p.stem for p in path.parent.glob("*.yaml")]
        raise UserError(
            fault(f"phases.{path.stem}.checklist", "there is no such checklist", got=path.stem, among=known)
        )
    try:
        safe_yaml.check_file(path)
        whole = OmegaConf.merge(OmegaConf.create(_escaped(dict(config))), OmegaConf.load(path))
        resolved: Any = OmegaConf.to_container(whole, resolve=True)
        items: list[ChecklistItem] = resolved["items"]
        if (what := mismatch(items, list[ChecklistItem], "items")) is not None:
            raise TypeError(what)
    except UserError:
        raise
    # A file that is not a mapping is an OSError of OmegaConf's.
    except (OmegaConfBaseException, yaml.YAMLError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(fault(path.name, "cannot be read as a checklist", got=got)) from error
    faults = [f for item in items for f in _faults(path.name, item, find)]
    ids = [str(item.get("id")) for item in items]
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    faults += [fault(f"{path.name}:{i}", "is used twice in the checklist") for i in repeated]
    faults += _missing_faults(path, ids, items)
    if faults:
        raise UserError(*faults)
    accepted = _accepted(config)
    complete: list[ChecklistItem] = [exact({"waivable": True, "with": {}, **accepted, **item}) for item in items]
    return complete


def _accepted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's statements that accept inconclusive outcomes, as every item of the frozen plan has them.

    Raises UserError for a statement of a person who may not waive checks either.
    """
    card = config.get("plan") or {}
    statements = {name: card[name] for name in get_args(Acceptable) if name and card.get(name)}
    people = [name for name in (card.get("owner"), *card.get("approvers", ())) if name]
    strangers = {name: said["who"] for name, said in statements.items() if said["who"] not in people}
    if strangers:
        what = "is neither the owner nor an approver of the plan"
        raise UserError(*(fault(f"plan.{name}.who", what, got=who, among=people) for name, who in strangers.items()))
    return {"accepted": statements} if statements else {}


def _escaped(value: Any) -> Any:
    """The value with `${` escaped in every text: the config is resolved already, and such a text is only a text."""
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    # A backslash before `${` is an escape itself, so that it is doubled.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _missing_faults(path: Path, ids: list[str], items: list[ChecklistItem]) -> list[str]:
    """A message for each indispensable item that an edited checklist does not have."""
    missing = [i for i in INDISPENSABLE.get(path.stem, ()) if i not in ids]
    faults = [fault(f"{path.name}:{i}", "is missing, and no configuration can remove it") for i in missing]
    if path.stem == "planning" and not missing and (ids[0] != "seeds_fixed" or items[0].get("waivable", True)):
        faults.append(fault(f"{path.name}:seeds_fixed", "must come first and not be waivable"))
    if path.stem == "finalization" and len(items) != RELEASE_QUESTIONS:
        faults.append(
            fault(path.name, "has the wrong number of questions", got=len(items), expected=str(RELEASE_QUESTIONS))
        )
    return faults


def _faults(file: str, item: ChecklistItem, find: FindCheck) -> list[str]:
    where = f"{file}:{item.get('id', '?')}"
    faults = [fault(where, "unknown key", got=k, among=KEYS) for k in item if k not in KEYS]
    faults += [fault(where, f"'{k}' is missing") for k in ("id", "ask") if not item.get(k)]
    if sum(bool(item.get(k)) for k in ANSWERS) != 1:
        faults.append(fault(where, "cannot be answered", expected="exactly one of " + ", ".join(ANSWERS)))
    if item.get("check"):
        faults += _binding_faults(where, item, find)
    return faults


def _binding_faults(where: str, item: ChecklistItem, find: FindCheck) -> list[str]:
    try:
        check = find(item["check"])
    except UserError as error:
        return [f"{where}: {message}" for message in error.faults]
    parameters = {n: p for n, p in inspect.signature(check).parameters.items() if p.kind is p.KEYWORD_ONLY}
    thresholds = item.get("with") or {}
    unknown = [
        fault(where, f"{item['check']} does not take this threshold", got=k, among=parameters)
        for k in thresholds
        if k not in parameters
    ]
    required = [n for n, p in parameters.items() if p.default is p.empty]
    missing = [n for n in required if n not in thresholds]
    return unknown + [fault(where, f"{item['check']} needs the threshold '{n}'") for n in missing]


def _call(check: Check, evidence: Evidence, thresholds: Mapping[str, Any]) -> Result:
    """Call a check; one that raises, returns no result or takes longer than TIMEOUT_S is errored, never passed."""
    results: list[Result] = []

    def call() -> None:
        try:
            result = check(evidence, **thresholds)
            results.append(
                result if isinstance(result, Result) else Result("errored", why="the check returned no result")
            )
        except KeyError as error:
            results.append(Result("errored", why=str(error.args[0]) if error.args else "a value is missing"))
        except Exception as error:  # the error of a check is its outcome, and does not stop the others
            results.append(Result("errored", why=f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return results[0] if results else Result("errored", why=f"the check gave no answer within {TIMEOUT_S:.0f} s")


def _answer(item: ChecklistItem, evidence: Evidence, find: FindCheck) -> Result:
    if item.get("not_built"):
        return Result("errored", why=f"{NOT_BUILT}: {item['not_built']}")
    if item.get("sign_off"):
        return Result("pending", why=f"waits for the sign-off of the {item['sign_off']}")
    if not item.get("check"):  # of a plan that this version did not write
        return Result("errored", why="the plan has no check for it")
    return _call(find(item["check"]), evidence, item.get("with") or {})


def _acceptance(item: ChecklistItem, result: Result) -> str:
    """Who accepts by the plan, and why, that a result is inconclusive for this reason; empty without a statement."""
    statement = item.get("accepted", {}).get(result.acceptable) if result.outcome == "inconclusive" else None
    return f"{statement['who']}: {statement['why']}" if statement else ""


def judge(items: list[ChecklistItem], evidence: Evidence, find: FindCheck) -> list[Item]:
    """Evaluate every item on the evidence, in the order of the checklist."""
    evaluated = []
    for item in items:
        result = _answer(item, evidence, find)
        evaluated.append(
            Item(
                id=item["id"],
                ask=item["ask"],
                outcome=result.outcome,
                value=plain(result.value),
                bound=plain(result.bound),
                unit=result.unit,
                why=result.why,
                cause=result.cause,
                waivable=item.get("waivable", True),
                sign_off=item.get("sign_off"),
                evidence=result.evidence,
                relation="" if result.bound is None else result.relation,
                basis=result.basis,
                acceptable=result.acceptable,
                accepted_by=_acceptance(item, result),
            )
        )
    return evaluated
