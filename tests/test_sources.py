"""Data sources: tables, arrays, images and text are read reproducibly, and every fault names its place."""

from __future__ import annotations

import csv
import datetime
import importlib.util
import re
import resource
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.analysis.leakage import shared_fractions
from pipeline.data.digits import digits
from pipeline.data.load import seal
from pipeline.data.sources import bundled
from pipeline.data.sources.delimited import csv_table
from pipeline.data.sources.images import image_folder
from pipeline.data.sources.npz import npz
from pipeline.data.sources.parquet import parquet_table
from pipeline.data.sources.split_assignment import time_indices
from pipeline.data.sources.text import text_windows
from pipeline.data.splits import row_digests, split_indices
from pipeline.errors import UserError
from tests.conftest import SHORT, examples, go

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val", "test")
QUICK = settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def write(folder: Path, rows: list[list[Any]], delimiter: str = ",") -> str:
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return str(folder / "table.csv")


def people(n: int = 60) -> list[list[Any]]:
    """A header and rows: an age, a town, and a label of two classes."""
    return [["age", "town", "y"], *([20 + i, "Bern" if i % 3 else "Rome", "yes" if i % 2 else "no"] for i in range(n))]


def changed(row: int, column: int, cell: Any) -> list[list[Any]]:
    rows = people()
    rows[row - 1][column] = cell  # row 1 is the header, as in messages
    return rows


