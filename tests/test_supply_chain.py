"""The supply chain of a release: distributions, licences, vulnerabilities, bill of materials, provenance."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.run_store.gate import Item
from pipeline.run_store.run import Run
from pipeline.supply_chain.bill_of_materials import ModelFacts, bill_of_materials, schema_faults
from pipeline.supply_chain.distributions import Component, components, licence_of
from pipeline.supply_chain.measure import measure
from pipeline.supply_chain.provenance import commit_of, lock_digest
from pipeline.supply_chain.vulnerabilities import audit
from tests.check_helpers import judge

MODEL = ModelFacts(
    name="digits", weights="e" * 64, task="classification", architecture="pipeline.models.mlp.MLP",
    datasets=["forms"], metrics=[("accuracy", "0.97", "0.95", "0.98", "test")], users="the sorting desk",
    use_cases=["read a digit"], limitations=["letters"], risks=["a wrong desk"], time=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip
BOUNDS = {"licences": ["MIT", "Apache-2.0", "BSD-3-Clause"], "max_vulnerabilities": 0}


def install(folder: Path, name: str, version: str = "1.0", *needs: str, **fields: str) -> None:
    """Write the metadata of a distribution, as pip leaves it."""
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in fields.items()]
    lines += [f"Requires-Dist: {need}" for need in needs]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("\n".join(lines) + "\n\n")
    (info / "top_level.txt").write_text(name.replace("-", "_"))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of distributions: what serves, what trains, and a tool that does neither."""
    folder = tmp_path / "site-packages"
    install(folder, "numpy", "2.0", License_Expression="BSD-3-Clause")
    install(folder, "onnxruntime", "1.31", "numpy>=1", "protobuf", 'coloredlogs; extra == "log"', License="MIT License")
    install(folder, "protobuf", "7.0", Classifier="License :: OSI Approved :: BSD License")
    install(folder, "fivegate", "0.1", "numpy", "torch; python_version > '3'", License_Expression="Apache-2.0")
    install(folder, "torch", "2.13+cpu", License_Expression="Apache-2.0 AND MIT")
    install(folder, "linter", "9.0", License="GPL-3.0-only")
    install(folder, "coloredlogs", "1.0")
    return folder


def found(site: Path, *imported: str) -> list[Component]:
    return components([site], imported)


def judged(site: Path, database: Path | None = None, **bounds: Any) -> Item:
    """The item `supply_chain` as judged on the distributions of a folder."""
    chain, _ = measure(MODEL, found(site), str(database) if database else None)
    return judge("supply.supply_chain", {"supply_chain": chain}, **{**BOUNDS, **bounds})


# --- distributions and licences --------------------------------------------------------------------------------------


def test_components_are_what_serves_and_what_trains(site: Path) -> None:
    """Dependencies are followed, those of extras are not; what was neither needed nor imported is left out."""
    scopes = {c.name: c.scope for c in found(site)}
    assert scopes == {
        "numpy": "serving", "onnxruntime": "serving", "protobuf": "serving",
        "fivegate": "training", "torch": "training",
    }  # fmt: skip
    assert "linter" in {c.name for c in found(site, "linter.checks")}


def test_components_of_this_environment_are_licensed() -> None:
    """Every distribution behind this project has a known licence in the allow-list of the last gate."""
    from tests.check_helpers import questions

    item = next(i for i in questions("finalization", CONFIG) if i["id"] == "supply_chain")
    chain: dict[str, Any] = {
        "components": [c.to_json() for c in components(imported=())], "absent": [], "schema_faults": [],
        "vulnerabilities": {"database": None, "found": []},
    }  # fmt: skip
    result = judge(item["check"], {"supply_chain": chain}, **item["with"])
    assert (result.outcome, result.acceptable) == ("inconclusive", "not_audited"), result.why


