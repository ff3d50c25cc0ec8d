"""Logs of other trainings: every format is recognized by its content, and what was understood is said."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.logs import columns as log_columns
from diagnostics.logs.formats import text
from diagnostics.logs.formats.text import values_in
from diagnostics.logs.header import facts_of, settings_in
from diagnostics.logs.names import canonical_name
from diagnostics.logs.read import Reading, all_formats, column_map, read
from diagnostics.logs.report import diagnose_log
from diagnostics.logs.statement import diagnose_statement, understand
from pipeline.errors import UserError
from pipeline.history import History
from pipeline.run_store import files
from tests.conftest import Cli


def reading_of(folder: Path, text: str, name: str = "log") -> Reading:
    """What is read from a file of this content; its name has no suffix, since formats are told by content."""
    path = folder / name
    path.write_text(text)
    return read(path)


def curve(reading: Reading, name: str, run: int = 0) -> dict[int, float]:
    """The values of a column by their index."""
    index, values = reading.runs[run].history.series(name)
    return dict(zip(index.tolist(), [round(value, 4) for value in values.tolist()], strict=True))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "train/loss"),
        ("train_loss", "train/loss"),
        ("trainLoss", "train/loss"),
        ("Training Loss", "train/loss"),
        ("train/loss", "train/loss"),
        ("Average loss", "train/loss"),
        ("eval_loss", "val/loss"),
        ("val.loss", "val/loss"),
        ("valid_loss", "val/loss"),
        ("Validation-Loss", "val/loss"),
        ("val_acc", "val/accuracy"),
        ("acc", "train/accuracy"),
        ("eval_f1_macro", "val/f1_macro"),
        ("metrics/mAP50(B)", "val/map50"),
        ("val/box_loss", "val/box_loss"),
        ("loss_cls", "train/cls_loss"),
        ("learning_rate", "lr"),
        ("lr/pg0", "lr"),
        ("lr-AdamW", "lr"),
        ("grad_norm", "grad_norm"),
        ("train_loss_epoch", "train/loss"),
        ("global_step/max_steps", "step"),
        ("trainer/global_step", "step"),
        ("epoch", "epoch"),
        ("My Metric", None),
        ("eval_runtime", None),
        ("mfu", None),
        ("", None),
    ],
)
def test_canonical_name(name: str, expected: str | None) -> None:
    """Names of columns that loggers use are translated, and names that mean nothing here have no translation."""
    assert expected == canonical_name(name)


@given(st.text(max_size=30))
def test_canonical_name_takes_any_text(name: str) -> None:
    """A name is any text; it means one column or none, and its translation means itself."""
    meaning = canonical_name(name)
    assert meaning is None or canonical_name(meaning) in (meaning, None)


def test_settings_of_header_are_read() -> None:
    """Settings in an argparse dump or in lines of a config become facts, and half precision has 16 bits."""
    settings = settings_in("Namespace(lr=0.1, batch_size=32, optim='sgd', wd=1e-4)") | settings_in("dtype = float16")
    assert settings == {"lr": "0.1", "batch_size": "32", "optimizer": "sgd", "weight_decay": "1e-4", "dtype": "float16"}
    assert facts_of(settings) == {"batch_size": 32, "weight_decay": 1e-4, "precision_bits": 16}
    assert facts_of(settings_in("bf16: False fp16: True")) == {"precision_bits": 16}
    assert facts_of(settings_in("dtype = bfloat16")) == {}


# --- formats ---------------------------------------------------------------------------------------------------------

LOGS = Path(__file__).parent / "logs"
TABLE, LINES, TEXT = "table", "JSON lines", "text with names and values"
FORMATS: dict[str, tuple[str, dict[str, dict[int, float]]]] = {
    # written by the libraries
    "lightning.csv": (TABLE, {"train/loss": {1: 3.9764, 3: 2.4293, 5: 1.8548, 7: 1.1254, 9: 0.8782, 11: 0.5273},
                              "val/loss": {0: 2.2824, 1: 1.0469, 2: 0.4855}}),
    "trainer_state.json": ("Hugging Face trainer_state.json", {
        "train/loss": {2: 5.4486, 4: 3.5774, 6: 3.5973, 8: 3.162, 10: 1.777, 12: 3.8629},
        "val/loss": {1: 3.6658, 2: 2.9667, 3: 2.7249}}),
    "trainer.log": ("printed dicts (Hugging Face Trainer)", {"val/loss": {1: 3.666, 2: 2.967, 3: 2.725}}),
    "keras.csv": (TABLE, {"val/loss": {0: 1.7976, 1: 0.6101, 2: 0.2237}}),
    "keras.log": ("progress bars of Keras", {"train/loss": {1: 4.6363, 2: 1.3675, 3: 0.415},
                                             "val/mae": {1: 1.0653, 2: 0.595, 3: 0.3521}}),
    # as their writers' sources say
    "fastai.txt": (TABLE, {"val/loss": {0: 3.5038, 1: 2.3515, 2: 1.5145}}),
    "notebook.md": (TABLE, {"train/loss": {1: 2, 2: 1}, "val/loss": {1: 1.9, 2: 1.5}}),
    "semicolons.csv": (TABLE, {"train/loss": {1: 2, 2: 1}}),
    "nested.jsonl": (LINES, {"train/loss": {1: 2, 2: 1}, "val/loss": {2: 1.5}}),
    "mmdet.log.json": (LINES, {"train/loss": {50: 2, 100: 1.5, 150: 1, 200: 0.9}, "val/bbox_map": {1: 0.2, 2: 0.3}}),
    "swift.jsonl": (LINES, {"train/loss": {1: 2, 2: 1}}),
    "nanogpt.log": (TEXT, {"train/loss": {0: 2, 10: 1.1}, "val/loss": {0: 2, 10: 1.5}}),
    "mnist.log": (TEXT, {"train/loss": {0: 2.3, 1: 2, 3: 1}, "val/loss": {1: 1.9, 2: 1.5}}),
    "tutorial.log": (TEXT, {"train/loss": {1: 2, 2: 1}, "val/accuracy": {1: 0.4, 2: 0.5}}),
    "torchtune.log": (TEXT, {"train/loss": {1: 2, 2: 1}}),
    "fairseq.log": (TEXT, {"train/loss": {10: 2, 20: 1}, "val/loss": {1: 1.9}, "grad_norm": {10: 1.5, 20: 1.1}}),
    "run-a-tag-train_loss.csv": ("TensorBoard's CSV download", {"train/loss": {0: 2, 50: 1}}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_read_recognizes_format_by_content(tmp_path: Path, name: str) -> None:
    """Each format is recognized in a file without a suffix, and its curves have the values of the log."""
    expected, curves = FORMATS[name]
    path = tmp_path / Path(name).stem
    path.write_bytes((LOGS / name).read_bytes())
    reading = read(path)

    assert expected == reading.files[0].format
    assert curves == {column: curve(reading, column) for column in curves}


@pytest.mark.parametrize(("name", "package"), [("tensorboard.events", "tensorboard"), ("offline.wandb", "wandb")])
def test_read_uses_the_package_of_a_binary_format(tmp_path: Path, name: str, package: str) -> None:
    """Files of trackers are read by the tracker's package where it is installed; else the message names it."""
    path = tmp_path / "log"
    path.write_bytes((LOGS / name).read_bytes())
    if importlib.util.find_spec(package) is None:
        with pytest.raises(UserError, match=rf"the package {package} reads.*pip install \"fivegate\[logs\]\""):
            read(path)
        return
    reading = read(path)
    assert curve(reading, "train/loss") == {0: 2, 1: 1, 2: 0.6667, 3: 0.5, 4: 0.4}
    assert curve(reading, "val/loss") == {4: 0.5}


