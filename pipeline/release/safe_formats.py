"""The files of a payload are what their names say, and none of them can run code unless it is declared to.

Reads the files, and opens none of them with a library that runs code in it.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import FivegateError
from pipeline.foreign_files import BROKEN, parse_json

if TYPE_CHECKING:
    from onnx import ModelProto

ARCHIVES = {  # zip archives that run code when torch opens them, with parts of the member names that each must have
    "model.torchscript.pt": ("/code/", "/constants.pkl"),
    "model.pt2": ("/models/", "/archive_format"),
}
SCRIPTS_FOLDER = Path(__file__).parents[1] / "serving" / "standalone"  # the only code in a payload, unchanged
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")  # of operators; each other one has to be a function inside of the model

_FORBIDDEN = {  # first bytes of formats that could hide under another name
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"#!": "a script",
    b"\x89HDF": "an HDF5 file",
}
_PATH = re.compile(
    r"(?:^|[\s\"'(=])(?:/(?:home|Users|tmp|root|var|usr|opt|mnt|work|private)/|[A-Za-z]:\\)|\bFile \"|site-packages"
)


def format_faults(path: Path) -> list[str]:
    """Return the faults of a file whose content does not fit its name, or is not allowed in a release."""
    if path.name in ARCHIVES:
        return _archive_faults(path)
    content = path.read_bytes()
    if path.suffix == ".npz":
        return [f"{path.name}: {fault}" for fault in _npz_faults(content)]
    if forbidden := forbidden_format(content):
        return [f"{path.name}: is {forbidden}"]
    return [f"{path.name}: {fault}" for fault in _FORMATS[path.suffix](path, content)]


def forbidden_format(content: bytes) -> str | None:
    """Return what a content is that no payload may have under any name; None where it is nothing of the kind."""
    # Protocols 2 to 5 have a signature; 0 and 1 have none, and are text that unpickles to its end.
    if len(content) > 1 and content[0] == 0x80 and 2 <= content[1] <= 5:
        return "a pickle, which runs code when it is loaded"
    if _is_old_pickle(content):
        return "a pickle of an old protocol, which runs code when it is loaded"
    return next((what for magic, what in _FORBIDDEN.items() if content.startswith(magic)), None)


def _is_old_pickle(content: bytes) -> bool:
    try:
        names = [operation.name for operation, _, _ in pickletools.genops(content)]
    except (ValueError, IndexError, AttributeError, UnicodeDecodeError, OverflowError):
        return False
    return len(names) > 2


def _archive_faults(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return [f"{path.name}: is not a torch archive"]
    if broken:
        return [f"{path.name}: its member '{broken}' is damaged"]
    # torch names the root folder of an archive after the file that it was first saved to.
    rootless = ["/" + name.split("/", 1)[-1] for name in members]
    if not all(any(name.startswith(part) for name in rootless) for part in ARCHIVES[path.name]):
        return [f"{path.name}: is a zip archive, but not the torch archive of that name"]
    outside = [name for name in members if name.startswith("/") or ".." in name.split("/")]
    return [f"{path.name}: its member '{name}' has a path outside the archive" for name in outside]


def _npz_faults(content: bytes) -> Iterator[str]:
    """Every member has to be an array of plain numbers or text: object arrays are pickles."""
    from numpy.lib import format as npy

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    read = npy.read_array_header_1_0 if npy.read_magic(member) == (1, 0) else npy.read_array_header_2_0
                    if not name.endswith(".npy") or read(member)[2].hasobject:
                        yield f"its member '{name}' is not an array without objects"
    except BROKEN:
        yield "is not an archive of arrays"


def _safetensors_faults(path: Path, content: bytes) -> Iterator[str]:
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(content)  # checks that the tensors fill the file, without gap and rest
    except SafetensorError as error:
        yield f"is not a safetensors file ({error})"


def _onnx_faults(path: Path, content: bytes) -> Iterator[str]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError):
        yield "is not an ONNX model"
        return
    if not model.ir_version or not model.HasField("graph"):
        yield "is not an ONNX model"
        return
    yield from sorted({*_external_data(model), *_foreign_operators(model), *_local_paths(model)})


def _external_data(model: ModelProto) -> Iterator[str]:
    from onnx import TensorProto

    for tensor in _messages(model, "TensorProto"):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            yield f"its tensor '{tensor.name}' is in another file"


def _foreign_operators(model: ModelProto) -> Iterator[str]:
    own = {(function.domain, function.name) for function in model.functions}
    for node in _messages(model, "NodeProto"):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            yield f"its operator {node.domain}::{node.op_type} is not one of ONNX"


def _local_paths(model: ModelProto) -> Iterator[str]:
    for message in [
        model,
        *_messages(model, "GraphProto", "NodeProto", "ValueInfoProto", "TensorProto", "FunctionProto"),
    ]:
        texts = [("doc_string", message.doc_string)] if hasattr(message, "doc_string") else []
        texts += [(entry.key, entry.value) for entry in getattr(message, "metadata_props", ())]
        yield from (f"its {key} has a path of the machine or a trace" for key, text in texts if _PATH.search(text))


def _messages(message: Any, *kinds: str) -> Iterator[Any]:
    """Every message of these kinds inside another one, at any depth."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if field.is_repeated else [value]:
            if field.message_type.name in kinds:
                yield inner
            yield from _messages(inner, *kinds)


def _script_faults(path: Path, content: bytes) -> Iterator[str]:
    ours = SCRIPTS_FOLDER / path.name
    if not ours.is_file() or ours.read_bytes() != content:
        yield "is not the script of this version"


def _text_faults(path: Path, content: bytes) -> Iterator[str]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        yield "is not text"
        return
    if "\0" in text:
        yield "is not text"


def _json_faults(path: Path, content: bytes) -> Iterator[str]:
    try:
        parse_json(content, path.name)
    except (ValueError, FivegateError):
        yield "is not JSON"


_FORMATS: dict[str, Callable[[Path, bytes], Iterator[str]]] = {
    ".onnx": _onnx_faults,
    ".safetensors": _safetensors_faults,
    ".json": _json_faults,
    ".yaml": _text_faults,
    ".md": _text_faults,
    ".py": _script_faults,
}