def error_of(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    return str(caught.value)


def together(data: dict[str, Any], part: int) -> np.ndarray:
    return np.concatenate([data[split][part] for split in SPLITS])


# --- tables ----------------------------------------------------------------------------------------------------------


@QUICK
@given(table=st.lists(st.tuples(FLOATS, FLOATS, st.integers(-9, 9)), min_size=9, max_size=40, unique_by=lambda r: r[0]))
def test_csv_table_reads_back_what_was_written(tmp_path: Path, table: list[tuple[float, float, int]]) -> None:
    """Numbers are read exactly, each row once, and targets stay with their features."""
    path = write(tmp_path, [["a", "b", "value"], *map(list, table)])
    data = csv_table(path, "value", label_kind="values")
    rows = np.column_stack([together(data, 0), together(data, 1)]).astype(np.float32)
    assert sorted(map(tuple, np.array(table, np.float32).tolist())) == sorted(map(tuple, rows.tolist()))


def test_csv_table_codes_text_and_labels(tmp_path: Path) -> None:
    """Text columns are coded, labels are named in order, and the loader accepts the result."""
    data = csv_table(write(tmp_path, people()), "y")
    assert ["age", "town"] == data["feature_names"] and ["no", "yes"] == data["class_names"]
    assert {"town": ["<unknown>", "Bern", "Rome"]} == data["categories"]
    sealed = seal(data, "binary")
    assert (36, 12, 12) == (len(sealed.train), len(sealed.val), sealed.test.rows)
    shifted = csv_table(write(tmp_path, people(), ";"), "y", delimiter="semicolon", features=["age"])
    assert ["age"] == shifted["feature_names"] and np.array_equal(shifted["val"][1], data["val"][1])


def test_csv_table_sorts_numeric_labels_by_value(tmp_path: Path) -> None:
    """Ten comes after nine; declared class names take precedence."""
    rows = [["a", "y"], *([i, i % 11] for i in range(66))]
    assert [str(i) for i in range(11)] == csv_table(write(tmp_path, rows), "y")["class_names"]
    backwards = csv_table(write(tmp_path, people()), "y", class_names=["yes", "no"])
    assert ["yes", "no"] == backwards["class_names"]


def test_csv_table_codes_new_categories_as_unknown(tmp_path: Path) -> None:
    """Code 0 is for new and missing categories; the codes of train do not depend on them."""
    towns = ["Bern", "Rome"] * 6 + ["Oslo", "", "Bern", "Oslo", "Rome", ""]
    splits = ["train"] * 12 + ["val"] * 3 + ["test"] * 3
    rows = [
        ["town", "n", "where", "y"],
        *([t, i, s, i % 2] for i, (t, s) in enumerate(zip(towns, splits, strict=True))),
    ]
    data = csv_table(write(tmp_path, rows), "y", split="where")
    assert {"town": ["<unknown>", "Bern", "Rome"]} == data["categories"]
    assert [0, 0, 1] == data["val"][0][:, 0].tolist() and [0, 2, 0] == data["test"][0][:, 0].tolist()


def test_csv_table_keeps_missing_values(tmp_path: Path) -> None:
    """NaN and infinities are kept; a missing category is unknown."""
    data = csv_table(write(tmp_path, changed(17, 0, "NA")), "y")
    assert 1 == np.isnan(together(data, 0)).sum()
    assert np.isinf(together(csv_table(write(tmp_path, changed(17, 0, "inf")), "y"), 0)).any()
    assert 0 in together(csv_table(write(tmp_path, changed(17, 1, "")), "y"), 0)[:, 1]


# --- splits ----------------------------------------------------------------------------------------------------------


@QUICK
@given(st.integers(20, 120), st.integers(6, 15), st.integers(0, 99))
def test_split_indices_keeps_groups_together(rows: int, groups: int, seed: int) -> None:
    """No two splits share a group or a row."""
    rng = np.random.default_rng(seed)
    group, X = np.r_[np.arange(groups), rng.integers(0, groups, rows)], rng.normal(size=(rows + groups, 1))
    X[0], X[1] = X[2], X[3]  # equal rows of two groups keep both groups in one split
    indices = split_indices(X, rng.integers(0, 2, len(X)), groups=group, seed=seed)
    for by in (group, np.array(row_digests(X))):
        shared = [set(by[rows].tolist()) for rows in indices.values()]
        assert not any(a & b for a, b in combinations(shared, 2))
    assert list(range(len(X))) == sorted(np.concatenate(list(indices.values())).tolist())


@QUICK
@given(st.integers(0, 999))
def test_csv_table_keeps_rows_together_that_coding_makes_equal(tmp_path: Path, seed: int) -> None:
    """Categories that train does not have make no row of one split equal to a row of another."""
    rng = np.random.default_rng(seed)
    arguments = [f"w{number}" for number in rng.integers(0, 30, 80)]
    cells = [["" if rng.random() < 0.2 else c for c in row] for row in rng.integers(0, 3, (80, 2)).tolist()]
    cells = [[word, *row] for word, row in zip(arguments, cells, strict=True)]
    rows = [["a", "b", "c", "who", "y"], *([*r, i % 25, i % 2] for i, r in enumerate(cells))]
    for column, apart in (("group", "who"), ("ignore", ["who"])):
        options: dict[str, Any] = {column: apart}
        try:
            data = csv_table(write(tmp_path, rows), "y", **options)
        except UserError as error:
            assert "too few different rows" in str(error)
            continue
        assert not any(shared_fractions(seal(data, "binary")).values())


@QUICK
@given(st.lists(st.integers(0, 40), min_size=5, max_size=90).filter(lambda t: len(set(t)) >= 3))
def test_time_indices_are_in_order(times: list[int]) -> None:
    """Every train row is older than any of val, these are older than any of test, and no split is empty."""
    t = np.array(times, float)
    indices = time_indices(t)
    assert t[indices["train"]].max() < t[indices["val"]].min() and t[indices["val"]].max() < t[indices["test"]].min()
    assert len(t) == sum(map(len, indices.values()))


def test_csv_table_excludes_split_columns_from_features(tmp_path: Path) -> None:
    """Group and time are not features, and only one of them can divide the rows."""
    days = [str(datetime.date(2024, 1, 1) + datetime.timedelta(days=i)) for i in range(60)]
    rows = [
        ["day", "who", *people()[0]],
        *([d, i % 20, *r] for i, (d, r) in enumerate(zip(days, people()[1:], strict=True))),
    ]
    path = write(tmp_path, rows)
    newest = csv_table(path, "y", time="day", ignore=["who"])
    assert ["age", "town"] == newest["feature_names"]
    assert newest["train"][0][:, 0].max() < newest["val"][0][:, 0].min() < newest["test"][0][:, 0].min()
    by_person = csv_table(path, "y", group="who", ignore=["day"])
    people_of = [set((by_person[split][0][:, 0] % 20).tolist()) for split in SPLITS]  # ages are 20 + i, persons i % 20
    assert not people_of[0] & people_of[1] and not people_of[0] & people_of[2]
    assert people_of[1] == {int(who) for who in by_person["groups"]["val"]} and "groups" not in newest
    assert newest["times"]["train"].max() < newest["times"]["val"].min() < newest["times"]["test"].min()
    assert "one way only, got 'group and time'" in error_of(csv_table, path, "y", group="who", time="day")
    assert "row 3, column 'day': is not a time" in error_of(
        csv_table, write(tmp_path, _with(rows, 3, 0, "soon")), "y", time="day"
    )


def _with(rows: list[list[Any]], row: int, column: int, cell: Any) -> list[list[Any]]:
    return [[cell if (i, j) == (row - 1, column) else c for j, c in enumerate(r)] for i, r in enumerate(rows)]


def test_csv_table_reads_three_files_as_splits(tmp_path: Path) -> None:
    """Columns are matched by name; a fault in the third file names that file."""
    header, *body = people(12)
    paths = []
    for k, split in enumerate(SPLITS):
        (tmp_path / split).mkdir()
        mixed = [[r[2], r[0], r[1]] if k == 1 else r for r in [header, *body[4 * k : 4 * k + 4]]]
        paths.append(write(tmp_path / split, mixed))
    data = csv_table(paths[0], "y", val_path=paths[1], test_path=paths[2])
    assert [24, 25, 26, 27] == data["val"][0][:, 0].tolist() and [0, 1, 0, 1] == data["val"][1].tolist()
    Path(paths[2]).write_text("age,town,y\n1,Bern\n")
    assert f"{paths[2]}: row 2, column 'y': has 2 cells" in error_of(
        csv_table, *paths[:1], "y", val_path=paths[1], test_path=paths[2]
    )
    assert "data.test_path: is not given" in error_of(csv_table, paths[0], "y", val_path=paths[1])


# --- tables that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: is empty"),
        ("age,town,y\n", "t.csv: has a header and no rows"),
        ("a,b,y\n1,2,0\n1,2\n1,2,3,4\n", "row 3, column 'y': has 2 cells, and 1 more rows do not fit"),
        ("a,b,y\n1,2,0\n1,2,3,4\n", "t.csv: row 3, column 4: has 4 cells; expected 3, as in the header"),
        ("a,b,yy\n1,2,0\n", "t.csv has no such column, got 'y'; expected one of a, b, yy; did you mean 'yy'?"),
        ("a;b;y\n1;2;0\n", "t.csv: row 1, column 1: delimiter ',' gives one column, semicolon would give 3  Do: "),
        ("a,,y\n1,2,0\n", "t.csv: row 1, column 2: has no name"),
        ("a,a,y\n1,2,0\n", "t.csv: row 1, column 'a': name occurs twice"),
        ("a,y\n1,0\n2,0\n", "t.csv: column 'y': has one class only, so there is nothing to classify"),
        ("a,y\n1,0\n2,0\n3,1\n", "t.csv: row 4, column 'y': class '1' has one row"),
        ("a,y\n1,0\n2,nan\n3,1\n", "t.csv: row 3, column 'y': label is missing"),
        ('a,y\n1,0\n"2,1\n', "t.csv: row 3, column 1: cannot be read (unexpected end of data)"),
        ("y\n1\n2\n1\n2\n", "t.csv: has no column to learn from"),
        ('a,b,y\n"x\n\nz",1,0\n2,1,\n3,1,1\n3,2,1\n', "t.csv: row 5, column 'y': label is missing"),
    ],
)  # fmt: skip
def test_csv_table_names_file_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    """The message is one line; rows are counted like the lines of an editor."""
    (tmp_path / "t.csv").write_text(text)  # tmp_path is the working directory of the tests
    reported = error_of(csv_table, "t.csv", "y")
    assert message in reported
    assert 1 == len(reported.splitlines())


