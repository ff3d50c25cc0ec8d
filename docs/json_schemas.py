"""The JSON schemas of `--json` and of diagnosis.json, from the types that the code itself uses: `docs/schemas/`."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

from pipeline.commands.checklist import ChecklistAnswer
from pipeline.commands.diff import DiffAnswer
from pipeline.commands.explain import ExplainAnswer
from pipeline.commands.rollback import Rollback
from pipeline.commands.verify import VerifyAnswer
from pipeline.drift.compare import Comparison as DriftComparison
from pipeline.drift.compare import Power
from pipeline.drift.score import LiveScore
from pipeline.repair.diagnosis_record import DiagnosisRecord
from pipeline.reporting.ranking import RankedRun
from pipeline.results import PHASES
from pipeline.run_store.gate import Item, Waiver
from pipeline.run_store.next_step import Alternative
from pipeline.run_store.records import BranchRecord, ReleaseRecord, RollbackRecord
from pipeline.search.result import SearchRecord

Schema = dict[str, Any]
VERSIONS = {
    name: 1
    for name in (
        "status", "ranking", "diagnosis", "preflight", "drift", "compare", "rollback", "explain", "checklist", "verify",
        "diff", "search",
    )
}  # fmt: skip
TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": TEXT}
WHOLE: Schema = {"type": "integer"}
TRUTH: Schema = {"type": "boolean"}
# JSON has no NaN: what is not finite is written by its name.
NUMBER: Schema = {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]}
PLAIN: dict[Any, Schema] = {str: TEXT, int: WHOLE, bool: TRUTH, float: NUMBER, type(None): {"type": "null"}}


def schemas() -> dict[str, str]:
    """Return the text of every schema, by the name of its file."""
    by_name = {
        "status": status(),
        "ranking": {"description": "-m ... --json: the runs of a sweep, best first", **list_of(of(RankedRun))},
        "diagnosis": diagnosis(),
        "preflight": preflight(),
        "drift": drift(),
        "compare": compare(),
        "rollback": rollback(),
        "explain": answer(
            "explain", ExplainAnswer, "explain RUN [CHECK] --json: checks with value, bound and what to do"
        ),
        "checklist": answer("checklist", ChecklistAnswer, "checklist RUN --json: every check of each gate"),
        "verify": answer("verify", VerifyAnswer, "verify RUN --json: whether records and files are as recorded"),
        "diff": answer("diff", DiffAnswer, "diff A B --json: in which keys two runs differ"),
        "search": search(),
    }
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {
        f"{name}.json": json.dumps(
            {"$schema": dialect, "$id": f"urn:fivegate:{name}:{VERSIONS[name]}", **schema}, indent=2, ensure_ascii=False
        )
        + "\n"
        for name, schema in by_name.items()
    }


# --- from types ------------------------------------------------------------------------------------------------------


def of(kind: Any) -> Schema:
    """Return the schema of a type: TypedDicts, dataclasses, named tuples, lists, mappings, literals, unions."""
    if kind in PLAIN:
        return PLAIN[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (NotRequired, Required):
        return of(arguments[0])
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return any_of(*map(of, arguments))
    if is_typeddict(kind) or is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = get_type_hints(kind, include_extras=True)
        # The class knows nothing of a NotRequired in an annotation that is text, as `annotations` makes it.
        left_out = frozenset(key for key, part in hints.items() if get_origin(part) is NotRequired)
        optional = getattr(kind, "__optional_keys__", frozenset()) | left_out
        return of_object({key: of(part) for key, part in hints.items()}, optional, closed=False)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return list_of(of(arguments[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": of(arguments[1])}
    assert kind is Any or kind is object, kind
    return {}


def any_of(*options: Schema) -> Schema:
    """Return the schema of one of several, without an `anyOf` inside another."""
    flat = [inner for option in options for inner in option.get("anyOf", [option])]
    return {"anyOf": flat}


def of_object(properties: Mapping[str, Schema], optional: frozenset[str] = frozenset(), closed: bool = True) -> Schema:
    required = [key for key in properties if key not in optional]
    schema: Schema = {"type": "object", "properties": {**properties}, "required": required}
    return {**schema, "additionalProperties": False} if closed else schema


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def nullable(schema: Schema) -> Schema:
    return any_of(schema, {"type": "null"})


def version(name: str) -> Schema:
    return {"const": VERSIONS[name]}


# --- the documents ---------------------------------------------------------------------------------------------------


def answer(name: str, kind: type, about: str) -> Schema:
    """Return the schema of a command's answer, whose type names all that it prints."""
    schema = of(kind)
    closed = {**schema, "properties": {**schema["properties"], "schema": version(name)}, "additionalProperties": False}
    return {"description": about, **closed}


