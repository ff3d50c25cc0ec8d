"""Name the origin of a difference: the first intermediate value of an ONNX file that differs, and the model's line."""

from __future__ import annotations

import re

import numpy as np
import torch

from pipeline.error_attribution import is_users_code
from pipeline.export.exported import Batch, ExportSource, map_leaves, named_leaves
from pipeline.export.onnx import translate

_LINE = re.compile(r'File "([^"]+)", line (\d+), in \S+\n\s*(.*)')
OUR_GRAPH = "served_model.py"


def first_onnx_difference(source: ExportSource, rows: Batch, tolerance: float) -> str:
    """Return the first value in the graph that differs on these rows, with its size and line; "" if none does."""
    from torch.onnx.verification import verify_onnx_program

    program = translate(source, named=False)
    batch = map_leaves(rows, lambda leaf: torch.as_tensor(np.asarray(leaf)))
    lines = {}
    assert program.exported_program is not None
    for node in program.exported_program.graph.nodes:
        lines[node.name] = line_of(node.meta.get("stack_trace") or "")
    for value in verify_onnx_program(program, args=(batch,), compare_intermediates=True):
        if not value.max_abs_diff <= tolerance:
            at = lines.get(value.name, "")
            where = at and f" at {at}"
            return f"the first value that differs is '{value.name}', by {value.max_abs_diff:.3g}{where}"
    return ""


def line_of(stack: str) -> str:
    """Return the innermost line of the user's code in a stack trace as `file:line (code)`, else the innermost line."""
    lines = [(path, number, code.strip()) for path, number, code in _LINE.findall(stack)]
    own = [line for line in lines if is_users_code(line[0]) and "site-packages" not in line[0]]
    for path, number, code in reversed(own or lines):
        if not path.endswith(OUR_GRAPH):
            return f"{path}:{number} ({code})" if code else f"{path}:{number}"
    return ""


def one_row(batch: Batch, row: int, size: int) -> Batch:
    """Return `size` rows of the batch that begin with one row, or end with it where there are not enough after it."""
    count = len(next(iter(named_leaves(batch).values())))
    start = max(0, min(row, count - size))
    return map_leaves(batch, lambda leaf: leaf[start : start + size])
