"""Predict with a released model: `python predict.py rows.csv` or `rows.json`; needs numpy and onnxruntime only.

A CSV has a header, a JSON file a list of rows: objects by column, or lists in the order of schema.json. The answers
are printed as JSON, one object per row. Columns may have any order. What the schema forbids is refused with one message
per fault, with its row and column, and exit code 2. In a program: `Predictor(folder).predict(rows)`; rows are numbered
from 1.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
import stat
import sys
from pathlib import Path
from typing import Any

MAX_CELL = 1 << 20  # characters of one CSV cell
MAX_ERRORS = 20  # faults that one refusal lists
CHUNK = 256  # rows that the model computes at once


class PredictError(Exception):
    """What is wrong with an input; `row` and `column` say where, None where a whole file is meant.

    `errors` are all the faults of the input that were found, this one included.
    """

    def __init__(self, what: str, row: int | None = None, column: str | None = None) -> None:
        place = [f"row {row}"] * (row is not None) + [f"column {shown(column)}"] * (column is not None)
        super().__init__((", ".join(place) + ": " if place else "") + what)
        self.row, self.column, self.errors = row, column, [self]


# fmt: off
class PayloadError(PredictError): ...  # the folder of this file does not contain a model with its schema
class UnreadableInput(PredictError): ...  # the file is not text, not CSV or not JSON
class EmptyInput(PredictError): ...  # the input has no rows
class TooLarge(PredictError): ...  # there are more rows, bytes or characters than the schema allows
class ColumnsDiffer(PredictError): ...  # a column is missing, unknown, or occurs twice
class WrongType(PredictError): ...  # a value is of another type than its column
class WrongShape(PredictError): ...  # a value or a row has another number of dimensions or elements
class NotFinite(PredictError): ...  # a value is infinite, or too large for the model's floats
class MissingValue(PredictError): ...  # a value is missing or NaN where the schema forbids it
class ModelFailed(PredictError): ...  # the model raised an error, or an output is NaN or infinite
# fmt: on


def shown(value: Any) -> str:
    """A value for a message: printable ASCII, and short."""
    try:
        text = ascii(value[:60] if isinstance(value, (str, bytes)) else value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."


def close_name(name: str, names: list[Any]) -> str:
    close = difflib.get_close_matches(name[:100], map(str, names), 1)
    return f"; did you mean {shown(close[0])}?" if close else ""


class Predictor:
    """The model of a payload folder. Raises PayloadError where the folder has none."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise PayloadError(f"{error}; install numpy and onnxruntime") from None
        root = Path(folder) if folder is not None else Path(__file__).resolve().parent
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the threads of the release's measurements
        options.log_severity_level = 4  # errors are raised, and need no copy on the screen
        try:
            self.schema = json.loads((root / "schema.json").read_text("utf-8"))
            self.columns = {column["name"]: column for column in self.schema["inputs"]}
            path = str(root / "model.onnx")
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise PayloadError(f"{shown(str(root))}: holds no model with its schema ({shown(str(error))})") from None
        self.outputs = [output.name for output in self.session.get_outputs()]

    def predict(self, rows: Any, text: bool = False) -> list[dict[str, Any]]:
        """The outputs of every row, by name. With `text` the values are cells of a CSV. Raises PredictError."""
        import numpy as np

        tensors = self.encode(rows, text)
        count = len(next(iter(tensors.values())))
        parts = [self._run({n: t[i : i + CHUNK] for n, t in tensors.items()}, i) for i in range(0, count, CHUNK)]
        results = {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}
        names = self.schema.get("class_names") or []
        scores = results.get("probabilities", results[self.outputs[0]])
        wanted = self.schema["task"] == "classification" and "label" not in results
        if wanted and names and scores.shape[1:] == (len(names),):
            results["label"] = np.array(names, dtype=object)[scores.argmax(1)]
        lists = {name: values.tolist() for name, values in results.items()}
        return [{name: values[row] for name, values in lists.items()} for row in range(count)]

    def encode(self, rows: Any, text: bool = False) -> dict[str, Any]:
        """The tensors that the model takes, by name. Raises PredictError."""
        import numpy as np

        rows = rows.tolist() if isinstance(rows, np.ndarray) else rows
        if not isinstance(rows, (list, tuple)):
            raise WrongShape(f"rows are not a list, got {type(rows).__name__}; expected a list of rows")
        if not rows:
            raise EmptyInput("the input has no rows; expected at least one")
        if len(rows) > self.schema["max_rows"]:
            raise TooLarge(f"there are too many rows, got {len(rows)}; expected at most {self.schema['max_rows']}")
        errors: list[PredictError] = []
        values: dict[str, list[Any]] = {name: [] for name in self.columns}
        for number, row in enumerate(rows, 1):
            try:
                cells = self._by_column(row, number)
            except PredictError as error:
                errors += error.errors
                continue
            for name, cell in cells.items():
                try:
                    values[name].append(self._value(cell, self.columns[name], number, text))
                except PredictError as error:
                    errors.append(error)
            if len(errors) >= MAX_ERRORS:
                break
        _raise(errors)
        return self._stack(values)

    def _stack(self, values: dict[str, list[Any]]) -> dict[str, Any]:
        import numpy as np

        tensors = {}
        for tensor in self.schema["tensors"]:
            parts = [values[name] for name, column in self.columns.items() if column["tensor"] == tensor["name"]]
            values_of = parts[0] if tensor["whole"] else list(zip(*parts))  # else every column is one element of a row
            tensors[tensor["name"]] = np.array(values_of, tensor["dtype"])
        return tensors

    def _by_column(self, row: Any, number: int) -> dict[str, Any]:
        """The values of a row in the order of the schema."""
        if isinstance(row, (list, tuple)):
            if len(row) != len(self.columns):
                raise WrongShape(f"row has {len(row)} values; expected {len(self.columns)}", number)
            return dict(zip(self.columns, row))
        if not isinstance(row, dict):
            raise WrongShape(f"is not a row, got {shown(row)}; expected an object by column, or a list", number)
        check_columns(list(row), self.schema, number)
        return {name: row[name] for name in self.columns}

    def _value(self, value: Any, column: dict[str, Any], row: int, text: bool) -> Any:
        name, kind = column["name"], column["kind"]
        if kind in ("image", "tokens", "array"):
            return self._array(value, column, row, text)
        if isinstance(value, (list, tuple, dict)):
            raise WrongShape(f"has more than one value, got {shown(value)}; expected one {kind}", row, name)
        value = value.strip() if text else value
        value = None if text and value in self.schema["missing"] else value
        if kind == "category":
            return _code(value, column, row)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            if column["nan_allowed"]:
                return math.nan
            raise MissingValue("value is missing; expected a value in every row", row, name)
        number = _parsed(value) if text else value
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise WrongType(f"is not a number, got {shown(value)}; expected {column['dtype']}", row, name)
        return _number(number, column, row)

    def _array(self, value: Any, column: dict[str, Any], row: int, text: bool) -> Any:
        import numpy as np

        name, shape = column["name"], tuple(column["shape"])
        if text:
            raise WrongType(f"is an array of shape {list(shape)}, which a CSV cannot hold; send JSON", row, name)
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise WrongShape(f"is not an array; expected shape {list(shape)}", row, name) from None
        if array.shape != shape:
            raise WrongShape(f"has shape {list(array.shape)[:8]}; expected {list(shape)}", row, name)
        integers = np.dtype(column["dtype"]).kind in "iu"
        if array.dtype.kind not in ("b" if column["dtype"] == "bool" else "iu" if integers else "fiu"):
            raise WrongType(f"does not contain {column['dtype']}, got {array.dtype}", row, name)
        if np.isnan(array).any() and not column["nan_allowed"]:
            raise MissingValue("contains NaN; expected a value in every place", row, name)
        with np.errstate(over="ignore"):
            converted = array.astype(column["dtype"])
        if np.isinf(converted).any() or (integers and (converted != array).any()):
            raise NotFinite(f"contains a number that {column['dtype']} cannot hold", row, name)
        if column["kind"] == "tokens" and (array < 0).any():
            raise WrongType("contains a negative token; expected ids from 0", row, name)
        return converted

    def _run(self, tensors: dict[str, Any], first: int) -> dict[str, Any]:
        import numpy as np

        try:
            outputs = dict(zip(self.outputs, self.session.run(None, tensors)))
        except Exception as error:  # onnxruntime raises its own types, such as for a token that the model does not know
            raise ModelFailed(f"the model refused rows {first + 1} and up ({shown(str(error))})") from None
        for name, values in outputs.items():
            wrong = (
                np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1)) if values.dtype.kind == "f" else ()
            )
            _raise([ModelFailed("output is NaN or infinite", first + int(row) + 1, name) for row in wrong[:MAX_ERRORS]])
        return outputs

    def predict_file(self, path: str | os.PathLike[str]) -> list[dict[str, Any]]:
        """The outputs of every row of a CSV or JSON file. Raises PredictError."""
        content = read_text(Path(path), self.schema["max_bytes"])
        if Path(path).suffix.lower() == ".json":
            return self.predict(read_json(content))
        return self.predict(read_csv(content, self.schema), text=True)