CONFIG = {
    "task": {"target": 0.9},
    "plan": {
        "margins": {"target": 0.1, "slice": 0.1, "regression": 0.1},
        "limits": {"latency_ms_p99": None, "size_mb": None, "memory_mb": None},
        "robustness": {"corruption": 0.8, "worst_corruption": 0.6, "adversarial": None},
    },
}


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "MIT OR Apache-2.0"}, "MIT OR Apache-2.0"),
        ({"License": "Apache 2.0"}, "Apache-2.0"),
        ({"License": "BSD"}, "LicenseRef-BSD"),
        ({"License": "UNKNOWN", "Classifier": "License :: OSI Approved :: ISC License (ISCL)"}, "ISC"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"}, "GPL-3.0-only"),
        ({"License": "see the file COPYING for what you may do"}, ""),
        ({}, ""),
    ],
)
def test_licence_of_reads_expression_field_and_classifier(tmp_path: Path, fields: dict[str, str], licence: str) -> None:
    """The licence is an SPDX expression where the distribution names one, in whichever place; else it is unknown."""
    install(tmp_path, "thing", **fields)
    assert licence_of(Distribution.at(tmp_path / "thing-1.0.dist-info"))[0] == licence


def test_supply_chain_is_inconclusive_without_a_database(site: Path) -> None:
    """Licences are fine, and nothing was audited: the plan may accept that."""
    item = judged(site, licences=["MIT", "Apache-2.0", "BSD-3-Clause", "LicenseRef-BSD"])
    assert (item.outcome, item.acceptable) == ("inconclusive", "not_audited") and "5 distributions" in item.why


def test_supply_chain_fails_for_an_unknown_licence(site: Path) -> None:
    """A distribution that declares no licence, or words that are none, is named with what it declares."""
    install(site, "mystery", "3.1", License="ask the author")
    install(site, "nameless", "3.2")
    chain, _ = measure(MODEL, found(site, "mystery", "nameless"), None)
    item = judge(
        "supply.supply_chain",
        {"supply_chain": chain},
        **{**BOUNDS, "licences": ["LicenseRef-BSD", *BOUNDS["licences"]]},
    )

    assert (item.outcome, item.value) == ("failed", 2)
    assert "mystery 3.1 (unknown, it says 'ask the author'), nameless 3.2 (unknown, it declares none)" in item.why


def test_supply_chain_fails_for_a_licence_that_is_not_allowed(site: Path) -> None:
    """protobuf says BSD without saying which, and the list does not have that."""
    item = judged(site)
    assert item.outcome == "failed" and "licence not allowed: protobuf 7.0 (LicenseRef-BSD)" in item.why


def test_supply_chain_fails_where_serving_is_not_installed(tmp_path: Path) -> None:
    """Without onnxruntime nothing can be said about what serves the model."""
    install(tmp_path / "site-packages", "numpy", License_Expression="MIT")
    item = judged(tmp_path / "site-packages")
    assert item.outcome == "failed" and "onnxruntime is not installed" in item.why


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True), ("GPL-3.0-only", False), ("MIT OR GPL-3.0-only", True), ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True), ("(MIT AND Apache-2.0) OR GPL-2.0-only", True), ("MIT AND", False),
    ],
)  # fmt: skip
def test_supply_chain_reads_licence_expressions(expression: str, allowed: bool) -> None:
    """OR needs one allowed licence, AND all of them, and an exception only widens a licence."""
    one = Component("x", "1", expression, expression, "serving", ()).to_json()
    chain = {"components": [one], "absent": [], "schema_faults": [], "vulnerabilities": {"database": None, "found": []}}
    assert (judge("supply.supply_chain", {"supply_chain": chain}, **BOUNDS).outcome != "failed") == allowed


# --- vulnerabilities -------------------------------------------------------------------------------------------------

OSV = {
    "id": "GHSA-test-1234", "modified": "2026-01-02T00:00:00Z", "aliases": ["CVE-2026-1"], "summary": "reads too far",
    "affected": [{
        "package": {"ecosystem": "PyPI", "name": "Protobuf"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "7.1"}]}],
    }],
}  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Callable[..., Path]:
    def write(*records: dict[str, Any]) -> Path:
        folder = tmp_path / "osv"
        folder.mkdir(exist_ok=True)
        for record in records:
            (folder / f"{record['id']}.json").write_text(json.dumps(record))
        return folder

    return write


