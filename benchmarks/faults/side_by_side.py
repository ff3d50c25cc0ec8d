"""Runs a function in processes of its own, two at a time, one thread each, and returns the results in order.

Each process is forked from a server that has imported the libraries and done nothing else. So every case starts as
clean as from a command line, but does not wait for the imports. A process that dies or hangs gives a result too.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from cases import HERE

PRELOADED = ["run_case", "repair", "torch", "hydra", "sklearn.ensemble", "scipy.stats", "pydantic", "jinja2"]
PRELOADED += ["matplotlib.pyplot", "fivegate", "phases.planning", "phases.baseline", "phases.diagnostics"]
TIMEOUT = 600.0  # seconds after which a process counts as hanging

Function = Callable[..., Any]


def run_each(
    function: Function, arguments: Sequence[tuple[Any, ...]], at_once: int = 2, timeout: float = TIMEOUT
) -> Iterator[Any]:
    """Yield `function(*entry)` for each entry of `arguments`, or `{"error": message}`, also after `timeout` seconds."""
    _start_server()
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda entry: _run_in_process(function, entry, timeout), arguments)


def _start_server() -> None:
    """Start the server that all processes are forked from, with its own environment variables."""
    path = os.pathsep.join((str(HERE), str(HERE.parents[1])))
    multiprocessing.set_forkserver_preload(PRELOADED)
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}):
        forkserver.ensure_running()


def _run_in_process(function: Function, arguments: tuple[Any, ...], timeout: float) -> Any:
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_send_result, args=(sender, multiprocessing.get_start_method(), function, arguments)
    )
    process.start()
    sender.close()  # otherwise the pipe stays open when the process dies, and `poll` would wait for the timeout
    try:
        return receiver.recv() if receiver.poll(timeout) else {"error": f"no answer within {timeout:.0f} s"}
    except EOFError:
        process.join()
        return {"error": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _send_result(sender: Connection, start_method: str, function: Function, arguments: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # so that workers of the case start as they usually do
    try:
        sender.send(function(*arguments))
    except Exception as error:  # a case may raise anything, and each exception is a result of the benchmark
        sender.send({"error": f"{type(error).__name__}: {error}"})
