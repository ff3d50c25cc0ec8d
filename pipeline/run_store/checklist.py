"""Reading a checklist, binding its items to checks at load, and judging a phase's evidence by it.

A checklist is `items:` of `{id, ask, check | sign_off | not_built, with, waivable, needs}`. `check` names a function
`<subject>.<function>`, `with` its thresholds (may interpolate the config, as in `${task.target}`), `needs` the config
keys without which the item can never pass. Reading files and calling checks is all that happens here: the checks
themselves are handed in.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.results import Evidence, Result, plain
from pipeline.run_store.gate import Item

Check = Callable[..., Result]
FindCheck = Callable[[str], Check]

KEYS = ("id", "ask", "check", "sign_off", "not_built", "with", "waivable", "needs")
ANSWERS = ("check", "sign_off", "not_built")
TIMEOUT_S = 120.0

# What no edit of a checklist can take away: the questions that every other figure stands on, and their number.
INDISPENSABLE = {
    "planning": ("seeds_fixed", "splits_disjoint", "test_sealed"),
    "baseline": ("scored_on_validation", "checkpoint_identified"),
    "optimization": ("arms_compared_fairly", "chosen_on_validation"),
    "finalization": ("test_opened_once", "target_on_test", "owner_approval"),
}
RELEASE_QUESTIONS = 24


def read(path: Path, config: Mapping[str, Any], find: FindCheck) -> list[dict[str, Any]]:
    """The items of a checklist with their thresholds resolved against the config, as the plan freezes them.

    Raises UserError with every fault of the file: unknown keys, an item without an answer, a check that does not
    exist, thresholds that the check does not take or lacks.
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
        whole = OmegaConf.merge(OmegaConf.create(dict(config)), OmegaConf.load(path))
        resolved: Any = OmegaConf.to_container(whole, resolve=True)
        items: list[dict[str, Any]] = resolved["items"]
    except (OmegaConfBaseException, yaml.YAMLError, KeyError, ValueError, TypeError) as error:
        raise UserError(fault(path.name, "cannot be read as a checklist", got=str(error).splitlines()[0])) from error
    faults = [f for item in items for f in _faults(path.name, item, find)]
    ids = [str(item.get("id")) for item in items]
    faults += [
        fault(f"{path.name}:{i}", "stands twice in the checklist") for i in sorted({i for i in ids if ids.count(i) > 1})
    ]
    faults += _missing_faults(path, ids, items)
    if faults:
        raise UserError(*faults)
    return [plain({"waivable": True, "with": {}, **item}) for item in items]


def _missing_faults(path: Path, ids: list[str], items: list[dict[str, Any]]) -> list[str]:
    """What an edited checklist lacks of what makes its gate a gate."""
    missing = [i for i in INDISPENSABLE.get(path.stem, ()) if i not in ids]
    found = [fault(f"{path.name}:{i}", "is missing, and no configuration can remove it") for i in missing]
    if path.stem == "planning" and not missing and (ids[0] != "seeds_fixed" or items[0].get("waivable", True)):
        found.append(fault(f"{path.name}:seeds_fixed", "must come first and not be waivable"))
    if path.stem == "finalization" and len(items) != RELEASE_QUESTIONS:
        found.append(
            fault(path.name, "asks too few or too many questions", got=len(items), expected=str(RELEASE_QUESTIONS))
        )
    return found


def _faults(file: str, item: Mapping[str, Any], find: FindCheck) -> list[str]:
    where = f"{file}:{item.get('id', '?')}"
    found = [fault(where, "unknown key", got=k, among=KEYS) for k in item if k not in KEYS]
    found += [fault(where, f"'{k}' is missing") for k in ("id", "ask") if not item.get(k)]
    if sum(bool(item.get(k)) for k in ANSWERS) != 1:
        found.append(fault(where, "cannot be answered", expected="exactly one of " + ", ".join(ANSWERS)))
    if item.get("check"):
        found += _binding_faults(where, item, find)
    return found


def _binding_faults(where: str, item: Mapping[str, Any], find: FindCheck) -> list[str]:
    try:
        check = find(item["check"])
    except UserError as error:
        return [f"{where}: {message}" for message in error.faults]
    takes = {n: p for n, p in inspect.signature(check).parameters.items() if p.kind is p.KEYWORD_ONLY}
    given = item.get("with") or {}
    found = [
        fault(where, f"{item['check']} does not take this threshold", got=k, among=takes)
        for k in given
        if k not in takes
    ]
    required = [n for n, p in takes.items() if p.default is p.empty]
    return found + [fault(where, f"{item['check']} needs the threshold '{n}'") for n in required if n not in given]


def _call(check: Check, evidence: Evidence, thresholds: Mapping[str, Any]) -> Result:
    """The check's result; a check that raises, returns nothing, or outlives its time is errored, never passed."""
    answer: list[Result] = []

    def judge() -> None:
        try:
            result = check(evidence, **thresholds)
            answer.append(
                result if isinstance(result, Result) else Result("errored", why="the check returned no result")
            )
        except KeyError as error:
            answer.append(Result("errored", why=str(error.args[0]) if error.args else "a value is missing"))
        except Exception as error:  # whatever a check dies of is its outcome
            answer.append(Result("errored", why=f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=judge, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return answer[0] if answer else Result("errored", why=f"the check gave no answer within {TIMEOUT_S:.0f} s")


def _answer(item: Mapping[str, Any], evidence: Evidence, find: FindCheck) -> Result:
    if item.get("not_built"):
        return Result("errored", why=f"not built: {item['not_built']}")
    if item.get("sign_off"):
        return Result("pending", why=f"waits for the sign-off of the {item['sign_off']}")
    return _call(find(item["check"]), evidence, item["with"])


def judge(items: list[dict[str, Any]], evidence: Evidence, find: FindCheck) -> list[Item]:
    """Every item with its outcome on this evidence, in the checklist's order."""
    judged = []
    for item in items:
        result = _answer(item, evidence, find)
        judged.append(
            Item(
                id=item["id"],
                ask=item["ask"],
                outcome=result.outcome,
                value=plain(result.value),
                bound=plain(result.bound),
                unit=result.unit,
                why=result.why,
                cause=result.cause,
                waivable=item["waivable"],
                sign_off=item.get("sign_off"),
                evidence=result.evidence,
            )
        )
    return judged
