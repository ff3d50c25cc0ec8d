"""Export to ONNX by torch's dynamo exporter: one file for batches of any length, without paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.errors import FivegateError
from pipeline.export.exported import Exported, ExportFacts, ExportSource, export, named_leaves
from pipeline.export.served_model import LABEL, PROBABILITIES
from pipeline.run_store.permits import ExportPermit

if TYPE_CHECKING:
    from google.protobuf.message import Message  # type: ignore[import-untyped]
    from onnx import GraphProto, ModelProto, NodeProto

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
KEPT_METADATA = frozenset({"namespace"})  # module names, for viewers; other metadata has stack traces and paths
MAX_BYTES = 2**31 - 1  # the limit of protobuf for one message
ROWS = "batch"  # the name of the first axis of every input
ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 3  # the version that onnxruntime's builds for the web have, too

_PATH_LIKE = re.compile(r"(?:^|[\s\"'(=])(?:/[\w.\-]+/[\w.\-]+|[A-Za-z]:\\)")


def export_onnx(permit: ExportPermit, source: ExportSource, path: Path) -> Exported:
    """Write the model to `path` as one ONNX file that passes `onnx.checker`, with named inputs and outputs.

    A nested input has one graph input per array, with the names of `named_leaves`. Where rows have one class each, the
    output `label` is its name.
    """
    return export(permit, source, path, format="onnx", write=_write)


def translate(source: ExportSource, *, named: bool = True) -> torch.onnx.ONNXProgram:
    """Return the ONNX program of a source, as torch translates it.

    Without names for its outputs they are called as in the exported program, as all values between are.
    """
    program = torch.onnx.export(
        source.program(),
        dynamo=True,
        input_names=list(named_leaves(source.batch)),
        output_names=list(source.outputs) if named else None,
        external_data=False,  # one file: a bundle has no place for files with tensors
        verbose=False,
    )
    assert program is not None
    return program


def _write(source: ExportSource) -> tuple[bytes, ExportFacts]:
    import onnx

    proto = translate(source).model_proto
    if proto.ByteSize() > MAX_BYTES:
        raise FivegateError(f"model: {proto.ByteSize()} bytes do not fit one ONNX file (2 GB)")
    _strip(proto)
    _name_rows(proto)
    if PROBABILITIES in source.outputs:
        shape = source.outputs[PROBABILITIES].shape
        if len(shape) == 2 and (names := source.model.label_names(shape[1])):
            _append_labels(proto, names)
    onnx.checker.check_model(proto, full_check=True)
    faults = _faults(proto)  # what `verify` would report of the released file
    assert not faults, faults
    facts = ExportFacts(exporter="torch.onnx dynamo", onnx=onnx.__version__, opset=_opsets(proto), ir=proto.ir_version)
    facts["outputs"] = [output.name for output in proto.graph.output]
    return proto.SerializeToString(deterministic=True), facts


def _name_rows(proto: ModelProto) -> None:
    """Call the free first axis of the inputs `batch` wherever it occurs, instead of torch's symbol for it."""
    first = next(iter(proto.graph.input)).type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if first and size.dim_param == first:
                size.dim_param = ROWS


def _append_labels(proto: ModelProto, names: Sequence[str]) -> None:
    """Add the output `label` [B]: the name of the class with the largest probability."""
    import onnx
    from onnx import helper

    arguments = {"axis": 1, "keepdims": 0}
    helped = [
        helper.make_node("ArgMax", [PROBABILITIES], ["label_number"], name="label_number", **arguments),
        helper.make_node(
            "LabelEncoder",
            ["label_number"],
            [LABEL],
            name=LABEL,
            domain=ML_DOMAIN,
            keys_int64s=list(range(len(names))),
            values_strings=list(names),
            default_string="",
        ),
    ]
    proto.graph.node.extend(helped)
    proto.graph.output.append(helper.make_tensor_value_info(LABEL, onnx.TensorProto.STRING, [ROWS]))
    if not any(entry.domain == ML_DOMAIN for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))


def inspect_onnx(path: Path) -> list[str]:
    """Return the faults of an ONNX file: tensors in other files, unknown operators, paths in its metadata.

    A file that is not a valid ONNX model has that as its only fault.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        return [f"{path.name}: is not a valid ONNX model ({str(error).splitlines()[0][:200]})"]
    return [f"{path.name}: {fault}" for fault in _faults(proto)]


def _opsets(proto: ModelProto) -> dict[str, int]:
    return {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}


def _strip(proto: ModelProto) -> None:
    """Remove free text from every part of the model, except module names."""
    for part in _parts(proto):
        if part.doc_string:
            part.doc_string = ""
        metadata = [(entry.key, entry.value) for entry in part.metadata_props if entry.key in KEPT_METADATA]
        del part.metadata_props[:]
        for key, value in metadata:
            part.metadata_props.add(key=key, value=value)


def _faults(proto: ModelProto) -> list[str]:
    import onnx

    foreign = sorted({entry.domain for entry in proto.opset_import} - DOMAINS)
    faults = [f"operators of the unknown domain '{domain}'" for domain in foreign]
    faults += [f"a function of its own, '{f.domain}::{f.name}'" for f in proto.functions if f.domain not in DOMAINS]
    for part in _parts(proto):
        if isinstance(part, onnx.TensorProto) and part.data_location == onnx.TensorProto.EXTERNAL:
            faults.append(f"tensor '{part.name}' is stored in another file")
        texts = [part.doc_string, *(entry.value for entry in part.metadata_props)]
        if any(_PATH_LIKE.search(text) for text in texts):
            faults.append(
                f"{type(part).__name__} '{getattr(part, 'name', '')}' contains a path of the machine that exported it"
            )
    return faults


def _parts(proto: ModelProto) -> Iterator[Message]:
    """Yield everything in a model that can have free text or tensor data, including subgraphs and functions."""
    yield proto
    yield from _graph_parts(proto.graph)
    for function in proto.functions:
        yield function
        yield from function.value_info
        for node in function.node:
            yield from _node_parts(node)


def _graph_parts(graph: GraphProto) -> Iterator[Message]:
    yield graph
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from values
    for node in graph.node:
        yield from _node_parts(node)


def _node_parts(node: NodeProto) -> Iterator[Message]:
    yield node
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _graph_parts(graph)
