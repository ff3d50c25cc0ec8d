"""What an owner says about rows besides features and targets: their group, their time and their slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.source_data import SPLITS, Array
from pipeline.data.splits import RowMetadata
from pipeline.errors import UserError, fault

BY_SPLIT = "a mapping of train, val and test to one value per row"

Reader = Callable[[object, str, list[str]], Array | None]


def read_row_metadata(groups: object, times: object, slices: object, rows: Mapping[str, int]) -> dict[str, RowMetadata]:
    """The groups, times and slices of an owner by split; `rows` is the number of rows of each split.

    Groups and times are a mapping of every split to one value per row, or a sequence of the three; slices are a mapping
    of names to such. Raises UserError with all faults at once.
    """
    faults: list[str] = []
    split_groups = _by_split(groups, "data.groups", rows, _ids, faults)
    split_times = _by_split(times, "data.times", rows, _times, faults)
    split_slices = _slices(slices, rows, faults)
    if faults:
        raise UserError(*faults)
    return {
        split: RowMetadata(
            split_groups.get(split),
            split_times.get(split),
            {name: by_split[split] for name, by_split in split_slices.items()},
        )
        for split in rows
    }


def read_unrepresentative_reason(declared: object) -> str | None:
    """Why the owner declares the data not representative of the population; None without such a declaration.

    Raises UserError for anything but a boolean or a sentence.
    """
    if declared is None or declared is True:
        return None
    if declared is False:
        return "no reason given"
    if isinstance(declared, str) and declared.strip():
        return declared.strip()
    expected = "true, false, or a sentence with the reason why not"
    raise UserError(fault("data.representative", "is not a valid answer", got=declared, expected=expected))


def _by_split(
    value: object, where: str, rows: Mapping[str, int], read: Reader, faults: list[str]
) -> dict[str, Array | None]:
    """One value per row of every split; empty or None with the reasons added to `faults`."""
    if value is None:
        return {}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == len(SPLITS):
        value = dict(zip(SPLITS, value, strict=True))
    if not isinstance(value, Mapping):
        faults.append(fault(where, "is not given by split", got=type(value).__name__, expected=BY_SPLIT))
        return {}
    arrays: dict[str, Array | None] = {}
    for split, count in rows.items():
        if value.get(split) is None:
            faults.append(fault(f"{where}.{split}", "is missing", got=", ".join(map(str, value)), expected=BY_SPLIT))
            continue
        array = read(value[split], f"{where}.{split}", faults)
        if array is not None and array.shape != (count,):
            got, expected = f"shape {array.shape}", f"({count},), one value per row"
            faults.append(fault(f"{where}.{split}", "does not fit the rows", got=got, expected=expected))
        arrays[split] = array
    return arrays


def _array(value: object) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _ids(value: object, where: str, faults: list[str]) -> Array | None:
    """Ids as text. Floats without a fraction are written as integers: 7 in one split and 7.0 in another are equal.

    Missing ids are a fault.
    """
    array = _array(value)
    ids: list[Any] = array.reshape(-1).tolist()
    missing = [i for i, v in enumerate(ids) if v is None or v != v]
    if missing:
        what = "group" if where.startswith("data.groups") else "value"
        faults.append(fault(f"{where}[{missing[0]}]", f"{what} is missing", expected="a value in every row"))
        return None
    texts = array.astype(str)
    # pandas reads a column of integers with a gap as floats, in one split but not in another.
    if array.dtype.kind in "fO":
        whole = [
            str(int(v)) if isinstance(v, float) and v.is_integer() else text
            for v, text in zip(ids, texts.reshape(-1).tolist(), strict=True)
        ]
        texts = np.array(whole, dtype=str).reshape(array.shape)
    return texts


def _times(value: object, where: str, faults: list[str]) -> NDArray[np.float64] | None:
    """Numbers unchanged; dates, or text in ISO 8601, in seconds."""
    array = _array(value)
    try:
        if array.dtype.kind not in "biuf":
            array = array.astype("datetime64[us]")
            times = np.where(np.isnat(array), np.nan, array.astype(np.int64) / 1e6)
        else:
            times = array.astype(np.float64)
    except (ValueError, TypeError) as error:
        what = f"is not times ({str(error).splitlines()[0]})"
        faults.append(fault(where, what, got=f"dtype {array.dtype}", expected="numbers, or dates like 2024-05-31"))
        return None
    if times.ndim == 1 and not (finite := np.isfinite(times)).all():
        row = int(np.argmin(finite))
        faults.append(fault(f"{where}[{row}]", "is not a time", got=times[row], expected="a time in every row"))
        return None
    return times


def _slices(value: object, rows: Mapping[str, int], faults: list[str]) -> dict[str, dict[str, Tensor]]:
    """Boolean tensors [N] of every split by the slice's name; codes per row become one slice for each code."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        expected = f"a mapping of names to {BY_SPLIT}"
        faults.append(fault("data.slices", "has no names", got=type(value).__name__, expected=expected))
        return {}
    slices: dict[str, dict[str, Tensor]] = {}
    for name, declared in value.items():
        by_split = _by_split(declared, f"data.slices.{name}", rows, lambda part, where, faults: _array(part), faults)
        arrays = {split: array for split, array in by_split.items() if array is not None}
        if len(arrays) < len(rows):
            continue
        if all(array.dtype.kind == "b" for array in arrays.values()):
            slices[str(name)] = {split: torch.from_numpy(array.copy()) for split, array in arrays.items()}
            continue
        texts = {split: _ids(array, f"data.slices.{name}.{split}", faults) for split, array in arrays.items()}
        codes = {split: text for split, text in texts.items() if text is not None}
        for code in sorted({c for text in codes.values() for c in text.tolist()}):
            slices[f"{name}={code}"] = {split: torch.from_numpy(text == code) for split, text in codes.items()}
    return slices
