"""What the documents of a release are made from: the frozen plan, the recorded evidence, and the judged items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

from pipeline.documents.readiness_score import Readiness, answer, readiness, sections_of
from pipeline.results import Evidence, digest
from pipeline.run_store.checklist import Judge
from pipeline.run_store.gate import Item
from pipeline.run_store.ledger import Entry
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState
from pipeline.supply_chain.provenance import Commit, Origin


class Inputs(TypedDict):
    """What the documents show that is neither in the plan nor measured in this phase; part of the evidence.

    `weights` is the digest of the candidate's weights, `files` are the other files of the payload. `training` are the
    values of the candidate's own config, which may differ from the plan's after an optimization. `data` are planning's
    measurements of the data. `waivers` are those in force when the documents were written.
    """

    run: str
    weights: str
    files: list[str]
    training: dict[str, Any]
    data: dict[str, Any]
    waivers: list[dict[str, str]]
    origin: Origin
    commit: Commit | None


def inputs_of(
    run: Run, entries: Sequence[Entry], state: RunState, config: Mapping[str, Any], planning: Mapping[str, Any]
) -> Inputs:
    """Return the inputs of a run whose finalization has begun, from its ledger, the candidate's config and planning."""
    return {
        "run": run.name,
        "weights": state.candidate["weights"] if state.candidate else "",
        "files": [],
        "training": training_values(config),
        "data": {name: planning[name] for name in ("quality", "slices", "groups", "times") if planning.get(name)},
        "waivers": [waiver.terms for waiver in state.valid_waivers("finalization")],
        "origin": origin_of(entries, state),
        "commit": None,
    }


def origin_of(entries: Sequence[Entry], state: RunState) -> Origin:
    """Return the entry of the ledger before the first start of finalization for the candidate.

    It stays the same where the phase is resumed or runs again, so that the documents do.
    """
    begun = {"phase": "finalization", "basis": state.basis("finalization")}
    started = [e["seq"] for e in entries if e["kind"] == "phase.started" and begun.items() <= e["data"].items()]
    before = entries[started[0] - 1 if started else -1]
    return {"seq": before["seq"], "hash": before["hash"], "time": before["time"]}


def training_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model was trained with: classes by name, and the settings that decide the result."""
    named = {name: (config.get(name) or {}).get("_target_") for name in ("model", "loss", "optimizer", "scheduler")}
    trainer, optimizer = config["trainer"], config["optimizer"]
    limits = ("max_epochs", "max_steps", "patience", "precision", "gradient_clip_val")
    settings = {
        "learning_rate": optimizer.get("lr"),
        "weight_decay": optimizer.get("weight_decay"),
        "batch_size": config["loader"]["batch_size"],
        **{name: trainer.get(name) for name in limits},
        "surgery": [next(iter(change)) for change in config.get("surgery") or ()],
    }
    return {name: value for name, value in {**named, **settings}.items() if value not in (None, [])}


@dataclass(frozen=True)
class TracedEvidence(Evidence):
    """Evidence that notes which of its values a check reads."""

    read: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        self.read.append(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.append(name)
        return super().get(name, default)


@dataclass(frozen=True)
class JudgedItem:
    """An item with its number in the checklist, its section, how it is satisfied, and the values that it rests on."""

    number: int
    item: Item
    section: str
    answer: str
    waiver: Mapping[str, str] | None
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Dossier:
    """The records that a release is documented from. `reads` are the names of the values that each check reads."""

    plan: Plan
    evidence: Mapping[str, Any]
    items: tuple[Item, ...]
    reads: Mapping[str, list[str]]

    @property
    def inputs(self) -> Inputs:
        inputs: Inputs = self.evidence["documents"]["inputs"]
        return inputs

    @property
    def card(self) -> Mapping[str, Any]:
        """What the owner declared in the plan."""
        return self.plan.config.get("plan") or {}

    @cached_property
    def judged(self) -> list[JudgedItem]:
        """The items before the approval, which comes after the documents are written."""
        sections = sections_of(self.plan.checklists["finalization"])
        waivers = {waiver["item"]: waiver for waiver in self.inputs["waivers"]}
        return [
            JudgedItem(
                number, item, sections.get(item.id, ""), answer(item, waivers), waivers.get(item.id),
                tuple(self.reads.get(item.id, ())),
            )
            for number, item in enumerate(self.items, 1)
            if not item.sign_off
        ]  # fmt: skip

    @cached_property
    def readiness(self) -> Readiness:
        waived = {waiver["item"] for waiver in self.inputs["waivers"]}
        return readiness(self.items, sections_of(self.plan.checklists["finalization"]), waived)

    def measurements(self, judged: JudgedItem) -> dict[str, Any]:
        """Return the values of the evidence that an item rests on."""
        return {name: self.evidence[name] for name in judged.reads if name in self.evidence}

    def evidence_digest(self, judged: JudgedItem) -> str:
        """Return one SHA-256 over the values that an item rests on, as canonical JSON."""
        return digest(self.measurements(judged))

    @property
    def records(self) -> list[object]:
        """Everything that a number in a document may come from."""
        facts = {key: value for key, value in self.evidence.items() if key != "documents"}
        items = [vars(item) for item in self.items]
        scores = [[section.score, section.items] for section in self.readiness.sections]
        numbers = [[judged.number for judged in self.judged], _counts(self.judged)]
        identity = [self.plan.digest, self.plan.revision]
        # A digest that is shown shortened may look like a number, such as 03e286188869.
        digests = [self.evidence_digest(judged) for judged in self.judged]
        return [self.plan.config, self.plan.checklists, self.plan.facts, facts, self.inputs, items, scores, numbers,
                identity, digests]  # fmt: skip


def _counts(judged: Iterable[JudgedItem]) -> dict[str, int]:
    answers = [item.answer for item in judged]
    return {name: answers.count(name) for name in dict.fromkeys(answers)}


def judge_items(plan: Plan, evidence: Evidence, judge: Judge) -> tuple[tuple[Item, ...], dict[str, list[str]]]:
    """Return the items of the last gate on this evidence, and which values each of them read."""
    items, reads = [], {}
    for planned in plan.checklists["finalization"]:
        traced = TracedEvidence(evidence.values, evidence.units, evidence.artifacts)
        items += judge([planned], traced)
        reads[planned["id"]] = sorted(set(traced.read) & set(evidence.values))
    return tuple(items), reads
