"""Run the trained model and the exported files on batches, each to arrays by the name of the output."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from pipeline.export.exported import Batch, map_leaves, named_leaves, serving
from pipeline.export.served_model import ServedModel

Outputs = dict[str, np.ndarray]
Runner = Callable[[Batch], Outputs]


def _arrays(outputs: Mapping[str, torch.Tensor]) -> Outputs:
    return {name: value.detach().numpy() for name, value in outputs.items()}


def torch_runner(model: ServedModel) -> Runner:
    """Return a function that runs the model as it will serve: in eval mode, on the CPU."""

    def run(batch: Batch) -> Outputs:
        with serving(model) as frozen:
            return _arrays(frozen(map_leaves(batch, torch.as_tensor)))

    return run


def load_onnx(path: Path) -> Runner:
    """Return a function that runs an ONNX file in onnxruntime, in one thread, with the inputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread, so that sums have one order and the parity is the same on every machine.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(batch: Batch) -> Outputs:
        values = session.run(None, {name: np.asarray(leaf) for name, leaf in named_leaves(batch).items()})
        return dict(zip(names, values, strict=True))

    return run


def load_torchscript(path: Path) -> Runner:
    """Return a function that runs a TorchScript archive; torch's deprecation warnings are hidden."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path), map_location="cpu").eval()

    def run(batch: Batch) -> Outputs:
        with torch.no_grad():
            return _arrays(module(map_leaves(batch, torch.as_tensor)))

    return run


def load_program(path: Path) -> Runner:
    """Return a function that runs a `.pt2` exported program."""
    module = torch.export.load(str(path)).module()

    def run(batch: Batch) -> Outputs:
        with torch.no_grad():
            return _arrays(module(map_leaves(batch, torch.as_tensor)))

    return run


LOADERS: dict[str, Callable[[Path], Runner]] = {
    "onnx": load_onnx,
    "torchscript": load_torchscript,
    "program": load_program,
}
