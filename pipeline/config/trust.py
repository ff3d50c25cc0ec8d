"""Packages of the user: where they are found, which are trusted, and whether their source has changed.

The user trusts a package on the command line, `trust=[my_pkg]`. The grant has a digest of the source and is recorded in
the ledger; later phases and workers use the grant, not the command line.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from pipeline.errors import Refused, UserError, fault
from pipeline.results import digest
from pipeline.run_store.files import sha256
from pipeline.run_store.records import GrantRecord

OURS = frozenset({"pipeline", "phases", "diagnostics", "checklists", "fivegate", "torch"})
SOURCE = (".py", ".so", ".pyd")


def roots(config_dirs: Iterable[Path | str]) -> list[Path]:
    """The folders whose modules a user may name: those next to each `--config-dir`."""
    return list(dict.fromkeys(Path(folder).resolve().parent for folder in config_dirs))


def why_not(package: str) -> str | None:
    """Why a package of that name can never be trusted, or None."""
    top = package.partition(".")[0]
    if top in sys.stdlib_module_names:
        return "is a module of Python itself"
    return "is a package of the pipeline or of torch, which has its own list" if top in OURS else None


def grant(packages: Sequence[str], roots: Sequence[Path] = ()) -> list[GrantRecord]:
    """A grant for each package, found in `roots` or where Python looks. Raises UserError with every fault.

    Nothing is imported. Several names inside one package cover the whole of it.
    """
    granted, faults = [], []
    for package in dict.fromkeys(packages):
        places = _places(package.partition(".")[0], roots)
        if why := why_not(package):
            faults.append(fault("trust", f"{package!r} {why}", do="give your package another name"))
        elif not places:
            faults.append(_not_found(package, roots))
        elif len(places) > 1:
            where = " and in ".join(sorted(str(path.parent) for path in places))
            faults.append(fault("trust", f"{package!r} is found in {where}", do="give your package another name"))
        else:
            root = str(places[0].parent)
            granted.append(GrantRecord(package=package, root=root, digest=source_digest(places[0])))
    if faults:
        raise UserError(*faults)
    return granted


def is_importable(package: str, roots: Sequence[Path] = ()) -> bool:
    """Whether a package of that name is in `roots` or where Python looks."""
    return bool(_places(package.partition(".")[0], roots))


def _places(top: str, roots: Sequence[Path]) -> list[Path]:
    """Every place that the name can be imported from; namespace folders count only where there is no package."""
    specs = [_spec(top, folder) for folder in dict.fromkeys([*map(str, roots), *sys.path])]
    if not any(specs) and not why_not(top):
        specs = [importlib.util.find_spec(top)]
    packages = [spec for spec in specs if spec and spec.origin] or [spec for spec in specs if spec]
    return list(dict.fromkeys(path for spec in packages if (path := _path(spec))))


def _spec(top: str, folder: str) -> ModuleSpec | None:
    return PathFinder.find_spec(top, [folder or os.getcwd()])


def _path(spec: ModuleSpec) -> Path | None:
    """The folder of a package or the file of a module."""
    found = next(iter(spec.submodule_search_locations or ()), spec.origin)
    return Path(found).resolve() if found and Path(found).exists() else None


def _not_found(package: str, roots: Sequence[Path]) -> str:
    expected = f"a package in {', '.join(map(str, roots)) or 'the current folder'}, or an installed one"
    do = "python -m pipeline --config-dir DIR ... trust=[PACKAGE], with the package next to DIR"
    known = importable_names(roots)
    return fault("trust", "there is no such package", got=package, expected=expected, among=known, do=do)


def activate(grants: Iterable[GrantRecord]) -> tuple[str, ...]:
    """Make the trusted packages importable and return their names, as `build` takes them.

    Raises Refused for every package that was changed or removed since it was granted.
    """
    names, faults = [], []
    for grant in grants:
        names.append(grant["package"])
        if grant["root"] not in sys.path:
            sys.path.append(grant["root"])  # last, so that it cannot shadow an installed module
        if what := _change(grant):
            do = f"python -m pipeline phase=planning ... trust=[{grant['package']}]"
            faults.append(fault(f"{grant['root']}/{grant['package']}", what, do=do))
    if faults:
        raise Refused(*faults)
    importlib.invalidate_caches()
    return tuple(names)


def _change(grant: GrantRecord) -> str | None:
    """How the package differs from what was granted, or None."""
    places = _places(grant["package"].partition(".")[0], [Path(grant["root"])])
    if not places:
        return "is gone"
    if len(places) > 1:
        return f"is hidden by {places[1]}"
    return None if source_digest(places[0]) == grant["digest"] else "has changed since it was trusted"


def source_digest(path: Path) -> str:
    """SHA-256 over the names and contents of a module's or package's source files."""
    if path.is_file():
        return digest({path.name: sha256(path)})
    found = {}
    for folder, subfolders, names in os.walk(path, followlinks=False):
        subfolders[:] = [s for s in subfolders if s != "__pycache__"]
        for file in (Path(folder, name) for name in names if name.endswith(SOURCE)):
            found[file.relative_to(path).as_posix()] = sha256(file)
    return digest(found)


def importable_names(roots: Sequence[Path]) -> list[str]:
    """The packages and modules in `roots` and in the current folder, without those of this pipeline."""
    folders = [*roots, Path.cwd()]
    inside = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    packages = [path.name for path in inside if (path / "__init__.py").is_file()]
    return sorted({*packages, *(path.stem for path in inside if path.suffix == ".py")} - OURS)
