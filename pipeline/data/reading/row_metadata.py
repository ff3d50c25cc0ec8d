"""What an owner says of single rows beyond features and targets: their group, their time, the slices they are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.splits import Marks
from pipeline.errors import UserError, fault

SPLITS = ("train", "val", "test")
BY_SPLIT = "a mapping of train, val and test to one value per row"


def marks(given: Mapping[str, Any], rows: Mapping[str, int]) -> dict[str, Marks]:
    """`groups`, `times` and `slices` of an owner, by split.

    Groups and times are a mapping of every split to a value per row, or a sequence of the three; slices are a mapping
    of names to such. Raises UserError with all faults at once.
    """
    faults: list[str] = []
    groups = _by_split(given["groups"], "data.groups", rows, _ids, faults)
    times = _by_split(given["times"], "data.times", rows, _instants, faults)
    slices = _slices(given["slices"], rows, faults)
    if faults:
        raise UserError(*faults)
    return {
        split: Marks(groups.get(split), times.get(split), {name: of[split] for name, of in slices.items()})
        for split in rows
    }


def unrepresentative(said: Any) -> str | None:
    """Why the owner says that the data do not stand for the population; None where nobody says so.

    Raises UserError for what is neither a truth value nor a sentence.
    """
    if said is None or said is True:
        return None
    if said is False:
        return "no reason given"
    if isinstance(said, str) and said.strip():
        return said.strip()
    expected = "true, false, or the sentence that says why not"
    raise UserError(fault("data.representative", "is no answer", got=said, expected=expected))


def _by_split(value: Any, where: str, rows: Mapping[str, int], read: Any, faults: list[str]) -> dict[str, Any]:
    """A value per row of every split, or nothing with the reasons in `faults`."""
    if value is None:
        return {}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == len(SPLITS):
        value = dict(zip(SPLITS, value, strict=True))
    if not isinstance(value, Mapping):
        faults.append(fault(where, "does not say which rows are meant", got=type(value).__name__, expected=BY_SPLIT))
        return {}
    found = {}
    for split, count in rows.items():
        if value.get(split) is None:
            faults.append(fault(f"{where}.{split}", "is missing", got=", ".join(map(str, value)), expected=BY_SPLIT))
            continue
        array = read(value[split], f"{where}.{split}", faults)
        if array is not None and array.shape != (count,):
            got, expected = f"shape {array.shape}", f"({count},), one value per row"
            faults.append(fault(f"{where}.{split}", "does not fit the rows", got=got, expected=expected))
        found[split] = array
    return found


def _array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _ids(value: Any, where: str, faults: list[str]) -> NDArray[Any] | None:
    """Ids as text, one by one, so that 7 and 7.0 of two splits are one group, whatever else stands in these."""
    array = _array(value)
    given = array.reshape(-1).tolist()
    hollow = [i for i, v in enumerate(given) if v is None or v != v]
    if hollow:
        what = "group" if where.startswith("data.groups") else "value"
        faults.append(fault(f"{where}[{hollow[0]}]", f"{what} is missing", expected="a value in every row"))
        return None
    texts = array.astype(str)
    if array.dtype.kind in "fO":
        told = [
            str(int(v)) if isinstance(v, float) and v.is_integer() else text
            for v, text in zip(given, texts.reshape(-1).tolist(), strict=True)
        ]
        texts = np.array(told, dtype=str).reshape(array.shape)
    return texts


def _instants(value: Any, where: str, faults: list[str]) -> NDArray[np.float64] | None:
    """Numbers as they are; dates, or text of ISO 8601, in seconds."""
    array = _array(value)
    try:
        if array.dtype.kind not in "biuf":
            array = array.astype("datetime64[us]")
            moments = np.where(np.isnat(array), np.nan, array.astype(np.int64) / 1e6)
        else:
            moments = array.astype(np.float64)
    except (ValueError, TypeError) as error:
        what = f"holds no times ({str(error).splitlines()[0]})"
        faults.append(fault(where, what, got=f"dtype {array.dtype}", expected="numbers, or dates like 2024-05-31"))
        return None
    if moments.ndim == 1 and not (known := np.isfinite(moments)).all():
        row = int(np.argmin(known))
        faults.append(fault(f"{where}[{row}]", "is no time", got=moments[row], expected="a time in every row"))
        return None
    return moments


def _slices(value: Any, rows: Mapping[str, int], faults: list[str]) -> dict[str, dict[str, Any]]:
    """Truth values per row of every split by the slice's name; codes per row are one slice for each code."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        expected = f"a mapping of names to {BY_SPLIT}"
        faults.append(fault("data.slices", "has no names", got=type(value).__name__, expected=expected))
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, of in value.items():
        given = _by_split(of, f"data.slices.{name}", rows, lambda part, where, faults: _array(part), faults)
        if len(given) < len(rows):
            continue
        if all(part.dtype.kind == "b" for part in given.values()):
            found[str(name)] = {split: torch.from_numpy(part.copy()) for split, part in given.items()}
            continue
        texts = {split: _ids(part, f"data.slices.{name}.{split}", faults) for split, part in given.items()}
        for code in sorted({c for part in texts.values() if part is not None for c in part.tolist()}):
            of_code = {s: torch.from_numpy(part == code) for s, part in texts.items() if part is not None}
            found[f"{name}={code}"] = of_code
    return found
