"""Checkpoints on disk: numbered folders of safetensors and JSON, each committed by one rename and verified when read.

`<folder>/checkpoints/<n>` holds `weights.safetensors` and `state.json`. One with the role `last` is a training between
two updates: `training.safetensors` (optimizer and whatever else moves), `best.safetensors` and `history.npz` stand
beside the weights. One with the role `best` is what a training gave. Two of the role `last` are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.checkpoints.weights import read_tensors, weights_digest
from pipeline.errors import FivegateError, Refused, UserError, fault
from pipeline.history import History
from pipeline.results import digest
from pipeline.run_store import files

WEIGHTS, STATE, HISTORY = "weights.safetensors", "state.json", "history.npz"
KEPT = 2  # generations of a training that goes on
SCHEMA = 3


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A training at one instant, in memory of its own: what training does afterwards does not change it.

    `state` is plain JSON with a `role`; `parts` are tensors by the stem of the file they go to, `weights` among them.
    """

    state: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Tensor]]
    history: History | None = field(default=None, repr=False)

    @property
    def step(self) -> int:
        return int(self.state["step"])


def generations(folder: Path) -> list[Path]:
    """The committed generation folders, oldest first."""
    found = [p for p in folder.glob("checkpoints/*") if p.name.isdigit() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name))


def write(folder: Path, snapshot: Snapshot) -> Path:
    """A new generation holds the snapshot, and was read back; older ones of its role make room. Its path is returned.

    A crash leaves it whole or absent. Raises UserError when the disk refuses or the folder is gone.
    """
    if not folder.is_dir():
        do = "put it back, or begin anew under another run.name=NAME"
        raise UserError(fault(str(folder), "the folder of this training is gone", do=do))
    older = generations(folder)
    final = folder / "checkpoints" / str(int(older[-1].name) + 1 if older else 1)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        _write_whole(temporary, final, snapshot)
    except BaseException:
        if folder.is_dir():
            files.remove_folder(temporary)  # a full disk gets back what half a checkpoint took
        raise
    state_of(final, verify=True)
    _make_room(folder, final)
    return final


def _write_whole(temporary: Path, final: Path, snapshot: Snapshot) -> None:
    """Every file beside its place, then the folder under its name."""
    from safetensors.torch import save as to_bytes

    files.remove_folder(temporary)
    written = {}
    for stem, tensors in snapshot.parts.items():
        written[f"{stem}.safetensors"] = _written(temporary / f"{stem}.safetensors", to_bytes(dict(tensors)))
    if snapshot.history is not None:
        written[HISTORY] = _written(temporary / HISTORY, snapshot.history.to_bytes(compressed=False))
    state = {**snapshot.state, "weights_digest": weights_digest(snapshot.parts["weights"]), "schema": SCHEMA}
    state = json.loads(json.dumps({**state, "files": written}))
    whole = {**state, "digest": digest(state)}
    files.write_text(temporary / STATE, json.dumps(whole, indent=1, sort_keys=True) + "\n")
    files.commit_folder(temporary, final)


def _written(path: Path, content: bytes) -> str:
    """The file holds the content, whose SHA-256 comes back: of what was meant, not of what the disk made of it."""
    files.write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _make_room(folder: Path, newest: Path) -> None:
    """No more than the newest generations of a training are kept; what a training gave is never removed here."""
    going = [path for path in generations(folder) if _role(path) != "best" and path != newest]
    for path in going[: max(0, len(going) - (KEPT - 1))] if _role(newest) != "best" else ():
        files.remove_folder(path)


def _role(generation: Path) -> str | None:
    try:
        return str(state_of(generation)["role"])
    except FivegateError:
        return None


def state_of(generation: Path, *, verify: bool = False) -> dict[str, Any]:
    """A generation's state. Raises UserError when it cannot be read; with `verify`, Refused when a file is not as
    it was written."""
    path = generation / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        written, _, _, recorded = dict(state["files"]), state["role"], state["weights_digest"], state["digest"]
        if state["schema"] != SCHEMA:
            raise ValueError(state["schema"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(fault(str(path), "cannot be read as the state of a checkpoint")) from None
    if digest({key: value for key, value in state.items() if key != "digest"}) != recorded:
        raise Refused(fault(str(path), "is not what was saved", expected=f"digest {recorded[:12]}"))
    for name, expected in written.items() if verify else ():
        file = generation / name
        if not file.is_file() or files.sha256(file) != expected:
            raise Refused(fault(str(file), "is not what was saved", expected=f"digest {expected[:12]}"))
    return state


def load(generation: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state of a generation.

    Raises UserError when a file is missing, Refused when the weights are not those whose digest was recorded.
    """
    tensors = read_tensors(generation / WEIGHTS, str(generation))
    state = state_of(generation)
    if weights_digest(tensors) != state["weights_digest"]:
        expected = f"digest {state['weights_digest'][:12]}"
        raise Refused(fault(str(generation / WEIGHTS), "is not what was saved", expected=expected))
    return tensors, state


def read(generation: Path) -> Snapshot:
    """A whole generation, every file verified first. Raises UserError or Refused when one is missing or changed."""
    state = state_of(generation, verify=True)
    stems = [Path(name).stem for name in state["files"] if name.endswith(".safetensors")]
    parts = {stem: read_tensors(generation / f"{stem}.safetensors", str(generation)) for stem in stems}
    history = History.load(generation / HISTORY) if HISTORY in state["files"] else None
    return Snapshot(state, parts, history)


def intact(folder: Path, identity: Mapping[str, Any], role: str) -> Iterator[Path]:
    """The generations of a role and identity whose files are as they were written, newest first."""
    for path in reversed(generations(folder)):
        try:
            state = state_of(path)
            if state["role"] == role and state.get("identity") == identity:
                state_of(path, verify=True)
                yield path
        except FivegateError:  # torn, changed or of another format: the one before it serves
            continue