@pytest.mark.parametrize(
    ("row", "column", "cell", "options", "message"),
    [
        (17, 0, "4o", {}, "row 17, column 'age': is not a number, unlike the rest of its column, got '4o'"),
        (17, 2, "maybe", {"class_names": ["no", "yes"]}, "row 17, column 'y': label is out of range, got 'maybe'"),
        (17, 2, "no", {"class_names": [False, True]}, "data.class_names: are not texts"),
        (17, 2, "maybe", {"label_kind": "values"}, "row 2, column 'y': label is not a finite number, got 'no'"),
        (17, 0, "3", {"label_kind": "class"}, "data.label_kind: unknown kind, got 'class'"),
        (17, 0, "3", {"features": ["agee"]}, "has no such column, got 'agee'; expected one of age, town, y"),
        (17, 0, "3", {"features": ["y"]}, "data.features: contains the label"),
        (17, 0, "3", {"delimiter": ",,"}, "data.delimiter: is not a delimiter"),
        (17, 0, "3", {"encoding": "utf-88"}, "data.encoding: there is no such encoding"),
        (17, 0, "3", {"split": "town"}, "row 2, column 'town': is not the name of a split, got 'Rome'"),
        (17, 0, "", {"group": "age"}, "row 17, column 'age': group is missing"),
        (17, 0, "3", {"val": 0.6, "test": 0.5}, "data: shares of val and test"),
    ],
)  # fmt: skip
def test_csv_table_names_a_bad_cell_or_option(
    tmp_path: Path, row: int, column: int, cell: str, options: dict[str, Any], message: str
) -> None:
    """A fault of one cell or option names its place."""
    assert message in error_of(csv_table, write(tmp_path, changed(row, column, cell)), "y", **options)


