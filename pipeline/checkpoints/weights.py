"""Weights as tensors: copies of them, their digest, and reading them from safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError, fault


def tensors_of(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Return contiguous CPU copies of a state dict's tensors, which later training does not change."""
    return {n: t.detach().to("cpu", copy=True).contiguous() for n, t in state_dict.items() if isinstance(t, Tensor)}


def weights_digest(state_dict: Mapping[str, object]) -> str:
    """Return the SHA-256 (hex) over sorted (name, dtype, shape, bytes); it does not depend on a file format."""
    sha = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        if not isinstance(tensor, Tensor):
            continue
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return sha.hexdigest()


def read_tensors(path: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises UserError for a missing file and for any other format."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(fault(where, "there is no such file", got=str(path))) from None
    except (SafetensorError, OSError) as error:
        what = f"is not a safetensors file ({str(error).splitlines()[0]})"
        raise UserError(
            fault(where, what, got=str(path), expected="safetensors; foreign pickles are not read")
        ) from None
