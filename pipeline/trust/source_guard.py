"""Every module that Python imports from a folder of trusted code is compared with what was trusted.

The bytes that are compared are those that run: cached bytecode in `__pycache__`, which may come with somebody's folder
and need not fit its source, is neither read nor written.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from pipeline.errors import FivegateError
from pipeline.run_store.files import sha256
from pipeline.trust.source_files import OURS, SOURCE

Refuse = Callable[[Path, str], FivegateError]  # (file, what is wrong with it)


@dataclass
class TrustedFolder:
    """A folder from which trusted packages are imported.

    `digests` are the SHA-256 of its trusted files, by their path below it. `packages` are the granted names; in a
    folder of installed packages (`installed`) only they are looked at. `refuse(file, why)` is the error for a file that
    is not as it was trusted.
    """

    path: str
    packages: frozenset[str]
    digests: Mapping[str, str]
    refuse: Refuse
    installed: bool
    aliases: set[str] = field(default_factory=set)  # the same folder as `sys.path` names it, through links
    noted: dict[str, str] = field(default_factory=dict)  # compiled modules that were imported while `GUARD.noting`

    def holds(self, top: str) -> bool:
        """Whether a module of this name could be imported from the folder."""
        if self.installed and top not in self.packages:
            return False
        candidates = (top, *(f"{top}{ending}" for ending in (*SOURCE, ".pyc")))
        return any(os.path.exists(os.path.join(self.path, name)) for name in candidates) or top in self.packages

    def place_of(self, fullname: str, spec: ModuleSpec, path: Sequence[str] | None) -> str | None:
        """The path of the module's file below the folder; None for a module from elsewhere."""
        assert spec.origin is not None
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
        """Raise the error of `refuse` for a file that is not among the trusted ones, or has other bytes."""
        trusted = self.digests.get(relative)
        file = Path(origin)
        if not os.path.realpath(origin).startswith(self.path + os.sep):
            raise self.refuse(file, f"is a link out of {self.path}")
        if origin.endswith(".pyc"):
            raise self.refuse(file, "is bytecode without its source")
        if trusted is None:
            if GUARD.noting and relative.partition(os.sep)[0].partition(".")[0] not in self.packages:
                self.noted[relative] = digest
                return
            raise self.refuse(file, "did not exist when its package was trusted")
        if digest != trusted:
            raise self.refuse(file, "has changed since it was trusted")


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


class SourceGuard(MetaPathFinder):
    """Finds the modules of trusted folders before Python's own finders do.

    While `noting`, modules next to the trusted packages may be imported although nothing is known about them: planning
    records them afterwards.
    """

    def __init__(self) -> None:
        self.folders: dict[str, TrustedFolder] = {}
        self.noting = False

    def guard(self, folder: TrustedFolder) -> None:
        """Guard a folder from now on; it replaces what was known about the folder before."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        self.folders[folder.path] = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of a trusted folder, or None. Raises the folder's error for compiled code."""
        top = fullname.partition(".")[0]
        if top in OURS or top in sys.stdlib_module_names:
            return None
        for folder in self.folders.values():
            if not folder.holds(top):
                continue
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is None or not spec.origin or not spec.has_location:
                return None
            relative = folder.place_of(fullname, spec, path)
            if relative is None:
                continue
            if type(spec.loader) is SourceFileLoader and not folder.installed:
                loader = VerifiedLoader(fullname, spec.origin, folder, relative)
                locations = spec.submodule_search_locations
                return spec_from_file_location(
                    fullname, spec.origin, loader=loader, submodule_search_locations=locations
                )
            folder.check(relative, spec.origin, sha256(Path(spec.origin)))
            return spec
        return None

    def noted(self, root: str) -> dict[str, str]:
        """The files that were imported from a folder although nobody had trusted them, with their digests."""
        folder = self.folders[root]
        loaders = [getattr(module, "__loader__", None) for module in list(sys.modules.values())]
        verified = [loader for loader in loaders if isinstance(loader, VerifiedLoader) and loader.folder.path == root]
        noted = folder.noted | {loader.relative: loader.digest for loader in verified}
        return {name: value for name, value in sorted(noted.items()) if name not in folder.digests}


GUARD = SourceGuard()