def test_csv_table_names_the_byte_of_a_wrong_encoding(tmp_path: Path) -> None:
    """Byte, row and column are named; the right encoding is read, and a byte order mark is not part of a name."""
    path = write(tmp_path, changed(17, 1, "Zürich"))
    text = Path(path).read_text()
    Path(path).write_bytes(raw := text.encode("cp1252"))
    message = error_of(csv_table, path, "y")
    assert f"{path}: row 17, column 'town': byte {raw.index(0xFC)} (0xfc) is not valid utf-8" in message
    assert message.endswith("data.encoding=cp1252")
    assert ["age", "town"] == csv_table(path, "y", encoding="cp1252")["feature_names"]
    Path(path).write_text(text, encoding="utf-8-sig")
    assert ["age", "town"] == csv_table(path, "y")["feature_names"]
    Path(path).write_text(text, encoding="utf-16")
    assert "data.encoding=utf-16" in error_of(csv_table, path, "y")


def test_csv_table_refuses_a_binary_file(tmp_path: Path) -> None:
    """A file that is neither text nor a table is reported by its first invalid byte."""
    (tmp_path / "t.csv").write_bytes(b"\x7fELF\r\x00,a\r\xff\n1,2\n\r\xfe")
    assert "t.csv: row 1: byte 9 (0xff) is not valid utf-8" in error_of(csv_table, "t.csv", "y")


def test_csv_table_reads_a_hundred_thousand_columns(tmp_path: Path) -> None:
    """A wide table is read, and a wrong label does not print every name."""
    width = 100_000
    names = ",".join(["y", *(f"c{i}" for i in range(width))])
    lines = [",".join([str(i % 2), *[str(i)] * width]) for i in range(6)]
    (tmp_path / "wide.csv").write_text("\n".join([names, *lines]))
    assert (2, width) == csv_table("wide.csv", "y")["train"][0].shape
    assert (
        "expected one of its 100001 columns" in (message := error_of(csv_table, "wide.csv", "z")) and len(message) < 500
    )


def test_readers_name_a_missing_path(tmp_path: Path) -> None:
    """A path that is not given, or does not exist, is a message about the key."""
    for reader in (lambda p: csv_table(p, "y"), npz, image_folder, text_windows):
        assert "data.path: is not given" in error_of(reader, None)
        assert "data.path: cannot be read (No such file" in error_of(reader, "nowhere")
    assert "data.label: is not given" in error_of(csv_table, write(tmp_path, people()), None)


def test_parquet_table_needs_pyarrow(tmp_path: Path) -> None:
    """With pyarrow the table equals that of the CSV; without it the message says what to install."""
    if importlib.util.find_spec("pyarrow") is None:
        assert "Do: pip install pyarrow" in error_of(parquet_table, "t.parquet", "y")
        return
    tables, parquet = (importlib.import_module(f"pyarrow.{name}") for name in ("csv", "parquet"))
    parquet.write_table(tables.read_csv(write(tmp_path, people())), "t.parquet")
    read, other = parquet_table("t.parquet", "y"), csv_table(write(tmp_path, people()), "y")
    assert all(np.array_equal(read[split][0], other[split][0]) for split in SPLITS)


class Metadata(NamedTuple):
    """What Parquet says of a file without reading its cells."""

    num_rows: int
    num_columns: int


