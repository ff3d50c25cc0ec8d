"""Is chance under control?"""

from __future__ import annotations

from pipeline.records import Evidence, Result


def seeds_fixed(evidence: Evidence) -> Result:
    """Passing proves that one master seed is fixed, from which every other seed of the run is derived."""
    seed = evidence["seed"]
    if seed is None:
        return Result(
            "failed", None, "an integer", why="no seed: add seed=1 to the command, or seed: 1 to the experiment"
        )
    return Result("passed", seed, "an integer", why="all other seeds derive from it")
