"""A tracker that refuses, hangs, drips, fails or is slow changes no result, and delays the end by a bounded time.

Real commands send to real sockets through MLflow's own HTTP client.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run
from pipeline.tracking.sync_process import END_TIMEOUT_S
from tests.conftest import SMALL

pytestmark = [pytest.mark.process, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[1]
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers every request in the server's own way."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked = json.loads(body or b"{}")
        self.server.answer(self)  # type: ignore[attr-defined]

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def send(self, code: int, body: object = None) -> None:
        content = json.dumps(body or {}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def fail(handler: Handler) -> None:
    """A server with an internal error."""
    handler.send(500)


def drip(handler: Handler) -> None:
    """A server that sends a byte per second, so that no timeout of a socket ever ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(1)


def answer_slowly(handler: Handler) -> None:
    """An MLflow server with one experiment and one run, half a second per request."""
    time.sleep(0.5)
    info = {
        "run_id": "r",
        "experiment_id": "1",
        "status": "RUNNING",
        "artifact_uri": Path("artifacts").resolve().as_uri(),
    }
    answers = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "fivegate", "artifact_location": ""}},
        "runs/create": {"run": {"info": info, "data": {}}},
        "runs/get": {"run": {"info": info, "data": {}}},
        "runs/update": {"run_info": info},
    }
    handler.server.requests.append(handler.path)  # type: ignore[attr-defined]
    handler.send(200, next((body for path, body in answers.items() if path in handler.path), {}))


@contextmanager
def http_server(answer: Answer) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.requests = answer, []  # type: ignore[attr-defined]
    server.handle_error = lambda *arguments: None  # type: ignore[method-assign]  # the client may go at any time
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def trained(name: str, port: int | None) -> tuple[dict[str, Any], str, float]:
    """Train a baseline with the tracker at this port (None: without a tracker): what is left, output, seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["MLFLOW_TRACKING_URI"] = f"http://ada:secret@127.0.0.1:{port}"
    tracking = "tracking=none" if port is None else "tracking=mlflow"
    words = [
        "phase=baseline",
        *(word for word in SMALL if not word.startswith("tracking")),
        tracking,
        f"run.name={name}",
    ]
    began = time.monotonic()
    command = [sys.executable, "-m", "pipeline", *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout and "secret" not in done.stdout
    run = Run(Path("runs", name).resolve())
    state = run.state()
    assert state.candidate
    left = {"weights": state.candidate["weights"], "score": state.candidate["score"], "gate": state.gate("baseline")}
    return left, done.stdout, time.monotonic() - began


def test_training_is_the_same_whatever_the_tracker_does(own_folder: Path) -> None:
    """Same weights and gate; one line says that the tracker is unavailable, and the wait is bounded and announced."""
    expected, _, calm = trained("calm", None)
    delays = {}
    with socket.create_server(("127.0.0.1", 0)) as silent, http_server(fail) as failing, http_server(drip) as dripping:
        with closing(socket.create_server(("127.0.0.1", 0))) as closed:
            refusing = closed.getsockname()[1]
        ports = {
            "refuses": refusing,
            "silent": silent.getsockname()[1],
            "fails": failing.server_port,
            "drips": dripping.server_port,
        }
        for name, port in ports.items():
            left, output, seconds = trained(name, port)
            assert left == expected
            assert output.count("the tracker is unavailable") == 1
            assert "the next command on this run sends what is missing" in output
            kinds = [entry["kind"] for entry in read_ledger(Path("runs", name, "ledger.jsonl"))]
            assert kinds.count("tracking.unavailable") == 1
            delays[name] = seconds - calm
            assert delays[name] < END_TIMEOUT_S + 30
            if name in ("silent", "drips"):
                assert f"sending the rest of the run to the tracker, for {END_TIMEOUT_S:.0f} s at most" in output
    with http_server(answer_slowly) as slow:
        left, output, seconds = trained("slow", slow.server_port)
        assert left == expected and "unavailable" not in output
        assert any("log-batch" in path for path in slow.requests)
        delays["slow"] = seconds - calm
        assert delays["slow"] < END_TIMEOUT_S + 30
    print("trackers: " + ", ".join(f"{name} +{seconds:.0f} s" for name, seconds in delays.items()) + "; 0 failures")
