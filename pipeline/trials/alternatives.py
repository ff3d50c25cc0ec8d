"""What a person can try where no cure is left: changes of the plan that are commands of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.repair.config_edits import format_override_value
from pipeline.repair.cures import CURES
from pipeline.run_store.records import AlternativeRecord

CURES_TO_OFFER = {"train longer": "more_epochs", "train a larger model": "enlarge_model"}
EDITED_CODE = "change the model or the data in your own code, which needs your trust again"
OTHER_DATA = "add rows, or correct those that `data` reads, then plan again"


def alternatives(
    config: Mapping[str, object], packages: Sequence[str], tried: Sequence[Mapping[str, object]] = ()
) -> list[AlternativeRecord]:
    """Return what can be tried with this config: more epochs, a larger model, other code, other data.

    `packages` are those that the user trusts, `tried` the overrides of trials that did not help. Each alternative is a
    phase with overrides that the run accepts.
    """
    records: list[AlternativeRecord] = []
    for why, cure in CURES_TO_OFFER.items():
        changes = [change for edit in CURES[cure].edits for change in edit(config)]
        untried = [change for change in changes if not any(change.items() <= trial.items() for trial in tried)]
        if untried:  # the first is the smallest
            overrides = [f"{key}={format_override_value(value)}" for key, value in untried[0].items()]
            records.append({"why": why, "phase": "baseline", "overrides": overrides})
    if packages:
        trust = f"trust={format_override_value(list(packages))}"
        records.append({"why": EDITED_CODE, "phase": "baseline", "overrides": [trust]})
    return [*records, {"why": OTHER_DATA, "phase": "planning", "overrides": []}]
