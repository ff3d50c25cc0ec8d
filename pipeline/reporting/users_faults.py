"""What the user's code raises outside of a phase, or in a thread of its own, is one message with its line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.escaping import visible_lines


@contextmanager
def users_faults_named() -> Iterator[None]:
    """Turn an exception of the user's code outside of a phase, as in `preflight`, into the error that names its line.

    Inside `outside_training`, since only there a Ctrl-C differs from a KeyboardInterrupt that the user's code raises.
    """
    before, threading.excepthook = threading.excepthook, _thread_failed
    try:
        yield
    except BaseException as error:
        if "torch" not in sys.modules:  # no code of the user has run
            raise
        from pipeline.error_attribution import unclaimed_error

        shown = unclaimed_error(error)
        if shown is error:
            raise
        raise shown from error
    finally:
        threading.excepthook = before


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Print one line for an exception that ends a thread of the user's, which stops nothing else."""
    shown: BaseException | None = failure.exc_value
    if shown is not None and "torch" in sys.modules:
        from pipeline.error_attribution import unclaimed_error

        shown = unclaimed_error(shown, "fails in a thread of its own")
    if shown is failure.exc_value:
        threading.__excepthook__(failure)
    else:
        print(visible_lines(str(shown)), file=sys.stderr)
