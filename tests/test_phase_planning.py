"""Planning: what it freezes, what its gate checks, and that nothing trains before the gate is open."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from phases import planning
from pipeline.__main__ import make_hooks, make_registry
from pipeline.config.compose import compose
from pipeline.data.load import seal
from pipeline.errors import Refused, UserError
from pipeline.orchestration import problem_card
from pipeline.orchestration.execute import execute_run
from pipeline.orchestration.run_request import resolve_request
from pipeline.run_store import permits
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run
from tests.check_helpers import judge, read_evidence, with_values
from tests.conftest import SMALL, go
from tests.ledger_fixtures import LATER


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Every optimizer step of this process, recorded by torch itself."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    taken: list[object] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: taken.append(optimizer))
    yield taken
    handle.remove()


def test_plan_freezes_config_checklists_and_facts(planned: Run) -> None:
    """The plan holds the resolved config, five checklists with their thresholds, and the measured facts."""
    plan = plans.load(planned)

    assert plan.revision == 1 and plan.seed == 1
    assert sorted(plan.checklists) == ["baseline", "diagnostics", "finalization", "optimization", "planning"]
    target = next(i for i in plan.checklists["finalization"] if i["id"] == "target_on_test")
    assert target["with"] == {"target": 0.95, "margin": 0.02}
    assert plan.facts["budget"] == {"steps_per_epoch": 17, "max_steps": 51}
    assert {s: k["rows"] for s, k in plan.facts["splits"].items()} == {"train": 1077, "val": 360, "test": 360}
    assert plan.facts["threads"] == 1
    assert plan.facts["determinism"] == {"policy": True, "operations": []}
    assert "run" not in plan.config and "trust" not in plan.config and "phase" not in plan.config


def test_gate_opens_for_digits(planned: Run) -> None:
    """Nineteen items are satisfied, the seed first; digits declare neither groups nor times."""
    items = planned.state().gates["planning"].items

    assert [i.id for i in items] == [
        "seeds_fixed", "metric_and_target", "problem_card", "splits_disjoint", "splits_independent", "near_duplicates",
        "test_sealed", "data_digests", "enough_rows", "declared_representative", "distributions_match", "data_finite",
        "values_plausible", "label_codes", "labels_consistent", "imbalance_treated", "environment_recorded",
        "resources", "deterministic_kernels",
    ]  # fmt: skip
    assert {i.id for i in items if i.outcome != "passed"} == {"splits_independent"}
    assert "attested by Example Owner" in items[1].why


def test_planning_again_keeps_the_revision(planned: Run) -> None:
    """The same overrides give the same plan: the revision stays, and the gate is judged again."""
    before = planned.state()

    run, gate, _ = go(planned.path.parent, "phase=planning", *SMALL)

    assert gate == "open" and run.state().plan == before.plan
    assert run.state().seq > before.seq


def test_gate_without_a_seed_is_closed(own_folder: Any, steps: list[object]) -> None:
    """With seed=null the gate is closed, there is no permit, and no optimizer step is made."""
    run, gate, advice = go(own_folder, "phase=baseline", *SMALL, "seed=null")
    outcomes = {i.id: i.outcome for i in run.state().gates["planning"].items}

    assert (gate, advice.exit_code, steps) == ("closed", 3, [])
    declared = {k: outcomes.pop(k) for k in ("seeds_fixed", "metric_and_target", "problem_card")}
    assert declared == {"seeds_fixed": "failed", "metric_and_target": "passed", "problem_card": "passed"}
    assert set(outcomes.values()) == {"errored"}
    with pytest.raises(Refused, match="gate planning: is not open"):
        permits.train(run)


def test_gate_opens_when_a_seed_is_added(own_folder: Any) -> None:
    """Earlier overrides are remembered: only the seed has to be added."""
    go(own_folder, "phase=planning", *SMALL, "seed=null")

    run, gate, _ = go(own_folder, "phase=planning", "run.name=digits", "seed=5")
    plan = plans.load(run)

    assert gate == "open" and plan.revision == 2
    assert plan.seed == 5 and plan.config["trainer"]["max_epochs"] == 3
    assert run.state().revisions[1]["changed"]["seed"] == [None, 5]


def test_planning_makes_no_optimizer_step(own_folder: Any, steps: list[object]) -> None:
    """Planning probes the model and the loss, and trains nothing."""
    torch.manual_seed(0)

    go(own_folder, "phase=planning", *SMALL)

    assert steps == []


def test_test_openings_are_counted_across_plans(finished: Run) -> None:
    """A plan made after the test rows were read records how often, and passes while that is rare."""
    run, gate, _ = go(finished.path.parent, "phase=planning", "run.name=digits", "task.target=0.4")
    item = next(i for i in run.state().gates["planning"].items if i.id == "test_sealed")

    assert (gate, item.outcome, item.value) == ("open", "passed", 1)
    assert run.state().stale("finalization") and run.state().gate("finalization") is None


CARD = {"required": ["purpose", "owner"], "recommended": ["population", "risks"]}
IDENTIFIED = {"min_rows": 2, "required": ["source"], "recommended": ["licence"]}
ROOM = {"max_memory": 0.9, "max_disk": 0.9, "max_ratio": 2}
CHANGED: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("environment.seeds_fixed", {"seed": None}, {}, "failed", "add seed=1"),
    ("environment.seeds_fixed", {"seed": ...}, {}, "errored", "evidence 'seed' was not measured"),
    ("problem.metric_and_target", {"target": None}, {}, "failed", "task.target=NUMBER"),
    ("problem.metric_and_target", {"greater_is_better": False}, {}, "passed", "accuracy at most"),
    ("data.splits_disjoint", {"shared_fraction__val": 0.25}, {"max_shared_fraction": 0.0}, "failed", "rows of val"),
    ("data.splits_disjoint", {"shared_fraction": ...}, {"max_shared_fraction": 0.0}, "errored", "was not measured"),
    (
        "data.splits_disjoint",
        {"shared_fraction__val": 0.25},
        {"max_shared_fraction": 0.3},
        "passed",
        "are in another split",
    ),
    ("data.test_sealed", {"test_sealed": False}, {"max_openings": 3}, "failed", "not sealed"),
    ("data.test_sealed", {"test_openings": 4}, {"max_openings": 3}, "failed", "another run.name"),
    ("problem.problem_card", {"card__purpose": False}, CARD, "failed", "add at least plan.purpose=..."),
    (
        "problem.problem_card",
        {"card__owner": False, "card__risks": False},
        CARD,
        "failed",
        "not declared: owner, risks",
    ),
    ("problem.problem_card", {"card__risks": False}, CARD, "passed", "by the last gate: risks"),
    ("data.data_digests", {"rows__val": 1}, IDENTIFIED, "failed", "too few rows in val"),
    ("data.data_digests", {"rows__test": 1}, IDENTIFIED, "failed", "too few rows in test"),
    ("data.data_digests", {"digests__train": ""}, IDENTIFIED, "failed", "no digest for train"),
    ("data.data_digests", {"manifest__source": None}, IDENTIFIED, "failed", "the source of the data is not declared"),
    ("data.data_digests", {"manifest__licence": None}, IDENTIFIED, "passed", "licence not declared"),
    ("environment.resources", {"resources__available": 1000}, ROOM, "failed", "loader.batch_size=32"),
    ("environment.resources", {"resources__fits": 0}, ROOM, "failed", "use a smaller model"),
    ("environment.resources", {"resources__disk_free": 1000}, ROOM, "failed", "that are free"),
    ("environment.resources", {"resources__minutes": 130.0}, ROOM, "failed", "trainer.max_minutes=195"),
    ("environment.resources", {"resources__minutes": 110.0}, ROOM, "passed", "stopped by trainer.max_minutes"),
    ("environment.resources", {"resources__available": None}, ROOM, "passed", "MB of memory"),
    (
        "environment.environment_recorded",
        {"environment__torch": ...},
        {"required": ["torch"]},
        "failed",
        "not recorded",
    ),
    ("environment.environment_recorded", {"environment": None}, {"required": ["torch"]}, "errored", "AttributeError"),
]


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), CHANGED)
def test_checks_of_the_planning_gate(
    planned: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On real evidence with one value changed, the check of that value reports it."""
    item = judge(check, with_values(read_evidence(planned, "planning"), **wrong), **bounds)

    assert item.outcome == outcome
    assert why in item.why


