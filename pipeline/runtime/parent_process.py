"""End a child process when its parent has ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def die_with_parent() -> None:
    """Kill this process when its parent ends: by the kernel on Linux, elsewhere by a thread that checks twice a second.

    The kernel's way is preferred because it starts no thread, and processes that read data are forked later. The
    kernel watches the parent's thread that started this process; for a worker that is the executor's, which waits.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        import ctypes

        set_by_kernel = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
        if os.getppid() != parent:  # the parent ended before the kernel knew of the request
            os.kill(os.getpid(), signal.SIGKILL)
        if set_by_kernel:
            return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
