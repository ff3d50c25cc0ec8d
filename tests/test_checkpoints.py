"""Checkpoints are read bit by bit as they were written, or refused; an older one serves if the newest is damaged."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.checkpoints import codec, generation, weights
from pipeline.checkpoints.generation import Snapshot
from pipeline.checkpoints.writer import Writer
from pipeline.errors import Refused, UserError
from pipeline.history import History
from pipeline.run_store import files
from tests.conftest import examples

IDENTITY = {"seed": 1}


def snapshot(step: int = 1, role: str = "last", **tensors: Tensor) -> Snapshot:
    """Return a snapshot at a step, with a history of one loss."""
    history = History()
    history.log_step(step, {"train/loss": 0.5})
    state = {"role": role, "step": step, "identity": IDENTITY}
    return Snapshot(state, {"weights": tensors or {"a": torch.full((3,), float(step))}}, history)


def steps(folder: Path) -> list[int]:
    return [generation.state_of(path)["step"] for path in generation.generations(folder)]


def test_weights_digest_depends_on_names_dtypes_shapes_and_bytes() -> None:
    """The digest depends on each of the four, but not on their order or on a file."""
    one = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    assert weights.weights_digest(one) == weights.weights_digest(dict(reversed(one.items())))
    others: list[dict[str, Tensor]] = [
        {**one, "a": torch.zeros(3, 2)},
        {**one, "a": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"c": one["a"], "b": one["b"]},
        {**one, "b": torch.tensor(1.5)},
    ]
    assert 5 == len({weights.weights_digest(o) for o in [one, *others]})


# --- state as JSON ---------------------------------------------------------------------------------------------------

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text() | st.integers()
VALUES = st.recursive(
    NUMBERS, lambda v: st.lists(v) | st.tuples(v, v) | st.dictionaries(KEYS, v, max_size=4), max_leaves=12
)


@given(VALUES)
def test_pack_round_trips_through_json(value: Any) -> None:
    """Tuples, infinities, numeric keys and floats are restored exactly, nested in any way."""
    packed = json.loads(json.dumps(codec.pack(value, "x", {}), allow_nan=False))
    back = codec.unpack(packed, {})
    assert back == value and repr(back) == repr(value)


def test_pack_names_tensors_by_path() -> None:
    """Tensors are stored separately from the JSON, and a scheduler's Counter is restored as a Counter."""
    tensors: dict[str, Tensor] = {}
    value = {"state": {0: {"exp_avg": torch.ones(2)}}, "milestones": Counter({3: 1}), "worst": -math.inf}
    packed = json.loads(json.dumps(codec.pack(value, "optimizer", tensors)))
    assert ["optimizer.state.0.exp_avg"] == list(tensors)
    back = codec.unpack(packed, tensors)
    assert torch.equal(torch.ones(2), back["state"][0]["exp_avg"])
    assert isinstance(back["milestones"], Counter) and back["worst"] == -math.inf


def test_pack_refuses_functions() -> None:
    """A function in a state is refused with its path before anything is written."""
    with pytest.raises(UserError, match=r"scheduler\.lambdas\.0: cannot be stored in a checkpoint, got 'function'"):
        codec.pack({"lambdas": [lambda epoch: 1.0]}, "scheduler", {})


# --- generations -----------------------------------------------------------------------------------------------------


def test_write_and_read_round_trip(tmp_path: Path) -> None:
    """Tensors, also tied and strided ones, state and history are restored."""
    tied = torch.rand(3, 4)
    tensors = {"a": tied, "b": tied, "c": tied.T, "n": torch.tensor(3)}
    given = snapshot(7, **weights.tensors_of(tensors))
    read = generation.read(generation.write(tmp_path, given))
    assert all(torch.equal(tensors[name], t) for name, t in read.parts["weights"].items()) and 7 == read.step
    assert given.history and read.history and given.history.digest() == read.history.digest()