def test_leakage_has_a_cause(planned: Run) -> None:
    """Shared rows and a missing validation split have the id of their cause."""
    values = read_evidence(planned, "planning")
    leaking = judge("data.splits_disjoint", with_values(values, shared_fraction__test=0.1), max_shared_fraction=0.0)
    lacking = judge("data.data_digests", with_values(values, rows__val=0), **IDENTIFIED)

    assert (leaking.cause, leaking.value) == ("data_leakage", 0.1)
    assert lacking.cause == "validation_missing"


# --- planted faults of the data --------------------------------------------------------------------------------------

PACKAGE = """
import numpy as np
from pipeline.data.digits import digits

def rows(fault="", **_):
    data = digits()
    (X, y), (V, v) = data["train"], data["val"]
    if fault == "leak":
        V[:9] = X[:9]
    if fault == "near leak":
        V[:60] = np.clip(X[:60] + np.random.default_rng(0).normal(size=(60, 64)) * 1e-3, 0, 1)
    if fault == "contradiction":
        X[:30], y[:30] = X[30:60], (y[30:60] + 1) % 10
    if fault in ("imbalance", "rare"):
        keep = (y != 3) | (np.cumsum(y == 3) <= (8 if fault == "imbalance" else 3))
        X, y = X[keep], y[keep]
    if fault == "class not in train":
        X, y = X[y != 3], y[y != 3]
    if fault == "outlier":
        X[5, 20] = 1e6
    if fault == "outlier in a constant pixel":
        X[5, 0] = 1e6
    if fault == "outlier in validation":
        V[5, 20] = -1e6
    if fault == "missing value":
        X[77, 20] = np.nan
    if fault == "infinite":
        V[7, 20] = np.inf
    if fault == "all constant":
        X[:] = np.arange(64)
    if fault == "small":
        V, v = V[:15], v[:15]
    source = {**data, "train": (X, y), "val": (V, v)}
    if fault in ("shifted", "spread"):
        del source["class_names"]
        for split in ("train", "val", "test"):
            A, a = source[split]
            source[split] = (A, a + 1 if fault == "shifted" else 2 * a)
    if fault == "divided":
        for split in ("train", "val", "test"):
            source[split] = (source[split][0], source[split][1] // 2)
    if fault == "two encodings":
        del source["class_names"]
        source["val"] = (V, v + 1)
    sizes = {split: len(source[split][1]) for split in ("train", "val", "test")}
    if fault == "group in two splits":
        source["groups"] = {split: [f"{split}-{i // 9}" for i in range(n)] for split, n in sizes.items()}
        source["groups"]["test"][5] = "train-7"
    if fault == "future":
        source["times"] = {split: at + np.arange(n) for (split, n), at in zip(sizes.items(), (0, 2000, 3000))}
        source["times"]["train"][77] = 2500
    if fault == "slice without support":
        left = {split: np.arange(n) < (3 if split == "test" else 90) for split, n in sizes.items()}
        source["slices"] = {"left-handed": left}
    if fault == "shifted production":
        source["production"] = np.clip(V * 0.6 + 0.1, 0, 1)
    if fault == "production with shuffled columns":
        rng = np.random.default_rng(0)
        source["production"] = np.stack([rng.permutation(V[:, c]) for c in range(64)], 1)
    if fault == "declared":
        source["representative"] = "only the left-handed wrote"
    if fault == "validation not scaled":
        source["val"] = (V * 16, v)
    if fault == "validation of other classes":
        keep = (v < 4) | (np.arange(len(v)) % 6 == 0)
        source["val"] = (V[keep], v[keep])
    if fault == "all metadata":
        source["groups"] = {split: [f"{split}-{i // 9}" for i in range(n)] for split, n in sizes.items()}
        source["times"] = {s: np.array([f"20{21 + y}-05-31"] * sizes[s], "datetime64[D]") for y, s in enumerate(sizes)}
        source["slices"] = {"hand": {split: np.arange(n) % 2 for split, n in sizes.items()}}
        source["production"] = V[::2]
        source["previous_tasks"] = {"older": (X[:50], y[:50])}
    return source
"""

