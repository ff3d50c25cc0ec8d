"""Commands in processes of their own, two at a time, one thread each; answers in the order of the questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cases import HERE

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}


def asked(words: Sequence[Sequence[str]], script: str = "run_case.py", at_once: int = 2) -> Iterator[Any]:
    """The JSON that each `<script> ...` prints, or `{"error": its last words}`."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda one: _ask(script, one), words)


def _ask(script: str, words: Sequence[str]) -> Any:
    command = [sys.executable, str(HERE / script), *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])
