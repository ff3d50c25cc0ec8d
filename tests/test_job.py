"""A job: a plan's config with a change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.run_store.job import Delta, Job

PLAN = {"optimizer": {"lr": 0.1}, "scheduler": {"name": "one cycle", "max_lr": 0.1}, "seed": 1}
KEYS = ("optimizer", "optimizer.lr", "scheduler", "scheduler.max_lr", "seed")
changes = st.dictionaries(st.sampled_from(KEYS), st.none(), max_size=1).map(Delta)


def test_job_config_leaves_its_change_as_it_is() -> None:
    """A later key of a change sets a part of an earlier one in the config, not in the change itself."""
    change = Delta({"optimizer": {"lr": 1.0, "momentum": 0.9}, "optimizer.lr": 0.5})
    plan = {"optimizer": {"lr": 0.1}}

    assert Job("", "trial", change).config(plan)["optimizer"] == {"lr": 0.5, "momentum": 0.9}
    assert change.overrides["optimizer"] == {"lr": 1.0, "momentum": 0.9} and plan == {"optimizer": {"lr": 0.1}}


def test_delta_overlaps_where_one_change_replaces_the_section_of_the_other() -> None:
    constant, peak, rate = Delta({"scheduler": None}), Delta({"scheduler.max_lr": 1.0}), Delta({"optimizer.lr": 1.0})
    assert constant.overlaps(peak) and peak.overlaps(constant) and peak.overlaps(peak)
    assert not constant.overlaps(rate)
    assert Delta(surgery=({"widen": {}},)).overlaps(Delta(surgery=({"widen": {}},)))
    with pytest.raises(UserError, match=r"scheduler.max_lr: is not a key of the frozen plan"):
        Job("", "trial", Delta({**constant.overrides, **peak.overrides})).config(PLAN)


@given(changes, changes)
def test_delta_that_does_not_overlap_can_be_made_with_the_other(first: Delta, second: Delta) -> None:
    if not first.overlaps(second):
        both = Job("", "trial", Delta({**first.overrides, **second.overrides})).config(PLAN)
        assert both == Job("", "trial", Delta({**second.overrides, **first.overrides})).config(PLAN)
