"""Text as a stream of tokens: `_target_: pipeline.data.sources.text.text_windows`; the first part is for training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.data.source_data import SPLITS, Array, SourceData
from pipeline.data.sources.delimited import decode_text, read_bytes
from pipeline.data.splits import check_split_shares, row_digests
from pipeline.errors import UserError, fault

TOKENS = ("byte", "char")
TARGETS = ("every", "last")
Windows = tuple[NDArray[np.int64], NDArray[np.int64]]  # tokens [N, context], and the tokens one position on


def text_windows(
    path: str | None,
    *,
    context: int = 64,
    tokens: str = "byte",
    targets: str = "every",
    encoding: str = "utf-8",
    val: float = 0.2,
    test: float = 0.2,
    source: str | None = None,
    licence: str | None = None,
) -> SourceData:
    """Consecutive windows of `context` tokens X int64 [N, context], and the token that follows each position.

    With `targets: every` y is [N, context], X shifted by one; with `last` y is [N], the token after the window. Tokens
    are the 256 bytes, or characters: 0 for those that train does not have, 1 and up for those of train, sorted.
    The text is cut into three parts, train first and test last; no window or its targets cross a cut. A window that
    occurs in several parts is kept in the first of them. Raises UserError for a text that is too short.
    """
    if path is None:
        raise UserError(fault("data.path", "is not given", expected="the file to read"))
    check_options(context, tokens, targets, val, test)
    raw = read_bytes(path)
    text = decode_text(path, raw, encoding) if tokens == "char" else raw
    return text_data(
        text, path, context=context, targets=targets, val=val, test=test, source=source or str(path), licence=licence
    )


def check_options(context: int, tokens: str, targets: str, val: float, test: float) -> None:
    """Raises UserError for an option that is not valid."""
    for key, value, valid in (("tokens", tokens, TOKENS), ("targets", targets, TARGETS)):
        if value not in valid:
            raise UserError(fault(f"data.{key}", "unknown value", got=value, among=valid))
    if context < 1:
        raise UserError(fault("data.context", "is out of bounds", got=context, expected="1 or more"))
    check_split_shares(val, test)


def text_data(
    text: str | bytes,
    path: str,
    *,
    context: int,
    targets: str,
    val: float,
    test: float,
    source: str,
    licence: str | None,
) -> SourceData:
    """The windows of a text in memory, like those of `text_windows`: tokens are its characters, or its bytes.

    `path` names the text in messages. Raises UserError for a text that is too short.
    """
    tokens = "char" if isinstance(text, str) else "byte"
    stream: Array = np.frombuffer(text, np.uint8) if isinstance(text, bytes) else np.array([ord(c) for c in text])
    cuts = [round(len(stream) * (1 - val - test)), round(len(stream) * (1 - test))]
    parts = np.split(stream.astype(np.int64), cuts)
    _check_length(path, parts, context, len(stream), tokens)
    names = [f"0x{byte:02x}" for byte in range(256)]
    if tokens == "char":
        known = np.unique(parts[0])
        parts = [_encode(part, known) for part in parts]
        names = ["<unknown>", *(chr(code) for code in known)]
    windows = _merge_repeated([_cut_windows(part, context) for part in parts], path)
    train, val_pair, test_pair = [(X, y if targets == "every" else y[:, -1]) for X, y in windows]
    return {
        "train": train,
        "val": val_pair,
        "test": test_pair,
        "class_names": names,
        "feature_names": None,
        "source": source,
        "licence": licence,
        "vocabulary": len(names),
        "categories": dict.fromkeys(range(context), len(names)),
    }


def _check_length(path: str, parts: list[NDArray[np.int64]], context: int, length: int, tokens: str) -> None:
    short = [(name, len(part)) for name, part in zip(SPLITS, parts, strict=True) if len(part) <= context]
    if short:
        got = f"{length} {tokens}s, {', '.join(f'{count} of them for {name}' for name, count in short)}"
        expected = f"at least {context + 1} for each split, the context and the token after it"
        raise UserError(
            fault(path, "text is shorter than the context", got=got, expected=expected, do="lower data.context")
        )


def _encode(tokens: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions of the tokens in `known`, counted from 1; 0 for tokens that are not in it."""
    position = np.searchsorted(known, tokens).clip(max=len(known) - 1)
    return np.where(known[position] == tokens, position + 1, 0)


def _cut_windows(part: NDArray[np.int64], context: int) -> Windows:
    """Consecutive windows [N, context], and the same shifted by one token; an incomplete last window is left out."""
    length = (len(part) - 1) // context * context
    return part[:length].reshape(-1, context), part[1 : length + 1].reshape(-1, context)


def _merge_repeated(windows: list[Windows], path: str) -> list[Windows]:
    """All windows, each moved to the first split that contains an equal one, so that no two splits share a window."""
    # A phrase that repeats, such as a licence header, would otherwise leak from train into test.
    X, y = (np.concatenate([pair[k] for pair in windows]) for k in (0, 1))
    split = np.repeat(np.arange(len(windows)), [len(pair[0]) for pair in windows])
    _, first, group = np.unique(np.array(row_digests(X), dtype=str), return_index=True, return_inverse=True)
    first_split = split[first[group]]
    for number, name in enumerate(SPLITS):
        if not (first_split == number).any():
            what = f"every window of {name} also occurs earlier in the text"
            raise UserError(fault(path, what, expected="a text that does not repeat itself"))
    return [(X[first_split == number], y[first_split == number]) for number in range(len(windows))]
