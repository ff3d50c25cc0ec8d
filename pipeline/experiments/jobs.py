"""What the phase and the warm worker agree on: purposes of jobs, names of files, words of the protocol."""

from __future__ import annotations

ARM, DESCRIBE, PROFILE = "diagnostics.arm", "diagnostics.describe", "diagnostics.profile"  # purposes of jobs
CONTROL, LONGER = "diagnostics.control", "diagnostics.longer"  # a control that keeps its end; what goes on from there
MARK = "worker.json"  # in the folder of the experiments
RESULT, VERSION = "result.json", 7  # in the folder of a job; results of another version are measured again
TRACE = "trace.json.gz"  # in the folder of a profile
READY = "ready"


def control_name(seed: int) -> str:
    """Return the id of the control of a seed, which is the name of its folder."""
    return f"control-{seed}"