def _raise(errors: list[PredictError]) -> None:
    if errors:
        errors[0].errors = errors[:MAX_ERRORS]
        raise errors[0]


def _parsed(cell: str) -> float | str:
    try:
        return cell if "_" in cell else float(cell)
    except ValueError:
        return cell


def _number(number: float, column: dict[str, Any], row: int) -> float:
    import numpy as np

    integer = np.dtype(column["dtype"]).kind in "iu"
    largest = sys.float_info.max if integer else float(np.finfo(column["dtype"]).max)
    if not abs(number) <= largest:  # also an integer that no float can hold
        raise NotFinite(f"is not finite as {column['dtype']}, got {shown(number)}", row, column["name"])
    if not integer:
        return float(number)
    if number != int(number) or abs(number) >= 2**63:
        raise WrongType(f"is not an integer, got {shown(number)}; expected {column['dtype']}", row, column["name"])
    return int(number)


def _code(value: Any, column: dict[str, Any], row: int) -> int:
    """The code of a category; a missing or unknown one is 0 where the data were coded so."""
    name, codes = column["name"], column["categories"]
    if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
        raise WrongType(f"is not a category, got {shown(value)}", row, name)
    if codes is None:  # the data gave codes without their texts
        number: Any = _parsed(value) if isinstance(value, str) else value
        if isinstance(number, str) or number not in range(column["codes"]):
            raise WrongType(f"is not a code, got {shown(value)}; expected 0 to {column['codes'] - 1}", row, name)
        return int(number)
    if isinstance(value, float) and not math.isnan(value):
        raise WrongType(f"is not a category, got {shown(value)}; expected text", row, name)
    text = shown(value) if isinstance(value, int) else value
    code = None if isinstance(text, float) or text is None else codes.get(text)
    return column["unknown"] if code is None else code