def test_write_keeps_two_generations_and_every_result(tmp_path: Path) -> None:
    """The oldest generation is removed after the newest was verified; results are kept."""
    generation.write(tmp_path, snapshot(1, role="best"))
    for step in range(2, 7):
        generation.write(tmp_path, snapshot(step))
    assert [1, 5, 6] == steps(tmp_path)
    assert not list(tmp_path.glob("checkpoints/.*"))


def test_load_refuses_changed_files(tmp_path: Path) -> None:
    """Changed bytes, a missing state and a pickle are refused."""
    folder = generation.write(tmp_path, snapshot(1))
    path = folder / generation.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(Refused, match="is not what was saved"):
        generation.load(folder)
    torch.save({"a": 1}, path)
    with pytest.raises(UserError, match="is not a safetensors file"):
        generation.load(folder)
    path.write_bytes(whole)
    state = (folder / generation.STATE).read_text()
    (folder / generation.STATE).write_text(state.replace('"step": 1', '"step": 2'))
    with pytest.raises(Refused, match=r"state\.json: is not what was saved"):
        generation.load(folder)
    (folder / generation.STATE).write_text("{}")
    with pytest.raises(UserError, match="cannot be read as the state"):
        generation.load(folder)


@settings(max_examples=examples(25))  # each example waits for the disk, which takes 0.1 s
@given(data=st.data())
def test_intact_skips_damaged_generation(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A flipped bit or a truncated file in the newest generation is detected, and the older one is used."""
    folder = tmp_path_factory.mktemp("torn")
    older, newest = (generation.write(folder, snapshot(step)) for step in (1, 2))
    file = data.draw(st.sampled_from(sorted(path for path in newest.iterdir())))
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        file.write_bytes(whole[:at])
    else:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :])
    intact = list(generation.intact(folder, IDENTITY, "last"))
    same = file.name == generation.STATE and intact == [newest, older]  # equal JSON with other spaces
    assert same or intact == [older]
    shutil.rmtree(folder)


def test_intact_skips_other_trainings(tmp_path: Path) -> None:
    """A checkpoint of another seed, plan or machine is not used."""
    generation.write(tmp_path, snapshot(1))
    assert [] == list(generation.intact(tmp_path, {"seed": 2}, "last"))
    assert [] == list(generation.intact(tmp_path, IDENTITY, "best"))


# --- writer ----------------------------------------------------------------------------------------------------------


def test_writer_writes_copy(tmp_path: Path) -> None:
    """A snapshot on disk does not contain changes made after it was taken."""
    moving, writer = torch.zeros(1000), Writer(tmp_path)
    writer.write(snapshot(1, **weights.tensors_of({"a": moving})))
    moving += 1
    path = writer.wait()
    writer.close()
    assert path and not generation.read(path).parts["weights"]["a"].any()


@pytest.mark.parametrize("k", range(1, 23))
def test_writer_reports_full_disk_and_keeps_older_checkpoint(tmp_path: Path, k: int) -> None:
    """If the k-th system call finds no space, the loop gets one error, and no partial checkpoint is used."""
    generation.write(tmp_path, snapshot(1))
    calls = iter(range(1, 10_000))

    def full(operation: str, path: Path) -> bool:
        if next(calls) == k:
            raise OSError(28, "No space left on device", str(path))
        return False

    writer = Writer(tmp_path)
    with files.fault_points(full):
        writer.write(snapshot(2))
        with pytest.raises(UserError, match=r"cannot .*No space left on device.*free some space"):
            writer.wait()
    with pytest.raises(UserError, match="No space"):
        writer.raise_error()
    writer.close()
    intact_steps = [generation.state_of(path)["step"] for path in generation.intact(tmp_path, IDENTITY, "last")]
    assert intact_steps in ([1], [2, 1])  # the last calls only clean up after the commit
    assert generation.read(generation.write(tmp_path, snapshot(3))).step == 3


def test_write_refuses_missing_folder(tmp_path: Path) -> None:
    """Writing to a deleted run is an error and does not create the folder again."""
    with pytest.raises(UserError, match="the folder of this training is gone"):
        generation.write(tmp_path / "away", snapshot(1))
    assert not (tmp_path / "away").exists()
