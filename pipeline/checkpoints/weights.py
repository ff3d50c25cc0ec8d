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


def read_foreign_weights(path: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors of a file of weights: safetensors, or what `torch.save` wrote, read as tensors only.

    Of a checkpoint that holds more, the weights are what its key `state_dict`, `model_state_dict` or `model` names.
    Raises UserError for a missing file, and for one that holds objects of other classes: to load these runs code.
    """
    if not path.is_file() or path.suffix not in (".pt", ".pth", ".ckpt", ".bin"):
        return read_tensors(path, where)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        reason = " ".join(str(error).split(". ")[0].split())[:200]
        expected = "tensors, which torch.load(PATH, weights_only=True) reads"
        do = f"if you trust it, save the weights alone: torch.save(model.state_dict(), '{path.name}')"
        what = f"cannot be read without running its code ({type(error).__name__}: {reason})"
        raise UserError(fault(where, what, got=str(path), expected=expected, do=do)) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
            break
    tensors = {str(n): t for n, t in saved.items() if isinstance(t, Tensor)} if isinstance(saved, dict) else {}
    if not tensors:
        expected = "a state dict, or a checkpoint with one under state_dict, model_state_dict or model"
        raise UserError(fault(where, "holds no weights by name", got=str(path), expected=expected))
    return tensors


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
