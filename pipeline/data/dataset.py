"""All the data of a run: train and validation, the sealed test set, and what their owner said about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from pipeline.data.sealed import SealedTest
from pipeline.data.splits import LeafSchema, Split, class_counts, content_digest, schema
from pipeline.data.tree import Tree, count_rows


class SplitFacts(TypedDict):
    """How the plan identifies a split, or an additional set of rows, which has no schema and counts."""

    rows: int
    digest: str
    schema: NotRequired[dict[str, LeafSchema]]
    counts: NotRequired[dict[str, int]]


@dataclass(frozen=True, eq=False)
class Data:
    """Everything a run trains and is evaluated on; the test rows are sealed.

    `production` are unlabelled rows from production, `previous_tasks` the rows of earlier tasks by their names.
    `unrepresentative_reason` is the owner's reason why the data do not represent the population, None without one.
    `categories` are the columns that hold codes: column to number of codes, including 0 for unknown.
    `category_texts` are the texts of those codes, in their order, where the owner gave them.
    `column_targets`: the owner gave class ids as a column [N, 1]. They are [N] here; code of the owner's own gets them
    as given. `integer_features`: the owner gave X as one array of integers in every split, which is float32 here unless
    `preprocess.integers` keeps them.
    """

    train: Split
    val: Split
    test: SealedTest
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = field(default=None, repr=False)
    source: str | None = None
    licence: str | None = None
    production: Tree | None = field(default=None, repr=False)
    previous_tasks: Mapping[str, Split] = field(default_factory=dict, repr=False)
    unrepresentative_reason: str | None = None
    categories: dict[int, int] = field(default_factory=dict)
    category_texts: dict[int, tuple[str, ...]] = field(default_factory=dict, repr=False)
    column_targets: bool = False
    integer_features: bool = False

    @property
    def classes(self) -> int | None:
        """The number of classes: of the given names, else the highest label of any split plus one; None for values."""
        if self.train.y.is_floating_point() or self.train.y.ndim != 1:
            return None
        return self._count_ids()

    def ids(self, kind: str) -> int | None:
        """The number of ids that targets of this kind of task can be: classes, or tokens of a language model."""
        return self._count_ids() if kind == "language_model" else self.classes

    def _count_ids(self) -> int:
        if self.class_names:
            return len(self.class_names)
        return max(int(self.train.y.max()), int(self.val.y.max()), *map(int, self.test.counts)) + 1

    def facts(self) -> dict[str, SplitFacts]:
        """Rows, digest, schema and class counts of each split, as the plan records them."""
        t = self.test
        train, val = (
            SplitFacts(rows=len(s), digest=s.digest, schema=schema(s.X, s.y), counts=class_counts(s.y))
            for s in (self.train, self.val)
        )
        test = SplitFacts(rows=t.rows, digest=t.digest, schema=t.schema, counts=t.counts)
        return {"train": train, "val": val, "test": test}

    def additional_facts(self) -> dict[str, SplitFacts]:
        """Rows and digest of what the owner gave besides the splits: `production`, and earlier tasks by their names."""
        facts = {
            f"previous_tasks.{name}": SplitFacts(rows=len(split), digest=split.digest)
            for name, split in self.previous_tasks.items()
        }
        if self.production is not None:
            digest = content_digest(self.production)
            facts["production"] = SplitFacts(rows=count_rows(self.production), digest=digest)
        return facts
