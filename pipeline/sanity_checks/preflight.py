"""Preflight: the questions of planning and baseline, asked of any model and data, without a run that stays.

A run is made in a temporary folder, since only an open gate permits training, and removed. What only a person can
answer is answered for it, and left out of the result.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import trust
from pipeline.errors import Refused, UserError, fault
from pipeline.orchestration.phase import House
from pipeline.results import Evidence
from pipeline.run_store import checklist, files, permits
from pipeline.run_store.gate import Item
from pipeline.run_store.run import Run

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
PERSONAL = ("problem_card", "metric_and_target")  # items that only a person answers
FIXED = ("run", "phase", "experiment", "trust", "tracking", "seed", "plan")  # has no place, or is a flag
MEASURED = ("training.loss_at_init_measured", "training.trivial_baseline_scored")  # beside all of proofs.*
LEARNS = "one_batch_tried"  # a model that is warned of here learns nothing
MINUTES = 5  # the budget that the proofs get a tenth of: 30 seconds

EXPERIMENT = """# @package _global_
defaults: [override /data: null, override /model: null, override /task: {task}{other_loss}]
seed: {seed}
run: {{name: preflight, root: {root}}}
data: {{_target_: {data}}}
model: {{_target_: {model}}}
{loss}task: {{target: 0.0}}
trainer: {{max_minutes: {minutes}, max_epochs: 100}}
plan: {{purpose: a look, population: any, assumptions: [none], risks: [none], limits: {{size_mb: 1}}, owner: nobody}}
tracking: {{kind: none}}
"""


@dataclass(frozen=True)
class PreflightReport:
    """What a preflight found: items by phase, what was guessed, what the phases said, and how long it took."""

    items: Mapping[str, Sequence[Item]]
    guessed: Sequence[str]
    said: Sequence[str]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing failed: every item passed, or does not apply."""
        return all(item.outcome in ("passed", "not_applicable") for items in self.items.values() for item in items)

    @property
    def recorded_warnings(self) -> list[Item]:
        """What passed, and is worth a look."""
        return [item for items in self.items.values() for item in items if warns(item)]


def warns(item: Item) -> bool:
    """Whether an item that passed says that something looks wrong."""
    return item.outcome == "passed" and item.why.startswith("warning")


def _strict(item: Item) -> Item:
    """A warning that the model learns nothing is a failure here, where no diagnosis follows."""
    return replace(item, outcome="failed") if item.id == LEARNS and warns(item) else item


def preflight(house: House, model: str, data: str, overrides: Sequence[str], seed: int) -> PreflightReport:
    """Every question that planning and the proofs can ask of a model and its data, answered; nothing stays on disk.

    `model` and `data` are `package.module:name`, importable from the current folder; naming them trusts their packages.
    Raises UserError for what cannot be built or does not fit, as a run would.
    """
    began = time.perf_counter()
    targets = _named(model, data, overrides)
    said: list[str] = []
    quiet = replace(house, log=said.append, report=None, follow=None, watch=None)
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="preflight-"))
        stack.callback(files.remove_folder, root)
        stack.callback(_restore_path, list(sys.path))
        packages = _trusted(targets)
        words, guessed = _words(root, targets, packages, overrides, seed)
        items = _asked(quiet, words, root)
    return PreflightReport(items, guessed, said, time.perf_counter() - began)


def _restore_path(path: list[str]) -> None:
    sys.path[:] = path


def _named(model: str, data: str, overrides: Sequence[str]) -> dict[str, str]:
    """Both as dotted names. Raises UserError with every word that is wrong."""
    from pipeline.config.override_keys import key_of

    faults = [
        fault(what, "is no module with a name in it", got=word, expected="package.module:name", do=_do(what))
        for what, word in (("MODEL", model), ("DATA", data))
        if not NAME.fullmatch(word)
    ]
    for word in overrides:
        key = key_of(word).split(".", 1)[0]
        if key in FIXED:
            do = "--seed N" if key == "seed" else "leave it out"
            faults.append(fault(word, "has no place in a preflight, which leaves nothing behind", do=do))
    if faults:
        raise UserError(*faults)
    return {"model": model.replace(":", "."), "data": data.replace(":", ".")}


def _do(what: str) -> str:
    other = ("my_pkg.model:Net", "DATA") if what == "MODEL" else ("MODEL", "my_pkg.data:load")
    return f"python -m pipeline preflight {' '.join(other)}"


