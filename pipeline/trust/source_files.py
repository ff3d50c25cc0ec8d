"""The source files of a user's package: their digests, those that a module can import, and links among them."""

from __future__ import annotations

import ast
import os
import site
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from pipeline.run_store.files import sha256

OURS = frozenset({"pipeline", "phases", "diagnostics", "checklists", "fivegate", "torch"})
SOURCE = (".py", ".so", ".pyd")
# What can import a module whose name is not in the source: a file that uses any of it may import all of its package.
DYNAMIC_MODULES = frozenset({"importlib", "runpy", "pkgutil", "pickle", "cloudpickle", "dill", "joblib"})
DYNAMIC_NAMES = frozenset({"__import__", "exec", "eval"})


def source_digests(path: Path) -> dict[str, str]:
    """The SHA-256 of every source file of a module or package, by its path from the folder that it is imported from."""
    if path.is_file():
        return {path.name: sha256(path)}
    modules = {}
    for folder, subfolders, names in os.walk(path, followlinks=False):
        subfolders[:] = [s for s in subfolders if s != "__pycache__"]
        for file in (Path(folder, name) for name in names if name.endswith(SOURCE)):
            modules[file.relative_to(path.parent).as_posix()] = sha256(file)
    return modules


def importable(root: Path, names: Iterable[str]) -> set[Path] | None:
    """The files below `root` that importing these dotted names can import; None where their source cannot tell.

    Every `import` statement is followed, also inside functions, to other packages below `root` as well unless it is a
    folder of installed packages.
    """
    tops = {name.partition(".")[0] for name in names}
    alone = is_installed(root)
    modules: set[Path] = set()
    waiting = [prefix for name in names for prefix in _prefixes(name)]
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen or (alone and module.partition(".")[0] not in tops):
            continue
        seen.add(module)
        path = _module_file(root, module)
        if path is None or path in modules:
            continue
        imported = None if path.suffix != ".py" else _imports(path, module)
        if imported is None:
            return None
        modules.add(path)
        waiting += [prefix for name in imported for prefix in _prefixes(name)]
    return modules


def is_installed(root: Path) -> bool:
    """Whether the folder is one of installed packages, in which Python looks by itself."""
    places = [*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()]
    return str(root) in {str(Path(place).resolve()) for place in places}


def _prefixes(name: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` for `a.b.c`: importing a module imports the packages around it."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _module_file(root: Path, module: str) -> Path | None:
    """The file of a module below `root`, as Python looks for it: a package comes before a module of its name."""
    base = root.joinpath(*module.split("."))
    endings = [*EXTENSION_SUFFIXES, ".py"]
    candidates = [base / f"__init__{e}" for e in endings] + [base.with_name(base.name + e) for e in endings]
    return next((path for path in candidates if path.is_file()), None)


def _imports(path: Path, module: str) -> list[str] | None:
    """The dotted names that a file imports; None where it may import others, or cannot be read."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in DYNAMIC_NAMES:
            return None
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            around = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (around, node.module)))
            if any(alias.name == "*" for alias in node.names) and (not node.module or node.level or "." in source):
                return None  # `__all__` of a package may name its modules
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return None if any(name.partition(".")[0] in DYNAMIC_MODULES for name in names) else names


def unverifiable(place: Path) -> Iterator[tuple[Path, str]]:
    """The paths in a package that could be imported although no digest covers what they stand for, with the reason.

    These are links that lead out of the folder that the package is imported from, links to folders with modules, and
    bytecode without its source.
    """
    root = place.parent
    for folder, subfolders, names in os.walk(place, followlinks=False):
        subfolders[:] = [s for s in subfolders if s != "__pycache__"]
        for path in (Path(folder, name) for name in subfolders):
            if path.is_symlink() and _holds_modules(path):
                yield path, f"is a link to modules in {path.resolve()}"
        for path in (Path(folder, name) for name in names):
            if path.suffix in SOURCE and path.is_symlink() and not path.resolve().is_relative_to(root):
                yield path, f"is a link out of {root}, to {path.resolve()}"
            if path.suffix == ".pyc" and not path.with_suffix(".py").exists():
                yield path, "is bytecode without its source"


def _holds_modules(folder: Path) -> bool:
    """Whether a module can be imported from the folder or from a folder directly inside it."""
    try:
        return any(path.suffix in (*SOURCE, ".pyc") for depth in ("*", "*/*") for path in folder.glob(depth))
    except OSError:
        return False
