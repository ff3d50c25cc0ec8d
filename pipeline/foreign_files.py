"""Files that somebody else may have written: plain files only, with a limit of size and depth, one message if not.

Every function raises UserError with the file, what is wrong with it, and what is expected.
"""

from __future__ import annotations

import ast
import io
import json
import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_BYTES = 2**30  # of a file or of the arrays in it, in memory
MAX_DEPTH = 100  # of JSON; our own files have less than twenty levels
_HEADER_BYTES = 10_000  # of an array, as numpy's own limit
# What reading a damaged archive or array raises.
BROKEN = (
    ValueError,
    SyntaxError,
    KeyError,
    TypeError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)


def read_bytes(path: Path, expected: str, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a plain file of at most `limit` bytes; a pipe or device may have no end, and is refused."""
    try:
        mode = os.stat(path).st_mode  # before it is opened: opening a pipe waits for somebody who writes into it
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise UserError(fault(str(path), f"is {kind}", expected=expected))
        with open(path, "rb") as stream:
            content = stream.read(limit + 1)
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        if isinstance(error, UserError):
            raise
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise UserError(fault(str(path), what, expected=expected)) from None
    if len(content) > limit:
        raise UserError(fault(str(path), "is too large", got=f"more than {limit:,} bytes", expected=expected))
    return content


def parse_json(text: str | bytes, where: str, expected: str = "JSON") -> Any:
    """Return the value of a JSON text with at most `MAX_DEPTH` levels."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:  # a text that is not UTF-8 is a ValueError
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON ({error})"
        raise UserError(fault(where, what, expected=expected)) from None
    if _is_deep(value):
        raise UserError(fault(where, "is nested too deeply", expected=f"{expected} of at most {MAX_DEPTH} levels"))
    return value


def _is_deep(value: object) -> bool:
    """Whether a value of JSON has more than `MAX_DEPTH` levels."""
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = [part for part in level if isinstance(part, list | dict)]
        level = [inner for part in containers for inner in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return False
    return True


def read_npz(
    data: bytes, where: str, dtypes: Mapping[str, type], expected: str, limit: int = MAX_BYTES
) -> dict[str, NDArray[Any]]:
    """Return the one-dimensional arrays of an NPZ file that have these names, each of its own dtype.

    All together have at most `limit` bytes. What an archive claims is compared with the limit before anything is
    unpacked. Pickles are never loaded.
    """
    import numpy as np  # not at the top: `verify` needs the readers of JSON alone

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.getinfo(f"{name}.npy") for name in dtypes}
            size = sum(member.file_size for member in members.values())
            if size > limit:
                raise ValueError(f"its arrays have {size:,} bytes, more than {limit:,}")
            return {
                name: _array(archive, member, np.dtype(dtypes[name]), name, limit) for name, member in members.items()
            }
    except BROKEN as error:
        reason = f"it has no array {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(fault(where, f"is not {expected} ({reason})", expected="the .npz that a run wrote")) from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: np.dtype[Any], name: str, limit: int) -> Any:
    """Return one array of one dimension, whose header is compared with the size of its data."""
    import numpy as np

    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise ValueError(f"array {name!r} is encrypted or compressed in another way than numpy's")
    with archive.open(member) as stream:
        content = stream.read(limit + 1)
    # Not by numpy, whose reader of headers ends with errors of the tokenizer and the parser for a damaged one.
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(content[:8])
    if width is None:
        raise ValueError(f"array {name!r} does not begin as an array of numpy")
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    if start > _HEADER_BYTES:
        raise ValueError(f"array {name!r} has a header of {start:,} bytes")
    header = ast.literal_eval(content[8 + width : start].decode("latin-1"))
    if header["descr"] != np.lib.format.dtype_to_descr(dtype) or header["fortran_order"] not in (False, True):
        raise ValueError(f"array {name!r} is of type {header['descr']!r}, not {dtype}")
    (length,) = header["shape"]
    if type(length) is not int or length * dtype.itemsize != len(content) - start:
        raise ValueError(f"array {name!r} does not have the {length} values that it claims")
    return np.frombuffer(content, dtype, length, start)
