"""The optimization phase: a cure is adopted only if it beats the control on the same seeds."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.__main__ import make_hooks
from pipeline.adoption.proposals import propose
from pipeline.errors import Refused, UserError
from pipeline.orchestration.run_request import resolve_request
from pipeline.release.verify import faults
from pipeline.reporting.page import write_report
from pipeline.reporting.tables import number
from pipeline.results import digest
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.next_step import NextStep
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState
from pipeline.trials.candidates import alternatives, explain_no_candidate, untried
from pipeline.trials.executor import Trial
from pipeline.trials.fix_report import rerun_command
from pipeline.trials.study import Arm, compare_arms, explain_choice, format_arm, reaches, select_arm
from tests.check_helpers import judge, read_evidence, with_values
from tests.conftest import SMALL, Cli, go
from tests.ledger_fixtures import LATER


def test_optimization_writes_the_fixed_config(mended: Run) -> None:
    """The winner lowers the learning rate; `fixed.yaml` is the whole config with only that key changed."""
    values = read_evidence(mended, "optimization", 1)
    fixed = mended.inside("optimization", 1, "fixed.yaml").read_text()
    before = plans.load(mended).config

    assert values["winner"]["change"] == "optimizer.lr=0.01"
    assert values["winner"]["p"] == pytest.approx(2 / 2**6)
    assert values["arms"][0]["cause"] == "learning_rate_too_high"
    assert fixed.startswith("# python -m pipeline phase=baseline experiment=digits_hot ")
    assert fixed.splitlines()[0].endswith(" run.name=digits_hot-fixed optimizer.lr=0.01")
    assert plans.differences(before, yaml.safe_load(fixed)) == {"optimizer.lr": (1.0, 0.01)}
    assert faults(mended)[1] == []


def test_optimization_writes_implementation_json(mended: Run) -> None:
    """`implementation.json` has the changes, the criteria, and figures before and after."""
    message = json.loads(mended.inside("optimization", 1, "implementation.json").read_text())

    assert message["code_changes"] == [
        {"file": "fixed.yaml", "change": "optimizer.lr: 1.0 -> 0.01", "description": "set optimizer.lr to 0.01"}
    ]
    assert message["tests"] == "13/13 passing" and message["verification"]["p_after_holm"] < 0.05
    assert set(message["performance"]) == {"params", "step_ms", "memory_mb", "inference_ms"}
    assert all(side["before"] > 0 and side["after"] > 0 for side in message["performance"].values())
    assert message["performance"]["params"]["before"] == message["performance"]["params"]["after"]


def test_optimization_writes_pages_for_people(mended: Run) -> None:
    """What was tried, the incident with its fix and the way back, the difference, and both arms' curves are saved."""
    folder, artifacts = mended.inside("optimization", 1), mended.state().finished["optimization"]["artifacts"]
    incident, tried = (folder / "incident.md").read_text(), (folder / "recommendations.md").read_text()

    assert {"recommendations.md", "incident.md", "changes.diff", "arms.png", "arms.svg"} <= set(artifacts)
    assert "## Fix" in incident and "python -m pipeline rollback" in incident and "gradient norm stay under" in incident
    assert "**Adopted: `optimizer.lr=0.01`**" in tried and "| test | sealed | sealed |" in tried
    assert "+  lr: 0.01" in (folder / "changes.diff").read_text()
    assert mended.inside("diagnostics", 1, "incident.md").read_text() != incident


def test_optimization_holds_the_fix_to_the_incident(mended: Run) -> None:
    """Sanity checks and regression trials were run on the fixed model, and the incident left items for later ones."""
    values = read_evidence(mended, "optimization", 1)
    symptoms = [
        s["id"] for s in read_evidence(mended, "diagnostics", 1)["diagnosis"]["symptoms"] if s["severity"] == "blocking"
    ]

    assert {f"round-1-{name}" for name in symptoms} <= {item["id"] for item in values["prevention"]}
    assert all(trial["passed"] for trial in values["regression"]["trials"])
    assert set(values["regression"]["sanity"].values()) == {"passed"}


def test_optimization_scores_the_fixed_model_per_class(mended: Run) -> None:
    """Gate and report get the results per class of the adopted model: their hits are its accuracy on validation."""
    values = read_evidence(mended, "optimization", 1)
    hits = sum(row["recall"] * row["support"] for row in values["per_class"])

    assert sum(row["support"] for row in values["per_class"]) == 360
    assert hits / 360 == pytest.approx(values["candidate"]["score"]["value"])
    assert values["per_class"] != read_evidence(mended, "baseline")["per_class"]
    assert mended.inside("optimization", 1, "confusion_matrix.png").is_file()


