"""Error attribution: which part of the user's code failed inside a call of ours, at which line, and what to do."""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import FivegateError, UserCodeError, UserCodeExit, UserError, fault
from pipeline.import_guard import IMPORT_ROOT, NAMES
from pipeline.runtime.interrupt import is_stop_request

if TYPE_CHECKING:
    from torch import nn

LONGEST_SEARCHED = 20_000  # characters of an error's text in which a known message is looked for
LONGEST_SHOWN = 1000  # and that a message of ours quotes
_TORCH_MODULE = importlib.util.find_spec("torch")  # metrics need no torch, and `drift` does without it
_TORCH = str(Path(_TORCH_MODULE.origin).parent) if _TORCH_MODULE and _TORCH_MODULE.origin else "<torch>"
_STDLIB = f"{sysconfig.get_paths()['stdlib']}/"
_INSTALLED = re.compile(r"^.*/(?:site|dist)-packages/[^/]+")  # up to the name of the installed package
_PACKAGES = tuple(f"{IMPORT_ROOT / name}/" for name in NAMES)
# Bundled models and augmentations count as the user's code: a config names them as it would name the user's own, and
# their lines tell what is wrong. Every other frame of ours stands between the caller and that code. The rule names the
# exceptions, so that a package that is moved or added stays covered.
BUNDLED = (f"{IMPORT_ROOT / 'pipeline' / 'models'}/", str(IMPORT_ROOT / "pipeline" / "data" / "augmentations.py"))
# The backward pass and the optimizer step may call torch's C++ directly: no frame of torch's Python shows them.
BACKWARD = str(IMPORT_ROOT / "pipeline" / "runtime" / "backward.py")
STEPPER = str(IMPORT_ROOT / "pipeline" / "engine" / "stepper.py")
# Messages of the allocators of the CPU and of Apple's GPUs; CUDA has an exception class of its own.
_ALLOCATOR_MESSAGES = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "out of memory")

NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")
# What torch says of numbers of the wrong type, and what to write.
_NEEDS_INTEGERS = re.compile(
    r"argument #1 'indices' to have .* Long, Int|used as indices must be long|to index tensor of type"
    r"|Expected dtype int32/int64 for index"
)
_REMEDIES = (
    (
        _NEEDS_INTEGERS,
        "the ids are floats, as every table is: write x[:, columns].long() in forward, or give them as a part of "
        "their own, X = {'ids': ids, 'x': values}",
    ),
    (
        re.compile(r"same dtype, but got (Long|Int|Bool)|Input type \((long|int|bool)|input dtype \(torch\.(int|bool)"),
        "the inputs are integers: write x.float() in forward, or preprocess.integers=float32",
    ),
)
_COMPILERS = ("torch._dynamo.", "torch._inductor.")


class HasStep(Protocol):
    """A task, as far as errors are concerned: `step` is the user's own training step, or None."""

    @property
    def step(self) -> object | None: ...


def is_users_fault(error: BaseException) -> bool:
    """Whether an exception that leaves code of the user's is a fault of that code, whatever its class.

    It is none if it is one of our own errors, asks the process to stop, or closes a generator.
    """
    if isinstance(error, FivegateError) or is_stop_request(error):
        return False
    return not isinstance(error, GeneratorExit) or bool(place_of(error))


def reraise_stop(error: BaseException) -> None:
    """Raise an exception again that only asks the process or a generator to stop, where every other one is handled."""
    if not isinstance(error, Exception) and not is_users_fault(error):
        raise error


def users_error_class(error: BaseException) -> type[UserCodeError]:
    """The class of the message for an exception of the user's code, which decides the exit code.

    SystemExit, KeyboardInterrupt, GeneratorExit and what else is no `Exception`, and RecursionError, are faults of
    the program, 1; an ordinary exception is wrong input, 2.
    """
    ordinary = isinstance(error, Exception) and not isinstance(error, RecursionError)
    return UserCodeError if ordinary else UserCodeExit


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted, on any device."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in message_of(error) for message in _ALLOCATOR_MESSAGES)


