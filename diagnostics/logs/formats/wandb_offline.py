"""The `.wandb` file of an offline run of Weights & Biases: a LevelDB log of messages, which `wandb` decodes.

The file has 7 bytes of head and blocks of 32 KiB. A record has 7 bytes of head (checksum, length, and whether it is
whole, or the first, a middle or the last part of a message) and never crosses a block. Source of the layout: the log
format in the documentation of LevelDB.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source
from pipeline.errors import UserError, fault

NAME = "an offline run of Weights & Biases"
PRIORITY = 2
BLOCK, HEAD = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def matches(source: Source) -> bool:
    return source.first_bytes.startswith(b":W&B")


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    if importlib.util.find_spec("wandb") is None:
        what = "is an offline run, which the package wandb reads, and it is not installed"
        raise UserError(fault(str(source.path), what, do='pip install "fivegate[logs]"'))
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    notes.remarks.append("lines are records of the file")
    for number, message in enumerate(_messages(source.path), 1):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(message)
        except DecodeError:
            notes.skip(number, "is not a record")
            continue
        if record.WhichOneof("record_type") == "history":
            history = record.history
            items = {(item.key or "/".join(item.nested_key)): _value(item.value_json) for item in history.item}
            step = items.pop("_step", history.step.num)
            yield Row(number, {"step": step, **{name: value for name, value in items.items() if name[:1] != "_"}})


def _messages(path: Path) -> Iterator[bytes]:
    """Yield the messages; a file that was cut off ends where it was cut."""
    with path.open("rb") as stream:
        stream.seek(HEAD)
        parts = b""
        while True:
            left = BLOCK - stream.tell() % BLOCK
            if left < HEAD:  # too little for another head: the block is filled up
                stream.seek(left, 1)
            head = stream.read(HEAD)
            if len(head) < HEAD:
                return
            _, length, kind = struct.unpack("<IHB", head)
            content = stream.read(length)
            if len(content) < length or kind not in (WHOLE, FIRST, MIDDLE, LAST):
                return
            parts = content if kind in (WHOLE, FIRST) else parts + content
            if kind in (WHOLE, LAST):
                yield parts


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
