"""A job: a plan's config with a change."""

from __future__ import annotations

from pipeline.run_store.job import Delta, Job


def test_job_config_leaves_its_change_as_it_is() -> None:
    """A later key of a change sets a part of an earlier one in the config, not in the change itself."""
    change = Delta({"optimizer": {"lr": 1.0, "momentum": 0.9}, "optimizer.lr": 0.5})
    plan = {"optimizer": {"lr": 0.1}}

    assert Job("", "trial", change).config(plan)["optimizer"] == {"lr": 0.5, "momentum": 0.9}
    assert change.overrides["optimizer"] == {"lr": 1.0, "momentum": 0.9} and plan == {"optimizer": {"lr": 0.1}}