PLANTED = {
    "leak": ("splits_disjoint", "data_leakage"),
    "near leak": ("near_duplicates", "data_leakage"),
    "contradiction": ("labels_consistent", "label_noise"),
    "imbalance": ("imbalance_treated", "class_imbalance"),
    "rare": ("enough_rows", "too_little_data"),
    "class not in train": ("enough_rows", "split_shift"),
    "small": ("enough_rows", "validation_missing"),
    "outlier": ("values_plausible", "outliers"),
    "outlier in a constant pixel": ("values_plausible", "outliers"),
    "outlier in validation": ("values_plausible", "outliers"),
    "all constant": ("values_plausible", "inputs_uninformative"),
    "missing value": ("data_finite", "nonfinite_inputs"),
    "infinite": ("data_finite", "nonfinite_inputs"),
    "shifted": ("label_codes", "labels_misencoded"),
    "spread": ("label_codes", "labels_misencoded"),
    "divided": ("label_codes", "labels_misencoded"),
    "two encodings": ("label_codes", "labels_misencoded"),
    "group in two splits": ("splits_independent", "data_leakage"),
    "future": ("splits_independent", "data_leakage"),
    "slice without support": ("enough_rows", "validation_missing"),
    "shifted production": ("distributions_match", "split_shift"),
    "production with shuffled columns": ("distributions_match", "split_shift"),
    "declared": ("declared_representative", "split_shift"),
    "validation not scaled": ("distributions_match", "split_shift"),
    "validation of other classes": ("distributions_match", "split_shift"),
}
NOT_WAIVABLE = ("splits_disjoint", "declared_representative")
OVERRIDES = ("phase=planning", "experiment=digits", "tracking=none", "trust=[planted]", "data._target_=planted.rows")
WIDER = {"shifted": 11, "spread": 19, "two encodings": 11}