def test_formats_are_modules_of_their_folder() -> None:
    """A reader is a file of `formats/`; no two are tried at the same place."""
    priorities = [module.PRIORITY for module in all_formats()]
    assert sorted(set(priorities)) == priorities


def test_read_tells_component_losses_apart(tmp_path: Path) -> None:
    """Losses that are parts of one are summed, and those of adversaries are read one by one; it is said which."""
    parts = reading_of(tmp_path, "epoch,train/box_loss,train/cls_loss\n1,2.0,1.0\n2,1.0,0.5\n")
    rivals = reading_of(tmp_path, "step,d_loss,g_loss\n1,2.0,1.0\n2,1.0,0.5\n3,1.0,nan\n")

    assert curve(parts, "train/loss") == {1: 3, 2: 1.5}
    assert "  train/loss is the sum of train/box_loss, train/cls_loss" in parts.sentences()
    assert "train/loss" not in rivals.runs[0].history.names()
    assert ["train/g_loss"] == [name for name, _ in rivals.runs[0].views()]  # the one that breaks
    assert any("losses of adversaries: they are not summed" in sentence for sentence in rivals.sentences())


def test_read_tells_runs_of_a_panel_apart(tmp_path: Path) -> None:
    """A panel that Weights & Biases exported holds several runs, and bounds of each that are left out."""
    reading = reading_of(
        tmp_path, '"Step","a - loss","a - loss__MIN","b - loss"\n"0","2.0","1.9","3.0"\n"50","1.0","0.9",""\n'
    )

    assert ["a", "b"] == [run.name for run in reading.runs]
    assert ({0: 2, 50: 1}, {0: 3}) == (curve(reading, "train/loss", 0), curve(reading, "train/loss", 1))


