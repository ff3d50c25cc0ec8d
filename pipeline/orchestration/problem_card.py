"""The fields of the problem card that the owner has not filled, ready to paste into an experiment file or a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What belongs into each field. The last gate requires the last two as well.
CARD: dict[str, Any] = {
    "purpose": "what the model decides, and for whom",
    "population": "whom or what the rows represent",
    "assumptions": ["what must be true for the scores to be meaningful"],
    "risks": ["what a wrong prediction can do, and to whom"],
    "limits": {"size_mb": 100},
    "owner": "the person who is responsible for the model",
    "intended_use": "where its predictions may be used",
    "out_of_scope": "where they must not be used",
}
RECOMMENDED = ("intended_use", "out_of_scope")


def is_filled(value: object) -> bool:
    """Whether the owner filled a field of the problem card; in a section, any field of it."""
    return any(v is not None for v in value.values()) if isinstance(value, Mapping) else bool(value)


def missing_fields(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not filled, with what belongs into them; none where only recommended ones are missing."""
    missing = {name: example for name, example in CARD.items() if not is_filled(plan[name])}
    return missing if set(missing) - {*RECOMMENDED} else {}


def as_yaml(fields: Mapping[str, Any]) -> str:
    """The fields as the section of an experiment file."""
    import yaml

    return yaml.safe_dump({"plan": dict(fields)}, sort_keys=False, width=120, allow_unicode=True).rstrip()


def as_overrides(fields: Mapping[str, Any]) -> str:
    """The fields as overrides of a command line, quoted for the shell and for Hydra."""
    overrides = []
    for name, value in fields.items():
        if isinstance(value, dict):
            overrides += [f"plan.{name}.{key}={inner}" for key, inner in value.items()]
        elif isinstance(value, list):
            overrides.append(f"""'plan.{name}=["{'", "'.join(value)}"]'""")
        else:
            overrides.append(f"""'plan.{name}="{value}"'""")
    return " ".join(overrides)


def request(plan: Mapping[str, Any], run: str) -> str:
    """What to tell the owner whose card is not complete, with both forms; empty where it is. `run` names the run."""
    fields = missing_fields(plan)
    if not fields:
        return ""
    required = ", ".join(name for name in fields if name not in RECOMMENDED)
    recommended = ", ".join(name for name in fields if name in RECOMMENDED)
    later = f" and {recommended}, which the last gate requires" if recommended else ""
    return (
        f"planning: the problem card lacks {required}, without which the planning gate stays closed{later};\n"
        f"write this into the experiment file, in your own words:\n{as_yaml(fields)}\n"
        f"or: python -m pipeline phase=planning {run} {as_overrides(fields)}"
    )
