"""The frozen plan, from which later phases work, and the difference between two of its revisions.

`plan/<revision>.yaml` holds the resolved config, the checklists with their thresholds, and the facts that planning
measured (splits, data digests, threads, budget, environment, trusted packages). Its digest is recorded in the ledger.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from pipeline import safe_yaml
from pipeline.errors import Refused, UserError, fault
from pipeline.escaping import hidden_characters
from pipeline.results import digest, exact, tagged
from pipeline.run_store import files
from pipeline.run_store.ledger import SCHEMA
from pipeline.run_store.records import ChecklistItem
from pipeline.run_store.run import Run
from pipeline.run_store.state import MAX_ROUNDS, RunState

GOALPOSTS = ("seed", "plan", "task", "data", "phases")
NOT_IN_PLAN = ("phase", "run", "trust", "env")
PLACES = ("executor",)  # where something is computed changes no result, and so no plan
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: what Python makes of a byte that is not UTF-8


@dataclass(frozen=True)
class Plan:
    """One revision of a run's plan; `digest` covers everything but the revision number."""

    revision: int
    config: dict[str, Any]
    checklists: dict[str, list[ChecklistItem]]
    facts: dict[str, Any]

    @property
    def digest(self) -> str:
        return digest(tagged({"config": self.config, "checklists": self.checklists, "facts": self.facts}))

    @property
    def seed(self) -> int:
        return int(self.config["seed"])


def recorded_facts(plan: Plan) -> dict[str, Any]:
    """What the entry of a plan says of its content: the fold over the ledger reads no plan file."""
    phases, card = plan.config.get("phases") or {}, plan.config.get("plan") or {}
    return {
        "questions": {phase: len(items) for phase, items in plan.checklists.items()},
        "rounds": (phases.get("optimization") or {}).get("rounds", MAX_ROUNDS),
        "then": {phase: settings["next"] for phase, settings in phases.items() if "next" in settings},
        "people": {"owner": card.get("owner"), "approvers": list(card.get("approvers") or ())},
        **({"env": plan.facts["env"]} if plan.facts.get("env") else {}),
        **({"goal": goal} if (goal := (phases.get("optimization") or {}).get("goal", "quality")) != "quality" else {}),
    }


def write(run: Run, plan: Plan) -> Path:
    """Write the plan to its file in the run directory and return the path.

    Raises UserError for a text that no file can hold, such as a class name from the name of a folder that is not UTF-8.
    """
    if faults := _undecodable({"config": plan.config, "facts": plan.facts}):
        raise UserError(*faults)
    path = run.inside("plan", f"{plan.revision}.yaml")
    body = {
        "schema": SCHEMA,
        "revision": plan.revision,
        "digest": plan.digest,
        "config": plan.config,
        "checklists": plan.checklists,
        "facts": plan.facts,
    }
    files.write_text(path, _format_yaml(exact(body)))
    return path


def _undecodable(value: object, key: str = "") -> list[str]:
    """Return a message for each text that is not Unicode, with its dotted key."""
    if isinstance(value, Mapping):
        inner = [(f"{key}.{name}" if key else str(name), part) for name, part in value.items()]
        return [
            *_undecodable([*value], key),
            *(message for name, part in inner for message in _undecodable(part, name)),
        ]
    if isinstance(value, list | tuple):
        return [message for part in value for message in _undecodable(part, key)]
    if not isinstance(value, str) or value.isascii() or not _SURROGATE.search(value):
        return []
    expected = "text in Unicode; rename the file or folder that it comes from"
    return [fault(key.partition(".")[2], "has a byte that is not UTF-8", got=value, expected=expected)]


