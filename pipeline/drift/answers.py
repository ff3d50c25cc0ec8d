"""What the ONNX file of a payload answers to rows, given as tensors that may have missing values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.drift.features import Array, columns_of
from pipeline.errors import UserError, fault

if TYPE_CHECKING:
    from pipeline.serving.schema_file import Schema

CHUNK = 1024  # rows that the model computes at once
MODEL = "model.onnx"


class ServedModel:
    """The graph of a payload. Raises UserError for a file that onnxruntime does not load."""

    def __init__(self, payload: Path, schema: Schema) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it logs is raised as well
        path = payload / MODEL
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common class of its errors
            what = f"cannot be loaded ({str(error).splitlines()[0][:200]})"
            raise UserError(fault(str(path), what, expected="the model of a release")) from None
        self.schema = schema
        self.names = [output.name for output in self.session.get_outputs()]

    def answer(self, tensors: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
        """Return the outputs of the rows that the model answers, by name, and the mask [N] of those rows.

        Rows with a missing value where the schema allows none are not answered, nor rows that the model fails on.
        """
        answered = complete(self.schema, tensors)
        places = np.flatnonzero(answered)
        chunks = [self._run(tensors, places[at : at + CHUNK]) for at in range(0, len(places), CHUNK)]
        outputs = [output for chunk in chunks for output, _ in chunk]
        for _, failed in (part for chunk in chunks for part in chunk):
            answered[failed] = False
        if not any(outputs):
            return {}, answered
        computed = [output for output in outputs if output]
        return {name: np.concatenate([output[name] for output in computed]) for name in self.names}, answered

    def _run(self, tensors: Mapping[str, Array], rows: Array) -> list[tuple[dict[str, Array], Array]]:
        """Return outputs, and the rows that failed: where a part of the rows fails, each half is tried again."""
        feeds: dict[str, Any] = {
            tensor["name"]: tensors[tensor["name"]][rows].astype(tensor["dtype"]) for tensor in self.schema["tensors"]
        }
        try:
            outputs = self.session.run(None, feeds)
        except Exception:
            if len(rows) == 1:
                return [({}, rows)]
            half = len(rows) // 2
            return [*self._run(tensors, rows[:half]), *self._run(tensors, rows[half:])]
        return [(dict(zip(self.names, outputs, strict=True)), rows[:0])]


def complete(schema: Schema, tensors: Mapping[str, Array]) -> Array:
    """Return which rows [N] have a value wherever the schema allows none to be missing."""
    rows = len(next(iter(tensors.values())))
    result = np.ones(rows, bool)
    for tensor in schema["tensors"]:
        values = tensors[tensor["name"]]
        if values.dtype.kind != "f":
            continue
        for number, column in enumerate(columns_of(schema, tensor["name"])):
            if not column["nan_allowed"]:
                own = values if tensor["whole"] else values[:, number]
                result &= ~np.isnan(own.reshape(rows, -1)).any(1)
    return result
