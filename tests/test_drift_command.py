"""`drift BUNDLE DATA`: exit codes, messages, files of rows, labels, and what it never loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.drift.live_rows import read_rows
from pipeline.serving.standalone.predict import Predictor
from tests.check_helpers import assert_schema
from tests.drift_payloads import NAMES, list_files, live_rows, write_csv, write_payload

pytestmark = pytest.mark.process  # one payload is exported for the whole file


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "payload").mkdir()
    write_payload(folder / "payload")
    return folder


def drift(bundle: Path, *arguments: Any) -> int:
    return main(["drift", str(bundle), *map(str, arguments)])


def shifted(rows: np.ndarray) -> np.ndarray:
    """One standard deviation more weight."""
    moved = rows.copy()
    moved[:, 1] += 1
    return moved


def test_drift_exits_with_0_for_rows_of_the_population_and_3_for_others(
    bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    """Bundle and payload folder are both taken; the column that drifted is named, and its plot is written."""
    same = write_csv(tmp_path / "same.csv", live_rows(300, seed=5))
    other = write_csv(tmp_path / "other.csv", shifted(live_rows(300, seed=5)))

    assert drift(bundle / "payload", same) == 0 and "no drift" in capsys.readouterr().out
    assert drift(bundle, other, "--out", tmp_path / "plots") == 3
    assert "drift: weight" in capsys.readouterr().out
    assert (tmp_path / "plots" / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_drift_prints_json(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """All features with distance, test, effect, bound and corrected p-value."""
    assert drift(bundle, write_csv(tmp_path / "rows.csv", shifted(live_rows(300))), "--json") == 3
    printed = json.loads(capsys.readouterr().out)
    assert_schema("drift", printed)
    rows = {row["feature"]: row for row in printed["comparison"]["features"]}

    assert {*NAMES, "predicted class", "confidence"} <= set(rows)
    assert [name for name in NAMES if rows[name]["drifted"]] == ["weight"]
    assert rows["weight"]["distance"] == pytest.approx(1, abs=0.2) and rows["weight"]["adjusted"] < 1e-6


def test_drift_notices_missing_values_and_unknown_categories(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """Rows that predict.py refuses are counted; a colour that the schema does not know is a category."""
    rows = live_rows(300)
    rows[:90, 0], rows[:100, 3] = np.nan, 0

    assert drift(bundle, write_csv(tmp_path / "rows.csv", rows)) == 3
    printed = capsys.readouterr().out
    assert "90 rows (30.0%) are refused by predict.py" in printed
    assert "colour" in printed.splitlines()[-2] and "rows that the schema refuses" in printed.splitlines()[-2]


def test_drift_scores_labels(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """Labels as class names: right ones are as good as released, wrong ones are worse, which is drift."""
    rows = live_rows(300)
    right = ["fast" if row[0] > 0 else "slow" for row in rows]
    wrong = [label if at % 3 else "slow" for at, label in enumerate(right)]

    assert drift(bundle, write_csv(tmp_path / "right.csv", rows, state=right)) == 0
    assert "accuracy 1 (" in (printed := capsys.readouterr().out) and "not shown to be worse" in printed
    assert drift(bundle, write_csv(tmp_path / "wrong.csv", rows, truth=wrong), "--label", "truth") == 3
    assert "drift: accuracy is worse than released" in capsys.readouterr().out


def test_drift_tells_the_power_of_few_rows(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """Twelve rows: no drift, and in how many windows of twelve rows a shift would be noticed."""
    assert drift(bundle, write_csv(tmp_path / "few.csv", live_rows(12))) == 0
    assert "windows of 12 rows; collect more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("speed", "wieght", "height", "colour"), "column 'weight': is missing; did you mean 'wieght'?"),
        (("speed", "speed", "height", "colour"), "column 'speed': occurs twice in the header"),
        (("a", "b", "c", "d"), "column 'speed': is missing"),
    ],
)
def test_drift_names_columns_that_differ(
    bundle: Path, tmp_path: Path, capsys: Any, names: tuple[str, ...], message: str
) -> None:
    """Renamed, repeated, or of another bundle: exit code 2 with the column."""
    assert drift(bundle, write_csv(tmp_path / "rows.csv", live_rows(20), names)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a header and rows"),
        ("speed,weight,height,colour\n", "has no rows"),
        ("speed,weight,height,colour\n1,2,3,red\n1,high,3,red\n", "row 2, column 'weight': is another type"),
        ("speed,weight,height,colour\n1,2,3\n", "row 1: has 3 cells; expected 4"),
        ('speed,weight,height,colour\n1,2,3,"red\n', "cannot be read as CSV"),
    ],
)  # fmt: skip
def test_drift_names_what_is_wrong_in_a_file(
    bundle: Path, tmp_path: Path, capsys: Any, text: str, message: str
) -> None:
    """Exit code 2 with row and column."""
    (tmp_path / "rows.csv").write_text(text)

    assert drift(bundle, tmp_path / "rows.csv") == 2
    assert message in capsys.readouterr().err


def test_drift_refuses_files_that_hold_no_rows(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """Another format, no file, pickled objects, and a label that nobody has."""
    (tmp_path / "rows.xls").write_text("x")
    np.savez(tmp_path / "rows.npz", X=np.array([{}], dtype=object))
    rows = write_csv(tmp_path / "rows.csv", live_rows(20))

    assert drift(bundle, tmp_path / "rows.xls") == 2 and "got '.xls'" in capsys.readouterr().err
    assert drift(bundle, tmp_path / "none.csv") == 2 and "does not exist" in capsys.readouterr().err
    assert drift(bundle, tmp_path / "rows.npz") == 2 and "is not an NPZ file" in capsys.readouterr().err
    assert drift(bundle, rows, "--label", "truth") == 2 and "no such column, got 'truth'" in capsys.readouterr().err
    assert drift(tmp_path, rows) == 2 and "contains no manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["drift_reference.json", "drift_reference.npz", "model.onnx", "schema.json"])
def test_drift_refuses_a_payload_that_was_changed(bundle: Path, tmp_path: Path, capsys: Any, name: str) -> None:
    """A single byte more: exit code 3 with the file, before anything is compared."""
    for path in (bundle / "payload").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b" ")
    rows = write_csv(tmp_path / "rows.csv", live_rows(20))
    rows = rows.rename(tmp_path.parent / f"{tmp_path.name}.csv")

    assert drift(tmp_path, rows) == 3
    assert f"{name}: is not the file that the manifest describes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("tensors", None, "schema.tensors is None"),
        ("tensors", [], "schema.tensors is empty"),
        ("inputs", [], "has 0 inputs"),
        ("inputs", [{"name": "speed"}], "schema.inputs has no 'kind'"),
        ("missing", [{}], "schema.missing is {}"),
        (None, [], "schema is []"),
    ],
)
def test_drift_refuses_a_schema_that_no_release_wrote(
    bundle: Path, tmp_path: Path, capsys: Any, key: str | None, value: object, what: str
) -> None:
    """A payload of somebody else whose manifest agrees with a schema that cannot be one: exit code 2 with the part."""
    for path in (bundle / "payload").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    schema = json.loads((tmp_path / "schema.json").read_text())
    (tmp_path / "schema.json").write_text(json.dumps({**schema, key: value} if key else value))
    list_files(tmp_path)
    rows = write_csv(tmp_path.parent / f"{tmp_path.name}.csv", live_rows(20))

    assert drift(tmp_path, rows) == 2
    err = capsys.readouterr().err
    assert "schema.json: is not a schema" in err and what in err


def test_drift_says_that_a_release_has_no_monitor(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """A payload of before there was one."""
    for path in (bundle / "payload").iterdir():
        if not path.name.startswith("drift"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    list_files(tmp_path)

    assert drift(tmp_path, "rows.csv") == 2
    assert "was released without a monitor" in capsys.readouterr().err


def test_read_rows_gives_the_same_tensors_from_every_format_as_predict(bundle: Path, tmp_path: Path) -> None:
    """CSV, JSON by column, JSON as lists and NPZ: the tensors that predict.py computes with."""
    rows, schema = live_rows(40), json.loads((bundle / "payload" / "schema.json").read_text())
    colours = ["brown", "blue", "red", "green"]
    lists = [[*map(float, row[:3]), colours[int(row[3])]] for row in rows]
    (tmp_path / "objects.json").write_text(json.dumps([dict(zip(NAMES, row, strict=True)) for row in lists]))
    (tmp_path / "lists.json").write_text(json.dumps({"rows": lists}))
    np.savez(tmp_path / "arrays.npz", X=rows)
    files = [write_csv(tmp_path / "rows.csv", rows), *tmp_path.glob("*.json"), tmp_path / "arrays.npz"]
    expected = Predictor(bundle / "payload").encode(lists)["input"]

    for path in files:
        np.testing.assert_allclose(read_rows(path, schema).tensors["input"], expected, atol=1e-5)


def test_drift_loads_neither_torch_nor_hydra(bundle: Path, tmp_path: Path) -> None:
    """It runs where only the serving libraries are installed."""
    rows = write_csv(tmp_path / "rows.csv", live_rows(120), state=["fast"] * 120)
    code = (
        "import sys; from pipeline.__main__ import main\n"
        f"code = main(['drift', {str(bundle)!r}, {str(rows)!r}, '--out', {str(tmp_path)!r}])\n"
        "print(code, sorted({'torch', 'hydra', 'omegaconf', 'mlflow', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "3 []", done.stdout + done.stderr


@pytest.mark.slow
def test_drift_of_a_million_rows_takes_seconds_and_no_gigabyte(bundle: Path, tmp_path: Path) -> None:
    """A tiny shift of a million rows is significant and no drift: under 20 seconds of one core and 1 GB."""
    rows = live_rows(1_000_000, seed=9)
    rows[:, 1] += 0.17
    path = write_csv(tmp_path / "million.csv", rows)
    code = (
        "import sys, json, resource, time; from pipeline.__main__ import main\n"
        f"code = main(['drift', {str(bundle)!r}, {str(path)!r}, '--json'])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(code, time.process_time(), peak * 1024, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code_text, seconds, peak = done.stderr.split()[-3:]
    rows_of = {row["feature"]: row for row in json.loads(done.stdout)["comparison"]["features"]}
    print(f"a million rows: {float(seconds):.1f} s, {float(peak) / 2**20:.0f} MB")

    assert code_text == "0" and rows_of["weight"]["adjusted"] < 0.01 and not rows_of["weight"]["drifted"]
    assert float(seconds) < 20 and float(peak) < 2**30
