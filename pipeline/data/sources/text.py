"""Text as a stream of tokens: `_target_: pipeline.data.sources.text.text_windows`; it begins with train."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.delimited import decoded, read_bytes
from pipeline.data.splits import require_shares, row_digests
from pipeline.errors import UserError, fault

TOKENS = ("byte", "char")
TARGETS = ("every", "last")
SIDES = ("train", "val", "test")


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
) -> dict[str, Any]:
    """Windows of `context` tokens X int64 [N, context], side by side, and the token that follows each place.

    With `targets: every` y is [N, context], X one place on; with `last` y is [N], the token behind the window. Tokens
    are the 256 bytes, or characters: 0 for those that train never had, 1 and up for those of train, sorted.
    The text is cut into three stretches, train first and test last, and no window or its targets reaches over a cut. A
    window that stands in several stretches goes to the first of them. Raises UserError for a text that is too short.
    """
    if path is None:
        raise UserError(fault("data.path", "is not given", expected="the file to read"))
    require_words(context, tokens, targets, val, test)
    raw = read_bytes(path)
    text = decoded(path, raw, encoding) if tokens == "char" else raw
    return windows_of(
        text, path, context=context, targets=targets, val=val, test=test, source=source or str(path), licence=licence
    )


def require_words(context: int, tokens: str, targets: str, val: float, test: float) -> None:
    """Raises UserError for options that cannot be."""
    for key, word, words in (("tokens", tokens, TOKENS), ("targets", targets, TARGETS)):
        if word not in words:
            raise UserError(fault(f"data.{key}", "unknown word", got=word, among=words))
    if context < 1:
        raise UserError(fault("data.context", "is out of bounds", got=context, expected="1 or more"))
    require_shares(val, test)


def windows_of(
    text: str | bytes, path: str, *, context: int, targets: str, val: float, test: float, source: str, licence: Any
) -> dict[str, Any]:
    """The windows of a text in memory, as `text_windows` gives them: tokens are its characters, or its bytes.

    `path` names it in messages. Raises UserError for a text that is too short.
    """
    tokens = "char" if isinstance(text, str) else "byte"
    stream: NDArray[Any] = np.frombuffer(text, np.uint8) if isinstance(text, bytes) else _points(text)
    cuts = [round(len(stream) * (1 - val - test)), round(len(stream) * (1 - test))]
    stretches = np.split(stream.astype(np.int64), cuts)
    _require_long(path, stretches, context, len(stream), tokens)
    names = [f"0x{byte:02x}" for byte in range(256)]
    if tokens == "char":
        known = np.unique(stretches[0])
        stretches = [_coded(stretch, known) for stretch in stretches]
        names = ["<unknown>", *(chr(code) for code in known)]
    sides = _first_come([_windows(stretch, context) for stretch in stretches], path)
    return {
        **{name: (X, y if targets == "every" else y[:, -1]) for name, (X, y) in zip(SIDES, sides, strict=True)},
        "class_names": names,
        "feature_names": None,
        "source": source,
        "licence": licence,
        "vocabulary": len(names),
        "categories": dict.fromkeys(range(context), len(names)),
    }


def _points(text: str) -> NDArray[np.int64]:
    return np.array([ord(c) for c in text], np.int64)


def _require_long(path: str, stretches: list[NDArray[np.int64]], context: int, length: int, tokens: str) -> None:
    short = [(name, len(s)) for name, s in zip(SIDES, stretches, strict=True) if len(s) <= context]
    if short:
        got = f"{length} {tokens}s, {', '.join(f'{count} of them for {name}' for name, count in short)}"
        expected = f"at least {context + 1} for each side, the context and one that follows"
        raise UserError(
            fault(path, "text is shorter than the context", got=got, expected=expected, do="lower data.context")
        )


def _coded(stretch: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in `known` from 1 on, 0 for what is not there."""
    place = np.searchsorted(known, stretch).clip(max=len(known) - 1)
    return np.where(known[place] == stretch, place + 1, 0)


def _windows(stretch: NDArray[np.int64], context: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows side by side [N, context], and the same one place on."""
    whole = (len(stretch) - 1) // context * context
    return stretch[:whole].reshape(-1, context), stretch[1 : whole + 1].reshape(-1, context)


def _first_come(
    sides: list[tuple[NDArray[np.int64], NDArray[np.int64]]], path: str
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The same windows, each on the first side that has one like it."""
    X, y = (np.concatenate([side[k] for side in sides]) for k in (0, 1))
    at = np.repeat(np.arange(len(sides)), [len(side[0]) for side in sides])
    _, first, alike = np.unique(np.array(row_digests(X), dtype=str), return_index=True, return_inverse=True)
    goes = at[first[alike]]
    for number, name in enumerate(SIDES):
        if not (goes == number).any():
            what = f"every window of {name} stands earlier in the text too"
            raise UserError(fault(path, what, expected="a text that does not repeat itself"))
    return [(X[goes == number], y[goes == number]) for number in range(len(sides))]
