"""Weights on disk: safetensors and JSON in a generation folder that is committed by one rename."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import Refused, UserError, fault
from pipeline.record import files

WEIGHTS, STATE = "weights.safetensors", "state.json"


def tensors_of(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict's tensors: contiguous CPU copies, so that later training leaves them alone."""
    return {n: t.detach().to("cpu", copy=True).contiguous() for n, t in state_dict.items() if isinstance(t, Tensor)}


def weights_digest(state_dict: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over sorted (name, dtype, shape, bytes): the identity of weights, whatever file holds them."""
    sha = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        if not isinstance(tensor, Tensor):
            continue
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return sha.hexdigest()


def generations(folder: Path) -> list[Path]:
    """The committed generation folders, oldest first."""
    found = [p for p in folder.glob("checkpoints/*") if p.name.isdigit() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name))


def save(folder: Path, weights: Mapping[str, Any], state: Mapping[str, Any]) -> Path:
    """A new generation `<folder>/checkpoints/<n>` holds the weights and the state; its path is returned.

    `state.json` carries the weights' digest. A crash leaves the generation whole or absent.
    """
    from safetensors.torch import save as to_bytes

    tensors = tensors_of(weights)
    older = generations(folder)
    final = folder / "checkpoints" / str(int(older[-1].name) + 1 if older else 1)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    files.write_bytes(temporary / WEIGHTS, to_bytes(tensors))
    files.write_json(temporary / STATE, {**state, "weights_digest": weights_digest(tensors), "schema": 1})
    files.commit_folder(temporary, final)
    return final


def read_tensors(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError for a missing file and for any other format."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(fault(where, "there is no such file", got=str(path))) from None
    except (SafetensorError, OSError) as error:
        what = f"is no safetensors file ({str(error).splitlines()[0]})"
        raise UserError(
            fault(where, what, got=str(path), expected="safetensors; foreign pickles are not read")
        ) from None


def load(generation: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state of a generation folder.

    Raises UserError when a file is missing, Refused when the weights are not those whose digest was recorded.
    """
    tensors = read_tensors(generation / WEIGHTS, str(generation))
    try:
        state = json.loads((generation / STATE).read_text())
        recorded = state["weights_digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(fault(str(generation / STATE), "cannot be read as the state of a checkpoint")) from None
    if weights_digest(tensors) != recorded:
        raise Refused(fault(str(generation / WEIGHTS), "is not what was saved", expected=f"digest {recorded[:12]}"))
    return tensors, state
