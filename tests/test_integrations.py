"""What a release meets elsewhere: onnxruntime in node, the attacks of ART, and tables that pyarrow wrote."""

from __future__ import annotations

import json
import random
import subprocess
from datetime import date, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pipeline.__main__ import main
from pipeline.data.sources.delimited import csv_table
from pipeline.data.sources.parquet import parquet_table
from pipeline.errors import UserError
from pipeline.readiness import adversarial
from pipeline.readiness.perturbations import input_parts
from pipeline.serving.standalone.predict import Predictor
from tests import drift_payloads, serving_payloads
from tests.integrations import add_packages, node_with
from tests.readiness_subjects import subject_of, table

pytestmark = pytest.mark.integration
SCRIPT = Path(__file__).with_name("answer_golden.mjs")


# --- onnxruntime-node ------------------------------------------------------------------------------------------------


def answers_of_node(payload: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs that onnxruntime-node gives for the rows of each golden request."""
    folder, predictor = node_with("onnxruntime-node"), Predictor(payload)
    feeds = []
    for request in requests:
        tensors = {name: np.asarray(values) for name, values in predictor.encode(request["rows"]).items()}
        feeds.append({
            name: {"type": "int64" if v.dtype.kind == "i" else "float32", "dims": v.shape, "data": v.ravel().tolist()}
            for name, v in tensors.items()
        })  # fmt: skip
    command = ["node", str(SCRIPT), str(folder), str(payload / "model.onnx")]
    done = subprocess.run(command, input=json.dumps(feeds), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def assert_golden(payload: Path) -> None:
    golden, predictor = json.loads((payload / "golden.json").read_text()), Predictor(payload)
    for request, answer in zip(golden["requests"], answers_of_node(payload, golden["requests"]), strict=True):
        assert list(answer) == [output["name"] for output in predictor.schema["outputs"]]
        for name, expected in request["outputs"].items():
            values = np.reshape(answer[name]["data"], answer[name]["dims"])
            np.testing.assert_allclose(values, expected, rtol=golden["tolerance"], atol=golden["tolerance"])
        labels = [str(row.get("label")) for row in predictor.predict(request["rows"])]
        assert [str(label) for label in answer.get("label", {}).get("data", labels)] == labels


def test_node_answers_the_golden_requests_of_a_release(_finished: Path) -> None:
    """The file of a bundle runs in onnxruntime-node with the outputs of the trained model, class names included."""
    assert_golden(_finished / "bundle" / "payload")


def test_node_answers_rows_with_categories(tmp_path: Path) -> None:
    """A payload whose table has numbers and texts of categories, which `predict.py` encodes."""
    assert_golden(serving_payloads.write_payload(tmp_path))


def test_node_finds_another_model_in_the_same_payload(tmp_path: Path) -> None:
    """With other weights in the file the golden requests are not answered: the comparison can fail."""
    payload = serving_payloads.write_payload(tmp_path)
    (tmp_path / "other").mkdir()
    torch.manual_seed(1)
    other = serving_payloads.Linear()
    with torch.no_grad():
        other.layer.weight += 1
    changed = serving_payloads.write_payload(tmp_path / "other", other)
    (payload / "model.onnx").write_bytes((changed / "model.onnx").read_bytes())
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_golden(payload)


# --- attacks ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacked() -> Any:
    """A small network on the images of digits with values between 0 and 1, and 250 of its validation rows."""
    images, labels = load_digits(return_X_y=True)
    data = table((images.reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.X), data.train.y).backward()
        optimizer.step()
    subject = subject_of(model, data)
    part = input_parts(subject.data, subject.config)["X"]
    assert (part.kind, part.low, part.high) == ("image", 0.0, 1.0)
    return adversarial._Attack(subject, part, data.val.X[:250], data.val.y[:250])


@pytest.fixture
def art(attacked: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ART's view of the same model."""
    add_packages(monkeypatch, "art")
    classifier = import_module("art.estimators.classification").PyTorchClassifier
    return classifier(
        attacked.subject.model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


def wrong_by(attacked: Any, rows: torch.Tensor) -> torch.Tensor:
    """How far each row is beyond its class boundary: positive where the answer is wrong."""
    with torch.no_grad():
        return attacked.damage(attacked.subject.model(rows), attacked.y)


@pytest.mark.parametrize("radius", [2 / 255, 8 / 255, 0.1])
def test_fgsm_gives_the_images_of_art(attacked: Any, art: Any, radius: float) -> None:
    """All pixels of all images are those of ART's FastGradientMethod, up to the rounding of float32."""
    attack = import_module("art.attacks.evasion").FastGradientMethod(art, norm=np.inf, eps=radius, batch_size=250)
    theirs = torch.from_numpy(attack.generate(attacked.rows.numpy(), attacked.y.numpy()))
    ours = attacked.fgsm(radius)

    assert not torch.equal(ours, attacked.rows)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("radius", [8 / 255, 0.1])
def test_pgd_is_at_least_as_strong_as_that_of_art(attacked: Any, art: Any, radius: float) -> None:
    """From the same start with the same steps, no row of ART's is more wrong; the scores differ by at most a point."""
    about = {"norm": np.inf, "eps": radius, "eps_step": adversarial.STEP_SHARE * radius, "batch_size": 250}
    steps = {"max_iter": adversarial.STEPS, "num_random_init": 0, "verbose": False}
    attack = import_module("art.attacks.evasion").ProjectedGradientDescent(art, **about, **steps)
    theirs = torch.from_numpy(attack.generate(attacked.rows.numpy(), attacked.y.numpy()))
    ours = attacked.pgd(radius, torch.Generator().manual_seed(0), 1, attacked.rows)
    damage, reference = wrong_by(attacked, ours), wrong_by(attacked, theirs)
    clean = (wrong_by(attacked, attacked.rows) < 0).float().mean()

    assert (damage >= reference - 1e-4).all()
    score, of_art = ((d < 0).float().mean().item() for d in (damage, reference))
    assert score <= of_art <= score + 0.01 and of_art < clean


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def arrow(monkeypatch: pytest.MonkeyPatch) -> Any:
    add_packages(monkeypatch, "pyarrow")
    import_module("pyarrow.parquet")
    return import_module("pyarrow")


N = 40
CLASSES = ["no", "yes"] * (N // 2)
DAY = datetime(2026, 1, 1)
COLUMNS: dict[
    str, tuple[list[Any], str | None, bool]
] = {  # values, type of Arrow, whether they are texts of categories
    "float": ([i / 7 for i in range(N)], "float64", False),
    "half": ([i / 8 for i in range(N)], "float16", False),
    "missing": ([None if i % 3 else i / 7 for i in range(N)], "float32", False),
    "bool": ([bool(i % 3) for i in range(N)], "bool", False),
    "int": ([i - 20 for i in range(N)], "int8", False),
    "decimal": ([Decimal("1.25") * i for i in range(N)], "decimal128(9, 2)", False),
    "text": (["Bern", "Köln", None, "Rome"] * (N // 4), "string", True),
    "coded": (["a", "b"] * (N // 2), "dictionary", True),
    "date": ([date(2026, 1, 1 + i % 3) for i in range(N)], "date32", True),
    "time": ([DAY + timedelta(days=i % 3) for i in range(N)], "timestamp[us]", True),
    "nanoseconds": ([1 + 10**15 * (i % 3) for i in range(N)], "timestamp[ns]", True),
}


def write_parquet(arrow: Any, path: Path, **columns: Any) -> str:
    arrow.parquet.write_table(arrow.table(columns), path)
    return str(path)


def column(arrow: Any, name: str) -> Any:
    values, kind, _ = COLUMNS[name]
    if kind == "dictionary":
        return arrow.array(values).dictionary_encode()
    if kind and kind.startswith("decimal"):
        return arrow.array(values, arrow.decimal128(9, 2))
    if kind and kind.startswith("timestamp"):
        return arrow.array(values, arrow.timestamp(kind[10:12]))
    return arrow.array(values, getattr(arrow, kind)() if kind != "bool" else arrow.bool_())


@pytest.mark.parametrize("name", COLUMNS)
def test_parquet_table_reads_each_type(arrow: Any, tmp_path: Path, name: str) -> None:
    """The table is the one that the same cells give as CSV: numbers, missing values, texts of categories."""
    path = write_parquet(arrow, tmp_path / "t.parquet", x=np.arange(N) / 1.0, c=column(arrow, name), y=CLASSES)
    cells = arrow.parquet.read_table(path)
    column_c = cells.column("c").cast("string") if name == "nanoseconds" else cells.column("c")
    texts = ["" if v is None else str(int(v)) if isinstance(v, bool) else str(v) for v in column_c.to_pylist()]
    lines = [f"{i / 1.0},{text},{label}" for i, (text, label) in enumerate(zip(texts, CLASSES, strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(["x,c,y", *lines]) + "\n")
    read, other = parquet_table(path, "y"), csv_table(str(tmp_path / "t.csv"), "y")

    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(read[split][0], other[split][0])
        np.testing.assert_array_equal(read[split][1], other[split][1])
    assert read["categories"] == other["categories"] and bool(read["categories"]) == COLUMNS[name][2]


def test_parquet_table_refuses_a_bomb_before_it_is_read(arrow: Any, tmp_path: Path) -> None:
    """Twenty-two million equal cells take some kilobytes: refused by the metadata, in less than a second."""
    zeros = np.zeros(11_000_000, np.int8)
    path = write_parquet(arrow, tmp_path / "bomb.parquet", x=zeros, y=zeros)
    with pytest.raises(UserError, match=r"far more cells than its size lets expect.*22,000,000 cells"):
        parquet_table(path, "y")


def test_parquet_readers_survive_damaged_files(arrow: Any, tmp_path: Path) -> None:
    """A file with any bytes changed, or cut anywhere, is read or refused with a message."""
    towns = ["Bern", "Köln", None, "Rome"] * (N // 4)
    intact = Path(
        write_parquet(arrow, tmp_path / "t.parquet", x=np.arange(N) / 1.0, town=towns, y=CLASSES)
    ).read_bytes()
    draw, refused = random.Random(0), 0
    for _ in range(1500):
        damaged = bytearray(intact)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (tmp_path / "t.parquet").write_bytes(
            damaged[: draw.randrange(len(damaged))] if draw.random() < 0.1 else damaged
        )
        try:
            parquet_table(str(tmp_path / "t.parquet"), "y")
        except UserError:
            refused += 1
    assert 100 < refused < 1500


def test_drift_reads_parquet(arrow: Any, tmp_path: Path, capsys: Any) -> None:
    """Rows of the population do not drift and shifted rows do, as from CSV; a misspelt column is named."""
    payload = tmp_path / "bundle" / "payload"
    payload.mkdir(parents=True)
    drift_payloads.write_payload(payload)
    rows = drift_payloads.live_rows(300, seed=5)
    csv = drift_payloads.write_csv(tmp_path / "live.csv", rows)
    columns = {n: column.to_pylist() for n, column in zip(*_columns(arrow, csv), strict=True)}
    live = write_parquet(arrow, tmp_path / "live.parquet", **columns)
    assert main(["drift", str(payload), live, "--json"]) == 0
    of_parquet = json.loads(capsys.readouterr().out)["comparison"]
    assert main(["drift", str(payload), str(csv), "--json"]) == 0
    assert of_parquet == json.loads(capsys.readouterr().out)["comparison"]

    columns["weight"] = [value + 1 for value in columns["weight"]]
    assert main(["drift", str(payload), write_parquet(arrow, tmp_path / "other.parquet", **columns)]) == 3
    columns["wieght"] = columns.pop("weight")
    assert main(["drift", str(payload), write_parquet(arrow, tmp_path / "wrong.parquet", **columns)]) == 2
    assert "wieght" in capsys.readouterr().err


def _columns(arrow: Any, path: Path) -> tuple[list[str], list[Any]]:
    read = import_module("pyarrow.csv").read_csv(path)
    return read.column_names, read.columns