def test_read_takes_the_users_map(tmp_path: Path) -> None:
    """A column that no name explains is taken for what the user says; a meaning that does not exist is refused."""
    path = tmp_path / "log.csv"
    path.write_text("t,objective\n1,2.0\n2,1.0\n")

    with pytest.raises(UserError, match=r"got 't, objective'.*--map loss=t"):
        read(path)
    reading = read(path, column_map(["loss=objective", "step=t"]))
    assert curve(reading, "train/loss") == {1: 2, 2: 1}
    with pytest.raises(UserError, match=r"--map: cannot be read, got 'nonsense=objective'"):
        column_map(["nonsense=objective"])


# --- order -----------------------------------------------------------------------------------------------------------


def test_read_resumes_at_a_step_back(tmp_path: Path) -> None:
    """A step that goes back is a restart: the repeated steps count once, as the resumed training had them."""
    steps = [1, 2, 3, 4, 5, 6, 4, 5, 6, 7]
    losses = [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.2, 1.1, 1.0, 0.9]
    reading = reading_of(
        tmp_path, "".join(f'{{"step": {s}, "loss": {x}}}\n' for s, x in zip(steps, losses, strict=True))
    )

    assert curve(reading, "train/loss") == {1: 2, 2: 1.9, 3: 1.8, 4: 1.2, 5: 1.1, 6: 1, 7: 0.9}
    assert "  restart in line 7: step goes back from 6 to 4" in reading.sentences()
    assert reading.runs[0].history.facts["resume_loss_ratio"] == pytest.approx(
        math.exp(np.mean(np.log([1.2 / 1.7, 1.1 / 1.6, 1.0 / 1.5])))
    )


def test_read_keeps_the_last_run_of_a_file(tmp_path: Path) -> None:
    """Two trainings in one file, both from the first step: the last one counts."""
    reading = reading_of(tmp_path, "step,loss\n1,2\n2,1.9\n3,1.8\n1,5\n2,4\n3,3\n")

    assert curve(reading, "train/loss") == {1: 5, 2: 4, 3: 3}
    assert reading.runs[0].restarts[0].line == 5


def test_read_sets_single_rows_aside(tmp_path: Path) -> None:
    """A row that the next one does not follow, a row of another width and a summary are set aside with their lines."""
    reading = reading_of(tmp_path, "step,loss\n1,2\n2,1.9\n0,7\n3,1.8\n4\n4,many\n5,1.7\n")

    assert curve(reading, "train/loss") == {1: 2, 2: 1.9, 3: 1.8, 5: 1.7}
    assert [line for line, _ in reading.files[0].notes.set_aside] == [6, 4]


def test_read_keeps_the_last_of_duplicates(tmp_path: Path) -> None:
    """Of a step that was logged twice, the last value counts."""
    lines = [*range(10), 5]
    text = (
        "step,loss\n"
        + "".join(f"{i},{i / 10}\n" for i in range(6))
        + "5,9\n"
        + "".join(f"{i},1\n" for i in range(6, 10))
    )

    assert curve(reading_of(tmp_path, text), "train/loss")[5] == 9 and len(lines) == 11


def test_read_leaves_out_nan_on_a_schedule(tmp_path: Path) -> None:
    """NaN between validation values at equal distances was not measured; NaN everywhere, or to the end, was."""
    scheduled = "epoch,loss,val_loss\n" + "".join(f"{i},1,{0.5 if i % 3 == 0 else 'nan'}\n" for i in range(1, 10))
    broken = "epoch,loss,val_loss\n" + "".join(f"{i},1,{0.5 if i < 5 else 'nan'}\n" for i in range(1, 10))

    assert curve(reading_of(tmp_path, scheduled), "val/loss") == {3: 0.5, 6: 0.5, 9: 0.5}
    assert sum(map(math.isnan, curve(reading_of(tmp_path, broken), "val/loss").values())) == 5


