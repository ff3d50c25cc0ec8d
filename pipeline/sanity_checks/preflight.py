"""Preflight: the checks of planning and baseline for any model and data, without a run that stays on disk.

Only an open planning gate permits training, so a run is made in a temporary folder and removed at the end. The items
that only a person can answer are filled in for it, and left out of the report.
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
from typing import TYPE_CHECKING, Any

from pipeline.errors import Refused, UserError, fault, user_error
from pipeline.orchestration.phase import Hooks, Registry
from pipeline.results import Evidence
from pipeline.run_store import checklist, files, permits
from pipeline.run_store.gate import Item
from pipeline.run_store.run import Run
from pipeline.trust import grants as trust
from pipeline.trust.source_guard import GUARD, TrustedFolder

if TYPE_CHECKING:
    from torch import nn

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
PERSONAL = ("problem_card", "metric_and_target")  # items that only a person can answer
FIXED = ("run", "phase", "experiment", "trust", "tracking", "seed", "plan")  # sections that preflight sets itself
MEASURED = ("training.loss_at_init_measured", "training.trivial_baseline_scored")  # asked besides all of sanity.*
LEARNS = "one_batch_tried"  # its warning means that the model does not learn
MINUTES = 5  # trainer.max_minutes; the sanity checks get a tenth of it, 30 seconds

EXPERIMENT = """# @package _global_
defaults: [override /data: null, override /model: null, override /task: {task}{other_loss}]
seed: {seed}
run: {{name: preflight, root: {root}}}
data: {{_target_: {data}}}
model: {{_target_: {model}}}
{loss}task: {{target: 0.0}}
trainer: {{max_minutes: {minutes}, max_epochs: 100}}
plan: {{purpose: preflight, population: any, assumptions: [none], risks: [none], limits: {{size_mb: 1}}, owner: none}}
tracking: {{kind: none}}
"""


@dataclass(frozen=True)
class PreflightReport:
    """The result of a preflight: items by phase, what was inferred, the messages of the phases, and the seconds."""

    items: Mapping[str, Sequence[Item]]
    inferred: Sequence[str]
    messages: Sequence[str]
    seconds: float

    @property
    def ready(self) -> bool:
        """Whether every item passed or does not apply."""
        return all(item.outcome in ("passed", "not_applicable") for items in self.items.values() for item in items)

    @property
    def warnings(self) -> list[Item]:
        """The items that passed with a warning."""
        return [item for items in self.items.values() for item in items if item.warns]


def _strict(item: Item) -> Item:
    """Turn the warning that the model does not learn into a failure: no diagnosis follows a preflight."""
    return replace(item, outcome="failed") if item.id == LEARNS and item.warns else item


def preflight(registry: Registry, model: str, data: str, overrides: Sequence[str], seed: int) -> PreflightReport:
    """Run every check of planning and the sanity checks of the baseline; nothing stays on disk.

    `model` and `data` are `package.module:name`, importable from the current folder; naming them trusts their packages.
    Raises UserError for what cannot be built or does not fit, as a run would.
    """
    began = time.perf_counter()
    targets = _dotted_names(model, data, overrides)
    messages: list[str] = []

    def log(text: str) -> None:
        messages.append(text.replace("planning:", "preflight:", 1) if text.startswith("planning:") else text)

    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="preflight-"))
        stack.callback(files.remove_folder, root)
        stack.callback(_restore_path, list(sys.path), dict(GUARD.folders))
        packages = _trust_packages(targets)
        run_overrides, inferred = _prepare_experiment(root, targets, packages, overrides, seed)
        items = _run_phases(registry, Hooks(log=log), run_overrides, root)
    return PreflightReport(items, inferred, messages, time.perf_counter() - began)


def _restore_path(path: list[str], folders: dict[str, TrustedFolder]) -> None:
    sys.path[:], GUARD.folders = path, folders


def _dotted_names(model: str, data: str, overrides: Sequence[str]) -> dict[str, str]:
    """Return both as dotted names. Raises UserError with every argument that is wrong."""
    from pipeline.config.override_keys import key_of

    faults = [
        fault(argument, "is not a module and a name", got=name, expected="package.module:name", do=_example(argument))
        for argument, name in (("MODEL", model), ("DATA", data))
        if not NAME.fullmatch(name)
    ]
    for override in overrides:
        key = key_of(override).split(".", 1)[0]
        if key in FIXED:
            do = "--seed N" if key == "seed" else "leave it out"
            faults.append(fault(override, "cannot be set in a preflight, which leaves nothing on disk", do=do))
    if faults:
        raise UserError(*faults)
    return {"model": model.replace(":", "."), "data": data.replace(":", ".")}


def _example(argument: str) -> str:
    arguments = ("my_pkg.model:Net", "DATA") if argument == "MODEL" else ("MODEL", "my_pkg.data:load")
    return f"python -m pipeline preflight {' '.join(arguments)}"


def _trust_packages(targets: Mapping[str, str]) -> list[str]:
    """Trust the packages of both names and return them. Raises UserError for one that cannot be found or trusted."""
    from pipeline.config.build import ALLOWED, locate

    here = os.getcwd()
    bundled = tuple(f"{package}." for package in ALLOWED)
    own = {section: name.partition(".")[0] for section, name in targets.items() if not name.startswith(bundled)}
    missing = [s for s, package in own.items() if not trust.why_not(package) and not trust.is_importable(package)]
    faults = [_no_module(section.upper(), own[section], here) for section in missing]
    packages = list(dict.fromkeys(package for section, package in own.items() if section not in missing))
    names = trust.activate(trust.grant(packages, [Path(here)]))
    failed = list[UserError]()
    for section, name in targets.items():
        if section in missing:
            continue
        try:
            locate(name, (*ALLOWED, *names), section.upper())
        except UserError as error:
            faults += error.faults
            failed.append(error)
    if faults:
        raise user_error(faults, failed)
    return packages


def _no_module(argument: str, package: str, folder: str) -> str:
    """Return that a module of MODEL or DATA does not exist, with the closest name."""
    expected, known = f"a module in {folder}, or an installed one", trust.importable_names([Path(folder)])
    do = "run preflight in the folder that contains the module, or install it"
    return fault(argument, "no such module", got=package, expected=expected, among=known, do=do)


def _prepare_experiment(
    root: Path, targets: Mapping[str, str], packages: Sequence[str], overrides: Sequence[str], seed: int
) -> tuple[list[str], list[str]]:
    """Write the experiment into the temporary folder; return the overrides of its run, and what was inferred."""
    from pipeline.config.build import build
    from pipeline.config.compose import compose
    from pipeline.config.conf_dir import LOSSES, loss_target
    from pipeline.config.override_keys import key_of
    from pipeline.sanity_checks.infer_task import infer_task

    keys = {key_of(override) for override in overrides}
    task_given, loss_given = bool(keys & {"task", "task.kind"}), "loss" in keys
    fixed = {"seed": seed, "root": json.dumps(str(root / "runs")), "minutes": MINUTES, **targets}
    run_overrides = [*overrides, "experiment=preflight", f"trust=[{','.join(packages)}]"]
    # Composed once with any task, so that the overrides reach model and data before the task is inferred from them.
    _write_experiment(root, fixed, "classification", None if loss_given else loss_target("classification"))
    config = compose(run_overrides, [root / "conf"])
    source = build(config["data"], trust=packages, where="data")
    task = infer_task(source, lambda: _build_uninitialized(config, packages))
    kind = config["task"]["kind"] if task_given else task.kind
    loss = (
        None if loss_given else task.loss if kind == task.kind else loss_target(kind) if kind in LOSSES else task.loss
    )
    _write_experiment(root, fixed, kind, loss)
    inferred = [] if task_given else [f"task={kind}, since {task.why}"]
    inferred += [f"loss={loss.rpartition('.')[2]}, since none is given"] if loss else []
    return run_overrides, inferred


def _build_uninitialized(config: Mapping[str, Any], packages: Sequence[str]) -> nn.Module:
    """Build the model of a config without the weights that it starts from; widths that are `auto` need the data."""
    from pipeline.building.auto_values import AUTO, WIDTHS, model_node
    from pipeline.config.build import build
    from pipeline.config.override_keys import leaves
    from pipeline.data.load import load

    node = dict(config["model"])
    if any(value == AUTO and key.rpartition(".")[2] in WIDTHS for key, value in leaves(node)):
        node = model_node(config, load(config, packages))
    node.pop("init_from", None)
    model: nn.Module = build(node, trust=packages, where="model")
    return model


def _write_experiment(root: Path, fixed: Mapping[str, object], task: str, loss: str | None) -> None:
    """Write the experiment; without a loss, the command line sets it."""
    own_loss = {"other_loss": ", override /loss: null", "loss": f"loss: {{_target_: {loss}}}\n"}
    values = {**fixed, "task": task, **(own_loss if loss else {"other_loss": "", "loss": ""})}
    folder = files.folder(root / "conf" / "experiment")
    files.write_text(folder / "preflight.yaml", EXPERIMENT.format(**values))


def _run_phases(registry: Registry, hooks: Hooks, overrides: Sequence[str], root: Path) -> dict[str, Sequence[Item]]:
    """Return the items of planning, and those of the baseline that the sanity checks answer."""
    from pipeline.orchestration.execute import execute_run
    from pipeline.orchestration.run_request import resolve_request

    has_target = any(override.startswith("task.target=") for override in overrides)
    personal = {item for item in PERSONAL if item == "problem_card" or not has_target}
    run = execute_run(registry, hooks, resolve_request(["phase=planning", *overrides], [root / "conf"])).run
    planned = [item for item in run.state().gates["planning"].items if item.id not in personal]
    return {"planning": planned, "baseline": _run_sanity_checks(registry, hooks, run)}


def _run_sanity_checks(registry: Registry, hooks: Hooks, run: Run) -> list[Item]:
    """Return the items of the sanity checks on a run's plan; if its gate is closed, those that train are not run."""
    from pipeline.data.load import load
    from pipeline.evaluation.evaluate import mean_loss
    from pipeline.run_store import plan as plans
    from pipeline.sanity_checks.context import CheckContext
    from pipeline.sanity_checks.inspections import inspect_plan
    from pipeline.sanity_checks.lr_range_test import format_range_test
    from pipeline.sanity_checks.run_checks import run_checks

    state = run.state()
    config = plans.load(run, state).config
    names = tuple(grant["package"] for grant in state.trust)
    closed = [i.id for i in state.gates["planning"].items if i.outcome not in ("passed", "not_applicable")]
    permit = None
    try:
        permit = permits.train(run)
    except Refused:
        hooks.log(f"nothing was trained: the planning gate is closed ({', '.join(closed)})")
    refused = f"the planning gate is closed ({', '.join(closed)})"
    settings, folder = config["phases"]["baseline"], run.inside("sanity_checks")
    context = CheckContext(config, names, load(config, names), settings, permit, folder, refused)
    with context.training_conditions() as setup:
        loss = mean_loss(setup.model, setup.train_eval_rows.X, setup.train_eval_rows.y, setup.task)
    results = run_checks(context)
    inspections, _ = inspect_plan(context, results)
    if results["lr_range_test"]["outcome"] == "measured":
        hooks.log(format_range_test(results["lr_range_test"]))
    values = {
        "sanity_checks": results,
        "inspections": inspections.to_json(),
        "loss_at_init": loss,
        "loss_expected": setup.facts().get("loss_expected"),
        "trivial_baseline": dict(setup.baseline_score),
    }
    items = checklist.read(registry.checklists / "baseline.yaml", config, registry.check)
    answerable = [i for i in items if i.get("check") in MEASURED or str(i.get("check")).startswith("sanity.")]
    return [_strict(item) for item in checklist.judge(answerable, Evidence(values), registry.check)]
