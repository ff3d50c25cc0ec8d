"""What the phase and the warm worker agree on: purposes of jobs, names of files, words of the protocol."""

from __future__ import annotations

ARM, DESCRIBE, PROFILE = "diagnostics.arm", "diagnostics.describe", "diagnostics.profile"  # purposes of jobs
MARK = "worker.json"  # in the folder of the experiments
RESULT, VERSION = "result.json", 6  # in the folder of a job; results of another version are measured again
TRACE = "trace.json.gz"  # in the folder of a profile
READY = "ready"
