"""Error attribution: which part of the user's code failed inside a call of ours, at which line, and what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.errors import FivegateError, UserError, fault
from pipeline.import_guard import IMPORT_ROOT, NAMES

_TORCH = str(Path(torch.__file__).parent)
_PACKAGES = tuple(f"{IMPORT_ROOT / name}/" for name in NAMES)
# Bundled models and augmentations count as the user's code: a config names them as it would name the user's own, and
# their lines tell what is wrong. Every other frame of ours stands between the caller and that code. The rule names the
# exceptions, so that a package that is moved or added stays covered.
BUNDLED = (f"{IMPORT_ROOT / 'pipeline' / 'models'}/", str(IMPORT_ROOT / "pipeline" / "data" / "augmentations.py"))
# The backward pass and the optimizer step may call torch's C++ directly: no frame of torch's Python shows them.
BACKWARD = str(IMPORT_ROOT / "pipeline" / "engine" / "backward.py")
STEPPER = str(IMPORT_ROOT / "pipeline" / "engine" / "stepper.py")
# Messages of the allocators of the CPU and of Apple's GPUs; CUDA has an exception class of its own.
_ALLOCATOR_MESSAGES = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "out of memory")

NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")
_COMPILERS = ("torch._dynamo.", "torch._inductor.")


class HasStep(Protocol):
    """A task, as far as errors are concerned: `step` is the user's own training step, or None."""

    @property
    def step(self) -> object | None: ...


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _ALLOCATOR_MESSAGES)


def is_internal(path: str) -> bool:
    """Whether a source file is Fivegate's own code and never the cause of a user's error."""
    return path.startswith(_PACKAGES) and not path.startswith(BUNDLED)


def is_users_code(path: str) -> bool:
    """Whether a source file is neither torch's nor Fivegate's own."""
    return not path.startswith((_TORCH, "<")) and not is_internal(path)


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Frames and line numbers from the place where the error was caught to the place where it was raised."""
    return list(traceback.walk_tb(error.__traceback__))


def _format_place(error: BaseException) -> str:
    """The deepest line that is neither torch's nor ours, else the innermost module, else nothing."""
    frames = _frames(error)
    for frame, line in reversed(frames):
        if is_users_code(path := frame.f_code.co_filename):
            return f" at {path}:{line}"
    for frame, _ in reversed(frames):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not list(module.children()):
            return f" in {module!r}"
    return ""


def _user_error(name: str, error: BaseException, what: str = "fails") -> UserError:
    """Return one message with the part, the user's line and the text, or with the remedy for errors of a known kind."""
    text = " ".join(str(error).split()) or "no message"
    if out_of_memory(error):
        size = re.search(r"allocate ([\d.]+ ?\w+)", text)
        do = "free some, take a smaller model, or another trainer.accelerator"
        return UserError(fault(name, "needs more memory than there is", got=size[1] if size else text, do=do))
    if operation := NO_KERNEL.search(text):
        what = f"{operation[1]}{_format_place(error)} has no deterministic kernel"
        expected, do = "warn, which lets it vary, or another operation", "trainer.deterministic=warn"
        return UserError(fault("trainer.deterministic", what, got="true", expected=expected, do=do))
    if any(kind.__module__.startswith(_COMPILERS) for kind in type(error).__mro__):
        reason = re.split(r" Set TORCHDYNAMO_VERBOSE| from user code:", text)[0]
        do = "trainer.compile=false" + (", or install a C++ compiler (g++)" if "compiler found" in text else "")
        return UserError(fault("trainer.compile", f"the compiler fails ({type(error).__name__}: {reason})", do=do))
    return UserError(fault(name, f"{what}{_format_place(error)} ({type(error).__name__}: {text})"))


@contextmanager
def attributed_to(name: str) -> Iterator[None]:
    """Turn an exception inside the block into one UserError that names the part, the user's line and the text."""
    try:
        yield
    except FivegateError:
        raise
    except Exception as error:
        raise _user_error(name, error) from error


def _failed_part(error: Exception, model: nn.Module, custom_step: bool) -> tuple[str, str] | None:
    """The part that failed and the verb of the message; None for an observer's own error.

    The outermost frame that belongs to a part decides: a loss that calls the model in its backward pass is the loss.
    """
    frames = _frames(error)[1:]
    owners = [frame.f_locals.get("self") for frame, _ in frames]
    loss = "task.step" if custom_step else "loss"
    if custom_step and any(owner is model for owner in owners):
        return "model", "fails"
    for (frame, _), owner in zip(frames, owners, strict=True):
        path = frame.f_code.co_filename
        if owner is model or getattr(owner, "_orig_mod", None) is model:
            return "model", "fails"
        if isinstance(owner, Optimizer):
            return "optimizer", "fails"
        if isinstance(owner, nn.Module) or path.startswith(f"{_TORCH}/nn/functional"):
            return loss, "fails"
        if path.startswith((f"{_TORCH}/_tensor", f"{_TORCH}/autograd")) or path == BACKWARD:
            return "model or loss", "fails in the backward pass"
        if hasattr(owner, "before_update"):
            return None
        if not is_internal(path):
            return loss, "fails"
    return None


def attributed(error: Exception, model: nn.Module, task: HasStep | None = None) -> Exception:
    """Return the error of a training step as the user should see it; ours and an observer's are returned unchanged."""
    if isinstance(error, FivegateError):
        return error
    part = _failed_part(error, model, task is not None and task.step is not None)
    return _user_error(part[0], error, part[1]) if part else error


def in_optimizer(error: BaseException) -> bool:
    """Whether the error was raised while the optimizer moved the weights."""
    paths = [frame.f_code.co_filename for frame, _ in _frames(error)]
    return any(path.startswith(f"{_TORCH}/optim") or path == STEPPER for path in paths)