@pytest.fixture
def plan(own_folder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`plan("leak")` plans the digits with that fault and returns the gate and the items that did not pass, by id."""
    (own_folder / "planted.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(own_folder)
    monkeypatch.delitem(sys.modules, "planted", raising=False)

    def planned(fault: str, *overrides: str) -> tuple[str, dict[str, Any]]:
        wider = [f"model.out_features={WIDER[fault]}"] if fault in WIDER else []
        run, gate, _ = go(own_folder, *OVERRIDES, f"+data.fault={fault}", *wider, *overrides)
        items = run.state().gates["planning"].items
        return gate, {i.id: i for i in items if i.outcome not in ("passed", "not_applicable")}

    return planned


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_closes_the_gate(plan: Any, steps: list[object], fault: str) -> None:
    """Each fault of the data closes the gate with its cause, by an item that can be waived if that can be justified."""
    item, cause = PLANTED[fault]
    gate, failed = plan(fault)

    assert gate == "closed" and steps == []
    outcome = "inconclusive" if fault == "slice without support" else "failed"
    assert (failed[item].outcome, failed[item].cause) == (outcome, cause)
    assert failed[item].waivable == (item not in NOT_WAIVABLE) and failed[item].why


def test_planted_fault_closes_one_item(plan: Any) -> None:
    """Each fault is reported by one item only."""
    for fault in ("missing value", "contradiction", "outlier", "imbalance", "near leak", "future", "declared"):
        assert list(plan(fault, f"run.name={fault.replace(' ', '_')}")[1]) == [PLANTED[fault][0]]


def test_row_metadata_is_recorded(plan: Any, own_folder: Any) -> None:
    """Groups, times, slices, production data and earlier tasks without faults pass, and are in plan and manifest."""
    assert plan("all metadata") == ("open", {})

    run = Run.find("digits", own_folder)
    facts = plans.load(run).facts["data"]
    assert facts["row_metadata"]["groups"] == {"train": 120, "val": 40, "test": 40}
    assert facts["row_metadata"]["slices"]["hand=1"] == {"train": 538, "val": 180, "test": 180}
    assert {name: other["rows"] for name, other in facts["additional"].items()} == {
        "previous_tasks.older": 50,
        "production": 180,
    }
    assert "train-7" not in json.dumps(json.loads(run.inside("planning", "manifest.json").read_text()))
    items = {i.id: i.why for i in run.state().gates["planning"].items}
    assert "200 groups, each in one split; train ends before" in items["splits_independent"]
    assert "180 rows of production" in items["distributions_match"]


def test_manifest_identifies_every_row(planned: Run) -> None:
    """Source, licence, ranges and a digest of each row are in files that the ledger records."""
    known = json.loads(planned.inside("planning", "manifest.json").read_text())
    rows = planned.inside("planning", "rows.txt").read_text().splitlines()

    assert known["licence"] == "CC BY 4.0" and known["ranges"]["train"]["pixel_3_3"] == [0.0, 1.0]
    assert len(rows) == len(set(rows)) == 1797 and rows[1077].startswith("val 0 ")
    assert set(planned.state().finished["planning"]["artifacts"]) == {"manifest", "rows"}


def test_plan_contains_no_timing(planned: Run) -> None:
    """The time of a step is evidence; the plan has the budget in steps and no seconds."""
    cost = read_evidence(planned, "planning")["resources"]

    assert cost["steps"] == 51 and 0 < cost["minutes"] < 1
    assert cost["parts"]["weights"] == cost["parts"]["gradients"] == 4 * 9610 == cost["parts"]["state"] / 2
    assert cost["parts"]["activations"] >= 64 * 128 * 4  # the hidden layer of one batch, at the least
    assert "step_s" not in json.dumps(plans.load(planned).facts)


@pytest.mark.parametrize(
    "word", ["loader.sampler=balanced", "task.class_weights=balanced", "task.metric=balanced_accuracy"]
)
def test_imbalance_treatment_opens_the_gate(plan: Any, word: str) -> None:
    """The gate accepts an imbalance that the plan treats."""
    assert plan("imbalance", word) == ("open", {})


def test_waiver_opens_the_gate(plan: Any, own_folder: Any, cli: Any) -> None:
    """The owner may train on rows with missing values; the outcome stays on record."""
    assert plan("missing value", "run.root=runs")[0] == "closed"
    arguments = ("--root", own_folder, "--who", "Example Owner", "--why", "they are intended", "--expires", LATER)
    assert cli("waive", "digits", "data_finite", *arguments)[0] == 0
    run = Run.find("digits", own_folder)
    assert run.state().gate("planning") == "open"
    assert permits.train(run)


TOLERANT = """
from torch import nn

class Tolerant(nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.nan_to_num(0.0, posinf=float("inf"), neginf=float("-inf")))
"""


def test_model_that_handles_missing_values_opens_the_gate(plan: Any, own_folder: Any) -> None:
    """Missing features pass if the model gives finite outputs for them; infinite ones never do."""
    (own_folder / "planted.py").write_text(PACKAGE + TOLERANT)
    assert plan("missing value", "model._target_=planted.Tolerant") == ("open", {})
    gate, failed = plan("infinite", "model._target_=planted.Tolerant")
    assert gate == "closed" and failed["data_finite"].cause == "nonfinite_inputs"


class FirstFeatureOnly(torch.nn.Module):
    """Handles missing values of its first feature only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([x[:, :1].nan_to_num(), x[:, 1:]], 1))


