"""The `executor` section of a config: where the worker processes of trials run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.runtime.threads import cores

MOST_WAITING = 64  # trainings that are handed to a cluster at a time; each waits in a thread of this process


@dataclass(frozen=True)
class ExecutorSettings:
    """Where workers run: as processes of this one (`local`), as jobs of submitit, or as tasks of Ray.

    - `cluster`: of submitit; `local` starts its jobs on this machine.
    - `timeout_min`: minutes that a job of submitit may take.
    - `parameters`: of a job, as submitit names them, such as `slurm_partition` or `mem_gb`.
    - `address`: of a Ray cluster; without one, a cluster on this machine is started and ended.
    - `gpus_per_job`: that Ray keeps for each training.
    """

    kind: Literal["local", "submitit", "ray"] = "local"
    cluster: Literal["slurm", "local"] = "slurm"
    timeout_min: int = 1440
    parameters: Mapping[str, object] = field(default_factory=dict)
    address: str | None = None
    gpus_per_job: float = 0.0

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> ExecutorSettings:
        """Return the settings of a composed config; a plan of an earlier version has none."""
        section = config.get("executor")
        return cls(**section) if isinstance(section, Mapping) else cls()

    @property
    def on_this_machine(self) -> bool:
        """Whether the number of cores of this machine bounds how many workers run at a time."""
        return self.kind == "local" or (self.kind == "submitit" and self.cluster == "local")

    def parallel(self, setting: int | str, threads: int) -> int:
        """Return how many workers run at a time: the setting, or for `auto` as many as the cores or the cluster run."""
        if setting != "auto":
            return int(setting)
        return max(1, cores() // max(threads, 1)) if self.on_this_machine else MOST_WAITING