def test_parquet_table_refuses_a_small_file_of_many_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal cells take nothing in Parquet: a file with far more cells than bytes is refused before they are read."""
    (tmp_path / "t.parquet").write_bytes(bytes(1000))
    pyarrow = SimpleNamespace(read_metadata=lambda path: Metadata(10**9, 2), read_table=None)
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=pyarrow))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", pyarrow)

    message = error_of(parquet_table, "t.parquet", "y")

    assert "got '2,000,000,000 cells in 1,000 bytes'; expected at most 20,000,000: " in message
    assert "  Do: leave out rows or columns, or write the table as CSV" in message


# --- arrays, images, text ---------------------------------------------------------------------------------------------


def test_npz_reads_arrays_and_splits(tmp_path: Path) -> None:
    """X and y are divided; arrays that are already divided are kept."""
    X, y = np.arange(60.0).reshape(30, 2), np.arange(30) % 3
    np.savez(tmp_path / "a.npz", X=X, y=y)
    assert (18, 2) == npz("a.npz", class_names=["a", "b", "c"])["train"][0].shape
    np.savez(
        tmp_path / "b.npz", **{f"{n}_{s}": (X if n == "X" else y)[k::3] for n in "Xy" for k, s in enumerate(SPLITS)}
    )
    assert X[1::3].tolist() == npz("b.npz", label_kind="values")["val"][0].tolist()


def test_npz_refuses_a_small_file_of_huge_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that are far larger than their file are refused before they are unpacked; others are read."""
    monkeypatch.setattr("pipeline.data.sources.npz.MAX_BYTES", 1000)
    X, y = np.zeros((2_000_000, 2)), np.arange(2_000_000) % 2
    np.savez_compressed(tmp_path / "a.npz", X=X, y=y.astype(np.int8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    message = error_of(npz, "a.npz")

    assert re.fullmatch(
        r"data\.path: a\.npz has arrays that are far larger .*, got '34,000,\d+ bytes in a file of \d\d,\d+'; "
        r"expected at most [\d,]+ bytes: 1,000, or 100 times the file  Do: write the arrays with numpy\.savez, .*",
        message,
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5000  # kilobytes
    values = np.random.default_rng(0).normal(size=(100, 2))
    for write_as in (np.savez, np.savez_compressed):
        write_as(tmp_path / "a.npz", X=values, y=y[:100])
        assert len(npz("a.npz")["train"][0]) == 60


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"X": np.eye(4), "y": np.array([0, 1, None, 1], object)},
            "a.npz: row 0, array 'y': contains objects, which are never",
        ),
        ({"X": np.eye(4), "y": [0, 1, np.nan, 1]}, "a.npz: row 2, array 'y': label is not finite, got nan"),
        ({"X": np.eye(4), "y": [0, 1, 7, 1]}, "a.npz: row 2, array 'y': label is out of range, got 7"),
        ({"X": np.eye(4), "y": [0, 1, -1, 1]}, "a.npz: row 2, array 'y': label is out of range, got -1"),
        ({"X": np.eye(4), "y": [0, 1, 1, 1]}, "a.npz: row 0, array 'y': class 'a' has one row"),
        ({"X": np.eye(4), "y": [1, 1, 1, 1]}, "a.npz: array 'y': has one class only"),
        ({"X": np.eye(4), "y": [1, 1]}, "a.npz: array 'y': does not have one row for each row of features"),
        ({"X": np.eye(4), "y": ["a"] * 4}, "a.npz: row 0, array 'y': is not a number"),
        ({"X": np.eye(4), "labels": [1, 1]}, "a.npz: has no such array, got 'y'"),
    ],
)
def test_npz_names_a_bad_array(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """File, array and row are named; objects are never unpickled."""
    np.savez(tmp_path / "a.npz", **arrays)
    assert message in error_of(npz, "a.npz", class_names=["a", "b"])
    (tmp_path / "a.npz").write_bytes(b"text")
    assert "data.path: is not an NPZ file" in error_of(npz, "a.npz")


def write_images(folder: Path, size: int = 4) -> Path:
    for i in range(16):
        place = folder / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size + 1), (10 * i, i, 0)).save(place / f"{i}.png")
    return folder


def test_image_folder_reads_classes_and_splits(tmp_path: Path) -> None:
    """Folders are classes, values are in 0..1, and subfolders for the splits are kept."""
    data = image_folder(str(write_images(tmp_path / "all")))
    assert ["cat", "dog"] == data["class_names"] and (3, 5, 4) == data["train"][0].shape[1:]
    assert np.isclose(together(data, 0)[:, 0].max(), 150 / 255)
    for split in SPLITS:
        write_images(tmp_path / "splits" / split)
    grey = image_folder(str(tmp_path / "splits"), channels=1, size=[2, 3])
    assert [(16, 1, 2, 3)] * 3 == [grey[split][0].shape for split in SPLITS]


