"""Answer requests in isolation: `python -I answer_requests.py PAYLOAD NETWORK`; requests on standard input, as JSON.

torch and this project cannot be imported, address space and CPU seconds are limited, and where NETWORK is `blocked`
every socket raises. Prints what was answered and refused, as JSON. Nothing is judged here.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

BLOCKED = ("torch", "pipeline", "phases", "checklists", "diagnostics", "fivegate", "onnx", "sklearn", "scipy")
ADDRESS_SPACE = 8 * 2**30  # bytes; onnxruntime reserves more than it uses
CPU_SECONDS = 60


class Block:
    """An import hook that refuses the blocked packages."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")


def load_predict(payload: Path) -> Any:
    """The module `predict.py` of a payload."""
    spec = importlib.util.spec_from_file_location("predict", payload / "predict.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def isolate(network: str) -> dict[str, str]:
    """Apply the limits, and return for each what an attempt to break it gave."""
    sys.meta_path.insert(0, Block())  # type: ignore[arg-type]
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    limited = "address space"
    try:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    except (OSError, ValueError):  # macOS has no such limit
        limited = "none"
    if network == "blocked":

        def refuse(event: str, arguments: object) -> None:
            if event.startswith("socket."):
                raise PermissionError("sockets are blocked")

        sys.addaudithook(refuse)
    proof = {"memory_limit": limited}
    for package in ("torch", "pipeline"):
        try:
            __import__(package)
            proof[f"import {package}"] = "worked"
        except ImportError as error:
            proof[f"import {package}"] = f"ImportError: {error}"
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=1).close()  # an address for documentation
        proof["connect"] = "worked"
    except OSError as error:
        proof["connect"] = f"{type(error).__name__}: {error}"
    return proof


def attempt(module: Any, predictor: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a request, or the error that refused it; `crashed` for one that is not typed."""
    rows = request["rows"]
    if "repeat" in request:
        rows = rows * int(request["repeat"])
    try:
        return {"answered": predictor.predict(rows)}
    except module.PredictError as error:
        return {"refused": type(error).__name__, "why": str(error), "row": error.row, "column": error.column}
    except Exception as error:
        return {"crashed": f"{type(error).__name__}: {error}"}


def main(payload: Path, network: str) -> None:
    requests = json.load(sys.stdin)
    proof = isolate(network)
    started = time.monotonic()
    try:
        module = load_predict(payload)
        predictor = module.Predictor(payload)
    except Exception as error:
        sys.stdout.write(json.dumps({"proof": proof, "failed": f"{type(error).__name__}: {error}", "answers": []}))
        return
    answers = [attempt(module, predictor, request) for request in requests]
    proof["loaded"] = ", ".join(sorted(name for name in BLOCKED if name in sys.modules)) or "none of the blocked"
    seconds = time.monotonic() - started
    sys.stdout.write(json.dumps({"proof": proof, "failed": "", "answers": answers, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
