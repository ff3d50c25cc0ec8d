"""Every module that Python imports from a folder of trusted code is found and compared here.

The folder is not on `sys.path`, where a library that looks whether some module is installed would find a file of that
name beside the user's package. Only trusted packages, and what trusted code imports, are found in it. The bytes that
are compared are those that run: cached bytecode in `__pycache__`, which may come from another user and need not
fit its source, is neither read nor written.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, all_suffixes
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FrameType, ModuleType

from pipeline.errors import Refused, fault
from pipeline.run_store.files import sha256
from pipeline.trust.source_files import OURS


@dataclass
class TrustedFolder:
    """A folder from which trusted packages are imported.

    `digests` are the SHA-256 of its trusted files, by their path below it. `packages` are the granted names; in a
    folder of installed packages (`installed`) only they are looked at. `renewal` is the command that trusts a folder
    anew of which a file is not as it was trusted.
    """

    path: str
    packages: frozenset[str]
    digests: Mapping[str, str]
    renewal: str
    installed: bool
    aliases: set[str] = field(default_factory=set)  # the same folder as `sys.path` names it, through links
    noted: dict[str, str] = field(default_factory=dict)  # compiled modules that were imported while `GUARD.noting`

    def holds(self, top: str) -> bool:
        """Whether a module of this name could be imported from the folder."""
        if self.installed and top not in self.packages:
            return False
        candidates = (top, *(f"{top}{ending}" for ending in all_suffixes()))
        return any(os.path.exists(os.path.join(self.path, name)) for name in candidates) or top in self.packages

    def find(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        """The spec that Python finds if it looks in this folder last; in the folder alone for a trusted package."""
        elsewhere = PathFinder.find_spec(fullname, path, target)
        if path is not None or (_is_regular(elsewhere) and fullname not in self.packages):
            return elsewhere
        here = PathFinder.find_spec(fullname, [self.path], target)
        return here if _is_regular(here) or elsewhere is None else elsewhere

    def is_below(self, spec: ModuleSpec) -> bool:
        """Whether the first folder of a package without `__init__.py` is in this folder."""
        first = next(iter(spec.submodule_search_locations or ()), "")
        return os.path.dirname(os.path.realpath(first)) == self.path

    def trusts(self, top: str, relative: str) -> bool:
        """Whether the module of that name, whose file is at this path, may be imported by anybody."""
        return top in self.packages or relative in self.digests

    def place_of(self, fullname: str, spec: ModuleSpec, path: Sequence[str] | None) -> str | None:
        """The path of the module's file below the folder; None for a module from elsewhere."""
        if spec.origin is None or not spec.has_location:
            return None
        origin = os.path.abspath(spec.origin)
        if path is None:
            depth = 2 if spec.submodule_search_locations is not None else 1
            folder = origin
            for _ in range(depth):
                folder = os.path.dirname(folder)
            if os.path.realpath(folder) != self.path:
                return None
            self.aliases.add(folder)
            return os.path.relpath(origin, folder)
        top = fullname.partition(".")[0]
        around = (
            base for base in (self.path, *sorted(self.aliases)) if origin.startswith(os.path.join(base, top) + os.sep)
        )
        return next((os.path.relpath(origin, base) for base in around), None)

    def check(self, relative: str, origin: str, digest: str) -> None:
        """Raise Refused for a file that is not among the trusted ones, or has other bytes."""
        trusted = self.digests.get(relative)
        file = Path(origin)
        if not os.path.realpath(origin).startswith(self.path + os.sep):
            raise self._refusal(file, f"is a link out of {self.path}")
        if origin.endswith(".pyc"):
            raise self._refusal(file, "is bytecode without its source")
        if trusted is None:
            if GUARD.noting and relative.partition(os.sep)[0].partition(".")[0] not in self.packages:
                self.noted[relative] = digest
                return
            raise self._refusal(file, "did not exist when its package was trusted")
        if digest != trusted:
            raise self._refusal(file, "has changed since it was trusted")

    def _refusal(self, file: Path, why: str) -> Refused:
        return Refused(fault(str(file), f"{why}, and the run imports it now", do=f"read it, then {self.renewal}"))


class VerifiedLoader(SourceFileLoader):
    """Compiles a source file whose bytes are those that were trusted; it does not use cached bytecode."""

    def __init__(self, fullname: str, path: str, folder: TrustedFolder, relative: str) -> None:
        super().__init__(fullname, path)
        self.folder, self.relative, self.digest = folder, relative, ""

    def get_code(self, fullname: str) -> CodeType | None:
        source = self.get_data(self.path)
        self.digest = hashlib.sha256(source).hexdigest()
        self.folder.check(self.relative, self.path, self.digest)
        code: CodeType | None = self.source_to_code(source, self.path)
        return code


