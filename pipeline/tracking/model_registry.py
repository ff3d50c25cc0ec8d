"""The registry of a root in MLflow's model registry: a version per bundle, and the aliases `champion`, `challenger`.

`<run.root>/registry.json` is the truth, and MLflow gets what it says: `models:/digits@champion` is the release in use.
A version has the ONNX file of the payload as a model of MLflow's flavour `onnx`, with signature and input example,
so that `mlflow models serve` serves it. MLflow's own writer of this flavour needs pandas, which this project does not:
the folder is written here, in the format of https://mlflow.org/docs/latest/ml/model/#storage-format.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pipeline.release import registry
from pipeline.release.registry import Alias, Entry, Model
from pipeline.results import digest
from pipeline.serving.package import MODEL
from pipeline.tracking.connection import Tracker, TrackerUnavailable, exclusive
from pipeline.tracking.run_export import ARTIFACT_BYTES, RunExport

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

REGISTRY_TAG = "fivegate.registry"  # of a registered model: the digest of the first move in its local registry
SUBJECT_TAG = "fivegate.subject"  # of a version: the digest of its payload
FLAVOR = "onnx"
EXAMPLE, SERVING_EXAMPLE = "input_example.json", "serving_input_example.json"


def mirror_aliases(tracker: Tracker, export: RunExport, run: str) -> None:
    """Give the aliases in MLflow to the same bundles as in the local registry; register those that MLflow lacks.

    `run` is the id of the MLflow run that gets their files. Raises UserError for an unreadable local registry, and
    TrackerUnavailable for a bundle that is too large to upload.
    """
    root, name = export.run.path.parent, registry.model_name(export.state)
    if name not in registry.read(root):
        return
    with exclusive(root, tracker.deadline):  # a process that read an older state must not write after a newer one
        model = registry.read(root)[name]
        registered = _find_or_create(tracker, name, model)
        for alias in get_args(Alias):
            entry = model["aliases"].get(alias)
            number = _version(tracker, export, run, registered.name, entry) if entry else None
            if number is None and alias in registered.aliases:
                tracker.client.delete_registered_model_alias(registered.name, alias)
            elif number is not None and str(registered.aliases.get(alias)) != number:
                tracker.client.set_registered_model_alias(registered.name, alias, number)


def _find_or_create(tracker: Tracker, name: str, model: Model) -> RegisteredModel:
    """Return the registered model of a local one; a model of others that has its name is left alone."""
    identity, plain = digest(model["history"][0]), re.sub(r"[^\w\-. ]", "_", name)
    for candidate in (plain, f"{plain}-{identity[:8]}"):
        namesakes = list(tracker.client.search_registered_models(f"name = '{candidate}'"))
        if not namesakes:
            about = f"The releases of the experiment {name}. Aliases are set by its registry; others are left alone."
            return tracker.client.create_registered_model(candidate, {REGISTRY_TAG: identity}, about)
        if namesakes[0].tags.get(REGISTRY_TAG) == identity:
            return namesakes[0]
    raise TrackerUnavailable(f"its model registry has other models with the names {plain} and {candidate}")


def _version(tracker: Tracker, export: RunExport, run: str, name: str, entry: Entry) -> str | None:
    """Return the number of the version of a bundle, which is registered if need be; None where its payload is lost."""
    for known in tracker.client.search_model_versions(f"name = '{name}'", max_results=10_000):
        if known.tags.get(SUBJECT_TAG) == entry["subject"]:
            return str(known.version)
    payload = registry.payload_of(export.run.path.parent, entry)
    if payload is None or not (payload / MODEL).is_file():
        return None
    if (payload / MODEL).stat().st_size > ARTIFACT_BYTES:
        raise TrackerUnavailable(f"the {MODEL} of {entry['run']} is too large for the model registry")
    client, folder = tracker.client, f"model/{entry['subject'][:12]}"
    client.log_artifact(run, str(payload / MODEL), folder)
    for file, content in model_folder(payload, run).items():
        client.log_text(run, content, f"{folder}/{file}")
    source = f"{client.get_run(run).info.artifact_uri}/{folder}"
    owner = run if entry["run"] == export.run.name else None
    tags, about = {SUBJECT_TAG: entry["subject"], "fivegate.run": entry["run"]}, f"Bundle of the run {entry['run']}."
    return str(client.create_model_version(name, source, owner, tags, description=about).version)


def model_folder(payload: Path, run: str) -> dict[str, str]:
    """Return the files beside the ONNX file that make its folder a model of MLflow, by name."""
    from mlflow.models import Model as MlflowModel

    model = MlflowModel(run_id=run)
    environment = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
    python, onnx = platform.python_version(), version("onnx")
    model.add_flavor(FLAVOR, data=MODEL, onnx_version=onnx, providers=["CPUExecutionProvider"], code=None)
    model.add_flavor("python_function", loader_module="mlflow.onnx", data=MODEL, python_version=python, env=environment)
    content = model.to_dict()
    content["signature"] = _signature(payload / MODEL)
    content["saved_input_example_info"] = {
        "artifact_path": EXAMPLE, "serving_input_path": SERVING_EXAMPLE, "type": "ndarray", "format": "tf-serving",
    }  # fmt: skip
    needed = [f"mlflow=={version('mlflow-skinny')}"] + [f"{n}=={version(n)}" for n in ("numpy", "onnx", "onnxruntime")]
    example = json.dumps({"inputs": _example(payload)})
    virtualenv = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    conda = {"channels": ["conda-forge"], "dependencies": [f"python={python}", "pip", {"pip": needed}], "name": "env"}
    return {
        "MLmodel": _yaml(content),
        "requirements.txt": "\n".join(needed) + "\n",
        "python_env.yaml": _yaml(virtualenv),
        "conda.yaml": _yaml(conda),
        EXAMPLE: example,
        SERVING_EXAMPLE: example,
    }


def _signature(onnx_file: Path) -> dict[str, str | None]:
    """Return the inputs and outputs of the graph as MLflow writes them: a dimension of any size is -1."""
    import onnx
    from mlflow.types.schema import Schema, TensorSpec

    def schema(values: Sequence[Any]) -> str:
        specs = []
        for value in values:
            tensor = value.type.tensor_type
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            shape = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
            # A tensor of texts has objects in numpy.
            specs.append(TensorSpec(np.dtype(str) if dtype.hasobject else dtype, tuple(shape), value.name))
        return str(Schema(specs).to_json())

    graph = onnx.load(str(onnx_file), load_external_data=False).graph
    return {"inputs": schema(graph.input), "outputs": schema(graph.output), "params": None}


def _example(payload: Path) -> dict[str, Any]:
    """Return the row of the shortest golden request as the inputs of the graph."""
    from pipeline.serving.standalone.predict import Predictor

    requests = json.loads((payload / "golden.json").read_bytes())["requests"]
    tensors = Predictor(payload).encode(min((request["rows"] for request in requests), key=len))
    return {name: np.asarray(values).tolist() for name, values in tensors.items()}


def _yaml(content: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(content), sort_keys=False))
