"""The documents of a release: every text is a function of the records, and every number in it is one of theirs."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.documents import deployment, gate_report, model_card
from pipeline.documents.completeness import CARD_SECTIONS, SHEET_SECTIONS, declared_faults, section_faults
from pipeline.documents.dossier import Dossier
from pipeline.documents.figures import NUMBER, figure, numbers_in, numbers_of, unproven_numbers
from pipeline.documents.measurement_tables import measurement, table
from pipeline.documents.readiness_score import readiness, sections_of
from pipeline.documents.write import recorded_dossier, recorded_texts, render, text_faults
from pipeline.results import Evidence, digest
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item, utc_today
from pipeline.run_store.run import Run, opened
from tests.check_helpers import judge, open_items, read_evidence, with_values
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[1]
OWNER = "Example Owner"
LATER = (utc_today() + timedelta(days=30)).isoformat()


def dossier_of(run: Run) -> Dossier:
    """What a stranger has: the plan, the evidence and the recorded items, read from disk."""
    evidence = Evidence.from_json(json.loads(run.inside("finalization", "evidence.json").read_text()))
    return recorded_dossier(plans.load(run), evidence, run.state().gates["finalization"].items)


def payload_text(run: Run, name: str) -> str:
    return run.inside("bundle", "payload", name).read_text()


# --- regeneration ----------------------------------------------------------------------------------------------------


def test_documents_are_a_function_of_the_records(finished: Run) -> None:
    """Rendered again from the files of the run, twice, each document is byte for byte that of the payload."""
    dossier = dossier_of(finished)
    texts = render(dossier)

    assert set(texts) == {
        "MODEL_CARD.md", "DATA_SHEET.md", "DEPLOYMENT.md", "LICENSES.md", "REPORT.md", "report.json",
    }  # fmt: skip
    assert texts == render(dossier) == {name: payload_text(finished, name) for name in texts}


def test_recorded_texts_leave_another_renderer_alone(finished: Run) -> None:
    """What other templates wrote is not compared with these."""
    body = json.loads(finished.inside("finalization", "evidence.json").read_text())
    body["values"]["documents"]["renderer"] = "0" * 64
    items = finished.state().gates["finalization"].items
    assert recorded_texts(plans.load(finished), Evidence.from_json(body), items) == {}


def test_text_faults_find_a_number_that_somebody_typed(finished: Run) -> None:
    """An edited figure is named with its line: it has no origin, and the records give another text."""
    dossier, card = dossier_of(finished), payload_text(finished, "MODEL_CARD.md")
    score = figure(dossier.evidence["test_score"]["value"])
    assert text_faults("MODEL_CARD.md", card, dossier) == []

    unproven, *lines = text_faults("MODEL_CARD.md", card.replace(f"**{score}**", "**0.9987**"), dossier)

    assert re.fullmatch(r"line \d+: 0.9987", unproven)
    assert any(line.startswith("written: ") and "0.9987" in line for line in lines)


def test_text_faults_accept_a_digest_that_looks_like_a_number(finished: Run) -> None:
    """The first digits of a digest may be `03e286188869`: it is on record, as every other digest is."""
    dossier = dossier_of(finished)
    rollback = next(judged for judged in dossier.judged if judged.item.id == "rollback")
    for seconds in range(10_000):
        evidence = {**dossier.evidence, "rollback": {**dossier.evidence["rollback"], "seconds": seconds}}
        changed = replace(dossier, evidence=evidence)
        if NUMBER.fullmatch(changed.evidence_digest(rollback)[:12]):
            break

    assert NUMBER.fullmatch(changed.evidence_digest(rollback)[:12])
    assert text_faults("REPORT.md", render(changed)["REPORT.md"], changed) == []


def test_verify_finds_an_edited_document(finished: Run, cli: Cli) -> None:
    """A number edited in the payload is found by `verify`, which renders the card again."""
    path = finished.inside("bundle", "payload", "MODEL_CARD.md")
    score = figure(read_evidence(finished, "finalization")["test_score"]["value"])
    path.write_text(path.read_text().replace(f"**{score}**", "**0.9987**"))

    code, out, _ = cli("verify", "digits")

    assert code == 3 and "bundle/payload/MODEL_CARD.md is not that of the other records" in out


# --- numbers ---------------------------------------------------------------------------------------------------------


@given(st.recursive(
    st.floats(allow_nan=True) | st.integers(-(10**12), 10**12) | st.text(max_size=20) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
@example({"_2": None})
def test_measurement_tables_show_only_numbers_of_the_record(value: Any) -> None:
    """Whatever is measured, its tables have no number that the measurement does not have."""
    lines = measurement({"it": value})
    assert unproven_numbers("\n".join(lines), numbers_of([{"it": value}])) == []


def test_numbers_in_ignores_digests_and_names() -> None:
    """Digits inside of words, digests and versions of files are no figures; values in any notation are."""
    assert numbers_in("p99 `47772fa7a094` x2 1,077 rows, 6.676e-06 and -0.5 (95 %)") == [
        "1,077", "6.676e-06", "0.5", "95",
    ]  # fmt: skip
    assert unproven_numbers("a 3\nb 4", {"3"}) == ["line 2: 4"]


def test_table_escapes_what_is_not_ours() -> None:
    """A name with Markdown, HTML or a cell border in it shows as itself."""
    lines = table(["a|b"], [["<script>|[x](y)"]])
    html = MarkdownIt().enable("table").render("\n".join(lines))
    assert "<script>" not in html and "<a " not in html and html.count("<td>") == 1


# --- the card --------------------------------------------------------------------------------------------------------


def test_model_card_has_front_matter_and_nine_sections(finished: Run) -> None:
    """The front matter is YAML with the test score of the evidence; the sections are those of Mitchell et al."""
    card = payload_text(finished, "MODEL_CARD.md")
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    result = metadata["model-index"][0]["results"][0]

    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("onnx", "tabular-classification")
    assert metadata["license"] == "apache-2.0" and "| Licence | Apache-2.0 |" in body
    assert "**Licence of the model.** Apache-2.0" in payload_text(finished, "DATA_SHEET.md")
    assert result["metrics"][0]["value"] == read_evidence(finished, "finalization")["test_score"]["value"]
    assert {"type", "name"} <= set(result["task"]) and {"type", "name"} <= set(result["dataset"])
    assert re.findall(r"^## (.+)$", body, re.MULTILINE) == list(CARD_SECTIONS)
    assert section_faults(card, CARD_SECTIONS, "card") == []
    assert section_faults(payload_text(finished, "DATA_SHEET.md"), SHEET_SECTIONS, "sheet") == []


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        (None, {"license": "unknown"}),
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("GPL-3.0-only", {"license": "gpl-3.0"}),
        ("MIT OR Apache-2.0", {"license": "other", "license_name": "mit-or-apache-2.0"}),
        ("LicenseRef-Proprietary", {"license": "other", "license_name": "licenseref-proprietary"}),
    ],
)
def test_model_card_gives_licence_in_words_of_the_hub(
    finished: Run, licence: str | None, words: dict[str, str]
) -> None:
    """The Hub has identifiers of its own; what it does not know is `other`, with a name."""
    dossier = dossier_of(finished)
    config = copy.deepcopy(dossier.plan.config)
    config["plan"]["license"] = licence
    front = yaml.safe_load(model_card.front_matter(replace(dossier, plan=replace(dossier.plan, config=config))))

    assert {key: value for key, value in front.items() if key.startswith("license")} == words


def test_model_card_shows_what_is_not_measured(finished: Run) -> None:
    """Every item that no measurement answered is in the caveats with its question."""
    dossier = dossier_of(finished)
    caveats = payload_text(finished, "MODEL_CARD.md").partition("## Caveats")[2]
    unanswered = [judged.item for judged in dossier.judged if judged.answer != "automatic"]
    assert unanswered and all(item.ask.replace("_", "\\_") in caveats for item in unanswered)


def test_model_card_escapes_the_words_of_the_owner(finished: Run) -> None:
    """What the owner declares cannot add a heading, a link, HTML or a row to the card."""
    dossier = dossier_of(finished)
    hostile = "# Approved [here](http://x) <img src=y> | 1\n## Metrics"
    config = copy.deepcopy(dossier.plan.config)
    config["plan"] |= {"purpose": hostile, "risks": [hostile], "owner": hostile, "population": hostile}
    plan = plans.Plan(1, config, dossier.plan.checklists, dossier.plan.facts)

    text = model_card.model_card(Dossier(plan, dossier.evidence, dossier.items, dossier.reads))

    html = MarkdownIt().enable("table").render(text.split("---\n", 2)[2])
    assert "<img" not in html and 'href="http://x"' not in html
    assert html.count("<h2>") == len(CARD_SECTIONS) and section_faults(text, CARD_SECTIONS, "card") == []


def test_documents_render_without_any_measurement(finished: Run) -> None:
    """Of a phase that measured nothing but the documents themselves, every document still says what is missing."""
    dossier = dossier_of(finished)
    kept = {name: dossier.evidence[name] for name in ("documents", "supply_chain")}
    items = tuple(Item(i.id, i.ask, "errored", why="not measured") for i in dossier.items)
    bare = Dossier(dossier.plan, kept, items, {})

    texts = render(bare)

    assert "was not scored on the test rows" in texts[model_card.FILE]
    assert all(texts[name].startswith(("#", "---", "{")) for name in texts)
    assert json.loads(texts[gate_report.FILE])["readiness"]["score"] == 0


# --- report and score ------------------------------------------------------------------------------------------------


def test_gate_report_has_every_item_before_the_approval(finished: Run) -> None:
    """The report has the outcomes of the gate, and digests that anybody can compute from its measurements."""
    report = json.loads(payload_text(finished, "report.json"))
    items = [item for item in finished.state().gates["finalization"].items if not item.sign_off]

    assert len(report["items"]) == 23
    assert [(i["id"], i["outcome"], i["why"]) for i in report["items"]] == [(i.id, i.outcome, i.why) for i in items]
    for item in report["items"]:
        evidence = {name: report["measurements"][name] for name in item["evidence"]["names"]}
        assert item["evidence"]["sha256"] == digest(evidence), item["id"]


AUTOMATIC = Item("a", "?", "passed")
ATTESTED = Item("b", "?", "passed", basis="attested")
SMALL = Item("c", "?", "inconclusive", acceptable="small_sample", accepted_by="Ada: few rows")
WAIVED = Item("d", "?", "failed")
IDLE = Item("e", "?", "not_applicable", why="no classes")
SIGNED = Item("f", "?", "pending", sign_off="owner")


@pytest.mark.parametrize(
    ("sections", "score", "weakest"),
    [
        ({"a": "x"}, 1.0, ("x",)),
        ({"a": "x", "b": "x"}, 0.75, ("x",)),
        ({"a": "x", "c": "y"}, 0.5, ("y",)),
        ({"a": "x", "d": "y", "b": "z"}, 0.0, ("y",)),
        ({"a": "x", "e": "y"}, 1.0, ("x",)),
        ({"a": "x", "f": "y"}, 1.0, ("x",)),
        ({"b": "x", "c": "y"}, 0.5, ("x", "y")),
        ({}, None, ()),
    ],
)
def test_readiness_is_that_of_the_weakest_section(
    sections: dict[str, str], score: float | None, weakest: tuple[str, ...]
) -> None:
    """Means within a section, the minimum over sections; what does not apply and the approval do not count."""
    found = readiness([AUTOMATIC, ATTESTED, SMALL, WAIVED, IDLE, SIGNED], sections, waived={"d"})
    assert (found.score, found.weakest) == (score, weakest)


@given(
    st.lists(
        st.tuples(st.sampled_from("xyz"), st.sampled_from([AUTOMATIC, ATTESTED, SMALL, WAIVED, IDLE])), max_size=12
    )
)
def test_readiness_never_exceeds_any_section(rows: list[tuple[str, Item]]) -> None:
    """No section is below the score, and a further failed item never raises it."""
    from dataclasses import replace

    items = [replace(item, id=str(number)) for number, (_, item) in enumerate(rows)]
    sections = {str(number): section for number, (section, _) in enumerate(rows)}
    found = readiness(items, sections)
    assert all(s.score is None or s.score >= (found.score or 0) for s in found.sections)
    worse = readiness([*items, replace(WAIVED, id="more")], {**sections, "more": "x"})
    assert worse.score is not None and worse.score <= (1 if found.score is None else found.score)


def test_checklist_assigns_six_sections(finished: Run) -> None:
    """Each of the 24 items is in one of the six sections of the last gate."""
    sections = sections_of(plans.load(finished).checklists["finalization"])
    assert len(sections) == 24
    assert list(dict.fromkeys(sections.values())) == [
        "data_honesty", "quality", "robustness", "artifact", "supply_chain", "operation",
    ]  # fmt: skip


def test_readiness_is_shown_in_status_and_report(finished: Run, cli: Cli) -> None:
    """`status --gate finalization`, the page and the report in the payload have the same score."""
    from pipeline.reporting.page import write_report

    report = json.loads(payload_text(finished, "report.json"))["readiness"]
    code, out, _ = cli("status", "digits", "--gate", "finalization")
    page = re.sub(r"\s+", " ", write_report(finished.path).read_text())

    assert code == 0 and f"readiness: {figure(report['score'])}, the weakest section: " in out
    assert f"Readiness: <b>{figure(report['score'])}</b>" in page
    assert all(f"{name.replace('_', ' ')} {figure(s)}" in out for name, s in report["sections"].items())


# --- the item ---------------------------------------------------------------------------------------------------------


def test_documents_passes_attested(finished: Run) -> None:
    """Complete documents pass; the truth of the owner's sentences is the owner's statement."""
    item = judge("operation.documents", read_evidence(finished, "finalization"))
    assert (item.outcome, item.basis) == ("passed", "attested") and re.match(r"\d+ numbers of card", item.why)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"missing": ["plan.risks"]}, "plan.risks is not declared"),
        ({"placeholders": ["plan.purpose: TODO"]}, "placeholder in plan.purpose: TODO"),
        ({"sections": ["MODEL_CARD.md lacks the section Metrics"]}, "lacks the section Metrics"),
        ({"unproven": ["MODEL_CARD.md, line 3: 0.99"]}, "a number is not on record: MODEL_CARD.md, line 3: 0.99"),
        ({"different": ["REPORT.md"]}, "REPORT.md is not what the records give"),
    ],
)
def test_documents_fails_for_each_fault(finished: Run, wrong: dict[str, Any], says: str) -> None:
    """A fault of any kind closes the item and is named."""
    values = read_evidence(finished, "finalization")
    item = judge("operation.documents", with_values(values, documents={**values["documents"], **wrong}))
    assert item.outcome == "failed" and says in item.why


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ({"purpose": "TODO: write this later"}, "plan.purpose: TODO"),
        ({"risks": ["<what can go wrong>"]}, "plan.risks: <what can go wrong>"),
        ({"population": "to be determined by the team"}, "plan.population: to be determined"),
        ({"assumptions": []}, "plan.assumptions"),
        ({"out_of_scope": "None"}, "plan.out_of_scope has fewer than 3 words"),
    ],
)
def test_declared_faults_find_empty_words(finished: Run, card: dict[str, Any], says: str) -> None:
    """A field that is empty, nearly so, or a placeholder is named by its key."""
    declared = plans.load(finished).config["plan"]
    assert declared_faults(declared) == ([], [])
    missing, placeholders = declared_faults({**declared, **card})
    assert [*missing, *placeholders] == [says]


def test_section_faults_find_missing_empty_and_swapped_sections() -> None:
    """A section that is missing, has no content or stands elsewhere is named."""
    text = "## B\n\nb\n## A\n\n## D\nd\n"
    assert section_faults(text, ("A", "B", "C"), "it") == [
        "it lacks the section C", "it has an empty section A", "it has its sections in another order",
    ]  # fmt: skip


# --- deployment ------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_deployment_has_commands_that_work(finished: Run, cli: Cli) -> None:
    """Each command of a released bundle's instructions does what it says, in the folder of the file."""
    with opened(finished) as ledger:
        for item in open_items(finished):
            waiver = {
                "phase": "finalization",
                "item": item.id,
                "who": OWNER,
                "why": "for a rehearsal",
                "expires": LATER,
            }
            ledger.append("waiver", waiver)
    assert (
        cli("approve", "digits", "--who", "Example Reviewer")[0] == 0 and cli("phase=auto", "run.name=digits")[0] == 0
    )
    payload = finished.inside("bundle", "payload")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    blocks = re.findall(r"```sh\n(.*?)```", (payload / "DEPLOYMENT.md").read_text(), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.strip().splitlines()]
    ours = [
        c
        for c in commands
        if c[0] == "python" and c[1:3] != ["-m", "pip"] and "rows.csv" not in c and "rows.json" not in c
    ]

    assert ["python", "verify.py"] in ours and ours[-1][3] == "rollback"
    for command in ours:
        done = subprocess.run(
            [sys.executable, *command[1:]], cwd=payload, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert finished.state().released is None


def test_deployment_pins_what_is_installed(finished: Run) -> None:
    """The versions to install are those that the model was tested with."""
    from importlib.metadata import version

    text = payload_text(finished, "DEPLOYMENT.md")
    assert f"pip install numpy=={version('numpy')} onnxruntime=={version('onnxruntime')}" in text


def test_deployment_quotes_names_for_the_shell(finished: Run) -> None:
    """A name with characters that a shell expands stays one word, and expands to nothing."""
    dossier = dossier_of(finished)
    config = copy.deepcopy(dossier.plan.config)
    config["plan"]["owner"] = 'Ada "$HOME" `id` \\'
    plan = plans.Plan(1, config, dossier.plan.checklists, dossier.plan.facts)
    text = deployment.deployment(Dossier(plan, dossier.evidence, dossier.items, dossier.reads))
    line = next(line for line in text.splitlines() if " rollback " in line)
    assert config["plan"]["owner"] in shlex.split(line)