def test_report_of_a_fixed_run_shows_the_candidate(mended: Run) -> None:
    """Scores, classes and the confusion matrix are the candidate's; what was measured before the fix says so."""
    before, after = read_evidence(mended, "baseline"), read_evidence(mended, "optimization", 1)
    page = write_report(mended.path).read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    classes = words.partition("Per class, the candidate (fixed in round 1)")[2]
    candidate_classes, _, baseline_classes = classes.partition("Per class of the baseline, before the fix")
    rows = {
        name: [
            f" {row['class']} {row['support']} {number(row['precision'])} {number(row['recall'])} " for row in values
        ]
        for name, values in (("before", before["per_class"]), ("after", after["per_class"]))
    }

    counted = "n = 360 validation rows"
    assert f"the candidate (fixed in round 1) {counted} {number(after['candidate']['score']['value'])}" in words
    assert f"the baseline, before the fix {counted} {number(before['score']['value'])}" in words
    assert all(row in candidate_classes for row in rows["after"] if "nan" not in row)
    assert all(row in baseline_classes for row in rows["before"] if "nan" not in row)
    assert not any(row in candidate_classes for row in rows["before"])
    assert "fixed, round 1: confusion matrix" in words and "Confusion, baseline, validation rows" in words
    assert "the trained model" not in words.partition("The questions of each gate")[0]


def test_optimization_records_every_trial(mended: Run) -> None:
    """Seventeen jobs were started and ended: a screening, six pairs, and the winner on the master seed."""
    entries = [e["data"] for e in read_ledger(mended.ledger_path) if e["kind"] == "job.finished"]
    searched = [f"screening-{arm}-1" for arm in ("control", "c1", "c2", "c3")]
    named = [f"{arm}-{i}" for i in range(1, 7) for arm in ("control", "c2")]

    assert [e["id"] for e in entries] == [*searched, *named, "fixed"]
    assert not any(e["died"] for e in entries)
    artifacts = mended.state().finished["optimization"]["artifacts"]
    assert {
        "fixed.yaml",
        "implementation.json",
        "control-1/history.npz",
        "fixed/result.json",
        "screening-c3-1/result.json",
    } <= set(artifacts)
    for e in entries:
        folder = mended.inside("optimization", 1, "trials", e["id"])
        assert json.loads((folder / "result.json").read_text())["weights"] == e["weights"]
    assert json.loads((mended.inside("optimization", 1, "trials", "fixed", "job.json")).read_text())["seed_index"] == 0


def test_optimization_makes_the_fixed_model_the_candidate(mended: Run) -> None:
    """The gate is open, the branch sufficient, and the candidate is the fixed training."""
    state = mended.state()
    trial = json.loads(mended.inside("optimization", 1, "trials", "fixed", "result.json").read_text())

    assert state.gate("optimization") == "open"
    items = state.gates["optimization"].items
    assert len(items) == 8 and {i.outcome for i in items} == {"passed"}
    assert state.sufficient() and state.candidate and state.candidate["weights"] == trial["weights"]


def test_verify_finds_changed_files_of_trials(mended: Run) -> None:
    """A changed result or checkpoint is found; the values in the evidence are those of the workers."""
    values = read_evidence(mended, "optimization", 1)
    results = {t["id"]: json.loads(mended.inside("optimization", 1, "trials", t["id"], "result.json").read_text())
               for t in values["trials"]}  # fmt: skip

    assert all(t["seed"] == results[t["id"]]["seed"] and t["threads"] == 1 for t in values["trials"])
    assert len({t["seed"] for t in values["trials"]}) == 6
    files.write_json(mended.inside("optimization", 1, "trials", "c2-2", "result.json"), {**results["c2-2"], "steps": 1})
    weights = mended.inside(values["candidate"]["file"]["path"])
    files.write_bytes(weights, weights.read_bytes()[:-1] + b"x")
    found = " ".join(faults(mended)[1])
    assert "trials/c2-2/result.json: is not the file" in found and "weights.safetensors: is not the file" in found


def test_optimization_needs_a_diagnosis(trained: Run) -> None:
    """After a baseline alone, optimization is refused with the command for diagnostics."""
    with pytest.raises(Refused, match=r"the diagnostics gate is not evaluated .*Do: .* phase=diagnostics"):
        go(trained.path.parent, "phase=optimization", "run.name=digits")


def test_optimization_refuses_a_sufficient_run(finished: Run) -> None:
    """With a sufficient branch there is nothing to repair."""
    with pytest.raises(Refused, match="is not needed, since on validation: target reached"):
        go(finished.path.parent, "phase=optimization", "run.name=digits")


# --- the choice, on figures written by hand --------------------------------------------------------------------------


def _trials(values: dict[str, Sequence[float]]) -> dict[str, Trial]:
    found = {}
    for arm, row in values.items():
        for i, value in enumerate(row, 1):
            job = Job("", "trial", seed_index=i, max_steps=9)
            score = {} if value != value else {"score": {"value": value}}
            found[f"{arm}-{i}"] = Trial(f"{arm}-{i}", job, Path(), score, died=None if score else "signal 9")
    return found


def _study(greater: bool = True, **values: Sequence[float]) -> list[dict[str, Any]]:
    arms = [Arm(name, Delta(), order=order) for order, name in enumerate(values)]
    return compare_arms(arms, _trials(values), len(next(iter(values.values()))), greater)