class GuardedEntry(str):
    """An entry of `sys.path` that can be no folder, but guards processes which Python starts anew.

    `multiprocessing` sends `sys.path` to each process that it does not fork, before anything else.
    """

    def __reduce__(self) -> tuple[Callable[..., GuardedEntry], tuple[list[TrustedFolder], bool]]:
        folders = [replace(folder, digests={**folder.digests, **folder.noted}) for folder in GUARD.folders.values()]
        return _guard_again, (folders, GUARD.noting)


ENTRY = GuardedEntry(os.path.join(os.path.abspath(__file__), "trusted"))  # nothing lies below a file


def _guard_again(folders: Iterable[TrustedFolder], noting: bool) -> GuardedEntry:
    for folder in folders:
        GUARD.guard(folder)
    GUARD.noting = noting
    return ENTRY


class SourceGuard(MetaPathFinder):
    """Finds the modules of trusted folders before Python's own finders do.

    While `noting`, trusted code may import modules next to it although nothing is known about them: planning records
    them afterwards. A library that looks whether a module is installed does not find those.
    """

    def __init__(self) -> None:
        self.folders: dict[str, TrustedFolder] = {}
        self.noting = False

    def guard(self, folder: TrustedFolder) -> None:
        """Guard a folder from now on, and look in it before others; what was known about it before is replaced."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        if ENTRY not in sys.path:
            sys.path.append(ENTRY)
        self.folders = {folder.path: folder, **{p: other for p, other in self.folders.items() if p != folder.path}}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of a trusted folder, or None.

        Raises Refused for compiled code without a grant, and ModuleNotFoundError where code that is not trusted
        imports a module next to a trusted package.
        """
        top = fullname.partition(".")[0]
        if top in OURS or top in sys.stdlib_module_names:
            return None
        untrusted = ""
        for folder in self.folders.values():
            if not folder.holds(top):
                continue
            spec = folder.find(fullname, path, target)
            if spec is None:
                continue
            if spec.loader is None and path is None:  # a folder without __init__.py
                if folder.is_below(spec) and (top in folder.packages or self._is_asked_by_trusted_code()):
                    return spec
                continue
            relative = folder.place_of(fullname, spec, path)
            if relative is None or spec.origin is None:
                continue
            if path is None and not folder.trusts(top, relative) and not self._is_asked_by_trusted_code():
                untrusted = untrusted or _untrusted(spec.origin, [*folder.packages, top])
                continue
            if type(spec.loader) is SourceFileLoader and not folder.installed:
                loader = VerifiedLoader(fullname, spec.origin, folder, relative)
                locations = spec.submodule_search_locations
                return spec_from_file_location(
                    fullname, spec.origin, loader=loader, submodule_search_locations=locations
                )
            folder.check(relative, spec.origin, sha256(Path(spec.origin)))
            return spec
        if untrusted and not _is_probe():
            raise ModuleNotFoundError(untrusted, name=fullname)
        return None

    def _is_asked_by_trusted_code(self) -> bool:
        """Whether a trusted module, or the user's own program, runs the import, and not a library.

        It may do so by a function of Python's.
        """
        frame = next((frame for frame in _callers() if not _is_of_python(frame)), None)
        if frame is None or _top(frame) == "__main__":
            return frame is not None and frame.f_code.co_filename != "<string>"  # multiprocessing starts by `python -c`
        packages = frozenset[str]().union(*(folder.packages for folder in self.folders.values()))
        return isinstance(frame.f_globals.get("__loader__"), VerifiedLoader) or _top(frame) in packages

    def noted(self, root: str) -> dict[str, str]:
        """The files that were imported from a folder although nobody had trusted them, with their digests."""
        folder = self.folders[root]
        loaders = [getattr(module, "__loader__", None) for module in list(sys.modules.values())]
        verified = [loader for loader in loaders if isinstance(loader, VerifiedLoader) and loader.folder.path == root]
        noted = folder.noted | {loader.relative: loader.digest for loader in verified}
        return {name: value for name, value in sorted(noted.items()) if name not in folder.digests}


def _is_regular(spec: ModuleSpec | None) -> bool:
    """Whether a spec is that of a file, and not of a folder without `__init__.py`, which comes after all files."""
    return spec is not None and spec.loader is not None and spec.origin is not None


def _callers() -> Iterator[FrameType]:
    """The frames above the finder, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is not globals():
            yield frame
        frame = frame.f_back


def _top(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _is_of_python(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith("<frozen ") or _top(frame) in sys.stdlib_module_names


def _is_probe() -> bool:
    """Whether code only looks for a module, as `importlib.util.find_spec` does, and does not import it."""
    for frame in _callers():
        if not frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        if frame.f_code.co_name == "_find_and_load":
            return False
    return True


def _untrusted(file: str, packages: Iterable[str]) -> str:
    what = "lies next to a trusted package and is not trusted itself"
    do = f"move it away, or if your package needs it: python -m pipeline ... 'trust=[{','.join(sorted(packages))}]'"
    return fault(file, what, do=do)


GUARD = SourceGuard()