def check_columns(names: list[Any], schema: dict[str, Any], row: int | None) -> None:
    """Raise ColumnsDiffer with every column that is missing or unknown."""
    expected = [column["name"] for column in schema["inputs"]]
    missing = sorted(set(expected) - set(names), key=expected.index)
    unknown = [name for name in names if name not in expected and name not in schema.get("ignored", ())]
    errors = [ColumnsDiffer(f"is missing{close_name(n, unknown)}", row, n) for n in missing[:MAX_ERRORS]]
    errors += [ColumnsDiffer(f"is unknown{close_name(str(n), expected)}", row, str(n)) for n in unknown[:MAX_ERRORS]]
    _raise(list(errors))


def read_text(path: Path, limit: int) -> str:
    """The text of a plain file of at most `limit` bytes, without a byte order mark."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may have no end
            raise UnreadableInput(f"{shown(str(path))} is not a file")
        with open(path, "rb") as stream:
            raw = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{shown(str(path))} cannot be read ({shown(str(error))})") from None
    if len(raw) > limit:
        raise TooLarge(f"{shown(str(path))} has more than {limit} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        raise UnreadableInput(f"line {row}: byte {error.start} is not UTF-8; expected text") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ColumnsDiffer("occurs twice in one object", None, name)
        result[name] = value
    return result


def read_json(text: str) -> Any:
    """The rows of a JSON text: a list, or an object whose only member `rows` is one."""
    if not text.strip():
        raise EmptyInput("the file is empty; expected a list of rows")
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (RecursionError, MemoryError):
        raise UnreadableInput("JSON is nested too deeply, or does not fit into memory") from None
    except ValueError as error:
        raise UnreadableInput(f"is not JSON ({shown(str(error))})") from None
    return value["rows"] if isinstance(value, dict) and list(value) == ["rows"] else value


def read_csv(text: str, schema: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of a CSV text, cells by column."""
    previous = csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=schema["delimiter"], strict=True)
    try:
        lines = [row for row in reader if row]
    except csv.Error as error:
        kind = TooLarge if "larger than" in str(error) else UnreadableInput
        raise kind(f"line {reader.line_num + 1}: cannot be read as CSV ({error})") from None
    finally:
        csv.field_size_limit(previous)
    if not lines:
        raise EmptyInput("the file is empty; expected a header and rows")
    header, rows = [name.strip() for name in lines[0]], lines[1:]
    twice = sorted({name for name in header if header.count(name) > 1}) if len(set(header)) < len(header) else []
    _raise([ColumnsDiffer("occurs twice in the header", None, name) for name in twice[:MAX_ERRORS]])
    check_columns(header, schema, None)
    ragged = [n for n, row in enumerate(rows, 1) if len(row) != len(header)]
    _raise([WrongShape(f"row has {len(rows[n - 1])} cells; expected {len(header)}", n) for n in ragged[:MAX_ERRORS]])
    return [dict(zip(header, row)) for row in rows]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        sys.stderr.write(f"{__doc__}\nusage: python predict.py FILE.csv|FILE.json\n")
        return 2 if len(arguments) != 1 else 0
    try:
        answers = Predictor().predict_file(arguments[0])
    except PredictError as error:
        sys.stderr.writelines(f"{type(each).__name__}: {each}\n" for each in error.errors)
        return 2
    sys.stdout.write(json.dumps(answers, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