@pytest.mark.parametrize(("column", "handled"), [(0, True), (1, False)])
def test_handles_missing_values_tries_every_feature(
    monkeypatch: pytest.MonkeyPatch, column: int, handled: bool
) -> None:
    """The model is tried on a missing value of every feature, however late its row is."""
    X = np.ones((90, 2))
    X[:10, 0] = X[80, column] = np.nan
    data = seal({split: (X, np.arange(90) % 2) for split in ("train", "val", "test")}, "classification")
    monkeypatch.setattr("pipeline.building.builder.build_model", lambda *_: FirstFeatureOnly())
    assert planning._handles_missing_values({"seed": 1}, data, ()) is handled


def test_imputation_opens_the_gate(plan: Any) -> None:
    """Preprocessing is part of the model, which thus handles missing values; infinite ones it does not."""
    assert plan("missing value", "preprocess.impute=median") == ("open", {})
    assert plan("infinite", "preprocess.impute=median", "run.name=infinite")[0] == "closed"


def test_values_plausible_names_constant_features(planned: Run) -> None:
    """Constant pixels are named in the reason of a passed item."""
    item = next(i for i in planned.state().gates["planning"].items if i.id == "values_plausible")
    assert item.outcome == "passed" and "5 constant features (pixel_0_0" in item.why


