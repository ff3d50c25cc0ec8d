"""A payload is served in an isolated process, and each thing that can be wrong with it closes the gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checklists.checks.serving import serves_alone
from pipeline.results import Evidence, Result
from pipeline.serving import sandbox
from pipeline.serving.sandbox import ChildFailed, run_isolated
from tests.serving_payloads import write_payload

pytestmark = pytest.mark.process


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return write_payload(tmp_path)


def judged(payload: Path) -> Result:
    schema, golden = (json.loads((payload / name).read_text()) for name in ("schema.json", "golden.json"))
    return serves_alone(Evidence({"sandbox_serve": sandbox.measure(payload, schema, golden)}))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_serves_alone_passes_for_a_payload_that_answers(payload: Path) -> None:
    """Golden requests are answered, malformed ones refused, and torch and the network were tried in vain."""
    result = judged(payload)
    assert (result.outcome, result.value) == ("passed", 0), result.why
    assert "2 golden requests answered" in result.why


def test_serves_alone_fails_for_a_wrong_golden_output(payload: Path) -> None:
    """An output that differs by more than the tolerance closes the gate and names the difference."""
    golden = json.loads((payload / "golden.json").read_text())
    golden["requests"][0]["outputs"]["output"][0][0] += 0.01
    (payload / "golden.json").write_text(json.dumps(golden))
    assert judged(payload).outcome == "failed"
    assert "golden request 1: got a difference of 0.0" in judged(payload).why


def test_serves_alone_fails_for_a_wrong_class_name(payload: Path) -> None:
    """Scores that are right with the name of another class close the gate."""
    change(payload / "predict.py", "scores.argmax(1)", "scores.argmin(1)")
    result = judged(payload)
    assert result.outcome == "failed" and "golden request 1: got label 'fast' in row 1, not 'slow'" in result.why


def test_serves_alone_fails_for_a_payload_that_needs_torch(payload: Path) -> None:
    """What imports torch cannot serve."""
    change(payload / "predict.py", "import csv\n", "import csv\nimport torch\n")
    assert (judged(payload).outcome, judged(payload).why) == ("failed", "ImportError: torch is blocked")


def test_serves_alone_fails_for_a_process_that_crashes(payload: Path) -> None:
    """A process that is killed is reported with its signal."""
    change(payload / "predict.py", "import csv\n", "import csv\nos_kill = __import__('os').abort()\n")
    assert "crashed with signal 6" in judged(payload).why


def test_serves_alone_fails_for_a_graph_that_does_not_load(payload: Path) -> None:
    """A damaged ONNX file is a typed error of the payload."""
    (payload / "model.onnx").write_bytes(b"damaged")
    assert judged(payload).why.startswith("PayloadError")


def test_serves_alone_fails_for_a_predictor_that_accepts_nan(payload: Path) -> None:
    """A malformed request that is answered closes the gate."""
    change(payload / "predict.py", 'if column["nan_allowed"]:', "if True:")
    change(payload / "predict.py", "if not abs(number) <= largest:", "if abs(number) > largest:")
    assert "NaN: got " in judged(payload).why


def test_run_isolated_refuses_a_script_that_prints_no_report(tmp_path: Path) -> None:
    """Output that is no JSON is not taken for an answer."""
    (tmp_path / "script.py").write_text("print('hello')")
    with pytest.raises(ChildFailed, match="printed something else"):
        run_isolated(str(tmp_path / "script.py"), [], {})
