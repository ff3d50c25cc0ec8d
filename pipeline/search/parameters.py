"""The space of a search from its `params`, in Hydra's grammar: `tag(log, interval(1e-4, 1e-1))`, `choice(16, 32)`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, QuotedString, RangeSweep
from hydra.errors import HydraException

from pipeline.config.override_keys import leaves
from pipeline.errors import fault, nearest
from pipeline.run_store.plan import GOALPOSTS, NOT_IN_PLAN
from pipeline.tuning.space import Choices, Range

FIXED = (*GOALPOSTS, *NOT_IN_PLAN, "tracking", "executor", "export")  # sections that a search does not change
EXPECTED = "interval(a, b), tag(log, interval(a, b)), int(interval(a, b)), choice(a, b, ...) or range(a, b)"


def read_space(
    params: Mapping[str, object], config: Mapping[str, object]
) -> tuple[dict[str, Range | Choices], list[str]]:
    """Return the space of `params`, whose keys are those of the config, and a fault for each that is wrong."""
    known = [key for key, value in leaves(dict(config)) if not isinstance(value, Mapping)]
    space: dict[str, Range | Choices] = {}
    faults: list[str] = []
    for key, written in params.items():
        where, section = f"params.{key}", str(key).partition(".")[0]
        if section in FIXED:
            what = (
                "is not searched: it decides what is measured, or where" if section != "seed" else "is not a parameter"
            )
            faults.append(fault(where, what, got=written, expected="a key of model, optimizer, loader, ..."))
        elif key not in known:
            expected = "a key of the experiment's config"
            faults.append(fault(where, "unknown key", got=key, expected=expected, close=nearest(str(key), known)))
        elif isinstance(read := _read(str(key), written), str):
            faults.append(read)
        else:
            space[str(key)] = read
    if not params:
        do = "python -m pipeline -m hparams_search=NAME ... 'optimizer.lr=interval(0.001,0.1)'"
        faults.append(fault("params", "name nothing to search", expected=f"KEY: {EXPECTED}", do=do))
    return space, faults


def _read(key: str, written: object) -> Range | Choices | str:
    """Return the range or the choices of one parameter, or what is wrong with it."""
    where = f"params.{key}"
    try:
        override = OverridesParser.create().parse_override(f"{key}={written}")
    except HydraException as error:
        return fault(where, f"cannot be read: {str(error).splitlines()[0]}", got=written, expected=EXPECTED)
    value = override.value()
    if override.is_sweep_override() and isinstance(value, IntervalSweep):
        return _interval(where, value)
    if override.is_sweep_override() and isinstance(value, RangeSweep):
        assert value.start is not None and value.stop is not None
        steps = [*value.range()] if isinstance(value.start, int) and isinstance(value.step, int) else []
        if len(steps) < 2:
            return fault(where, "has fewer than two whole numbers", got=written, expected=EXPECTED)
        return Range(steps[0], steps[-1], False) if value.step == 1 else Choices(tuple(steps))
    if override.is_sweep_override() and isinstance(value, ChoiceSweep):
        choices = tuple(_plain(choice) for choice in value.list)
        if len(choices) < 2 or any(choice in choices[:i] for i, choice in enumerate(choices)):
            return fault(where, "has nothing to choose from", got=written, expected="at least two different values")
        return Choices(choices)
    return fault(where, "is one value", got=written, expected=EXPECTED)


def _interval(where: str, interval: IntervalSweep) -> Range | str:
    low, high, log = interval.start, interval.end, "log" in interval.tags
    assert low is not None and high is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return fault(where, "ends before it begins", got=f"{low} to {high}", expected="finite limits, the lower first")
    if log and low <= 0:
        return fault(where, "has no logarithm at its lower limit", got=low, expected="a limit above 0")
    return Range(low, high, log)


def _plain(value: object) -> object:
    """Return a value as a config has it, without the quotes of Hydra's grammar."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value
