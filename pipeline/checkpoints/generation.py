"""Checkpoints on disk: numbered folders of safetensors and JSON, committed by one rename and verified when read.

`<folder>/checkpoints/<n>` is called a generation and holds `weights.safetensors` and `state.json`. A generation with
the role `last` is a training between two steps, and also holds `training.safetensors` (the state of optimizer and
scheduler), `best.safetensors`, `history.npz`, and with `trainer.on_spike: rollback` the states that a spike returns to.
Two of them are kept. A generation with the role `best` is the result of a training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from pipeline.checkpoints.weights import read_tensors, weights_digest
from pipeline.errors import FivegateError, Refused, UserError, fault
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.history import History
from pipeline.results import digest
from pipeline.run_store import files

WEIGHTS, STATE, HISTORY = "weights.safetensors", "state.json", "history.npz"
MAX_LAST = 2  # generations with the role `last` that are kept
SCHEMA = 3


class KeptRecord(TypedDict):
    """A state that a rollback can return to, apart from its tensors."""

    step: int
    others: dict[str, object]


class CheckpointState(TypedDict, total=False):
    """The content of `state.json`. What is not JSON, such as NaN or a tuple, is packed by `codec`."""

    role: str
    identity: dict[str, object]  # what must be equal for a training to resume from this checkpoint
    step: int
    epoch: int
    seed: int
    # role `last`
    ended: bool
    stop_reason: str | None
    seconds: float
    best: object
    lowest_val_loss: object
    kept: list[KeptRecord]  # states that a rollback can return to
    others: dict[str, object]  # optimizer, scheduler and all other state besides the weights
    # role `best`
    plan_digest: str
    purpose: str
    metric: str
    value: object
    # added when the checkpoint is written
    weights_digest: str
    schema: int
    files: dict[str, str]  # digests of the other files of the generation
    digest: str  # of everything above


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy of a training at one step; later training does not change it.

    `parts` are tensors by name, grouped by the stem of their file; `weights` is
    one of the stems.
    """

    state: CheckpointState
    parts: Mapping[str, Mapping[str, Tensor]]
    history: History | None = field(default=None, repr=False)

    @property
    def step(self) -> int:
        return self.state["step"]


def generations(folder: Path) -> list[Path]:
    """Return the committed generation folders, oldest first."""
    committed = [p for p in folder.glob("checkpoints/*") if p.name.isdigit() and p.is_dir()]
    return sorted(committed, key=lambda p: int(p.name))


def write(folder: Path, snapshot: Snapshot) -> Path:
    """Write the snapshot as a new generation, verify it, remove older ones, and return its path.

    After a crash the generation is complete or absent. Raises UserError if it cannot be written or the folder is gone.
    """
    if not folder.is_dir():
        do = "restore it, or start again with another run.name=NAME"
        raise UserError(fault(str(folder), "the folder of this training is gone", do=do))
    older = generations(folder)
    final = folder / "checkpoints" / str(int(older[-1].name) + 1 if older else 1)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        _write_generation(temporary, final, snapshot)
    except BaseException:
        if folder.is_dir():
            files.remove_folder(temporary)  # free the space of the unfinished checkpoint on a full disk
        raise
    state_of(final, verify=True)
    _remove_old(folder, final)
    return final


def _write_generation(temporary: Path, final: Path, snapshot: Snapshot) -> None:
    """Write every file to the temporary folder, then rename the folder."""
    from safetensors.torch import save as to_bytes

    files.remove_folder(temporary)
    digests = {}
    for stem, tensors in snapshot.parts.items():
        digests[f"{stem}.safetensors"] = _write_file(temporary / f"{stem}.safetensors", to_bytes(dict(tensors)))
    if snapshot.history is not None:
        digests[HISTORY] = _write_file(temporary / HISTORY, snapshot.history.to_bytes(compressed=False))
    state = {**snapshot.state, "weights_digest": weights_digest(snapshot.parts["weights"]), "schema": SCHEMA}
    state = json.loads(json.dumps({**state, "files": digests}))
    state_with_digest = {**state, "digest": digest(state)}
    files.write_text(temporary / STATE, json.dumps(state_with_digest, indent=1, sort_keys=True) + "\n")
    files.commit_folder(temporary, final)


def _write_file(path: Path, content: bytes) -> str:
    """Write the file and return the SHA-256 of its content in memory, so that errors of the disk are noticed."""
    files.write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _remove_old(folder: Path, newest: Path) -> None:
    """Remove all but the newest generations with the role `last`; results of a training are never removed here."""
    older = [path for path in generations(folder) if _role(path) != "best" and path != newest]
    for path in older[: max(0, len(older) - (MAX_LAST - 1))] if _role(newest) != "best" else ():
        files.remove_folder(path)


def _role(generation: Path) -> str | None:
    try:
        return str(state_of(generation)["role"])
    except FivegateError:
        return None


def state_of(generation: Path, *, verify: bool = False) -> CheckpointState:
    """Return a generation's state. Raises UserError if it cannot be read and Refused if it was changed.

    With `verify` all other files of the generation are compared with their digests, too.
    """
    path = generation / STATE
    try:
        state: CheckpointState = parse_json(read_bytes(path, "the state of a checkpoint"), str(path))
        digests, _, _, recorded = dict(state["files"]), state["role"], state["weights_digest"], state["digest"]
        if state["schema"] != SCHEMA:
            raise ValueError(state["schema"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(fault(str(path), "cannot be read as the state of a checkpoint")) from None
    if digest({key: value for key, value in state.items() if key != "digest"}) != recorded:
        raise Refused(fault(str(path), "is not what was saved", expected=f"digest {recorded[:12]}"))
    for name, expected in digests.items() if verify else ():
        file = generation / name
        if not file.is_file() or files.sha256(file) != expected:
            raise Refused(fault(str(file), "is not what was saved", expected=f"digest {expected[:12]}"))
    return state


def load(generation: Path) -> tuple[dict[str, Tensor], CheckpointState]:
    """Return weights and state of a generation.

    Raises UserError if a file is missing, and Refused if the weights do not have the recorded digest.
    """
    tensors = read_tensors(generation / WEIGHTS, str(generation))
    state = state_of(generation)
    if weights_digest(tensors) != state["weights_digest"]:
        expected = f"digest {state['weights_digest'][:12]}"
        raise Refused(fault(str(generation / WEIGHTS), "is not what was saved", expected=expected))
    return tensors, state


def read(generation: Path) -> Snapshot:
    """Return a generation after verifying every file. Raises UserError or Refused if a file is missing or changed."""
    state = state_of(generation, verify=True)
    stems = [Path(name).stem for name in state["files"] if name.endswith(".safetensors")]
    parts = {stem: read_tensors(generation / f"{stem}.safetensors", str(generation)) for stem in stems}
    history = History.load(generation / HISTORY) if HISTORY in state["files"] else None
    return Snapshot(state, parts, history)


def intact(folder: Path, identity: Mapping[str, object], role: str) -> Iterator[Path]:
    """Yield the generations of a role and identity whose files are unchanged, newest first."""
    for path in reversed(generations(folder)):
        try:
            state = state_of(path)
            if state["role"] == role and state.get("identity") == identity:
                state_of(path, verify=True)
                yield path
        except FivegateError:  # torn, changed or of another format: use the one before it
            continue
