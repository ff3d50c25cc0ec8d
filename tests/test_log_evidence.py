"""What a log holds beside its numbers: errors in it, files beside it, and runs of MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from diagnostics.logs.evidence.accidents import KNOWN, accident_in, accidents_in, source_findings
from diagnostics.logs.read import read
from diagnostics.logs.report import diagnose_log
from pipeline.errors import UserError
from pipeline.tracking.foreign_run import refers_to_run
from tests.conftest import Cli

FALLING = "".join(f"epoch {i} loss {2 / (i + 1):.4f} val_loss {2.1 / (i + 1):.4f}\n" for i in range(12))

ERRORS = {
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; ...)": "out_of_memory",
    "IndexError: Target 10 is out of bounds.": "labels_misencoded",
    "RuntimeError: expected scalar type Long but found Float": "labels_misencoded",
    "nll_loss_forward_reduce: Assertion `t >= 0 && t < n_classes` failed.": "labels_misencoded",
    "ValueError: Expected input batch_size (32) to match target batch_size (16).": "output_width_mismatch",
    "RuntimeError: Function 'LogBackward0' returned nan values in its 0th output.": "loss_numerically_unstable",
    "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn": "parameters_not_trained",
    "ValueError: optimizer got an empty parameter list": "parameters_not_trained",
    "RuntimeError: all elements of input should be between 0 and 1": "output_activation_mismatch",
    "ValueError: Expected more than 1 value per channel when training, got input size [1, 8]": "normalization_misused",
    "UserWarning: Using a target size (torch.Size([32])) that is different to the input size "
    "(torch.Size([32, 1])). This will likely lead to incorrect results due to broadcasting.": "loss_mismatch",
    "UserWarning: Detected call of `lr_scheduler.step()` before `optimizer.step()`.": "scheduler_misstepped",
    "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 32768.0": "precision_overflow",
    "ValueError: Input contains NaN, infinity or a value too large for dtype('float32').": "nonfinite_inputs",
    "Error(s) in loading state_dict for Net: size mismatch for fc.weight: copying a param": "checkpoint_not_loaded",
}


@pytest.mark.parametrize("line", ERRORS)
def test_accident_in_names_the_cause_of_an_error(line: str) -> None:
    """Each error and warning of torch that says its cause is known; a line of a log is none."""
    words = accident_in(line)
    assert words and ERRORS[line] == words.cause
    assert accident_in("epoch 3 loss 0.5 target 0.9 label smoothing 0.1") is None


def test_known_errors_are_all_shown() -> None:
    """No pattern is without an example."""
    shown = {id(accident_in(line)) for line in ERRORS}
    assert [] == [words.means for words in KNOWN if id(words) not in shown]


def test_diagnose_log_takes_an_error_in_the_log_as_a_fact(tmp_path: Path) -> None:
    """An error at the end of a log is named, however well the curves look; a traceback alone is read as one, too."""
    error = "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB\n"
    (tmp_path / "log").write_text(FALLING + error)
    (tmp_path / "traceback").write_text("Traceback (most recent call last):\n" + error)

    for name in ("log", "traceback"):
        first = diagnose_log(tmp_path / name).diagnoses[0][1].root_causes[0]
        assert ("out_of_memory", "definition") == (first.issue, first.confidence.basis)
        assert "CUDA out of memory" in first.evidence[0]


SOURCE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4) for _ in range(3)]
        self.head = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Softmax(1))

for x, y in loader:
    loss = nn.CrossEntropyLoss()(model(x), y)
    loss.backward()
    optimizer.step()
with torch.no_grad():
    print(model(x))
"""


def test_source_findings_are_hints() -> None:
    """A program is read and not run: what it lacks is a hint, and a text that is not Python says nothing."""
    causes = {finding.cause for finding in source_findings(SOURCE, "train.py")}
    assert causes == {"gradients_not_zeroed", "redundant_softmax", "eval_mode_missing", "parameters_not_trained"}
    assert all(finding.kind == "abnormality" for finding in source_findings(SOURCE, "train.py"))
    assert [] == source_findings("loss 3, 2", "log") == accidents_in(FALLING, "log")


def test_diagnose_log_reads_the_files_beside(tmp_path: Path, cli: Cli) -> None:
    """A config and a source beside a log are evidence, which the page lists. A path that is not a file is refused."""
    flat = "".join(f"epoch {i} loss 2.303\n" for i in range(12))
    (tmp_path / "train.log").write_text(flat)
    (tmp_path / "config.yaml").write_text("optimizer:\n  lr: 1e-9\n")
    (tmp_path / "model.py").write_text(SOURCE)
    folder = diagnose_log(tmp_path)
    alone = diagnose_log(tmp_path / "train.log", beside=[tmp_path / "config.yaml"])

    assert any("states lr 1e-9" in line for line in folder.beside)
    for report in (folder, alone):
        causes = [*report.diagnoses[0][1].root_causes, *report.diagnoses[0][1].considered]
        assert "learning_rate_too_low" in [cause.issue for cause in causes]
    code, out, err = cli("diagnose", tmp_path / "train.log", "--beside", tmp_path / "none")
    assert (code, out) == (2, "") and "--beside: is not a file" in err


def test_diagnose_log_does_not_accuse_a_healthy_log_of_its_source(tmp_path: Path) -> None:
    """Hints of a source accuse nothing while the curves are well."""
    (tmp_path / "log").write_text(FALLING)
    (tmp_path / "model.py").write_text(SOURCE)
    report = diagnose_log(tmp_path / "log", beside=[tmp_path / "model.py"])
    assert () == report.diagnoses[0][1].root_causes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0123456789abcdef0123456789abcdef", True),
        ("runs:/0123456789abcdef0123456789abcdef", True),
        ("http:/localhost:5000/#/experiments/1/runs/0123456789abcdef0123456789abcdef", True),
        ("runs/digits", False),
        ("0123", False),
    ],
)
def test_refers_to_run(text: str, expected: bool) -> None:
    """Ids and addresses of MLflow runs are told from paths; a path loses one of two slashes."""
    assert expected == refers_to_run(text)


@pytest.mark.process
def test_read_takes_a_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics of a run are its rows, and its parameters the header; a run that is not there is refused."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("a", artifact_location=str(tmp_path)))
    client.log_param(run.info.run_id, "optimizer.lr", "0.1")
    for step in range(5):
        client.log_metric(run.info.run_id, "train_loss", 2 / (step + 1), step=step)
    reading = read(run.info.run_id)

    assert [0, 1, 2, 3, 4] == reading.runs[0].history.series("train/loss")[0].tolist()
    assert reading.files[0].notes.header == {"lr": "0.1"}
    with pytest.raises(UserError, match="was not found in the MLflow store"):
        read("f" * 32)
