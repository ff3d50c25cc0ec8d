"""`predict.py` of a payload answers raw rows by the schema, and refuses everything else with a typed error."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.serving.schema import build_schema
from pipeline.serving.standalone import predict
from pipeline.serving.standalone.predict import PredictError, Predictor
from tests.serving_payloads import config, rows, write_payload

ROW = {"speed": 1.0, "colour": "red"}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A linear model of a number and a category with the texts red and blue."""
    return Predictor(write_payload(tmp_path_factory.mktemp("payload")))


def refusal(predictor: Predictor, given: Any) -> PredictError:
    with pytest.raises(PredictError) as caught:
        predictor.predict(given)
    return caught.value


def test_predictor_answers_rows_in_any_order_of_columns(predictor: Predictor) -> None:
    """Objects, reordered objects and lists of the same row have the same answer, with the class name."""
    [first] = predictor.predict([ROW])
    assert predictor.predict([dict(reversed(ROW.items())), [1.0, "red"]]) == [first, first]
    assert first["label"] in ("slow", "fast")


def test_predictor_codes_categories(predictor: Predictor) -> None:
    """A category has the code of the data, and one that train does not have has code 0."""
    tensors = predictor.encode([ROW, {**ROW, "colour": "blue"}, {**ROW, "colour": "green"}, {**ROW, "colour": None}])
    texts = predictor.columns["colour"]["categories"]
    assert tensors["input"][:, 1].tolist() == [texts["red"], texts["blue"], 0, 0]


@pytest.mark.parametrize(
    ("given", "error", "column"),
    [
        ([], "EmptyInput", None),
        ("rows", "WrongShape", None),
        ([ROW] * 10_001, "TooLarge", None),
        ([[1.0]], "WrongShape", None),
        ([{**ROW, "speed": "1"}], "WrongType", "speed"),
        ([{**ROW, "speed": True}], "WrongType", "speed"),
        ([{**ROW, "speed": [1.0]}], "WrongShape", "speed"),
        ([{**ROW, "speed": None}], "MissingValue", "speed"),
        ([{**ROW, "speed": float("nan")}], "MissingValue", "speed"),
        ([{**ROW, "speed": float("inf")}], "NotFinite", "speed"),
        ([{**ROW, "speed": 1e300}], "NotFinite", "speed"),
        ([{**ROW, "speed": 10**400}], "NotFinite", "speed"),
        ([{**ROW, "colour": ["red"]}], "WrongShape", "colour"),
        ([{**ROW, "colour": 1.5}], "WrongType", "colour"),
        ([{"colour": "red"}], "ColumnsDiffer", "speed"),
        ([{**ROW, "Sped": 1.0}], "ColumnsDiffer", "Sped"),
    ],
)
def test_predictor_refuses_wrong_rows(predictor: Predictor, given: Any, error: str, column: str | None) -> None:
    """Every wrong input has its own type of error, which names row and column."""
    refused = refusal(predictor, given)
    assert (type(refused).__name__, refused.column) == (error, column)
    assert column is None or refused.row == 1


def test_predictor_names_all_faults_of_an_input(predictor: Predictor) -> None:
    """Two wrong rows give two errors, and a misspelt column the name that is meant."""
    assert [e.row for e in refusal(predictor, [{**ROW, "speed": "x"}, ROW, {**ROW, "speed": None}]).errors] == [1, 3]
    assert "did you mean 'speed'" in str(refusal(predictor, [{"sped": 1.0, "colour": "red"}]).errors[1])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "EmptyInput"),
        (b"speed,colour\n", "EmptyInput"),
        (b"speed,speed\n1,2\n", "ColumnsDiffer"),
        (b"speed,color\n1,red\n", "ColumnsDiffer"),
        (b"speed,colour\n1\n", "WrongShape"),
        (b"speed,colour\nfast,red\n", "WrongType"),
        (b"speed,colour\nnan,red\n", "MissingValue"),
        (b"speed,colour\ninf,red\n", "NotFinite"),
        (b'speed,colour\n1,"red\n', "UnreadableInput"),
        (b"speed,colour\n1," + b"x" * 10_000_000, "TooLarge"),
        (b"\x7fELF\xff\xfe\x00", "UnreadableInput"),
    ],
)
def test_predictor_refuses_wrong_csv(predictor: Predictor, tmp_path: Path, content: bytes, error: str) -> None:
    """A damaged or foreign CSV is refused with its own type of error."""
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(PredictError) as caught:
        predictor.predict_file(tmp_path / "rows.csv")
    assert type(caught.value).__name__ == error


