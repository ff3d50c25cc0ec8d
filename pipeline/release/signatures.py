"""Signatures by OpenSSH Ed25519 keys, over the canonical JSON of a statement."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.errors import UserError, fault
from pipeline.results import canonical

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM = "ssh-ed25519"
MAX_KEY_BYTES = 16_384  # a private key has about 400 bytes


class Signature(TypedDict):
    """A signature in base64, and the public key in the form of a line of `authorized_keys`, without a comment."""

    algorithm: str
    public_key: str
    value: str


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read an OpenSSH private key. Raises UserError for anything but an Ed25519 key without a passphrase."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    expected, do = "an OpenSSH private key of type Ed25519", "ssh-keygen -t ed25519 -N '' -f KEY"
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_KEY_BYTES)
    except OSError as error:
        raise UserError(fault("--key", f"cannot read {path}", got=error.strerror, expected=expected, do=do)) from error
    if content.startswith(b"ssh-"):
        private = str(path).removesuffix(".pub")
        raise UserError(fault("--key", "is a public key", got=str(path), expected=expected, do=f"--key {private}"))
    try:
        key = load_ssh_private_key(content, password=None)
    except TypeError as error:
        what = "has a passphrase, which nobody is asked for"
        raise UserError(fault("--key", what, got=str(path), expected=f"{expected} without one", do=do)) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(fault("--key", "is not a key", got=str(path), expected=expected, do=do)) from error
    if not isinstance(key, Ed25519PrivateKey):
        kind = type(key).__name__.strip("_").removesuffix("PrivateKey")
        raise UserError(fault("--key", "has another type", got=kind, expected=expected, do=do))
    return key


def sign(key: Ed25519PrivateKey, statement: Mapping[str, object]) -> Signature:
    """Sign the canonical JSON of the statement."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    value = base64.b64encode(key.sign(canonical(statement).encode())).decode()
    return Signature(algorithm=ALGORITHM, public_key=public, value=value)


def is_valid(signature: object, statement: object) -> bool:
    """Whether this is a signature of the statement by the public key that it names."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    if not isinstance(signature, Mapping) or signature.get("algorithm") != ALGORITHM:
        return False
    try:
        key = load_ssh_public_key(str(signature["public_key"]).encode())
        if not isinstance(key, Ed25519PublicKey):
            return False
        key.verify(base64.b64decode(str(signature["value"]), validate=True), canonical(statement).encode())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return False
    return True


def fingerprint(public_key: str) -> str:
    """Return the fingerprint of a public key as `ssh-keygen -l` prints it."""
    try:
        blob = base64.b64decode(public_key.split()[1], validate=True)
    except (binascii.Error, IndexError, ValueError):
        return "unknown"
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