def test_supply_chain_fails_for_a_known_vulnerability(site: Path, database: Callable[..., Path]) -> None:
    """A vulnerable version of what serves the model is named; the fixed version passes."""
    allowed = [*BOUNDS["licences"], "LicenseRef-BSD"]
    item = judged(site, database(OSV), licences=allowed)
    assert (item.outcome, item.value) == ("failed", 1) and "vulnerable: protobuf 7.0 (GHSA-test-1234)" in item.why

    (site / "protobuf-7.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: protobuf\nVersion: 7.1\nLicense: MIT\n\n"
    )
    assert judged(site, database(OSV), licences=allowed).outcome == "passed"


def test_supply_chain_warns_about_what_only_trains(site: Path, database: Callable[..., Path]) -> None:
    """A vulnerability in the training environment does not reach the release, and is said."""
    affected = {"package": {"ecosystem": "PyPI", "name": "torch"}, "versions": ["2.13"]}
    item = judged(site, database({**OSV, "affected": [affected]}), licences=[*BOUNDS["licences"], "LicenseRef-BSD"])
    assert item.outcome == "passed" and item.warns and "torch 2.13+cpu (GHSA-test-1234)" in item.why


def test_audit_reads_a_zip_as_a_folder(site: Path, database: Callable[..., Path], tmp_path: Path) -> None:
    """An archive of the same records gives the same audit, with the digest of the records."""
    folder = database(OSV, {**OSV, "id": "GHSA-test-0000", "withdrawn": "2026-01-01T00:00:00Z"})
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)

    result = audit(found(site), str(folder))

    assert result == audit(found(site), str(tmp_path / "all.zip"))
    assert result["database"] and (result["database"]["records"], len(result["found"])) == (2, 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "export.vulnerability_db: does not exist"),
        (lambda folder: folder.mkdir(), "export.vulnerability_db: has no record"),
        (lambda folder: folder.write_bytes(b"PK\x03\x04 no archive"), "export.vulnerability_db: cannot be read"),
        (lambda folder: (folder.mkdir(), (folder / "a.json").write_text("[1]")), "a.json: is not a record of an OSV"),
        (lambda folder: (folder.mkdir(), (folder / "a.json").write_text("{")), "a.json: is not a record of an OSV"),
    ],
)
def test_audit_refuses_what_is_no_database(tmp_path: Path, make: Callable[[Path], Any], says: str) -> None:
    """A database that is missing, empty or damaged is one message, and never an audit without findings."""
    make(tmp_path / "osv")
    with pytest.raises(UserError) as stop:
        audit([], str(tmp_path / "osv"))
    assert says in str(stop.value)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_audit_finds_exactly_the_versions_in_the_range(introduced: int, fixed: int, installed: int) -> None:
    """A version is vulnerable from the one that introduced the fault to before the one that fixed it."""
    from pipeline.supply_chain.vulnerabilities import _is_affected

    events = [{"fixed": f"1.{fixed}"}, {"introduced": f"1.{introduced}"}]
    affected = {"ranges": [{"type": "ECOSYSTEM", "events": events}]}
    if introduced < fixed:
        assert _is_affected(f"1.{installed}", affected) == (introduced <= installed < fixed)


# --- bill of materials and provenance --------------------------------------------------------------------------------