BAD, GOOD, BEST = [0.50, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56], [0.9] * 7, [0.99] * 7


MIXED = [0.89, *BEST[1:]]  # better than GOOD on average, and not on the first seed


def test_select_arm_prefers_the_smallest_sufficient_change() -> None:
    """Of two candidates that win and reach the target, the smaller is chosen unless the other is better every time."""
    rows = _study(control=BAD, c1=GOOD, c2=MIXED)

    assert select_arm(rows[1:], 0.8, True)["id"] == "c1"
    assert select_arm(_study(control=BAD, c1=GOOD, c2=BEST)[1:], 0.8, True)["id"] == "c2"
    assert select_arm(rows[1:], 0.95, True)["id"] == "c2"
    assert select_arm(rows[1:], 0.999, True)["id"] == "c2"


def test_select_arm_leaves_out_what_harms() -> None:
    """A winner that makes something guarded worse is not adopted, whatever it scores."""
    rows = _study(control=BAD, c1=GOOD, c2=MIXED)[1:]
    rows[0]["harms"] = ["size in MB"]

    assert select_arm(rows, 0.8, True)["id"] == "c2"
    assert "c1 is left out, since it harms size in MB" in explain_choice(rows, rows[1], 0.8, True)
    assert select_arm([rows[0]], 0.8, True) is None


def test_compare_arms_needs_the_declared_effect() -> None:
    """A difference that is significant and smaller than the declared effect does not win."""
    arms, trials = [Arm("control", Delta()), Arm("c1", Delta(), order=1)], {"control": BAD, "c1": GOOD}
    small, large = (compare_arms(arms, _trials(trials), 7, True, due)[1] for due in (0.5, 0.3))

    assert (small["p"], small["wins"], large["wins"]) == (large["p"], False, True)
    assert "less than the declared effect" in format_arm(small, 0.8, True)


def test_select_arm_needs_significance() -> None:
    """Five pairs cannot reach significance in a two-sided test; a mean difference alone is not enough."""
    rows = _study(control=BAD[:5], c1=GOOD[:5])

    assert rows[1]["effect"] > 0.3 and rows[1]["p"] == pytest.approx(2 / 2**5)
    assert select_arm(rows[1:], 0.5, True) is None


def test_select_arm_follows_the_direction_of_the_metric() -> None:
    """A significantly worse arm does not win; for metrics where lower is better, the signs are reversed."""
    assert select_arm(_study(control=GOOD, c1=BAD)[1:], 0.1, True) is None
    assert select_arm(_study(greater=False, control=GOOD, c1=BAD)[1:], 0.6, False)["id"] == "c1"


def test_compare_arms_counts_died_trials_as_the_worst() -> None:
    """A control that died in every trial loses, and its recorded values stay NaN."""
    nan = [float("nan")] * 7
    rows = _study(control=nan, c1=[0.5, *GOOD[1:]])

    assert rows[0]["mean"] == 0.5 and all(v != v for v in rows[0]["values"])
    assert rows[1]["p"] == pytest.approx(2 / 2**6)  # one pair is a tie


def test_arm_without_a_score_reaches_no_target() -> None:
    """No figure is printed for an arm of which every training died, also where lower is better."""
    control, dead = _study(greater=False, control=GOOD, c1=[float("nan")] * 7)

    assert not reaches(dead, 1e9, False) and reaches(control, 1e9, False)
    assert format_arm(dead, 1e9, False) == "c1: none of its trainings ended with a score"


@pytest.mark.process
def test_run_jobs_reports_success_and_death_of_workers(mended: Run) -> None:
    """A job in its own process gives the recorded weights; one that cannot run has a reason; both are reported."""
    from pipeline.trials.executor import run_jobs

    folder = mended.inside("optimization", 1, "trials", "c2-1")
    job = Job.from_json(json.loads((folder / "job.json").read_text()))
    recorded = json.loads((folder / "result.json").read_text())
    output: list[str] = []

    jobs = [("good", job), ("bad", Job("0" * 64, "trial"))]
    good, bad = run_jobs(jobs, mended.path / "x", parallel=2, threads=1, on_finished=lambda t: output.append(t.id))

    assert output == ["good", "bad"]
    same = ("weights", "score", "steps", "stopped", "seed", "threads")
    assert good.died is None and {k: good.result[k] for k in same} == {k: recorded[k] for k in same}
    assert bad.died and bad.died.startswith("exit 3: job: is of another plan") and bad.value != bad.value


