"""The aliases of the local registry in MLflow's, and the model that MLflow serves from there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.release import registry
from pipeline.run_store.run import Run
from pipeline.serving.standalone.predict import Predictor
from pipeline.tracking.connection import TrackerUnavailable, tracking_uri
from pipeline.tracking.mirror import mirror
from tests.integrations import full_mlflow


@pytest.fixture(autouse=True)
def without_tracker_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)


@pytest.fixture
def released(copied: Callable[[Path], Run], _released: Path) -> Run:
    """A released run with the registry of its root."""
    run = copied(_released)
    (run.path.parent / registry.REGISTRY).write_bytes((_released.parent / registry.REGISTRY).read_bytes())
    return run


def client(run: Run) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(run.path.parent))


def aliases(run: Run, name: str = "digits") -> dict[str, str]:
    """The subject of the version under each alias."""
    tracker = client(run)
    versions = {str(v.version): v.tags["fivegate.subject"] for v in tracker.search_model_versions(f"name = '{name}'")}
    [model] = tracker.search_registered_models(f"name = '{name}'")
    return {alias: versions[str(number)] for alias, number in model.aliases.items()}


@pytest.mark.process
def test_mirror_gives_aliases_to_the_versions_of_the_local_registry(released: Run) -> None:
    """The champion is registered once, with signature and example; a new challenger and a withdrawal follow."""
    root, payload = released.path.parent, released.inside("bundle", "payload")
    subject = released.state().released["subject"]  # type: ignore[index]
    mirror(released.path)
    mirror(released.path)
    assert aliases(released) == {"champion": subject}
    [version] = client(released).search_model_versions("name = 'digits'")
    folder = Path(version.source.removeprefix("file://"))
    model = yaml.safe_load((folder / "MLmodel").read_text())
    inputs, outputs = (json.loads(model["signature"][side]) for side in ("inputs", "outputs"))
    schema = json.loads((payload / "schema.json").read_text())

    assert (folder / "model.onnx").read_bytes() == (payload / "model.onnx").read_bytes()
    assert {"onnx", "python_function"} == set(model["flavors"])
    assert [i["tensor-spec"] for i in inputs] == [{"dtype": "float32", "shape": [-1, 64]}]
    assert [o["name"] for o in outputs] == [o["name"] for o in schema["outputs"]]
    assert list(json.loads((folder / "input_example.json").read_text())["inputs"]) == [i["name"] for i in inputs]

    registry.move(root, "digits", "challenger", "digits", subject, "Ada")
    mirror(released.path)
    assert aliases(released) == {"champion": subject, "challenger": subject}
    registry.withdraw(root, "digits", subject, "Ada")
    mirror(released.path)
    assert aliases(released) == {"challenger": subject}


@pytest.mark.process
def test_mirror_leaves_models_of_others_alone(released: Run) -> None:
    """A registered model that has the name already keeps its aliases; ours gets a name of its own."""
    client(released).create_registered_model("digits")
    mirror(released.path)
    mirror(released.path)
    [other, ours] = sorted(client(released).search_registered_models(), key=lambda model: len(model.name))

    assert (other.name, other.aliases) == ("digits", {}) and ours.name.startswith("digits-")
    assert list(aliases(released, ours.name)) == ["champion"]


@pytest.mark.process
def test_mirror_removes_an_alias_whose_payload_is_lost(released: Run) -> None:
    """A champion that was changed on disk is not registered, and an unreadable registry is one message."""
    (released.inside("bundle", "payload", "model.onnx")).write_bytes(b"other")
    mirror(released.path)
    assert aliases(released) == {}

    (released.path.parent / registry.REGISTRY).write_text("{")
    with pytest.raises(TrackerUnavailable, match=r"registry\.json: cannot be read as a registry of models"):
        mirror(released.path)


@pytest.fixture
def server(released: Run) -> Iterator[str]:
    """The address of `mlflow models serve` with the champion, in an environment without torch and this project."""
    programs = full_mlflow()
    mirror(released.path)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"MLFLOW_TRACKING_URI": tracking_uri(released.path.parent), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    serve = [programs / "mlflow", "models", "serve", "-m", "models:/digits@champion", "--env-manager", "local"]
    process = subprocess.Popen(
        [*serve, "--host", "127.0.0.1", "--port", str(port)], env=environment, start_new_session=True
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answer(server: str, path: str, content: object = None) -> Any:
    """What the server answers, as JSON; it gets two minutes to start."""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(server + path, body, {"Content-Type": "application/json"})
    for attempt in range(120):
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read()
                return json.loads(text) if text.strip() else None
        except urllib.error.URLError as error:
            if attempt == 119 or isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(1)
    return None


@pytest.mark.integration
def test_mlflow_serves_the_champion(released: Run, server: str) -> None:
    """`mlflow models serve` answers every golden request as the payload does, and its own input example."""
    payload = released.inside("bundle", "payload")
    golden, predictor = json.loads((payload / "golden.json").read_text()), Predictor(payload)
    answer(server, "/ping")
    for request in golden["requests"]:
        tensors = {name: values.tolist() for name, values in predictor.encode(request["rows"]).items()}
        served = answer(server, "/invocations", {"inputs": tensors})["predictions"]
        for name, expected in request["outputs"].items():
            np.testing.assert_allclose(served[name], expected, rtol=golden["tolerance"], atol=golden["tolerance"])
        labels = [row["label"] for row in predictor.predict(request["rows"])]
        assert [str(label) for label in served.get("label", labels)] == [str(label) for label in labels]
    [version] = client(released).search_model_versions("name = 'digits'")
    example = Path(version.source.removeprefix("file://")) / "serving_input_example.json"
    assert "predictions" in answer(server, "/invocations", json.loads(example.read_text()))
