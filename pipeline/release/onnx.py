"""ONNX by the dynamo exporter: one file, a batch axis of any length, nothing in it that tells where it was made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import FivegateError
from pipeline.release.exported import Exported, export, map_leaves, named_leaves
from pipeline.run_store.permits import ExportPermit

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
KEPT_METADATA = frozenset({"namespace"})  # module names for viewers; the rest holds stack traces and paths
MAX_BYTES = 2**31 - 1  # protobuf's own limit for one message

_PATH_LIKE = re.compile(r"(?:^|[\s\"'(=])(?:/[\w.\-]+/[\w.\-]+|[A-Za-z]:\\)")


def export_onnx(permit: ExportPermit, model: nn.Module, example: Any, path: Path) -> Exported:
    """The model stands at `path` as a single ONNX file that passed `onnx.checker`; inputs and `output` by name.

    A nested input becomes one graph input per array, named as `named_leaves` names it.
    """
    return export(permit, model, example, path, format="onnx", write=_write)


def _write(model: nn.Module, batch: Any) -> tuple[bytes, dict[str, Any]]:
    import onnx

    rows = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        model,
        (batch, {}),  # the exporter takes a dict in last place for keyword arguments
        dynamo=True,
        dynamic_shapes=(map_leaves(batch, lambda _: {0: rows}),),
        input_names=list(named_leaves(batch)),
        output_names=["output"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    if proto.ByteSize() > MAX_BYTES:
        raise FivegateError(f"model: {proto.ByteSize()} bytes do not fit one ONNX file (2 GB)")
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    faults = _faults(proto)
    assert not faults, faults
    facts = {"exporter": "torch.onnx dynamo", "onnx": onnx.__version__, "opset": _opsets(proto), "ir": proto.ir_version}
    return proto.SerializeToString(deterministic=True), facts


def inspect_onnx(path: Path) -> list[str]:
    """What a safe single-file model must not have: tensors elsewhere, foreign operators, paths in its metadata.

    Empty when the file is fine. Raises nothing on a file that is no ONNX: that is its one fault.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        return [f"{path.name}: is not a valid ONNX model ({str(error).splitlines()[0][:200]})"]
    return [f"{path.name}: {fault}" for fault in _faults(proto)]


def _opsets(proto: Any) -> dict[str, int]:
    return {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}


def _strip(proto: Any) -> None:
    """Free text is gone from every part of the model, but for the module names."""
    for part in _parts(proto):
        if part.doc_string:
            part.doc_string = ""
        kept = [(entry.key, entry.value) for entry in part.metadata_props if entry.key in KEPT_METADATA]
        del part.metadata_props[:]
        for key, value in kept:
            part.metadata_props.add(key=key, value=value)


def _faults(proto: Any) -> list[str]:
    import onnx

    foreign = sorted({entry.domain for entry in proto.opset_import} - DOMAINS)
    faults = [f"operators of the unknown domain '{domain}'" for domain in foreign]
    faults += [f"a function of its own, '{f.domain}::{f.name}'" for f in proto.functions if f.domain not in DOMAINS]
    for part in _parts(proto):
        if isinstance(part, onnx.TensorProto) and part.data_location == onnx.TensorProto.EXTERNAL:
            faults.append(f"tensor '{part.name}' is stored in another file")
        texts = [part.doc_string, *(entry.value for entry in part.metadata_props)]
        if any(_PATH_LIKE.search(text) for text in texts):
            faults.append(f"{type(part).__name__} '{getattr(part, 'name', '')}' tells a path of somebody's machine")
    return faults


def _parts(proto: Any) -> Iterator[Any]:
    """Everything in a model that can carry free text or tensor data, subgraphs and functions included."""
    yield proto
    yield from _graph_parts(proto.graph)
    for function in proto.functions:
        yield function
        yield from function.value_info
        for node in function.node:
            yield from _node_parts(node)


def _graph_parts(graph: Any) -> Iterator[Any]:
    yield graph
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from values
    for node in graph.node:
        yield from _node_parts(node)


def _node_parts(node: Any) -> Iterator[Any]:
    yield node
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _graph_parts(graph)
