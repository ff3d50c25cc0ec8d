"""Time a payload in a process of its own: `python -I time_predictions.py PAYLOAD STARTED`; options on standard input.

STARTED is `time.monotonic()` of the parent when it started this process. Prints milliseconds and bytes, as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """The largest resident memory of this process so far.

    Linux keeps in `ru_maxrss` the peak of the parent that forked the process, so that VmHWM is read where it exists.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def timed(call: Callable[[], object], calls: int, seconds: float) -> list[float]:
    """Milliseconds of each of `calls` calls, fewer when they take longer than `seconds`; a tenth of them warm up."""
    end = time.perf_counter() + seconds / 10
    for _ in range(max(3, calls // 10)):
        call()
        if time.perf_counter() > end:
            break
    samples = []
    end = time.perf_counter() + seconds
    for _ in range(calls):
        started = time.perf_counter()
        call()
        now = time.perf_counter()
        samples.append((now - started) * 1e3)
        if now > end:
            break
    return samples


def main(payload: Path, started: float) -> None:
    options: dict[str, Any] = json.load(sys.stdin)
    base = peak_bytes()
    spec = importlib.util.spec_from_file_location("predict", payload / "predict.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    predictor = module.Predictor(payload)
    rows = options["rows"]
    predictor.predict(rows[:1])
    report: dict[str, Any] = {"cold_start_ms": (time.monotonic() - started) * 1e3, "samples": {}, "base_bytes": base}
    for name, size, calls in options["batches"]:
        feed = predictor.encode((rows * (size // len(rows) + 1))[:size])

        def call(feed: dict[str, Any] = feed) -> object:
            return predictor.session.run(None, feed)

        report["samples"][name] = timed(call, calls, options["seconds"])
    request = rows[:1]
    report["samples"]["predict"] = timed(lambda: predictor.predict(request), 200, options["seconds"])
    report["peak_bytes"] = peak_bytes()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