def test_read_handles_fractional_epochs(tmp_path: Path) -> None:
    """Epochs that are fractions order the rows, and the rows are counted."""
    text = "".join(f"{{'loss': {2 - e}, 'epoch': {e}}}\n" for e in (0.25, 0.5, 0.75, 1.0, 0.5, 0.75, 1.0, 1.25))
    reading = reading_of(tmp_path, text)

    assert reading.runs[0].restarts[0].sentence() == "line 5: epoch goes back from 1 to 0.5"
    assert list(curve(reading, "train/loss").values()) == [1.75, 1.5, 1.25, 1.0, 0.75]


# --- what cannot be understood ---------------------------------------------------------------------------------------

NOT_UNDERSTOOD = {
    "an empty file": b"",
    "prose": b"The training of yesterday went badly, I do not know why.\n",
    "binary": bytes(range(256)) * 50,
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "deep JSON": b"[" * 200_000 + b"]" * 200_000,
    "a deep object": b'{"a":' * 500 + b"1" + b"}" * 500,
    "numbers without names": b"1 2 3\n4 5 6\n",
    "names without numbers": b"step,loss\n1,many\n2,few\n",
    "an index alone": b"step,epoch\n1,0\n2,0\n",
    "times alone": b"step 1 time 9\nstep 2 time 8\n",
    "a million columns": b"\n".join([b"a,b" + b",column" * 10**6, *[b"1,2" + b",0" * 10**6] * 3]),
    "many columns": ",".join(f"c{i}" for i in range(20_000)).encode(),
}


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_diagnose_refuses_what_it_does_not_understand(tmp_path: Path, cli: Cli, name: str) -> None:
    """Nothing understood is exit code 2 and one message with the file and something to do, never `no symptom`."""
    path = tmp_path / "log"
    path.write_bytes(NOT_UNDERSTOOD[name])
    code, out, err = cli("diagnose", path)

    assert (code, out) == (2, "") and str(path) in err and "  Do: python -m pipeline diagnose" in err
    assert "Traceback" not in err


