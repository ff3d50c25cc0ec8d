"""Signatures of grants, by a key that each user has on each machine, outside of every run.

A run folder may come from anybody. A grant in its ledger counts only if this user's own key signed it.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UserError, fault
from pipeline.run_store import files

KEY_BYTES = 32
PURPOSE = b"fivegate: grant of trust, version 1\n"
CHOOSE = "set XDG_STATE_HOME to a folder of your own that can be written, and repeat the command"


def key_path() -> Path:
    """The file of the key, `$XDG_STATE_HOME/fivegate/trust.key`, in ~/.local/state where that is not set."""
    folder = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(folder):  # the XDG specification says to ignore a relative path
        try:
            folder = str(Path.home() / ".local" / "state")
        except RuntimeError as error:
            raise UserError(fault("XDG_STATE_HOME", "is not set, and there is no home folder", do=CHOOSE)) from error
    return Path(folder, "fivegate", "trust.key")


def sign(record: Mapping[str, object]) -> str:
    """The signature of a record without its `signature`. The first one creates the key. Raises UserError."""
    path = key_path()
    if not os.path.lexists(path):
        try:
            files.create_private(path, secrets.token_bytes(KEY_BYTES))
        except OSError as error:
            what = "cannot keep the key that signs what you trust"
            raise UserError(fault(str(path), what, got=error.strerror or str(error), do=CHOOSE)) from error
    return _signature(_read(path), record)


def is_signed(record: Mapping[str, object]) -> bool:
    """Whether this user's key signed the record as it is now. Raises UserError for a key that others can use."""
    path, signature = key_path(), record.get("signature")
    if not os.path.lexists(path) or not isinstance(signature, str):
        return False
    return hmac.compare_digest(signature.encode(), _signature(_read(path), record).encode())


def _signature(key: bytes, record: Mapping[str, object]) -> str:
    content = {name: value for name, value in record.items() if name != "signature"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.digest(key, PURPOSE + text.encode(), "sha256").hex()


def _read(path: Path) -> bytes:
    """The key. Raises UserError unless it is a file of this user that nobody else can read or replace."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        what = "the key that signs what you trust cannot be read"
        raise UserError(fault(str(path), what, got=error.strerror or str(error), do=f"rm {path}")) from error
    try:
        status = os.fstat(descriptor)
        key = os.read(descriptor, KEY_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(descriptor)
    folder = path.parent.stat()
    again = "remove it and trust your packages again: rm"
    if status.st_uid != os.geteuid() or folder.st_uid != os.geteuid():
        raise UserError(fault(str(path), "the key that signs what you trust belongs to another user", do=CHOOSE))
    if status.st_mode & 0o077 or folder.st_mode & 0o022:
        mode = f"mode {stat.S_IMODE(status.st_mode):o}, its folder {stat.S_IMODE(folder.st_mode):o}"
        do = f"chmod 700 {path.parent}, then {again} {path}"
        raise UserError(fault(str(path), "others can use your key", got=mode, expected="600 and 700", do=do))
    if len(key) != KEY_BYTES:
        raise UserError(fault(str(path), "is not a key", got=f"{len(key)} bytes", expected="32", do=f"{again} {path}"))
    return key