def item(**more: Schema) -> Schema:
    """One check with its outcome."""
    return of_object({**of(Item)["properties"], **more})


def next_step() -> Schema:
    """What comes next, with its command."""
    parts = {"phase": nullable(TEXT), "why": TEXT, "command": TEXT, "alternatives": list_of(of(Alternative))}
    return of_object(parts)


def rollback() -> Schema:
    record = of(Rollback)
    properties = {"schema": version("rollback"), "run": TEXT, **record["properties"], "next": next_step()}
    optional = frozenset(record["properties"]) - frozenset(record["required"])
    about = "rollback RUN --json: the release or the candidate that was given up, and what is in its place"
    return {"description": about, **of_object(properties, optional)}


def search() -> Schema:
    record = of(SearchRecord)
    properties = {**record["properties"], "schema": version("search"), "run": TEXT}
    properties["next"] = of_object({"command": TEXT})
    about = "-m hparams_search=NAME --json: the trials of a search, and what fresh seeds say of the best of them"
    return {"description": about, **of_object(properties, frozenset(record["properties"]) - {"schema"})}


def status() -> Schema:
    phases = {phase: list_of(item(label=TEXT)) for phase in PHASES}
    one = of_object(
        {
            "schema": version("status"),
            "run": TEXT,
            "entries": WHOLE,
            "head": TEXT,
            "revision": nullable(WHOLE),
            "round": WHOLE,
            "branch": nullable(of(BranchRecord)),
            "gates": of_object({phase: TEXT for phase in PHASES}),
            "items": of_object(phases, optional=frozenset(PHASES)),
            "waivers": list_of(of(Waiver)),
            "released": nullable(of(ReleaseRecord)),
            "rolled_back": nullable(
                of_object({"seq": WHOLE, **of(RollbackRecord)["properties"]}, frozenset({"candidate", "subject"}))
            ),
            "next": next_step(),
        }
    )
    about = "status [RUN] --json, and phase=... --json: the state of a run; without RUN a list of all"
    return {
        "description": about,
        "$defs": {"run": one},
        "anyOf": [{"$ref": "#/$defs/run"}, list_of({"$ref": "#/$defs/run"})],
    }


def diagnosis() -> Schema:
    """diagnosis.json of a run, and of `diagnose`, which adds what was understood and the other runs of the log."""
    record = of(DiagnosisRecord)
    open_object: Schema = {"type": "object"}
    more = {"understood": nullable(open_object), "runs": list_of(open_object), "differences": TEXTS}
    properties = {**record["properties"], "schema": version("diagnosis"), **more}
    about = "diagnosis.json, and diagnose PATH --json: symptoms, ranked causes, fixes, experiments"
    return {"description": about, **record, "properties": properties}


def preflight() -> Schema:
    properties = {
        "schema": version("preflight"),
        "model": TEXT,
        "data": TEXT,
        "inferred": TEXTS,
        "messages": TEXTS,
        "items": list_of(item(phase=TEXT)),
        "ready": TRUTH,
        "seconds": NUMBER,
    }
    return {"description": "preflight MODEL DATA --json: the checks before training", **of_object(properties)}


def drift() -> Schema:
    properties = {
        "schema": version("drift"),
        "drifted": TRUTH,
        "live_rows": WHOLE,
        "comparison": of(DriftComparison),
        "score": nullable(of(LiveScore)),
        "power": nullable(of(Power)),
        "plot": nullable(TEXT),
    }
    return {
        "description": "drift BUNDLE DATA --json: live rows against the reference of a release",
        **of_object(properties),
    }


def compare() -> Schema:
    number = {"type": ["number", "null"]}
    arm = of_object({"name": TEXT, "mean": number})
    properties = {
        "schema": version("compare"),
        "answer": {"enum": ["better", "not shown", "worse"]},
        **{name: number for name in ("effect", "low", "high", "p", "noise_floor")},
        "metric": TEXT,
        "greater_is_better": TRUTH,
        "a": arm,
        "b": arm,
        "basis": TEXT,
        "pairs": list_of(of_object({"seed": {"type": ["integer", "string", "null"]}, "a": number, "b": number})),
        "notes": TEXTS,
    }
    return {"description": "compare A B --json: whether B is better than A", **of_object(properties)}
