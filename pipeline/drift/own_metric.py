"""The metric that a release was judged by, where it is a function of the owner's: imported with the run's own trust."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import safe_yaml
from pipeline.foreign_files import read_bytes
from pipeline.run_store.run import Run

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import Metric

PLAN = "plan.yaml"
MAX_PLAN_BYTES = 2**24


class OwnCode(NamedTuple):
    """The owner's metric, and why labels cannot be scored; both are empty where the release used none of their code."""

    metric: Metric | None = None
    why: str = ""


def own_code(payload: Path) -> OwnCode:
    """Return the owner's metric for the payload of a run, and why a payload elsewhere cannot be scored by it.

    A bundle does not contain the owner's code, but the run that it is in says where the code is and who trusts it.
    Raises Refused for code that this user did not trust or that changed since, as every phase does.
    """
    if not (payload / PLAN).is_file():
        return OwnCode()
    plan = safe_yaml.load(read_bytes(payload / PLAN, "a plan", MAX_PLAN_BYTES).decode(), PLAN)
    task: dict[str, Any] = ((plan or {}).get("config") or {}).get("task") or {}
    if task.get("step"):
        return OwnCode(why="predictions come from task.step, which is not part of a bundle")
    if task.get("predict", "auto") != "auto":
        return OwnCode(why="predictions come from task.predict, which is not part of a bundle")
    metric = task.get("metric")
    if not isinstance(metric, dict):
        return OwnCode()
    target, run = metric.get("_target_"), Run(payload.parent.parent)
    if payload.parent.name != "bundle" or not run.exists():
        return OwnCode(why=f"{target} is not part of a bundle: give the run of the release instead of its bundle")
    from pipeline.evaluation.metric_config import metric_from_config
    from pipeline.trust.grants import activate_recorded

    grants = run.state().trust
    activate_recorded(grants, run.path, run.overrides)
    return OwnCode(metric_from_config(task, [grant["package"] for grant in grants]))