def test_predictor_reads_what_spreadsheets_write(predictor: Predictor, tmp_path: Path) -> None:
    """A byte order mark, CRLF, quotes, spaces and the label column do not change the answer."""
    (tmp_path / "rows.csv").write_bytes(b'\xef\xbb\xbfstate,"colour",speed\r\nslow," red",1.0\r\n')
    assert predictor.predict_file(tmp_path / "rows.csv") == predictor.predict([ROW])


@pytest.mark.parametrize("content", [b"[" * 1_000_000, b"{}", b'[{"speed": 1, "speed": 2}]', b"[1e999]", b"nonsense"])
def test_predictor_refuses_wrong_json(predictor: Predictor, tmp_path: Path, content: bytes) -> None:
    """Deep, repeated, huge and damaged JSON is refused."""
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.raises(PredictError):
        predictor.predict_file(tmp_path / "rows.json")


def test_predictor_refuses_too_many_bytes(predictor: Predictor, tmp_path: Path) -> None:
    """A file above the limit of the schema is not read."""
    (tmp_path / "rows.json").write_text(json.dumps([ROW] * 100))
    with pytest.raises(predict.TooLarge):
        predict.read_text(tmp_path / "rows.json", 100)


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(CELLS, CELLS)
def test_predictor_answers_or_refuses_any_json(predictor: Predictor, first: Any, second: Any) -> None:
    """Any JSON is answered or refused with a typed error."""
    for given_rows in (first, [first], [{"speed": first, "colour": second}]):
        with suppress(PredictError):
            answers = predictor.predict(given_rows)
            assert len(answers) == len(given_rows) and all(isinstance(answer, dict) for answer in answers)


@given(
    st.text(max_size=60) | st.lists(st.sampled_from(["speed", "colour", ",", "\n", '"', "1", "\r", "\0"])).map("".join)
)
def test_predictor_answers_or_refuses_any_csv(predictor: Predictor, text: str) -> None:
    """Any text is read as CSV or refused with a typed error."""
    with suppress(PredictError):
        given_rows = predict.read_csv(text, predictor.schema)
        assert len(predictor.predict(given_rows, text=True)) == len(given_rows)


def test_predict_prints_one_line_per_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong file ends with exit code 2 and the type, row and column of each fault."""
    assert predict.main([str(tmp_path / "none.csv")]) == 2  # there is no model beside this copy
    assert "PayloadError" in capsys.readouterr().err


def test_schema_has_columns_codes_and_limits() -> None:
    """The schema of a table knows columns, codes, limits of the train rows, and the columns that it does not use."""
    schema = build_schema(rows(), config())
    speed, colour = schema["inputs"]
    assert (speed["name"], speed["kind"], speed["nan_allowed"], speed["min"], speed["max"]) == (
        "speed", "number", False, 0.0, 3.0,
    )  # fmt: skip
    assert (colour["kind"], colour["categories"]) == ("category", {"<unknown>": 0, "blue": 1, "red": 2})
    assert schema["ignored"] == ["state"] and schema["class_names"] == ["slow", "fast"]


def test_schema_allows_nan_only_where_it_is_imputed() -> None:
    """NaN is allowed where preprocessing fills it."""
    schema = build_schema(rows(), config(impute="median"))
    assert schema["inputs"][0]["nan_allowed"] is True
    assert np.isclose(schema["max_rows"], 10_000)
