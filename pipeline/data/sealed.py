"""The sealed test set: its counts, digests and schema are open, its rows can be read only with a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, SupportsIndex
from weakref import WeakKeyDictionary

from torch import Tensor

from pipeline.data import splits, test_openings
from pipeline.data.splits import LeafSchema, RowMetadata, Split
from pipeline.data.tree import Tree

if TYPE_CHECKING:
    from pipeline.run_store.permits import TestKey

# The rows are kept outside the objects: no attribute, pickle, copy or debugger view of a sealed test set leads to them.
_contents: WeakKeyDictionary[SealedTest, Split] = WeakKeyDictionary()


class SealedTest:
    """The test rows, which only a `TestKey` opens.

    Readable without a key: the number of `rows`, the `digest` of the content, the `row_digests` of the features (to
    find rows shared with other splits), the `schema` of one row, and the `counts` per class. Of the row metadata: the
    digests of the `groups`, the first and last of the `times`, and the number of rows in each of the `slices`.
    """

    __slots__ = ("__weakref__", "counts", "digest", "groups", "row_digests", "rows", "schema", "slices", "times")

    rows: int
    digest: str
    row_digests: tuple[str, ...]
    schema: dict[str, LeafSchema]
    counts: dict[str, int]
    groups: tuple[str, ...]
    times: tuple[float, ...]
    slices: dict[str, int]

    def __init__(self, X: Tree, y: Tensor, row_metadata: RowMetadata = splits.NO_METADATA) -> None:
        split = splits.Split("test", X, y, row_metadata=row_metadata)
        groups, times = row_metadata.groups, row_metadata.times
        public = {
            "rows": len(split),
            "digest": split.digest,
            "row_digests": splits.row_digests(X),
            "schema": splits.schema(X, y),
            "counts": splits.class_counts(y),
            "groups": () if groups is None else tuple(sorted(set(splits.id_digests(groups)))),
            "times": () if times is None else (float(times.min()), float(times.max())),
            "slices": {name: int(inside.sum()) for name, inside in row_metadata.slices.items()},
        }
        for name, value in public.items():
            object.__setattr__(self, name, value)
        _contents[self] = split

    def read(self, key: TestKey) -> Split:
        """The test rows, once per key. Raises Refused for anything but an unused key that was issued for these rows."""
        from pipeline.run_store import permits

        permits.require(key, permits.TestKey).spend(self.digest)
        test_openings.record(key.run, self.digest, key.candidate)  # no rows are read that the register does not know
        return _contents[self]

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        return f"SealedTest({self.rows} rows, digest {self.digest[:12]})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a sealed test set cannot be changed")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __getitem__(self, rows: object) -> NoReturn:
        raise TypeError("test rows are sealed; read them by .read(key) with the TestKey of an open gate")

    def __iter__(self) -> NoReturn:
        self.__getitem__(slice(None))

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a sealed test set cannot be copied or pickled; load the data where they are needed")
