"""A run that an older version planned: keys that its config did not have are no change at today's defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline.config.compose import default_config
from pipeline.errors import UserError
from pipeline.orchestration.run_request import resolve_request
from pipeline.repair.config_edits import MISSING, get
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run
from tests.conftest import SMALL, go

# Of every kind: a key of a section, one of a phase, a whole section, and one whose default is a mapping.
NEWER = ("trainer.guard", "phases.optimization.min_effect", "phases.optimization.ablate", "executor", "plan.robustness")


def without(config: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The config as a version composed it that did not know these keys."""
    older: Any = OmegaConf.to_container(OmegaConf.create(dict(config)))
    for key in keys:
        *path, name = key.split(".")
        section = older
        for part in path:
            section = section[part]
        section.pop(name, None)
    return older


@pytest.fixture
def older(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose plan has none of the newer keys."""
    resolved: Callable[..., dict[str, Any]] = plans.with_resolved
    with monkeypatch.context() as patch:
        patch.setattr(plans, "with_resolved", lambda config, facts: without(resolved(config, facts), NEWER))
        run, gate, _ = go(own_folder, "phase=planning", *SMALL)
    assert gate == "open" and get(plans.load(run).config, NEWER[0]) is MISSING
    return run


@pytest.mark.parametrize("phase", ["auto", "baseline"])
def test_older_plan_goes_on_at_new_defaults(older: Run, phase: str) -> None:
    """No phase refuses the run or plans it again, also with the overrides of its first command."""
    for words in ([], [*SMALL]):
        request = resolve_request([f"phase={phase}", *words, "run.name=digits", f"run.root={older.path.parent}"], [])
        assert not request.changed


def test_older_plan_refuses_new_keys_with_other_values(older: Run) -> None:
    """A new key that is given another value than its default is a change, like any other."""
    root = f"run.root={older.path.parent}"
    with pytest.raises(UserError, match=r"trainer.guard: differs from the frozen plan.*got 'stop'") as refused:
        resolve_request(["phase=auto", "run.name=digits", "trainer.guard=stop", root], [])
    assert len(refused.value.faults) == 1
    with pytest.raises(UserError, match=r"phases.optimization.min_effect: is part of the frozen plan"):
        resolve_request(["phase=baseline", "run.name=digits", "phases.optimization.min_effect=0.2", root], [])


def test_default_config_sets_every_closed_key() -> None:
    """What `default_config` gives for the newer keys is what a plan of today has where nothing sets them."""
    assert all(get(default_config(), key) is not MISSING for key in NEWER)