def test_bill_of_materials_is_valid_and_reproducible(site: Path) -> None:
    """The strict schema accepts the bill; the same facts give the same text, with the model card and both scopes."""
    text = bill_of_materials(MODEL, found(site))
    bill = json.loads(text)

    assert schema_faults(text) == [] and text == bill_of_materials(MODEL, found(site))
    model = bill["metadata"]["component"]
    assert (model["type"], model["hashes"][0]["content"]) == ("machine-learning-model", MODEL.weights)
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] == "0.97"
    assert {c["name"]: c["scope"] for c in bill["components"]}["torch"] == "excluded"
    edges = {d["ref"]: d.get("dependsOn", []) for d in bill["dependencies"]}
    assert edges["pkg:pypi/onnxruntime@1.31"] == ["pkg:pypi/numpy@2.0", "pkg:pypi/protobuf@7.0"]


@pytest.mark.parametrize(
    ("licence", "listed"),
    [
        ("", None),
        ("Apache-2.0", [{"license": {"id": "Apache-2.0"}}]),
        ("MIT OR Apache-2.0", [{"expression": "MIT OR Apache-2.0"}]),
        ("LicenseRef-Proprietary", [{"expression": "LicenseRef-Proprietary"}]),
    ],
)
def test_bill_of_materials_has_licence_of_the_model(site: Path, licence: str, listed: object) -> None:
    """The model's licence is in the bill as an SPDX identifier or expression, and absent where none is declared."""
    text = bill_of_materials(replace(MODEL, licence=licence), found(site))

    assert schema_faults(text) == [] and json.loads(text)["metadata"]["component"].get("licenses") == listed


def test_schema_faults_names_what_is_not_cyclonedx(site: Path) -> None:
    """A bill with an unknown key or kind fails the item, with the place of the fault."""
    bill = json.loads(bill_of_materials(MODEL, found(site)))
    bill["metadata"]["component"]["modelCard"]["accuracy"] = 1
    faults = schema_faults(json.dumps(bill))

    assert faults and "modelCard" in faults[0] and "'accuracy' was unexpected" in faults[0]
    chain, _ = measure(MODEL, found(site), None)
    item = judge("supply.supply_chain", {"supply_chain": {**chain, "schema_faults": faults}}, **BOUNDS)
    assert item.outcome == "failed" and "the bill of materials is not complete" in item.why


def test_provenance_identifies_everything_and_nobody(finished: Run, tmp_path: Path) -> None:
    """The statement names model files, plan, data and ledger by digest, and has no user and no path of this machine."""
    import getpass

    text = finished.inside("bundle", "payload", "provenance.json").read_text()
    statement = json.loads(text)
    build = statement["predicate"]["buildDefinition"]
    manifest = json.loads(finished.inside("bundle", "payload", "manifest.json").read_text())["files"]

    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    for subject in statement["subject"]:
        assert subject["digest"]["sha256"] == manifest[subject["name"]]["sha256"]
    assert {"model.onnx", "weights.safetensors"} <= {s["name"] for s in statement["subject"]}
    state = finished.state()
    assert state.plan and build["externalParameters"]["plan"] == state.plan["digest"]
    seq = next(e for e in _entries(finished) if e["data"].get("phase") == "finalization")["seq"] - 1
    byproduct = statement["predicate"]["runDetails"]["byproducts"][0]
    assert byproduct["digest"]["sha256"] == _entries(finished)[seq]["hash"]
    assert str(tmp_path) not in text and "/home/" not in text and "/tmp/" not in text
    assert f'"{getpass.getuser()}"' not in text


def _entries(run: Run) -> list[Any]:
    return [json.loads(line) for line in run.ledger_path.read_bytes().splitlines()]


def test_commit_of_names_the_commit_and_its_changes(tmp_path: Path) -> None:
    """Inside a git tree the commit is known, and whether files differ from it; outside there is none."""
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    clean = commit_of(tmp_path)
    (tmp_path / "new").touch()
    changed = commit_of(tmp_path)
    assert clean and changed and len(clean["commit"]) == 40 and (clean["dirty"], changed["dirty"]) == (False, True)


def test_lock_digest_depends_on_every_version(site: Path) -> None:
    """Another version of any distribution is another lock; their order is none."""
    listed = found(site)
    assert lock_digest(listed) == lock_digest(reversed(listed)) != lock_digest(listed[1:])