def _trusted(targets: Mapping[str, str]) -> list[str]:
    """The packages named, found and importable. Raises UserError for one that is not there or can never be trusted."""
    from pipeline.config.build import ALLOWED, locate

    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    ours = {name for name in targets.values() if name.startswith(tuple(f"{a}." for a in ALLOWED))}
    packages = list(dict.fromkeys(name.partition(".")[0] for name in targets.values() if name not in ours))
    names = trust.activate(trust.grant(packages, [Path(here)]))
    faults: list[str] = []
    for what, name in targets.items():
        try:
            locate(name, (*ALLOWED, *names), what.upper())
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    return packages


def _words(
    root: Path, targets: Mapping[str, str], packages: Sequence[str], overrides: Sequence[str], seed: int
) -> tuple[list[str], list[str]]:
    """The words of a run, its experiment written to the temporary folder, and what of it was guessed."""
    from pipeline.config.build import build
    from pipeline.config.compose import compose
    from pipeline.config.override_keys import key_of
    from pipeline.sanity_checks.infer_task import LOSSES, guess

    typed = {key_of(word) for word in overrides}
    task_given, loss_given = bool(typed & {"task", "task.kind"}), "loss" in typed
    fixed = {"seed": seed, "root": json.dumps(str(root / "runs")), "minutes": MINUTES, **targets}
    words = [*overrides, "experiment=preflight", f"trust=[{','.join(packages)}]"]
    _write(root, fixed, "classification", None if loss_given else LOSSES["classification"])
    config = compose(words, [root / "conf"])
    source = build(config["data"], trust=packages, where="data")
    node = {name: value for name, value in config["model"].items() if name != "init_from"}
    found = guess(source, lambda: build(node, trust=packages, where="model"))
    kind = config["task"]["kind"] if task_given else found.kind
    loss = None if loss_given else found.loss if kind == found.kind else LOSSES.get(kind, found.loss)
    _write(root, fixed, kind, loss)
    said = [] if task_given else [f"task={kind}, since {found.why}"]
    return words, [*said, *([f"loss={loss.rpartition('.')[2]}, since none is given"] if loss else [])]


def _write(root: Path, fixed: Mapping[str, object], task: str, loss: str | None) -> None:
    """The experiment stands in the temporary folder; without a loss, which then comes from the command line."""
    own = {"other_loss": ", override /loss: null", "loss": f"loss: {{_target_: {loss}}}\n"}
    made = {**fixed, "task": task, **(own if loss else {"other_loss": "", "loss": ""})}
    folder = files.folder(root / "conf" / "experiment")
    files.write_text(folder / "preflight.yaml", EXPERIMENT.format(**made))


def _asked(house: House, words: Sequence[str], root: Path) -> dict[str, Sequence[Item]]:
    """Planning as it is, and those questions of the baseline that the proofs answer."""
    from pipeline.orchestration.execute import drive
    from pipeline.orchestration.run_request import draft

    personal = {i for i in PERSONAL if i == "problem_card" or not any(w.startswith("task.target=") for w in words)}
    run, _, _ = drive(house, draft(["phase=planning", *words], [root / "conf"]))
    planned = [item for item in run.state().gates["planning"].items if item.id not in personal]
    return {"planning": planned, "baseline": _proved(house, run)}


def _proved(house: House, run: Run) -> list[Item]:
    """The proofs on the plan of a run, judged; where its gate is closed, those that train say so."""
    from pipeline.data.load import load
    from pipeline.evaluation.evaluate import loss_of
    from pipeline.run_store import plan as plans
    from pipeline.sanity_checks.context import CheckContext
    from pipeline.sanity_checks.lr_range_test import told
    from pipeline.sanity_checks.run_checks import prove

    state = run.state()
    config = plans.load(run, state).config
    names = tuple(grant["package"] for grant in state.trust)
    closed = [i.id for i in state.gates["planning"].items if i.outcome not in ("passed", "not_applicable")]
    permit = None
    try:
        permit = permits.train(run)
    except Refused:
        house.log(f"nothing was trained: the planning gate is closed ({', '.join(closed)})")
    settings = config["phases"]["baseline"]
    why = f"the planning gate is closed ({', '.join(closed)})"
    bench = CheckContext(config, names, load(config, names), settings, permit, run.inside("sanity_checks"), why)
    with bench.conditions() as setup:
        loss = loss_of(setup.model, setup.side.X, setup.side.y, setup.task)
    found = prove(bench)
    if found["learning_rate"]["outcome"] == "measured":
        house.log(told(found["learning_rate"]))
    values = {
        "sanity_checks": found,
        "loss_at_init": loss,
        "loss_expected": setup.facts().get("loss_expected"),
        "trivial_baseline": dict(setup.bar),
    }
    items = checklist.read(house.checklists / "baseline.yaml", config, house.check)
    asked = [i for i in items if i.get("check") in MEASURED or str(i.get("check")).startswith("sanity.")]
    return [_strict(item) for item in checklist.judge(asked, Evidence(values), house.check)]
