"""Event files of TensorBoard, read by the `tensorboard` package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source
from pipeline.errors import UserError, fault

NAME = "TensorBoard's event file"
PRIORITY = 1


def matches(source: Source) -> bool:
    """A record has 8 bytes of length and 4 of checksum; the first one holds the version of the file."""
    return b"brain.Event:" in source.first_bytes[12:64]


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    if importlib.util.find_spec("tensorboard") is None:
        what = "is an event file, which the package tensorboard reads, and it is not installed"
        raise UserError(fault(str(source.path), what, do='pip install "fivegate[logs]"'))
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    for record, event in enumerate(EventFileLoader(str(source.path)).Load(), 1):
        values: dict[str, object] = {}
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                values[value.tag] = float(tensor_util.make_ndarray(value.tensor))
        if values:
            yield Row(record, {"step": event.step, **values})
    notes.remarks.append("lines are records of the event file")
