"""Changes of an ONNX graph that torch does not make: the name of the batch axis, and class names as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.export.served_model import LABEL, PROBABILITIES

if TYPE_CHECKING:
    from onnx import ModelProto

ROWS = "batch"  # the name of the first axis of every input
ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 3  # the version that onnxruntime's builds for the web have, too


def name_rows(proto: ModelProto) -> None:
    """Call the free first axis of the inputs `batch` wherever it occurs, instead of torch's symbol for it."""
    first = next(iter(proto.graph.input)).type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if first and size.dim_param == first:
                size.dim_param = ROWS


def append_labels(proto: ModelProto, names: Sequence[str]) -> None:
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