def test_explain_choice_gives_the_rule_that_decided() -> None:
    """The smallest of several that reach the target, a better one, the only one, the largest effect, or none."""
    rows = _study(control=BAD, c1=GOOD, c2=MIXED)[1:]

    def explain(target: float, results: list[dict[str, Any]] = rows) -> str:
        return explain_choice(results, select_arm(results, target, True), target, True)

    assert explain(0.8) == (
        "significantly better than the control: c1, c2; reaching the target 0.8 on average: c1, c2, "
        "of which c1 is the smallest change; c2 scored better on average, but not on every seed"
    )
    better = _study(control=BAD, c1=GOOD, c2=BEST)[1:]
    assert explain(0.8, better).endswith("c1, c2, of which c2 beats the smallest change, c1, on every seed")
    assert explain(0.95).endswith("reaching the target 0.95 on average: c2")
    assert explain(0.999).endswith("none, so the one with the largest effect is chosen, c2")
    assert explain(0.5, _study(control=BAD[:5], c1=GOOD[:5])[1:]) == (
        "no candidate is significantly better than the control by the declared effect"
    )


# --- rounds, with simulated trainings -------------------------------------------------------------------------------


def fake_trials(
    monkeypatch: pytest.MonkeyPatch, value: Callable[[Job], float], fixed: str | None = None, every: bool = False
) -> None:
    """Trials end at once with the score that `value` gives their job; the fixed one, or `every`, dies of `fixed`."""

    def run_jobs(jobs: Sequence[tuple[str, Job]], folder: Path, *, on_finished: Any, **_: Any) -> list[Trial]:
        done = list[Trial]()
        for name, job in jobs:
            score = {"split": "val", "metric": "accuracy", "value": value(job), "low": 0.0, "high": 1.0, "n": 360}
            found = {"score": score, "seed": job.seed_index, "threads": 1, "steps": job.max_steps, "stopped": "done"}
            died = fixed if name == "fixed" or every else None
            if not died:
                files.write_json(folder / name / "result.json", found)
            done.append(Trial(name, job, folder / name, {} if died else found, died))
            on_finished(done[-1])
        return done

    monkeypatch.setattr("pipeline.trials.recorded.run_jobs", run_jobs)