def is_internal(path: str) -> bool:
    """Whether a source file is Fivegate's own code and never the cause of a user's error."""
    return path.startswith(_PACKAGES) and not path.startswith(BUNDLED)


def is_users_code(path: str) -> bool:
    """Whether a source file is neither torch's, nor Python's, nor Fivegate's own."""
    if path.startswith(BUNDLED):
        return True
    installed = _INSTALLED.match(path) is not None
    return not path.startswith((_TORCH, "<")) and not is_internal(path) and (installed or not path.startswith(_STDLIB))


def needs_integers(error: BaseException) -> bool:
    """Whether an operation such as an embedding was given floats where it takes ids."""
    return bool(_NEEDS_INTEGERS.search(message_of(error)))


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Frames and line numbers from the place where the error was caught to the place where it was raised."""
    return list(traceback.walk_tb(error.__traceback__))


def _own_frame(error: BaseException) -> tuple[FrameType, int] | None:
    """The deepest frame of the user's own files; None if no such frame is involved.

    A frame of a library that the user's code calls says less than the line that calls it.
    """
    frames = [pair for pair in _frames(error) if is_users_code(pair[0].f_code.co_filename)]
    own = [pair for pair in frames if _is_own(pair[0].f_code.co_filename)]
    return own[-1] if own else None


def _installed_frame(error: BaseException) -> tuple[FrameType, int] | None:
    """The deepest frame of the first installed package that was called, which may be the user's; None without one."""
    frames = [pair for pair in _frames(error) if is_users_code(pair[0].f_code.co_filename)]
    package = _INSTALLED.match(frames[0][0].f_code.co_filename) if frames else None
    if package is None:
        return None
    return [pair for pair in frames if pair[0].f_code.co_filename.startswith(package[0])][-1]


def _is_own(path: str) -> bool:
    return path.startswith(BUNDLED) or not _INSTALLED.match(path)


def place_of_frame(frame: FrameType | None) -> str:
    """The line of the user's own files that a thread is at, as `file:line`; empty if it is in none."""
    while frame is not None:
        path = frame.f_code.co_filename
        if is_users_code(path) and _is_own(path):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def place_of(error: BaseException) -> str:
    """The line of the user's own files at which an error was raised, as `file:line`; empty if none was involved."""
    if isinstance(error, SyntaxError) and error.filename and is_users_code(error.filename):
        return f"{error.filename}:{error.lineno}"
    if frame := _own_frame(error):
        return f"{frame[0].f_code.co_filename}:{frame[1]}"
    return place_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else ""


def message_of(error: BaseException) -> str:
    """The text of an error, cut after `LONGEST_SEARCHED` characters; empty if it cannot be read."""
    try:
        return str(error)[:LONGEST_SEARCHED]
    except BaseException as failure:  # `__str__` may be the user's own
        reraise_stop(failure)
        return ""


def text_of(error: BaseException) -> str:
    """The class and the text of an error in one line, and the first error of a group."""
    text = " ".join(message_of(error).split()) or "no message"
    text = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
    first = f"; the first: {text_of(error.exceptions[0])}" if isinstance(error, BaseExceptionGroup) else ""
    return f"{type(error).__name__}: {text}{first}"


def _format_place(error: BaseException) -> str:
    """The user's line, else that of an installed package, else the innermost module, else nothing."""
    if place := place_of(error):
        return f" at {place}"
    if installed := _installed_frame(error):
        return f" at {installed[0].f_code.co_filename}:{installed[1]}"
    if "torch" not in sys.modules:
        return ""
    from torch import nn

    for frame, _ in reversed(_frames(error)):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not list(module.children()):
            return f" in {_shown(module)}"
    return ""


def _shown(module: nn.Module) -> str:
    """The module as it prints itself, or its class where the user's own `extra_repr` fails."""
    try:
        return repr(module)
    except BaseException as failure:
        reraise_stop(failure)
        return type(module).__name__


