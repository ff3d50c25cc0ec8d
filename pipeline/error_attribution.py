"""Error attribution: which part of the user's code failed inside a call of ours, at which line, and what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.errors import FivegateError, UserError, fault

_TORCH = str(Path(torch.__file__).parent)
_PIPELINE = Path(__file__).parent
_BACKWARD = str(_PIPELINE / "engine" / "backward.py")
# Frames of these packages stand between the caller and the user's code and are never the culprit.
_OURS = (
    __file__,
    *(f"{_PIPELINE / package}/" for package in ("batching", "building", "engine", "evaluation", "preprocess")),
)
# What the allocators of the CPU and of Apple's cards say; CUDA has an exception class of its own.
_ALLOCATOR_MESSAGES = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "out of memory")

NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")
_COMPILERS = ("torch._dynamo.", "torch._inductor.")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _ALLOCATOR_MESSAGES)


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    return list(traceback.walk_tb(error.__traceback__))


def _place(error: BaseException) -> str:
    """Where it failed: the deepest line that is neither torch's nor the engine's, else the innermost module."""
    frames = _frames(error)
    for frame, line in reversed(frames):
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, *_OURS, "<")):
            return f" at {path}:{line}"
    for frame, _ in reversed(frames):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not list(module.children()):
            return f" in {module!r}"
    return ""


def _user_error(name: str, error: BaseException, what: str = "fails") -> UserError:
    """One message that names the part, the user's line and the text, or what is known of errors of this kind."""
    text = " ".join(str(error).split()) or "no message"
    if out_of_memory(error):
        asked = re.search(r"allocate ([\d.]+ ?\w+)", text)
        do = "free some, take a smaller model, or another trainer.accelerator"
        return UserError(fault(name, "needs more memory than there is", got=asked[1] if asked else text, do=do))
    if found := NO_KERNEL.search(text):
        what = f"{found[1]}{_place(error)} has no deterministic kernel"
        expected, do = "warn, which lets it vary, or another operation", "trainer.deterministic=warn"
        return UserError(fault("trainer.deterministic", what, got="true", expected=expected, do=do))
    if any(kind.__module__.startswith(_COMPILERS) for kind in type(error).__mro__):
        said = re.split(r" Set TORCHDYNAMO_VERBOSE| from user code:", text)[0]
        do = "trainer.compile=false" + (", or install a C++ compiler (g++)" if "compiler found" in text else "")
        return UserError(fault("trainer.compile", f"the compiler fails ({type(error).__name__}: {said})", do=do))
    return UserError(fault(name, f"{what}{_place(error)} ({type(error).__name__}: {text})"))


@contextmanager
def attributed_to(name: str) -> Iterator[None]:
    """An exception inside the block becomes one UserError that names the part, the user's line and the text."""
    try:
        yield
    except FivegateError:
        raise
    except Exception as error:
        raise _user_error(name, error) from error


def _part(error: Exception, model: nn.Module, task: Any) -> tuple[str, str] | None:
    """Which part failed and how it is said; None for an observer's own error."""
    frames = _frames(error)[1:]
    owners = [frame.f_locals.get("self") for frame, _ in frames]
    step = getattr(task, "step", None) is not None
    if step and any(owner is model for owner in owners):
        return "model", "fails"
    for (frame, _), owner in zip(frames, owners, strict=True):
        path = frame.f_code.co_filename
        if owner is model or getattr(owner, "_orig_mod", None) is model:
            return "model", "fails"
        if isinstance(owner, Optimizer):
            return "optimizer", "fails"
        if isinstance(owner, nn.Module) or path.startswith(f"{_TORCH}/nn/functional"):
            return "task.step" if step else "loss", "fails"
        if path.startswith((f"{_TORCH}/_tensor", f"{_TORCH}/autograd")) or path == _BACKWARD:
            return "model or loss", "fails in the backward pass"
        if path.startswith(_OURS):
            continue
        if hasattr(owner, "before_update"):
            return None
        return "task.step" if step else "loss", "fails"
    return None


def attributed(error: Exception, model: nn.Module, task: Any = None) -> Exception:
    """The error of a training step as the user should see it; ours and an observer's are returned unchanged."""
    if isinstance(error, FivegateError):
        return error
    part = _part(error, model, task)
    return _user_error(part[0], error, part[1]) if part else error


def in_optimizer(error: BaseException) -> bool:
    """Whether the error was raised while the optimizer moved the weights."""
    paths = [frame.f_code.co_filename for frame, _ in _frames(error)]
    return any(path.startswith(f"{_TORCH}/optim") or path == str(_PIPELINE / "engine" / "stepper.py") for path in paths)
