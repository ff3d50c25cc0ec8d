"""Questions in processes of their own, two at a time, one thread each; answers in the order of the questions.

Each process is a fork of a server that has imported the libraries and done nothing else, so that a case starts as clean
as from a command line and does not wait for imports. A process that dies or hangs is an answer too.
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
PATIENCE = 600.0  # seconds until a question counts as one that hangs

Question = Callable[..., Any]


def asked(question: Question, arguments: Sequence[tuple[Any, ...]], at_once: int = 2) -> Iterator[Any]:
    """What `question(*one)` gives for each of the arguments, or `{"error": the last word of it}`."""
    _start_server()
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda one: _ask(question, one), arguments)


def _start_server() -> None:
    """The server that all processes are forked from, in an environment that is not its caller's."""
    path = os.pathsep.join((str(HERE), str(HERE.parents[1])))
    multiprocessing.set_forkserver_preload(PRELOADED)
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}):
        forkserver.ensure_running()


def _ask(question: Question, one: tuple[Any, ...]) -> Any:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, multiprocessing.get_start_method(), question, one))
    process.start()
    theirs.close()  # or the end of the process would go unnoticed
    try:
        return ours.recv() if ours.poll(PATIENCE) else {"error": f"no answer within {PATIENCE:.0f} s"}
    except EOFError:
        process.join()
        return {"error": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _answer(theirs: Connection, start_method: str, question: Question, one: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # a case's own workers start as they do elsewhere
    try:
        theirs.send(question(*one))
    except Exception as error:  # a case may break the product in any way; that is what is counted
        theirs.send({"error": f"{type(error).__name__}: {error}"})