COPIES = {"count": 2, "first": [{"equation": "b = a"}, {"equation": "c = 2.54 a - 3"}]}
NOTES: list[tuple[str, dict[str, Any], str]] = [
    ("quality.values_plausible", {"quality__duplicates__train": 3}, "duplicate rows: 3 in train"),
    ("quality.values_plausible", {"quality__duplicates__train": 200}, "many rows are duplicates"),
    ("quality.values_plausible", {"quality__constant__targets_std": 900.0}, "targets_not_scaled"),
    ("quality.values_plausible", {"quality__repeated_features": COPIES}, "another one: 2 (b = a, c = 2.54 a - 3)"),
    ("labels.enough_rows", {"quality__labels__counts__val__3": 8}, "unreliable for 3 in val (8)"),
]


@pytest.mark.parametrize(("check", "wrong", "why"), NOTES)
def test_checks_name_what_does_not_close_the_gate(planned: Run, check: str, wrong: dict[str, Any], why: str) -> None:
    """Duplicates, the scale of targets and classes of few rows are named in the reason of a passed item."""
    bounds = next(i["with"] for i in plans.load(planned).checklists["planning"] if i["check"] == check)
    item = judge(check, with_values(read_evidence(planned, "planning"), **wrong), **bounds)
    assert item.outcome == "passed" and why in item.why


def test_label_checks_do_not_apply_to_values(planned: Run) -> None:
    """Items on labels are not applicable to targets that are not classes."""
    values = with_values(read_evidence(planned, "planning"), quality__labels=None, quality__contradictions=None)
    for question in plans.load(planned).checklists["planning"]:
        if question["check"] in ("labels.label_codes", "labels.labels_consistent", "labels.imbalance_treated"):
            item = judge(question["check"], values, **question["with"])
            assert (item.outcome, item.why) == ("not_applicable", "the targets are not classes")


def test_problem_card_asks_for_the_fields_of_the_gate() -> None:
    """The fields that are asked for before the data are read are those that the planning gate and the last one need."""
    items = yaml.safe_load((make_registry().checklists / "planning.yaml").read_text())["items"]
    [wanted] = [item["with"] for item in items if item["id"] == "problem_card"]

    assert set(problem_card.CARD) == {*wanted["required"], *wanted["recommended"]}
    assert set(problem_card.RECOMMENDED) == set(wanted["recommended"])


@pytest.mark.parametrize("filled", [(), ("purpose", "limits"), ("assumptions", "owner", "intended_use")])
def test_problem_card_is_accepted_as_printed(tmp_path: Path, filled: tuple[str, ...]) -> None:
    """What is missing is pasted into an experiment, or into a command: either way the card is complete."""
    given = {name: value for name, value in problem_card.CARD.items() if name in filled}
    text = problem_card.request({**dict.fromkeys(problem_card.CARD), **given}, "run.name=mine")
    body, _, command = text.partition("\nor: python -m pipeline ")
    pasted = body[body.index("plan:") :]

    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{pasted}\n")
    own = shlex.split(problem_card.as_overrides(given))
    by_file = compose(["experiment=mine", *own], [tmp_path])["plan"]
    by_command = compose(["~experiment", *own, *shlex.split(command)])["plan"]

    assert by_file == by_command
    assert problem_card.missing_fields(by_file) == {}


def test_planning_asks_for_the_card_before_it_reads_data(tmp_path: Path) -> None:
    """The first line of a run without a card names what is missing; the data, which do not exist, come later."""
    told: list[str] = []
    arguments = [
        "phase=planning",
        "experiment=csv",
        "data.path=gone.csv",
        "tracking=none",
        "plan.purpose=null",
        f"run.root={tmp_path / 'runs'}",
    ]
    with pytest.raises(UserError, match=r"gone\.csv"):
        execute_run(make_registry(), make_hooks(told.append), resolve_request(arguments, []))

    assert told[0].startswith("planning: the problem card lacks purpose")
    assert told[1:3] == ["write this into the experiment file, in your own words:", "plan:"]


def test_card_request_says_which_gate_needs_which_field() -> None:
    """Planning needs the owner; what the card only recommends is needed by the last gate."""
    card = {name: "given" for name in problem_card.CARD} | {"owner": None, "intended_use": None}
    first = problem_card.request(card, "run.name=a").splitlines()[0]

    assert first.startswith("planning: the problem card lacks owner, without which the planning gate stays closed")
    assert first.endswith("and intended_use, which the last gate requires;")
