"""Packages of the user: where they are found, which are trusted, and whether their source has changed.

The user trusts a package on the command line, `trust=[my_pkg]`. The grant has the digest of every source file and is
recorded in the ledger, signed by the key of that user on that machine; later phases and workers use the grant, not the
command line. A grant that somebody else signed, or nobody, has to be given again.

Its `files` are those that the targets of the config can import. When one of them changes, the run stops until the user
renews the trust. The `others` of the package may change, since the run does not import them; one that is imported all
the same is refused then.
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
from pipeline.trust.signing import is_signed, sign
from pipeline.trust.source_files import OURS, importable, is_installed, source_digests, unverifiable
from pipeline.trust.source_guard import GUARD, TrustedFolder


def roots(config_dirs: Iterable[Path | str]) -> list[Path]:
    """The folders whose modules a user may name: those next to each `--config-dir`."""
    return list(dict.fromkeys(Path(folder).resolve().parent for folder in config_dirs))


def why_not(package: str) -> str | None:
    """Why a package of that name can never be trusted, or None."""
    top = package.partition(".")[0]
    if top in sys.stdlib_module_names:
        return "is a module of Python itself"
    return "is a package of the pipeline or of torch, which has its own list" if top in OURS else None


def grant(packages: Sequence[str], roots: Sequence[Path] = (), targets: Iterable[str] = ()) -> list[GrantRecord]:
    """Return what is recorded of the trust in each package: its place, and the digest of each of its source files.

    A package is looked for in `roots`, in the current folder and where Python looks; nothing is imported. A name inside
    a package, such as `my_pkg.models`, grants the whole package. `targets` are the dotted names that the run builds:
    `files` of the record are those that they can import, or all files of a package that has no target. Raises UserError
    with every fault: a package that is in no place or in two, that has a name of Python's or ours, or links that
    digests cannot cover.
    """
    granted, faults = [], []
    for package in dict.fromkeys(packages):
        places = _places(package.partition(".")[0], [*roots, *_current_folder()])
        if why := why_not(package):
            faults.append(fault("trust", f"{package!r} {why}", do="give your package another name"))
        elif not places:
            faults.append(_not_found(package, roots))
        elif len(places) > 1:
            where = " and in ".join(sorted(str(path.parent) for path in places))
            faults.append(fault("trust", f"{package!r} is found in {where}", do="give your package another name"))
        elif more := _link_faults(package, places[0]):
            faults += more
        else:
            granted.append(_grant(package, places[0], targets))
    if faults:
        raise UserError(*faults)
    return granted


def _link_faults(package: str, place: Path) -> list[str]:
    """The faults of a package that its digests cannot cover."""
    top = package.partition(".")[0]
    if (place.name if place.is_dir() else place.stem.partition(".")[0]) != top:
        do = "put the package itself there, or link it under its own name"
        return [fault("trust", f"{top!r} is a link to something of another name, {place}", do=do)]
    do = "put the files themselves there, or take them out of the package"
    return [fault(str(path), f"{why}, which no digest covers", do=do) for path, why in unverifiable(place)]


def is_importable(package: str, roots: Sequence[Path] = ()) -> bool:
    """Whether a package of that name is in `roots`, the current folder or where Python looks."""
    return bool(_places(package.partition(".")[0], [*roots, *_current_folder()]))


def _grant(package: str, place: Path, targets: Iterable[str]) -> GrantRecord:
    """The grant of the package in this place, with the files that the targets can import apart from its others."""
    root, top = place.parent, package.partition(".")[0]
    digests = source_digests(place)
    named = [name for name in targets if name.partition(".")[0] == top]
    paths = importable(root, named) if named else None
    if paths is not None:
        # The package may import other modules of its folder; ours and Python's own are not the user's.
        own = [path for path in paths if not why_not(path.relative_to(root).parts[0].removesuffix(path.suffix))]
        imported = {path.relative_to(root).as_posix(): sha256(path) for path in own}
    else:
        imported = digests
    others = {name: value for name, value in digests.items() if name not in imported}
    return GrantRecord(package=package, root=str(root), digest=digest(imported), files=imported, others=others)


def _current_folder() -> list[Path]:
    """The current folder, unless it was removed."""
    try:
        return [Path.cwd()]
    except FileNotFoundError:
        return []


def _places(top: str, roots: Sequence[Path]) -> list[Path]:
    """Every place that the name can be imported from; namespace folders count only where there is no package."""
    specs = [_spec(top, folder) for folder in dict.fromkeys([*map(str, roots), *sys.path])]
    if not any(specs) and not why_not(top):
        specs = [importlib.util.find_spec(top)]
    packages = [spec for spec in specs if spec and spec.origin] or [spec for spec in specs if spec]
    return list(dict.fromkeys(path for spec in packages if (path := _path(spec))))


def _spec(top: str, folder: str) -> ModuleSpec | None:
    return PathFinder.find_spec(top, [folder])  # the empty name stands for the current folder


def _path(spec: ModuleSpec) -> Path | None:
    """The folder of a package or the file of a module."""
    location = next(iter(spec.submodule_search_locations or ()), spec.origin)
    return Path(location).resolve() if location and Path(location).exists() else None


def _not_found(package: str, roots: Sequence[Path]) -> str:
    expected = f"a package in {', '.join(map(str, roots)) or 'the current folder'}, or an installed one"
    do = "python -m pipeline --config-dir DIR ... 'trust=[PACKAGE]', with the package next to DIR"
    known = importable_names(roots)
    return fault("trust", "there is no such package", got=package, expected=expected, among=known, do=do)


def signed(grants: Iterable[GrantRecord], run: Path) -> list[GrantRecord]:
    """The grants with the signature of this user. Raises UserError for folders that a run must not be trusted with."""
    grants = list(grants)
    if faults := [said for grant in grants if (said := _root_fault(grant, run))]:
        raise UserError(*faults)
    return [_signed(grant) for grant in grants]


def _signed(grant: GrantRecord) -> GrantRecord:
    unsigned = {name: value for name, value in grant.items() if name != "signature"}
    return GrantRecord(**{**unsigned, "signature": sign(unsigned)})  # type: ignore[typeddict-item]


def same(first: GrantRecord, second: GrantRecord) -> bool:
    """Whether two grants trust the same files in the same place, whatever planning noted and whoever signed them."""
    keys = ("package", "root", "digest", "files", "others")
    return all(first.get(key) == second.get(key) for key in keys)


def moved_files(planned: GrantRecord, grant: GrantRecord) -> list[str]:
    """The files that the run imports and that are not as the plan recorded them."""
    before, now = planned["files"], grant["files"]
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def activate_recorded(grants: Iterable[GrantRecord], run: Path, overrides: str, phase: str = "auto") -> None:
    """Make the packages of a run's records importable, if this user granted them.

    Raises Refused for grants that this user's key did not sign, for folders that a run must not name, and as `activate`
    does. `run` is the folder of the run; `overrides` name it in commands.
    """
    grants = list(grants)
    if faults := [said for grant in grants if (said := _root_fault(grant, run))]:
        raise Refused(*faults)
    if unsigned := [grant for grant in grants if not is_signed(grant)]:
        packages = ",".join(grant["package"] for grant in grants)
        lists = "; ".join(
            f"{g['package']} in {g['root']} ({_shown([*g['files'], *g.get('loaded', {})])})" for g in unsigned
        )
        do = f"read these files; if you trust them: python -m pipeline phase={phase} {overrides} 'trust=[{packages}]'"
        raise Refused(fault("trust", f"the run imports code that you did not trust on this machine: {lists}", do=do))
    activate(grants, overrides)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more files" if len(names) > 20 else ""
    return ", ".join(sorted(names)[:20]) + more


def _root_fault(grant: GrantRecord, run: Path) -> str | None:
    """Why code must not be imported from the folder of a grant, or None."""
    root, runs = grant["root"], run.parent
    do = "move the package out of the run, and give its place: --config-dir DIR, with the package next to DIR"
    if not os.path.isabs(root) or os.path.realpath(root) != root:
        what, expected = "is not the path of a folder", "an absolute path without links"
        return fault(f"trust: {grant['package']}", what, got=root, expected=expected, do=do)
    path = Path(root)
    around = next((p for p in (path, *path.parents) if (p / "ledger.jsonl").exists()), None)
    if around is None and path != runs and path.is_relative_to(runs):
        around = runs
    if around is not None:
        return fault(f"trust: {grant['package']}", f"is inside {around}, where runs are", got=root, do=do)
    return None


def activate(grants: Iterable[GrantRecord], run: str = "...") -> tuple[str, ...]:
    """Make packages importable that the user trusts now, and return their names, as `build` takes them.

    Raises Refused for every package of which a file that the run imports was changed or removed since it was granted.
    Every file is compared again when it is imported. `run` are the overrides that name the run in the command which
    renews the trust.
    """
    grants = list(grants)
    renewal = f"python -m pipeline phase=planning {run} 'trust=[{','.join(grant['package'] for grant in grants)}]'"
    faults = []
    for grant in grants:
        if what := _change(grant):
            faults.append(fault(f"{grant['root']}/{grant['package']}", what, do=f"read it, then {renewal}"))
    if faults:
        raise Refused(*faults)
    for root in dict.fromkeys(grant["root"] for grant in grants):
        _guard(root, [grant for grant in grants if grant["root"] == root], renewal)
    importlib.invalidate_caches()
    return tuple(grant["package"] for grant in grants)


def with_noted(grants: Iterable[GrantRecord]) -> list[GrantRecord]:
    """The grants with the files that were imported from their folders although no `import` statement names them."""
    completed, roots = [], set()
    for grant in grants:
        noted = {} if grant["root"] in roots else GUARD.noted(grant["root"])
        roots.add(grant["root"])
        if noted:
            grant = _signed(GrantRecord(**{**grant, "loaded": {**grant.get("loaded", {}), **noted}}))  # type: ignore[typeddict-item]
        completed.append(grant)
    return completed


def _change(grant: GrantRecord) -> str | None:
    """How the package differs from what was granted, or None."""
    root = Path(grant["root"])
    places = _places(grant["package"].partition(".")[0], [root])
    if not places:
        return "is gone"
    if len(places) > 1:
        return f"is hidden by {places[1]}"
    trusted = {**grant["files"], **grant.get("loaded", {})}
    changed = [
        name if (root / name).is_file() else f"{name} (gone)"
        for name, value in trusted.items()
        if not (root / name).is_file() or sha256(root / name) != value
    ]
    return f"has changed since it was trusted: {', '.join(sorted(changed))}" if changed else None


def _guard(root: str, grants: Sequence[GrantRecord], renewal: str) -> None:
    """From now on, refuse to import a file from this folder that is not as it was granted."""
    packages = frozenset(grant["package"].partition(".")[0] for grant in grants)
    digests: dict[str, str] = {}
    for grant in grants:
        digests |= {**grant["others"], **grant["files"], **grant.get("loaded", {})}
    GUARD.guard(TrustedFolder(root, packages, digests, renewal, is_installed(Path(root))))


def importable_names(roots: Sequence[Path]) -> list[str]:
    """The packages and modules in `roots` and in the current folder, without those of this pipeline."""
    folders = [*roots, *_current_folder()]
    inside = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    packages = [path.name for path in inside if (path / "__init__.py").is_file()]
    return sorted({*packages, *(path.stem for path in inside if path.suffix == ".py")} - OURS)