def user_code_error(name: str, error: BaseException, what: str = "fails") -> UserError:
    """Return one message with the part, the user's line and the text, or with the remedy for errors of a known kind."""
    text = " ".join(message_of(error).split()) or "no message"
    if out_of_memory(error):
        size = re.search(r"allocate ([\d.]+ ?\w+)", text)
        do = "free some, take a smaller model, or another trainer.accelerator"
        place = place_of(error)
        what, got = f"needs more memory than there is{place and f' at {place}'}", size[1] if size else text_of(error)
        return UserCodeError(fault(name, what, got=got, do=do), place=place)
    if operation := NO_KERNEL.search(text):
        what = f"{operation[1]}{_format_place(error)} has no deterministic kernel"
        expected, do = "warn, which lets it vary, or another operation", "trainer.deterministic=warn"
        return UserError(fault("trainer.deterministic", what, got="true", expected=expected, do=do))
    if any(kind.__module__.startswith(_COMPILERS) for kind in type(error).__mro__):
        reason = re.split(r" Set TORCHDYNAMO_VERBOSE| from user code:", text)[0][:LONGEST_SHOWN]
        do = "trainer.compile=false" + (", or install a C++ compiler (g++)" if "compiler found" in text else "")
        return UserError(fault("trainer.compile", f"the compiler fails ({type(error).__name__}: {reason})", do=do))
    remedy = next((do for pattern, do in _REMEDIES if pattern.search(text)), None)
    message = fault(name, f"{what}{_format_place(error)} ({text_of(error)})", do=remedy)
    return users_error_class(error)(message, place=place_of(error))


@contextmanager
def attributed_to(name: str, what: str = "fails") -> Iterator[None]:
    """Turn an exception inside the block into one UserError that names the part, the user's line and the text."""
    try:
        yield
    except BaseException as error:  # a user's `sys.exit` must not end the process without a word
        if not is_users_fault(error):
            raise
        raise user_code_error(name, error, what) from error


def unclaimed_error(error: BaseException, what: str = "fails") -> BaseException:
    """Return the error of a whole phase or command as the user should see it, where no part has claimed it before.

    If the user's code raised it, the message names the line and the function. Any other error is ours, and is returned
    unchanged.
    """
    frame = _own_frame(error) if is_users_fault(error) else None
    if frame is None:
        return error
    place = place_of(error)
    message = fault(place, f"{frame[0].f_code.co_qualname} {what} ({text_of(error)})")
    return users_error_class(error)(message, place=place)


def _failed_part(error: BaseException, model: nn.Module, custom_step: bool) -> tuple[str, str] | None:
    """The part that failed and the verb of the message; None for an observer's own error.

    The outermost frame that belongs to a part decides: a loss that calls the model in its backward pass is the loss.
    """
    from torch import nn
    from torch.optim import Optimizer

    frames = _frames(error)[1:]
    owners = [frame.f_locals.get("self") for frame, _ in frames]
    loss = "task.step" if custom_step else "loss"
    if custom_step and any(owner is model for owner in owners):
        return "model", "fails"
    for (frame, _), owner in zip(frames, owners, strict=True):
        path = frame.f_code.co_filename
        if owner is model or getattr(owner, "_orig_mod", None) is model:
            return "model", "fails"
        if isinstance(owner, Optimizer) or path.startswith(f"{_TORCH}/optim/"):  # a scheduler wraps `step`
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


def attributed(error: BaseException, model: nn.Module, task: HasStep | None = None) -> BaseException:
    """Return the error of a training step as the user should see it; ours and an observer's are returned unchanged."""
    if not is_users_fault(error):
        return error
    part = _failed_part(error, model, task is not None and task.step is not None)
    return user_code_error(part[0], error, part[1]) if part else error


@contextmanager
def attributed_step(model: nn.Module, task: HasStep) -> Iterator[None]:
    """Turn an exception of a forward or backward pass inside the block into the error that `attributed` returns."""
    try:
        yield
    except BaseException as error:
        shown = attributed(error, model, task)
        if shown is error:
            raise
        raise shown from error


def in_optimizer(error: BaseException) -> bool:
    """Whether the error was raised while the optimizer moved the weights."""
    paths = [frame.f_code.co_filename for frame, _ in _frames(error)]
    return any(path.startswith(f"{_TORCH}/optim") or path == STEPPER for path in paths)
