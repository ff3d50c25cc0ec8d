"""The sealed test set: it says how many rows it has and what they look like, and gives none without a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

from torch import Tensor

from pipeline.data import splits
from pipeline.data.splits import Marks, Split
from pipeline.data.tree import Tree

if TYPE_CHECKING:
    from pipeline.run_store.permits import TestKey

# The rows lie beside the seals, not in them: no attribute, pickle, copy or debugger view of a seal leads to one.
_contents: WeakKeyDictionary[SealedTest, Split] = WeakKeyDictionary()


class SealedTest:
    """The test rows, behind a seal that only a `TestKey` opens.

    Open to everybody: `rows`, `digest` of the content, `row_digests` of the features (to find shared rows),
    `schema` of one row, and `counts` per class; of the marks the digests of `groups`, the first and last of `times`,
    and how many rows stand in each of the `slices`.
    """

    __slots__ = ("__weakref__", "counts", "digest", "groups", "row_digests", "rows", "schema", "slices", "times")

    rows: int
    digest: str
    row_digests: tuple[str, ...]
    schema: dict[str, Any]
    counts: dict[str, int]
    groups: tuple[str, ...]
    times: tuple[float, ...]
    slices: dict[str, int]

    def __init__(self, X: Tree, y: Tensor, marks: Marks = splits.NO_MARKS) -> None:
        split = splits.Split("test", X, y, marks=marks)
        known = {
            "rows": len(split),
            "digest": split.digest,
            "row_digests": splits.row_digests(X),
            "schema": splits.schema(X, y),
            "counts": splits.class_counts(y),
            "groups": () if marks.groups is None else tuple(sorted(set(splits.id_digests(marks.groups)))),
            "times": () if marks.times is None else (float(marks.times.min()), float(marks.times.max())),
            "slices": {name: int(inside.sum()) for name, inside in marks.slices.items()},
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)
        _contents[self] = split

    def read(self, key: TestKey) -> Split:
        """The test rows, once per key. Raises Refused for anything but an unused key issued for these very rows."""
        from pipeline.run_store import permits

        permits.require(key, permits.TestKey).spend(self.digest)
        return _contents[self]

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        return f"SealedTest({self.rows} rows, digest {self.digest[:12]})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a sealed test set does not change")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __getitem__(self, rows: object) -> NoReturn:
        raise TypeError("test rows are sealed; only .read(key) with the TestKey of an open gate gives them")

    def __iter__(self) -> NoReturn:
        self.__getitem__(slice(None))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a sealed test set can be neither copied nor pickled; load the data where it is needed")
