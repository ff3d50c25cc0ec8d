"""Is chance under control?"""

from __future__ import annotations

from pipeline.results import Evidence, Result


def seeds_fixed(evidence: Evidence) -> Result:
    """Passing proves that one master seed is fixed, from which every other seed of the run is derived."""
    seed = evidence["seed"]
    if seed is None:
        return Result(
            "failed", None, "an integer", why="no seed: add seed=1 to the command, or seed: 1 to the experiment"
        )
    return Result("passed", seed, "an integer", why="all other seeds derive from it")


def deterministic_kernels(evidence: Evidence, *, max_operations: int) -> Result:
    """Passing proves that a training of this plan repeats to the bit on its device, or that the plan says it may not.

    The value is the number of operations, forward and backward, that have no deterministic kernel there.
    """
    policy, named = evidence["determinism"]["policy"], evidence["determinism"]["operations"]
    count, which = len(named), ", ".join(named)
    if policy is True and count > max_operations:
        why = f"no deterministic kernel for {which}: allow it with trainer.deterministic=warn, or use other operations"
        return Result("failed", count, max_operations, "operations", why, cause="nondeterminism")
    if not count:
        why = "every operation repeats to the bit"
        if policy is not True:
            why += f", and with trainer.deterministic={str(policy).lower()} nothing holds it to that"
    elif policy == "warn":
        why = f"allowed to vary by trainer.deterministic=warn: {which}"
    else:
        why = f"trainer.deterministic=false promises nothing, and {which} will vary"
    return Result("passed", count, max_operations, "operations", why)