def test_optimization_compares_nothing_when_every_training_died(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reason is the message; no study, candidate or exhaustion is recorded."""
    fake_trials(monkeypatch, lambda job: 0.5, fixed="exit 2: my_pkg: has changed since it was trusted", every=True)
    go(trained.path.parent, "phase=diagnostics", "run.name=digits")

    with pytest.raises(
        UserError, match="trainings died, so nothing was compared, got 'in the first one: exit 2: my_pkg"
    ):
        go(trained.path.parent, "phase=optimization", "run.name=digits")
    assert studies(trained) == [] and not trained.state().exhausted and trained.state().gate("optimization") is None


def studies(run: Run) -> list[dict[str, Any]]:
    return [e["data"] for e in read_ledger(run.ledger_path) if e["kind"] == "study.decided"]


def searched(study: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates that were trained in a round."""
    return [tally for tally in study["searched"] if tally["values"] or tally["quick"] is not None]


def test_optimization_rounds_continue_until_no_cure_is_left(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a winner the next round diagnoses the same history and tries the next changes, each once; what nobody
    believes comes last, and nothing is confirmed. The ablation that the plan asks for is beside it."""
    fake_trials(monkeypatch, lambda job: 0.5)

    ablation = "phases.optimization.ablate=[optimizer.weight_decay]"
    arguments = (
        "experiment=digits_hot",
        *SMALL[1:],
        "phases.optimization.candidates=2",
        "trainer.max_epochs=2",
        ablation,
    )
    run, _, advice = go(own_folder, "phase=auto", *arguments)
    rounds = [[tally["change"] for tally in searched(study)] for study in studies(run)]
    tried = [change for changes in rounds for change in changes]
    offered = untried(json.loads(run.inside("diagnostics", 1, "diagnosis.json").read_text()), Delta(), set())
    named = [arm.delta.describe() for arm in offered]
    origins = [{tally["origin"] for tally in searched(study)} for study in studies(run)]

    assert len(rounds) > 1 and all(rounds) and len(tried) == len(set(tried))
    assert rounds[0] == named[: len(rounds[0])] and "general" not in origins[0]
    assert all(origin == {"general"} or "general" not in origin for origin in origins)
    assert all(study["arms"] == [] and study["search_trainings"] <= 6 for study in studies(run))
    assert all(
        read_evidence(run, "diagnostics", n)["history"] == "baseline/history.npz" for n in range(1, len(rounds) + 1)
    )
    assert advice.exit_code == 3 and "exhausted" in advice.why
    assert {i.outcome for i in run.state().gates["optimization"].items} <= {"passed", "not_applicable"}
    page = run.inside("optimization", 1, "recommendations.md").read_text()
    assert "The reference stays as it is" in page and "    optimizer.weight_decay=0.0 " in page


def test_optimization_rounds_end_with_the_last_cures(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a round that tried every change, no empty round follows."""
    fake_trials(monkeypatch, lambda job: 0.5)
    monkeypatch.setattr("phases.optimization.propose", lambda known, tried: [] if tried else propose(known, tried)[:3])

    run, _, advice = go(trained.path.parent, "phase=auto", "run.name=digits")

    assert len(studies(run)) == 1 and "no untried cure is left" in advice.why
    with pytest.raises(Refused, match="phase=diagnostics: cannot run, since no untried cure is left"):
        go(trained.path.parent, "phase=diagnostics", "run.name=digits")


@pytest.fixture
def unexplained(trained: Run, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, list[str], NextStep]:
    """A run below its target without a change that could be tried, what was printed, and the next step."""
    printed: list[str] = []
    monkeypatch.setattr("tests.conftest.make_hooks", lambda _: make_hooks(printed.append))
    monkeypatch.setattr("phases.optimization.read_diagnosis", lambda ctx: {"root_causes": [], "recommended_fixes": []})
    monkeypatch.setattr("phases.optimization.propose", lambda known, tried: [])
    run, gate, step = go(trained.path.parent, "phase=auto", "run.name=digits")
    assert gate == "open"
    return run, printed, step


def test_optimization_without_a_candidate_says_that_nothing_was_compared(
    unexplained: tuple[Run, list[str], NextStep], cli: Cli
) -> None:
    """Screen, ledger, gate, status and report give the reason; no item of a comparison passes, and none is claimed."""
    run, printed, step = unexplained
    reason = "nothing was compared: the diagnosis names no cause, so there is no cure to try"
    text = "\n".join(printed)
    page = write_report(run.path).read_text()

    assert f"optimization, round 1: {reason}" in printed
    assert "seeds each" not in text and "better than the control" not in text + page
    assert [(study["arms"], study["why"]) for study in studies(run)] == [([], reason)]
    items = run.state().gates["optimization"].items
    assert {(item.outcome, item.why) for item in items} == {("not_applicable", reason)}
    assert step.exit_code == 3 and step.why.startswith(f"exhausted: {reason}; a person decides")
    assert "none applies" in cli("status", str(run.path))[1]
    assert "Nothing was compared: the diagnosis names no cause" in page and "none applies" in page


def test_exhausted_run_offers_commands_that_are_accepted(
    unexplained: tuple[Run, list[str], NextStep], cli: Cli
) -> None:
    """A person may accept the model, train longer, enlarge it, or change the data; each command is accepted."""
    run, _, step = unexplained
    commands = {alternative.why: shlex.split(alternative.command)[3:] for alternative in step.alternatives}
    status = cli("status", str(run.path))[1]

    assert [words[0] for words in commands.values()] == ["phase=baseline", "phase=baseline", "phase=planning"]
    assert commands["train longer"][-1] == "trainer.max_epochs=6"
    assert commands["train a larger model"][-1] == "model.hidden=[256]"
    for alternative in step.alternatives:
        assert f"or {alternative.why}:" in status and alternative.command in status
        assert alternative.command.replace("'", "&#39;") in write_report(run.path).read_text()
    for words in commands.values():
        request = resolve_request(words, [])
        assert request.run.path == run.path and request.changed == ("planning" not in words[0])
    waive = shlex.split(
        step.command.replace("NAME", "'Example Owner'").replace("...", "x" * 12).replace("YYYY-MM-DD", LATER)
    )
    assert cli(*commands["train longer"])[0] == 0
    assert run.state().plan["revision"] == 2 and run.state().exhausted is None
    assert cli(*waive[3:])[0] == 0


def test_explain_no_candidate_names_what_can_be_done_by_hand() -> None:
    """Without a cause, with cures that need code, with nothing but mitigations, or with every cure tried."""
    by_hand = {"overrides": {}, "surgery": [], "code": "call optimizer.zero_grad()"}
    fix = {"cause": "x", "cure": "zero_grad", "kind": "cure", "implementation": by_hand}
    named = {"root_causes": [{"issue": "x"}], "recommended_fixes": [fix]}
    lower = {**fix, "implementation": {"overrides": {"optimizer.lr": 0.1}, "surgery": [], "code": None}}

    said = [
        explain_no_candidate({"root_causes": [], "recommended_fixes": []}, Delta()),
        explain_no_candidate(named, Delta()),
        explain_no_candidate({**named, "recommended_fixes": []}, Delta()),
        explain_no_candidate({**named, "recommended_fixes": [lower]}, Delta()),
    ]

    assert (
        "names no cause" in said[0] and "(x) need a change of the code by hand: call optimizer.zero_grad()" in said[1]
    )
    assert "have no cure that a trial can test" in said[2] and "was tried in an earlier round" in said[3]


def test_alternatives_leave_out_what_the_config_lacks() -> None:
    """A model without a width cannot be enlarged by an override; its own code can be changed and trusted again."""
    config = {"trainer": {"max_epochs": 10}, "model": {"_target_": "my_pkg.Net"}}

    records = alternatives(config, ["my_pkg"])

    assert [record["overrides"] for record in records] == [["trainer.max_epochs=20"], ["trust=[my_pkg]"], []]


def test_alternatives_leave_out_what_trials_have_refuted() -> None:
    """A change that did not help in a trial, alone or with others, is not proposed again."""
    config = {"trainer": {"max_epochs": 10}, "model": {"_target_": "my_pkg.Net"}}
    tried = [{"trainer.max_epochs": 20, "trainer.patience": 5}]

    assert ["trainer.max_epochs=20"] not in [r["overrides"] for r in alternatives(config, [], tried)]


def test_optimization_prints_the_winner_apart_from_the_table(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has one line per seed; the choice has its reason, and the last training is in a sentence."""
    printed: list[str] = []
    fake_trials(monkeypatch, lambda job: 0.995 if job.delta else 0.1 + job.seed_index / 100, fixed="signal 9")
    go(trained.path.parent, "phase=diagnostics", "run.name=digits")
    monkeypatch.setattr("tests.conftest.make_hooks", lambda _: make_hooks(printed.append))

    run, _, _ = go(trained.path.parent, "phase=optimization", "run.name=digits")
    table = [line for line in printed if line.startswith("  seed ")]
    choice = next(line for line in printed if line.startswith("chosen: "))

    assert len(table) == 7 and {line.split()[2] for line in table} == {f"{0.1 + i / 100:.4f}" for i in range(20, 27)}
    assert any("predicted: the search costs at most" in line for line in printed)
    assert "reaching the target 0.99 on average" in choice and studies(run)[0]["why"] in choice
    assert any(line.startswith("  c1: significantly better than the control") for line in printed)
    assert "retrained" not in "".join(table) and "adopted" not in studies(run)[0]["why"]
    page = write_report(run.path).read_text()
    assert "not adopted: its training with the plan&#39;s seed died" in page and ">adopted<" not in page


def test_optimization_with_a_winner_that_dies(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The death is recorded and printed, nothing is adopted, and the next round may try the winner again."""
    message: list[str] = []
    fake_trials(monkeypatch, lambda job: 0.9 if job.delta else 0.1, fixed="signal 9: out of memory")
    go(trained.path.parent, "phase=diagnostics", "run.name=digits")
    monkeypatch.setattr("tests.conftest.make_hooks", lambda _: make_hooks(message.append))

    run, gate, _ = go(trained.path.parent, "phase=optimization", "run.name=digits")
    values = read_evidence(run, "optimization", 1)
    item = next(i for i in run.state().gates["optimization"].items if i.id == "choice_justified")

    assert gate == "open" and values["fixed_died"] == "signal 9: out of memory" and not values["nothing_left"]
    assert "candidate" not in values and not run.inside("optimization", 1, "fixed.yaml").exists()
    assert "nothing was adopted" in item.why and any(text.startswith("not adopted: ") for text in message)
    assert run.state().round == 2 and not run.state().exhausted
    go(trained.path.parent, "phase=diagnostics", "run.name=digits")
    go(trained.path.parent, "phase=optimization", "run.name=digits")
    assert read_evidence(run, "optimization", 2)["arms"][0]["change"] == values["winner"]["change"]


def test_untried_returns_cures_of_named_causes() -> None:
    """Fixes of other causes, mitigations and changes of code are not candidates; surgeries differ by detail."""
    how = {"overrides": {}, "surgery": [], "code": None}
    fix = {"cause": "dead_relu", "cure": "x", "kind": "cure", "implementation": how}
    swaps = [{**how, "surgery": [{"swap_activation": {"from": "ReLU", "to": to}}]} for to in ("GELU", "Tanh")]
    lower = {**how, "overrides": {"optimizer.lr": 0.1}}
    fixes = [
        {**fix, "cause": "overfitting", "implementation": lower},
        {**fix, "kind": "mitigation", "implementation": lower},
        fix,
        *({**fix, "implementation": swap} for swap in (*swaps, swaps[0])),
    ]
    diagnosis = {"root_causes": [{"issue": "dead_relu"}], "recommended_fixes": fixes}

    arms = untried(diagnosis, Delta(), set())

    assert [a.delta.surgery[0]["swap_activation"]["to"] for a in arms] == ["GELU", "Tanh"]
    assert [a.order for a in untried(diagnosis, Delta(), {digest(arms[0].delta)})] == [1]


# --- the command that repeats a fixed run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "delta"),
    [
        ([], Delta({"optimizer.lr": 0.1})),
        (["optimizer.lr=3.0"], Delta({"optimizer.lr": 0.1})),
        ([], Delta({"loss": {"_target_": "torch.nn.HuberLoss", "delta": 1.0}})),
        (["optimizer=sgd"], Delta({"optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3}})),
        (["scheduler=cosine", "scheduler.T_max=5"], Delta({"scheduler": None})),
        (["model=mlp", "plan.owner='it\\'s, a [b]'"], Delta({"model.hidden": [64, 32], "trainer.patience": 5})),
        ([], Delta(surgery=({"swap_activation": {"from": "ReLU", "to": "LeakyReLU"}},))),
    ],
)
def test_rerun_command_gives_the_fixed_config(arguments: list[str], delta: Delta, own_folder: Path) -> None:
    """Split by a shell and composed again, the command of `fixed.yaml` gives the fixed config."""
    from pipeline.config.arguments import parse
    from pipeline.config.compose import compose

    arguments = ["experiment=digits", *arguments]
    planned = compose(arguments, [])
    grants = ({"package": "my_lab"}, {"package": "other"})
    plan = {"overrides": arguments, "config_dirs": [str(own_folder / "my conf")], "seq": 1}
    run = Run.at(own_folder / "some where", "digits")

    command = rerun_command(run, RunState(revisions=(plan,), trust=grants), planned, delta)
    typed = shlex.split(command)
    again = parse(typed[3:])
    config = compose(again.overrides, [])

    assert typed[:4] == ["python", "-m", "pipeline", "phase=baseline"] and "'" in command
    assert [str(d) for d in again.config_dirs] == [str(own_folder / "my conf")]
    assert config["trust"] == ["my_lab", "other"]
    assert (config["run"]["name"], config["run"]["root"]) == ("digits-fixed", "some where")
    assert plans.changed_config(Job("", "", delta).config(planned), config) == {}


def arm(**new: Any) -> dict[str, Any]:
    base = {
        "id": "c1",
        "cause": "learning_rate_too_high",
        "cure": "lower_lr",
        "order": 1,
        "change": "optimizer.lr=0.1",
        "values": [0.5],
    }
    return {**base, "p": 0.01, "effect": 0.5, "mean": 0.9, **new}


def trial(arm_id: str, pair: int, **new: Any) -> dict[str, Any]:
    base = {"id": f"{arm_id}-{pair}", "arm": arm_id, "seed_index": pair, "died": None}
    return {**base, "seed": pair, "threads": 1, "steps": 9, "stopped": "done", **new}


def compared(**wrong: Any) -> dict[str, Any]:
    """Evidence of a control and one candidate on two seeds, with what the last worker measured changed."""
    runs = [trial("control", 1), trial("control", 2), trial("c1", 1), trial("c1", 2, **wrong)]
    return {"arms": [arm()], "seeds_per_arm": 2, "max_steps": 9, "trials": runs}


@pytest.mark.parametrize(
    ("wrong", "outcome", "why"),
    [
        ({}, "passed", "2 seeds, at most 9 steps each"),
        ({"seed": 3}, "failed", "pair 2 did not run on one seed"),
        ({"seed": None}, "failed", "pair 2 did not run on one seed"),
        ({"threads": 2}, "failed", "different numbers of threads"),
        ({"steps": 10}, "failed", "more steps than the common budget of 9: c1-2"),
        ({"steps": 5, "stopped": "nonfinite"}, "passed", "2 seeds"),
        ({"steps": 5, "stopped": "clock"}, "failed", "stopped by the clock: c1-2"),
        ({"died": "signal 9", "seed": None, "threads": None}, "passed", "2 seeds"),
        ({"arm": "c2"}, "failed", "without its pair: c1"),
    ],
)
def test_arms_compared_fairly_on_changed_trials(wrong: dict[str, Any], outcome: str, why: str) -> None:
    """Seeds, threads, steps and ends are those that the workers measured; died trials have none."""
    item = judge("study.arms_compared_fairly", compared(**wrong))

    assert (item.outcome, why in item.why) == (outcome, True), item.why


def test_arms_compared_fairly_refuses_repeated_seeds() -> None:
    """Two pairs with one seed would count the same comparison twice."""
    values = compared(seed=1)
    values["trials"][1]["seed"] = 1

    assert judge("study.arms_compared_fairly", values).why == "two pairs ran on the same seed"


SMALLER = arm(id="c1", order=1, mean=0.6, effect=0.1, change="small")
LARGER = arm(id="c2", order=2, mean=0.9, effect=0.4, change="large")


@pytest.mark.parametrize("chosen", [None, "c1", "c2"])
@pytest.mark.parametrize("better", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
def test_choice_justified_agrees_with_select_arm(chosen: str | None, better: tuple[bool, bool], target: float) -> None:
    """Gate 4 passes exactly what `select_arm` selects: the smallest that reaches the target, the best, or none."""
    rows = [{**a, "p": 0.01 if good else 0.9, "wins": good} for a, good in zip((SMALLER, LARGER), better, strict=True)]
    winner = next((row for row in rows if row["id"] == chosen), None)
    values = {"arms": rows, "winner": winner, "target": target, "greater_is_better": True}

    passed = judge("study.choice_justified", values, alpha=0.05).outcome == "passed"

    assert passed == (select_arm(rows, target, True) == winner)


def test_choice_justified_if_lower_is_better() -> None:
    """The larger change is the right choice if the smaller one stays above the target."""
    rows = [{**SMALLER, "mean": 0.4, "wins": True}, {**LARGER, "mean": 0.2, "wins": True}]
    values = {"arms": rows, "winner": select_arm(rows, 0.3, False), "target": 0.3, "greater_is_better": False}

    assert values["winner"]["id"] == "c2"
    assert judge("study.choice_justified", values, alpha=0.05).outcome == "passed"


GENERAL = arm(cause="", causes=[], cure="", origin="general", change="trainer.max_epochs=6")
WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("study.candidates_from_causes", {"causes": ["dead_relu"]}, {}, "failed", "does not fix a named cause"),
    ("study.candidates_from_causes", {"searched": [arm(cure="more_layers")]}, {}, "failed", "more_layers"),
    ("study.candidates_from_causes", {"searched": [], "arms": [arm(cure="dropout")]}, {}, "failed", "dropout"),
    ("study.candidates_from_causes", {"searched": [arm(origin="experiment")]}, {}, "failed", "lower_lr does not"),
    ("study.candidates_from_causes", {"searched": [GENERAL]}, {}, "passed", "trainer.max_epochs=6"),
    ("study.candidates_from_causes", {"searched": [arm(), GENERAL]}, {}, "failed", "came before remedies"),
    ("study.candidates_from_causes", {"arms": ..., "searched": []}, {}, "errored", "'arms' was not measured"),
    ("study.candidates_from_causes", {"arms": [], "searched": []}, {}, "not_applicable", "no cause"),
    ("study.arms_compared_fairly", {"arms": []}, {}, "not_applicable", "no cause"),
    ("study.every_trial_recorded", {"arms": []}, {}, "not_applicable", "no cause"),
    ("study.every_trial_recorded", {"arms": [], "trials_recorded": 16}, {}, "failed", "1 planned trials have no"),
    ("study.chosen_on_validation", {"arms": []}, {}, "not_applicable", "no cause"),
    ("study.chosen_on_validation", {"arms": [], "test_opened": 1}, {}, "failed", "another split"),
    ("study.arms_compared_fairly", {"trials": ...}, {}, "errored", "'trials' was not measured"),
    ("study.enough_seeds", {"seeds_per_arm": 5}, {"alpha": 0.05}, "failed", "5 pairs"),
    ("study.enough_seeds", {"arms": []}, {"alpha": 0.05}, "not_applicable", "no cause"),
    ("study.every_trial_recorded", {"trials_recorded": 16}, {}, "failed", "1 planned trials have no recorded end"),
    ("study.chosen_on_validation", {"score_splits": ["val", "test"]}, {}, "failed", "another split"),
    ("study.chosen_on_validation", {"test_opened": 1}, {}, "failed", "another split"),
    ("study.choice_justified", {"winner": None}, {"alpha": 0.05}, "failed", "won and was not adopted"),
    ("study.choice_justified", {"winner": None, "arms": []}, {"alpha": 0.05}, "not_applicable", "no cause"),
    ("study.choice_justified", {"choice": "c1 is the smallest"}, {"alpha": 0.05}, "passed", "; c1 is the smallest"),
    ("study.choice_justified", {"choice": ...}, {"alpha": 0.05}, "passed", "on average"),
    ("study.choice_justified", {"winner__p": 0.05}, {"alpha": 0.05}, "failed", "did not win its test"),
    ("study.choice_justified", {"winner__effect": -0.1}, {"alpha": 0.05}, "failed", "did not win its test"),
    ("study.choice_justified", {"winner__id": "c9"}, {"alpha": 0.05}, "failed", "the rule says optimizer.lr=0.01"),
    ("study.regression_checks_run", {}, {}, "passed", "passed"),
    ("study.regression_checks_run", {"regression__trials": []}, {}, "failed", "not run: round-1-"),
    ("study.regression_checks_run", {"regression__sanity": {"x": "errored"}}, {}, "failed", "not run: x"),
    ("study.regression_checks_run", {"regression__sanity": {"x": "failed"}}, {}, "passed", "not kept: x"),
    ("study.regression_checks_run", {"candidate": ...}, {}, "not_applicable", "nothing was adopted"),
    ("study.rollback_documented", {"candidate": ...}, {}, "not_applicable", "nothing was adopted"),
    ("study.rollback_documented", {}, {}, "failed", "no page says"),
    ("study.choice_justified", {"fixed_died": "signal 9"}, {"alpha": 0.05}, "passed", "seed failed: signal 9"),
]


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_study_items_on_changed_evidence(
    mended: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On real evidence with one value changed, the item of that value has the expected outcome."""
    values = read_evidence(mended, "optimization", 1)
    if wrong.get("arms") == []:
        values["choice"] = "nothing was compared: the diagnosis names no cause"

    item = judge(check, with_values(values, **wrong), **bounds)

    assert item.outcome == outcome
    assert why in item.why


def test_checklist_shows_what_the_incident_left(mended: Run, cli: Cli) -> None:
    """The prevention items of the run are tasks of its checklist, with what the fixed training measured."""
    code, text, _ = cli("checklist", mended.path)
    answer = json.loads(cli("checklist", mended.path, "--json")[1])
    left = [item for gate in answer["gates"] for item in gate["items"] if item["id"].startswith("round-1-")]

    assert code == 0 and re.search(r"- \[x\] \*\*round-1-grad_norm\*\* Does the gradient norm stay under \S+\?", text)
    assert "left by the incident of round 1; measured: " in text
    assert left and all(item["satisfied"] for item in left) and all(len(item["remarks"]) == 2 for item in left)
