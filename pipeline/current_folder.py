"""Neither `python -m pipeline` nor a process that it starts looks for modules in the current folder.

Python puts that folder first. It may be somebody else's: a `typing.py` in it would run in place of Python's own, and a
`dill.py` where a library looks whether dill is installed. This module is the first of ours that is imported, and
imports only what Python has always loaded.
"""

import os
import sys

HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # the folder of our packages


def leave_out_current_folder() -> None:
    """Remove the current folder from the places in which this process, and each that it starts, looks for modules.

    It stays where it holds our own packages, or where `PYTHONPATH` names it. Processes of launchers, loaders and
    executors start as `python -m` or `python -c`, for which `PYTHONSAFEPATH` leaves it out. A package of the user's in
    the current folder is found by `trust=[...]`.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = list(filter(None, entries))
    here = _current_folder()
    if here == HOME and HOME not in sys.path[1:]:
        named.insert(0, HOME)  # a checkout that is not installed: the processes need it, too
    elif here and here not in map(os.path.realpath, named):
        if not sys.flags.safe_path and os.path.realpath(sys.path[0]) == here:
            del sys.path[0]
        if named and "" in entries and here in sys.path:  # an empty entry, as in `$PYTHONPATH:...`, means it, too
            sys.path.remove(here)
    os.environ["PYTHONSAFEPATH"] = "1"
    if named:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)


def require_current_folder() -> None:
    """Raise UserError where there is no current folder: configs, runs and torch's libraries are found from it."""
    from pipeline.errors import UserError, fault

    try:
        os.getcwd()
    except OSError as error:
        do = "cd to a folder that exists, and repeat the command"
        raise UserError(fault("current folder", "was removed or cannot be read", got=error.strerror, do=do)) from error


def _current_folder() -> str:
    """The path without links; empty if the folder was removed, so that nothing can be imported from it."""
    try:
        return os.path.realpath(os.getcwd())
    except OSError:
        return ""
