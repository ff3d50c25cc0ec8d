"""A profile of a few training steps by `torch.profiler`, as a trace that chrome://tracing and Perfetto show."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from pipeline.engine.loop import Training
from pipeline.engine.setup import TrainingComponents
from pipeline.run_store.job import Job
from pipeline.run_store.permits import ProbePermit

STEPS = 5


def profile(permit: ProbePermit, components: TrainingComponents, job: Job) -> bytes:
    """Return the compressed trace of the first steps of a job; one step before them warms up."""
    training = Training(permit, components, job)
    on_gpu = [ProfilerActivity.CUDA] if components.device.type == "cuda" else []
    with training.session():
        training.run(until=1)
        with torch_profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiler:
            training.run(until=1 + STEPS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return gzip.compress(path.read_bytes(), mtime=0)