def _format_yaml(body: dict[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """A dumper that escapes the character NEL, which PyYAML writes in single quotes and then reads as a space."""

    def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)

    Dumper.add_representer(str, represent_text)
    text = str(yaml.dump(body, Dumper=Dumper, sort_keys=False, allow_unicode=True))
    if not hidden_characters(text.replace("\n", "")):
        return text
    # A person reads the file in an editor, which would show a bidirectional or invisible character as something else.
    return str(yaml.dump(body, Dumper=Dumper, sort_keys=False, allow_unicode=False))


@lru_cache(maxsize=4)
def _read(text: str, place: str) -> Any:
    """The content of a plan file. A phase or a signature asks for the same plan many times, and to read it takes 60 ms.

    Each time, the file is read anew, and what it says is compared with the ledger.
    """
    return safe_yaml.load(text, place)


def load(run: Run, state: RunState | None = None, revision: int | None = None) -> Plan:
    """Read the newest plan, or one revision. Raises Refused when the file is not what the ledger recorded."""
    import yaml

    state = state or run.state()
    known = {r["revision"]: r for r in state.revisions}
    if not known:
        do = f"python -m pipeline phase=planning {run.overrides_for('planning', state)}"
        raise UserError(fault(run.name, "there is no plan yet", do=do))
    record = known.get(revision or max(known))
    if record is None:
        raise UserError(fault("revision", "there is no such plan", got=revision, among=[str(k) for k in known]))
    path = run.path / record["file"]
    try:
        body = deepcopy(_read(path.read_text(), str(path)))  # a caller may change its plan
        plan = Plan(record["revision"], body["config"], body["checklists"], body["facts"])
        intact = plan.digest == record["digest"]
    except UserError:
        raise
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        intact = False
    if not intact:
        again = f"python -m pipeline phase=planning {run.overrides_for('planning', state)}"
        do = f"restore {path} or plan again: {again}"
        raise Refused(
            fault(
                str(path), "is not the plan that the ledger recorded", expected=f"digest {record['digest'][:12]}", do=do
            )
        )
    return plan


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Every dotted key whose value differs, with (old, new); a missing key counts as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        changes: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*old, *new]):
            changes |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return changes
    return {} if _same(old, new) else {prefix: (old, new)}


def _same(old: Any, new: Any) -> bool:
    """Whether two values are equal: NaN is NaN, 1 is 1.0, but neither is true, and no text is a number."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return not differences(old, new)
    if isinstance(old, bool) or isinstance(new, bool):
        return old is new
    return bool(old == new) or (isinstance(old, float) and isinstance(new, float) and old != old and new != new)


def changes_from(plan: Plan, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The config keys that differ from the plan, once the values that planning found stand for `auto`."""
    return changed_config(plan.config, with_resolved(config, plan.facts))


def with_resolved(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with the values that planning found for the keys that are `auto` and follow from the data."""
    resolved: Any = {**config}
    for key, value in facts.get("resolved", {}).items():
        resolved = _replace_auto(resolved, key.split("."), value)
    return cast(dict[str, Any], resolved)


def _replace_auto(node: Any, names: Sequence[str], value: object) -> Any:
    """Return a copy of the node with the value at these names, or the node itself where it is not `auto` there."""
    if not names:
        return value if isinstance(node, str) and node == "auto" else node
    name, *rest = names
    if isinstance(node, Mapping) and name in node:
        return {**node, name: _replace_auto(node[name], rest, value)}
    if isinstance(node, list) and name.isdigit() and int(name) < len(node):
        return [_replace_auto(item, rest, value) if i == int(name) else item for i, item in enumerate(node)]
    return node


def changed_config(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The config keys that differ between two configs, without those that change no plan (`NOT_IN_PLAN`, `PLACES`)."""
    inside = ({k: v for k, v in config.items() if k not in (*NOT_IN_PLAN, *PLACES)} for config in (old, new))
    return differences(exact(next(inside)), exact(next(inside)))


def moved_goalposts(changed: Mapping[str, Any]) -> list[str]:
    """The changed keys that only an explicit `phase=planning` may change: seed, targets, limits, splits, thresholds."""
    return [key for key in changed if key.split(".", 1)[0] in GOALPOSTS]
