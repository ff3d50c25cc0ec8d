"""All the data of a run: two sides that may be looked at, one that is sealed, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.sealed import SealedTest
from pipeline.data.splits import Split, class_counts, content_digest, schema
from pipeline.data.tree import Tree, rows_of


@dataclass(frozen=True, eq=False)
class Data:
    """Everything a run trains and is judged on; the test rows are sealed.

    `production` are unlabelled rows of the field, `previous` the rows of earlier tasks by name, `unrepresentative` why
    the owner says that the data do not stand for the population, None where nobody says so. `categories` are the
    columns that hold codes: column to number of codes, 0 = unknown included.
    """

    train: Split
    val: Split
    test: SealedTest
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = field(default=None, repr=False)
    source: str | None = None
    licence: str | None = None
    production: Tree | None = field(default=None, repr=False)
    previous: Mapping[str, Split] = field(default_factory=dict, repr=False)
    unrepresentative: str | None = None
    categories: dict[int, int] = field(default_factory=dict)

    @property
    def classes(self) -> int | None:
        """The number of classes: the names given, else the highest label of any side plus one; None for values."""
        if self.train.y.is_floating_point() or self.train.y.ndim != 1:
            return None
        if self.class_names:
            return len(self.class_names)
        sides = [int(self.train.y.max()), int(self.val.y.max()), *map(int, self.test.counts)]
        return max(sides) + 1

    def ids(self, kind: str) -> int | None:
        """How many ids the targets of a kind of task are among: its classes, or the tokens of a language model."""
        if kind != "language_model":
            return self.classes
        if self.class_names:
            return len(self.class_names)
        return max(int(self.train.y.max()), int(self.val.y.max()), *map(int, self.test.counts)) + 1

    def facts(self) -> dict[str, dict[str, Any]]:
        """Rows, digest, schema and class counts of each side, as the plan records them."""
        open_sides = {
            s.name: {"rows": len(s), "digest": s.digest, "schema": schema(s.X, s.y), "counts": class_counts(s.y)}
            for s in (self.train, self.val)
        }
        t = self.test
        return {**open_sides, "test": {"rows": t.rows, "digest": t.digest, "schema": t.schema, "counts": t.counts}}

    def others(self) -> dict[str, dict[str, Any]]:
        """Rows and digest of what else came with the splits: `production`, and earlier tasks by their names."""
        found = {f"previous_tasks.{name}": {"rows": len(s), "digest": s.digest} for name, s in self.previous.items()}
        if self.production is not None:
            rows = {"rows": rows_of(self.production), "digest": content_digest(self.production)}
            found["production"] = rows
        return found