def test_image_folder_names_bad_images(tmp_path: Path) -> None:
    """Files that do not decode, images of another size and classes without images are named."""
    folder = write_images(tmp_path / "all")
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(folder / "dog" / "2.png")
    message = error_of(image_folder, str(folder)).splitlines()
    assert f"{folder / 'cat' / '1.png'}: cannot be decoded (cannot identify image file)" in message[0]
    assert "2.png: differs in height and width, got (9, 9); expected (5, 4)" in message[1] and 2 == len(message)
    (folder / "empty").mkdir()
    assert f"{folder / 'empty'}: class has no image" in error_of(image_folder, str(folder))


@pytest.mark.parametrize("tokens", ["byte", "char"])
def test_text_windows_cuts_text_without_overlap(tmp_path: Path, tokens: str) -> None:
    """Targets are the inputs shifted by one, splits follow each other, and no window is in two splits."""
    (tmp_path / "t.txt").write_text("".join(f"{i} größer; " for i in range(400)) + "Ω" * 40)
    data = text_windows("t.txt", context=16, tokens=tokens)
    for split in SPLITS:
        X, y = data[split]
        assert X.shape == y.shape and np.array_equal(X[:, 1:], y[:, :-1]) and len(X)
    digests = [set(row_digests(data[split][0])) for split in SPLITS]
    assert not any(a & b for a, b in combinations(digests, 2))
    assert (tokens == "char") == bool((data["test"][0] == 0).any())  # train never had an omega
    last = text_windows("t.txt", context=16, tokens=tokens, targets="last")
    assert np.array_equal(last["val"][1], data["val"][1][:, -1])
    assert data["vocabulary"] == seal(last, "classification").classes


def test_text_windows_refuses_unusable_text(tmp_path: Path) -> None:
    """A text that is too short, repeats itself or has another encoding gives one message."""
    (tmp_path / "t.txt").write_text("short")
    assert "t.txt: text is shorter than the context, got '5 bytes, 3 of them for train" in error_of(
        text_windows, "t.txt"
    )
    (tmp_path / "t.txt").write_text("a" * 2000)
    assert "every window of val also occurs earlier" in error_of(text_windows, "t.txt", context=8)
    (tmp_path / "t.txt").write_bytes(b"fine\nf\xfcr")
    assert "t.txt: row 2: byte 6 (0xfc) is not valid utf-8" in error_of(text_windows, "t.txt", tokens="char")
    assert "data.tokens: unknown value, got 'word'" in error_of(text_windows, "t.txt", tokens="word")


# --- bundled data and experiments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "features", "kind"),
    [
        ("breast_cancer", 569, 30, "binary"),
        ("wine", 178, 13, "classification"),
        ("iris", 150, 4, "classification"),
        ("diabetes", 442, 10, "regression"),
    ],
)
def test_bundled_tables_have_every_row_once(name: str, rows: int, features: int, kind: str) -> None:
    """Every row occurs once, with raw values, and splits share none."""
    data = getattr(bundled, name)()
    sealed = seal(data, kind)
    assert (rows, features) == together(data, 0).shape and features == len(data["feature_names"])
    assert np.float32 == data["train"][0].dtype and data["train"][0].mean() > 1
    assert not any(shared_fractions(sealed).values())


def test_digits_as_images() -> None:
    """The same rows are in the same splits, in another shape."""
    flat, image = digits(), digits(image=True)
    assert (1077, 1, 8, 8) == image["train"][0].shape
    assert np.array_equal(flat["val"][0], image["val"][0].reshape(-1, 64))


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "diabetes", "csv"])
def test_experiment_passes_planning_and_baseline(tmp_path: Path, name: str) -> None:
    """One command opens both gates after two epochs."""
    overrides = [f"data.path={ROOT / 'examples' / 'table' / 'vehicles.csv'}"] if name == "csv" else []
    quick = ("trainer.max_epochs=2", "tracking=none", "phases.baseline.overfit_steps=20", *SHORT)
    run, gate, _ = go(tmp_path, "phase=baseline", f"experiment={name}", *quick, *overrides)
    assert "open" == gate == run.state().gate("planning")