TWO_LINES = b'{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n'
PARTLY = {
    "an open quote": (b'step,loss\n1,"2\n2,3\n3,4\n', {2: 3, 3: 4}, "a quote that is not closed"),
    "a cell of two lines": (b'step,loss,note\n1,2,"two\nlines"\n2,1,x\n', {1: 2, 2: 1}, ""),
    "ragged rows": (b"step,loss\n1\n2,3\n3,4,5\n4,4\n", {2: 3, 4: 4}, "has 1 cells and not 2"),
    "a cut file": (TWO_LINES + b'{"step": 3, "lo', {1: 2, 2: 1}, "not a JSON object"),
    "UTF-16": ("step,loss\n1,2\n2,1\n".encode("utf-16"), {1: 2, 2: 1}, ""),
    "UTF-16 without a mark": ("step,loss\n1,2\n2,1\n".encode("utf-16-be"), {1: 2, 2: 1}, ""),
    "UTF-32": ("step,loss\n1,2\n2,1\n".encode("utf-32"), {1: 2, 2: 1}, ""),
    "Latin-1": ("step,loss,ort\n1,2,Köln\n2,1,x\n".encode("latin-1"), {1: 2, 2: 1}, ""),
    "a byte order mark": ("\ufeffstep,loss\n1,2\n2,1\n".encode(), {1: 2, 2: 1}, ""),
    "a long line": (b'{"step": 1, "loss": 2}\n' + b" " * 2**22 + b'\n{"step": 2, "loss": 1}\n', {1: 2, 2: 1}, ""),
    "integers of 401 digits": (TWO_LINES.replace(b": 2}", b": 2" + b"0" * 401 + b"}", 1), {1: math.inf, 2: 1}, ""),
    "colours": (b"\x1b[32mstep 1\x1b[0m loss 2.0\n\x1b[32mstep 2\x1b[0m loss 1.0\n", {1: 2, 2: 1}, ""),
    "an index that is huge": (b"step,loss\n1,2\n9" + b"9" * 401 + b",1\n2,1\n3,1\n", {1: 2, 0: 0}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTLY)
def test_read_uses_what_it_recognized(tmp_path: Path, name: str) -> None:
    """A damaged log is read as far as it goes, and the rows that were set aside are named."""
    content, losses, why = PARTLY[name]
    (tmp_path / "log").write_bytes(content)
    reading = read(tmp_path / "log")

    if why is None:  # read without a fault is all that is asked
        return
    assert losses == curve(reading, "train/loss")
    assert any(why in reason for _, reason in reading.files[0].notes.set_aside) or not why


@pytest.mark.parametrize("quote", ["", '"'])
def test_read_finds_the_loss_among_a_million_columns(tmp_path: Path, quote: str) -> None:
    """Of a table that is too wide the columns with a meaning are read, and a column that the user names is too."""
    names = [f"{quote}layer_{i}.weight{quote}" for i in range(10**6)]
    names[0], names[765_432], names[900_000] = "step", f"{quote}train_loss{quote}", "objective"
    path = tmp_path / "log"
    with path.open("w") as stream:
        stream.write(",".join(names) + "\n")
        for step in range(3):
            zeros = ["0"] * (10**6 - 765_433)
            stream.write(f"{step}," + "0," * 765_431 + f"{3 - step}," + ",".join(zeros) + "\n")
        stream.write("3,0\n")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    reading = read(path, {"objective": "val/loss"})

    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes
    assert ({0: 3, 1: 2, 2: 1}, {0: 0, 1: 0, 2: 0}) == (curve(reading, "train/loss"), curve(reading, "val/loss"))
    understood = "\n".join(reading.sentences())
    assert "of 1,000,000 columns 3 whose names mean something are read, and 999,997 are set aside" in understood
    assert "set aside: line 5 has 2 cells" in understood


def test_read_refuses_what_is_no_plain_file(tmp_path: Path) -> None:
    """A pipe, a device, a missing file and a name with NUL are refused at once, without waiting."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(UserError, match="is a pipe or a device"):
            read(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "missing")
    with pytest.raises(UserError, match="cannot be read"):
        read("a\0b")


def test_refusal_names_the_log_that_was_meant(tmp_path: Path) -> None:
    """For a file that does not exist the message names the most similar one beside it."""
    (tmp_path / "train.log").write_text("step 1 loss 2\n")

    with pytest.raises(UserError, match=rf"Do: python -m pipeline diagnose {tmp_path}/train\.log"):
        read(tmp_path / "trian.log")


def test_table_of_a_long_log_is_thinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a log that is too long, every second row is kept, and every value that is not finite; it is said so."""
    monkeypatch.setattr(log_columns, "MAX_CELLS", 100)
    reading = reading_of(tmp_path, "step,loss\n" + "".join(f"{i},{'nan' if i == 151 else i}\n" for i in range(300)))
    index, values = reading.runs[0].history.series("train/loss")

    assert len(index) <= 110 and 151 in index.tolist() and np.isnan(values[index.tolist().index(151)])
    assert any("the log is long" in sentence for sentence in reading.sentences())


@pytest.mark.slow
def test_read_needs_bounded_memory(tmp_path: Path) -> None:
    """A log of one gigabyte, and a line of that length, are read with less than a gigabyte of memory."""
    path = tmp_path / "long.jsonl"
    with path.open("w") as stream:
        for first in range(0, 14_000_000, 10_000):
            stream.write("".join(f'{{"step": {i}, "loss": {1 / (i + 1):.6f}, "lr": 0.001, "note": "{"x" * 20}"}}\n'
                                 for i in range(first, first + 10_000)))  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(read(path).runs[0].history.series("train/loss")[0]) > 100_000
    with path.open("wb") as stream:  # in pieces, since the memory of the test counts as well
        stream.writelines([b"step 1 loss 2.0\n", *[b"x" * 2**20] * 2**10, b"\nstep 2 loss 1.0\n"])
    assert curve(read(path), "train/loss") == {1: 2, 2: 1}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


SHAPES = {
    "csv": ("step,loss,val_loss\n", "{i},{x},{x}\n"),
    "jsonl": ("", '{{"step": {i}, "loss": {x}, "lr": 1e-3}}\n'),
    "text": ("", "iter {i}: loss {x:.4f}, lr 3e-4, time 12ms\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_read_is_fast(tmp_path: Path, shape: str) -> None:
    """A hundred thousand rows are read in a second or two of this machine; the bound is loose, since it may be busy."""
    path = tmp_path / "log"
    head, line = SHAPES[shape]
    path.write_text(head + "".join(line.format(i=i, x=1 / (i + 1)) for i in range(100_000)))
    began = time.process_time()
    read(path)
    assert time.process_time() - began < 4


@given(st.binary(max_size=400))
def test_read_takes_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Any bytes are read, or refused with a typed message; nothing else is raised."""
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(b"step,loss\n1,2\n" + content)
    try:
        read(path)
    except UserError as error:
        assert str(path) in error.faults[0]


@given(st.text(alphabet="abl os:=,|[](){}0123456789.e-+%nif\t", max_size=60))
def test_values_in_takes_any_line(line: str) -> None:
    """The numbers of any line are found by names that are not empty."""
    assert all(name.strip() for name in values_in(line))


def test_values_in_tells_digits_of_names_apart() -> None:
    """Lines that differ in digits alone have names of their own, and a word is no number because of its neighbours."""
    assert values_in("acc1 0.5 acc5 0.7") == {"acc1": "0.5", "acc5": "0.7"}
    assert values_in("acc5 0.6 acc1 0.8") == {"acc5": "0.6", "acc1": "0.8"}
    assert values_in("loss nan took 12.5ms, acc 5%") == {"loss": "nan", "acc": "5%"}
    assert values_in("loss 2.5 took 10.7ms, acc 7 %") == {"loss": "2.5", "acc": "7%"}


def test_values_in_remembers_no_long_line() -> None:
    """The memory of a text log does not grow with lines that hold printed arrays."""
    caches = (text._layout, text._names_before, text._before, text._names)
    before = [cache.cache_info().currsize for cache in caches]
    for number in range(5):
        line = f"step {number} loss 2.5 " + "weights " * number + "0.25 of " * 200 + "x" * 2000 + " 3"
        assert values_in(line)["loss"] == "2.5"
    grown = [cache.cache_info().currsize - size for cache, size in zip(caches, before, strict=True)]
    assert grown[:2] == [0, 0] and sum(grown) < 12


# --- folders and reports ---------------------------------------------------------------------------------------------


def test_read_joins_tags_of_tensorboard(tmp_path: Path) -> None:
    """The downloads of one run are its curves, each by the tag in the name of its file."""
    for tag, value in (("train_loss", 2.0), ("val_loss", 1.5)):
        (tmp_path / f"run-v0-tag-{tag}.csv").write_text(f"Wall time,Step,Value\n1.0,0,{value}\n2.0,5,1.0\n")
    reading = read(tmp_path)

    assert ["v0"] == [run.name for run in reading.runs]
    assert ({0: 2, 5: 1}, {0: 1.5, 5: 1}) == (curve(reading, "train/loss"), curve(reading, "val/loss"))


def test_report_compares_runs_of_a_folder(tmp_path: Path) -> None:
    """Of several runs it is said which ends worse, and what the logs state that differs."""
    (tmp_path / "good.log").write_text("lr=0.1\n" + "".join(f"step {i} loss {2 / (i + 1)}\n" for i in range(20)))
    (tmp_path / "bad.log").write_text("lr=10.0\n" + "".join(f"step {i} loss {2 + i}\n" for i in range(20)))
    report = diagnose_log(tmp_path)

    assert report.differences == (
        "bad.log ends at train/loss 20.5, good.log at 0.1026",
        "largest learning rate: 10 in bad.log, 0.1 in good.log",
    )
    assert "bad.log" == report.diagnoses[0][0] and "learning rate: 10 in bad.log" in report.page()


def test_report_says_first_what_was_understood(tmp_path: Path, cli: Cli) -> None:
    """The page begins with what was understood; diagnosis.json has it too, beside the keys of every diagnosis."""
    (tmp_path / "log").write_text("epoch,loss\n1,2\n2,nan\n")
    code, out, _ = cli("diagnose", tmp_path / "log", "--out", tmp_path / "out")
    body = json.loads((tmp_path / "out" / "diagnosis.json").read_text())

    assert code == 0 and out.index("read as table") < out.index("NaN or infinite")
    assert body["understood"]["runs"][0]["columns"] == {"train/loss": ["loss"]} and body["schema"] == 1
    page = (tmp_path / "out" / "diagnosis.html").read_text()
    assert "<script" not in page and "train not finite from epoch 2" in page and "a symptom since" in page
    assert page.index("What was understood of the log") < page.index("<figure")
    assert (tmp_path / "out" / "diagnosis.md").read_text().startswith("# What was understood of the log")


STATEMENTS = {
    "loss is NaN since epoch 3": ("nan_loss", "epoch 3"),
    "not learning anything": ("convergence_stall", ""),
    "The net doesn't converge.": ("convergence_stall", ""),
    "It overfits, the val loss rises after step 900": ("overfitting", "step 900"),
}


@pytest.mark.parametrize("text", STATEMENTS)
def test_statement_names_symptom_and_time(text: str) -> None:
    """What people say of a training names a playbook, and since when; no cause is named, and questions are asked."""
    expected, since = STATEMENTS[text]
    statement = understand(text)
    diagnosis = diagnose_statement(statement)

    assert (expected, since) == (statement.playbooks[0].id, statement.since)
    assert () == diagnosis.root_causes and "(report, at most 0.70)" in diagnosis.confidence_statement
    assert diagnosis.considered and all(cause.confidence <= 0.7 for cause in diagnosis.considered)
    assert "it becomes likelier if the " in diagnosis.considered[0].why_not
    assert diagnosis.would_decide and diagnosis.would_decide[0].startswith("Is the ")


def test_statement_that_names_a_cause_ranks_it_first() -> None:
    """A thing that the statement names is more likely to be the cause than one that it does not name."""
    diagnosis = diagnose_statement(understand("loss is NaN, perhaps it is the learning rate"))
    assert diagnosis.considered[0].issue == "learning_rate_too_high"


def test_statement_without_symptom_is_refused() -> None:
    """Words that name no known symptom are not `no symptom`; a time that is none is refused."""
    with pytest.raises(UserError, match="--symptom: names no symptom that is known, got 'hello'"):
        understand("hello")
    with pytest.raises(UserError, match=r"--at: is not a time, got 'noon'; expected epoch=7 or step=100"):
        understand("loss is NaN", "noon")


def test_diagnose_takes_a_statement(tmp_path: Path, cli: Cli) -> None:
    """A statement needs no file; beside a log it has a diagnosis of its own; a file of prose is read as one."""
    (tmp_path / "log").write_text("epoch,loss\n1,2\n2,1\n")
    (tmp_path / "prose").write_text("After epoch 3 the loss is NaN.\n")

    assert "NaN or infinite" in cli("diagnose", "--symptom", "loss is NaN", "--at", "epoch=3")[1]
    assert "what was reported" in cli("diagnose", tmp_path / "log", "--symptom", "loss is NaN")[1]
    assert "since epoch 3" in cli("diagnose", tmp_path / "prose")[1]
    for wrong in ([], [tmp_path / "log", "--at", "epoch=3"], [tmp_path / "log", "--classes", "1"]):
        code, _, err = cli("diagnose", *wrong)
        assert code == 2 and "Traceback" not in err


def test_read_run_directory(tmp_path: Path) -> None:
    """A run directory is read as its baseline's history; a folder with none or several is refused."""
    history = History()
    history.log_step(0, {"train/loss": 1.0})
    with pytest.raises(UserError, match="holds no log"):
        read(tmp_path)
    for folder in ("optimization/1/trials/a", "optimization/1/trials/b"):
        (tmp_path / folder).mkdir(parents=True)
        files.write_bytes(tmp_path / folder / "history.npz", history.to_bytes())
    with pytest.raises(UserError, match="holds 2 histories"):
        read(tmp_path)
    (tmp_path / "baseline").mkdir()
    files.write_bytes(tmp_path / "baseline" / "history.npz", history.to_bytes())

    assert history.digest() == read(tmp_path).runs[0].history.digest()
    assert history.digest() == read(tmp_path / "baseline" / "history.npz").runs[0].history.digest()


# --- logs as people post them, re-created ----------------------------------------------------------------------------


def falling(count: int, start: float, end: float) -> list[float]:
    """A loss that falls smoothly, with a little noise."""
    noise = np.random.default_rng(0).normal(0, 0.01, count)
    return [end + (start - end) * math.exp(-4 * i / count) * (1 + noise[i]) for i in range(count)]


def nanogpt_in_half_precision() -> str:
    """The header states float16, and the loss becomes NaN after thousands of smooth steps."""
    lines = [f"iter {10 * i}: loss {loss:.4f}, time 9.0ms, mfu 15.30%" for i, loss in enumerate(falling(300, 10.8, 3))]
    return "\n".join(
        ["Overriding: dtype = float16", *lines, *(f"iter {i}: loss nan, time 9ms" for i in range(3000, 3200, 10))]
    )


def ultralytics_with_nan_validation() -> str:
    """Training losses fall, and each part of the validation loss is NaN in every epoch."""
    head = "epoch, train/box_loss, train/cls_loss, metrics/mAP50(B), val/box_loss, val/cls_loss, lr/pg0"
    rows = [f"{i}, {loss:.4f}, {loss / 2:.4f}, 0, nan, nan, 0.01" for i, loss in enumerate(falling(30, 2.2, 1.1), 1)]
    return "\n".join([head, *rows])


def keras_with_two_preprocessings() -> str:
    """Accuracy rises to .97 on train rows and stays at chance on validation from the first epoch on."""
    rows = [
        f"{i},{1 - loss / 3.2:.4f},{loss:.4f},{0.05 + 0.002 * (i % 2)},{9.2 + i / 5}"
        for i, loss in enumerate(falling(20, 3, 0.1))
    ]
    return "\n".join(["epoch,accuracy,loss,val_accuracy,val_loss", *rows])


def swift_resumed_from_the_first_rows() -> str:
    """After a resume the loss of the same steps is lower than before: their rows were seen twice."""
    losses = falling(160, 1.5, 0.5)
    rows = [(10 * i, loss) for i, loss in enumerate(losses[:120])]
    rows += [(10 * i, 0.84 * losses[i]) for i in range(110, 160)]
    lines = [
        json.dumps({"loss": loss, "learning_rate": 1e-5, "global_step/max_steps": f"{step}/1600"})
        for step, loss in rows
    ]
    return "\n".join([*lines, json.dumps({"train_runtime": 75781.1, "train_loss": 0.53, "global_step": 1600})])


def tiny_rate_on_every_line() -> str:
    """The loss stays where it began, and every line records the rate that is to blame."""
    draw = np.random.default_rng(1)
    return "\n".join(json.dumps({"step": i, "loss": 2.3 + 0.002 * draw.normal(), "lr": 1e-9}) for i in range(60))


def lightning_with_dropout() -> str:
    """A healthy training whose train loss lies above its validation loss."""
    train, val = falling(20, 0.6, 0.4), falling(8, 0.47, 0.36)
    lines = [f"{i // 5},{50 * i + 49},{loss:.4f},," for i, loss in enumerate(train)]
    lines += [f"{i},{120 * i + 119},,{loss:.4f},{0.8 + i / 200}" for i, loss in enumerate(val)]
    lines.sort(key=lambda line: int(line.split(",")[1]))
    return "\n".join(["epoch,step,train_loss_step,val_loss,val_acc", *lines])


POSTED = {
    nanogpt_in_half_precision: "precision_overflow",
    ultralytics_with_nan_validation: "precision_overflow",
    keras_with_two_preprocessings: "split_shift",
    swift_resumed_from_the_first_rows: "resume_data_replayed",
    tiny_rate_on_every_line: "learning_rate_too_low",
    lightning_with_dropout: None,
}


@pytest.mark.parametrize("log", POSTED, ids=lambda log: log.__name__)
def test_diagnose_log_explains_logs_as_they_are_posted(tmp_path: Path, log: Callable[[], str]) -> None:
    """The true cause is among the first three that the diagnosis names or considers; a healthy log is not accused."""
    (tmp_path / "log").write_text(log())
    [(_, diagnosis)] = diagnose_log(tmp_path / "log").diagnoses
    likely = [cause.issue for cause in (*diagnosis.root_causes, *diagnosis.considered)][:3]

    assert POSTED[log] in likely if POSTED[log] else not diagnosis.root_causes


def test_report_of_a_paragraph() -> None:
    """A paragraph of prose gives the divergence and its epoch, with the rate among the first three causes."""
    paragraph = (
        "Training diverged at epoch 7. Loss was decreasing (3.76→0.16), then increased (0.16→0.19). "
        "grad_norm spiked to 45.2."
    )
    statement = understand(paragraph)
    causes = [cause.issue for cause in diagnose_statement(statement).considered]

    assert ("loss_divergence", "epoch 7") == (statement.playbooks[0].id, statement.since)
    assert "learning_rate_too_high" in causes[:3]
