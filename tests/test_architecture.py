"""Rules of the house that a machine can keep: each test names every place that breaks its rule."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("planning", "baseline", "diagnostics", "optimization", "finalization")
MAX_FILE_LINES = 350
MAX_SCRIPT_LINES = 400  # of a script that is alone in a bundle and cannot be split
MAX_FUNCTION_LINES = 60
MAX_MODULES = 12  # of a package
MAX_CHECKS = 20  # files of checks, which are one per subject, as playbooks are one per symptom
MAX_COMMANDS = 14  # of the command line, which are one per module
MAX_PACKAGES = 41  # below pipeline/
DRAWERS = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
LOWEST = tuple(f"pipeline/{name}.py" for name in ("escaping", "errors", "foreign_files", "results", "history"))

THE_STEP = "pipeline/engine/stepper.py"
COPIES_OF_A_LOOP = "diagnostics/loops/experiments.py"
NOT_OPTIMIZERS = {"scheduler", "monitor", "profiler"}  # what else may be stepped

WRITERS = ("pipeline/run_store/files.py", "pipeline/run_store/lock.py")  # lock.py: a lock is a handle, not a record
WRITING_METHODS = {
    "write_text",
    "write_bytes",
    "mkdir",
    "touch",
    "unlink",
    "rename",
    "rmdir",
    "symlink_to",
    "hardlink_to",
}
SAVERS = {"save", "savez", "savez_compressed", "savetxt", "tofile", "savefig", "save_file", "save_model"}
SAVING_LIBRARIES = {"np", "numpy", "torch", "onnx", "plt", "figure", "fig", "safetensors"}
SPEAKERS = ("pipeline/__main__.py", "pipeline/commands/", "pipeline/reporting/", "pipeline/serving/standalone/")


@cache
def product() -> dict[str, ast.Module]:
    """Every source file of the product, by its path from the root."""
    files = [p for folder in ("pipeline", "phases", "diagnostics", "checklists") for p in (ROOT / folder).rglob("*.py")]
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text()) for p in [*sorted(files), ROOT / "fivegate.py"]}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.Call))


def parts(node: ast.AST) -> list[str]:
    """`a.b().c` as its names, outermost last; what is neither a name nor an attribute ends the chain."""
    if isinstance(node, ast.Attribute):
        return [*parts(node.value), node.attr]
    if isinstance(node, ast.Call):
        return parts(node.func)
    return [node.id] if isinstance(node, ast.Name) else [""]


def strings(nodes: list[ast.expr]) -> list[str]:
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def writes(call: ast.Call, buffers: set[str]) -> bool:
    """Whether a call writes to the file system; what goes into a buffer in memory does not."""
    *owner, name = parts(call.func)
    if owner[-1:] == ["files"]:
        return False
    arguments = [*call.args, *(k.value for k in call.keywords)]
    if name == "open":
        if owner == ["os"]:
            return any(flag in ast.unparse(call) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
        modes = strings([*call.args[0 if owner else 1 :], *(k.value for k in call.keywords if k.arg == "mode")])
        return any(set(mode) & set("wax+") for mode in modes if len(mode) <= 3)
    if owner == ["os"]:
        return name in {
            "rename",
            "replace",
            "remove",
            "unlink",
            "mkdir",
            "makedirs",
            "truncate",
            "link",
            "symlink",
            "write",
        }
    if owner == ["shutil"]:
        return name not in {"which", "disk_usage", "get_terminal_size"}
    if name in SAVERS and (owner[:1] or [""])[0] in SAVING_LIBRARIES:
        return not any(isinstance(a, ast.Name) and a.id in buffers for a in arguments)
    return name in WRITING_METHODS


def buffers_in(tree: ast.AST) -> set[str]:
    """Names bound to a buffer in memory anywhere in a file: `a = BytesIO()`, `a, b = ...`, `with BytesIO() as a`."""
    pairs: list[tuple[ast.expr | None, ast.expr]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs += [(target, node.value) for target in node.targets]
        if isinstance(node, ast.withitem):
            pairs.append((node.optional_vars, node.context_expr))
    for target, value in list(pairs):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs += zip(target.elts, value.elts, strict=False)
    made = {"BytesIO", "StringIO"}
    return {t.id for t, v in pairs if isinstance(t, ast.Name) and isinstance(v, ast.Call) and parts(v)[-1] in made}


def test_files_and_functions_stay_short() -> None:
    """A file is one room and a function one thought."""
    lines = {f: (ROOT / f).read_text().count("\n") for f in product()}
    long = [
        f"{f}: {n} lines" for f, n in lines.items() if n > (MAX_SCRIPT_LINES if "/standalone/" in f else MAX_FILE_LINES)
    ]
    for file, tree in product().items():
        sizes = ((f, (f.end_lineno or f.lineno) - f.lineno + 1) for f in functions(tree))
        long += [f"{file}:{f.lineno} {f.name}: {n} lines" for f, n in sizes if n > MAX_FUNCTION_LINES]
    assert long == []


def test_packages_stay_small() -> None:
    """A package has at most 12 modules, of checks 20 and of commands 14; at most 40 packages are below pipeline/."""
    modules = Counter(f.rpartition("/")[0] for f in product() if not f.endswith("/__init__.py"))
    assert modules.pop("checklists/checks") <= MAX_CHECKS
    assert modules.pop("pipeline/commands") <= MAX_COMMANDS
    assert {package: n for package, n in modules.items() if n > MAX_MODULES} == {}
    packages = [f for f in product() if f.startswith("pipeline/") and f.endswith("/__init__.py")]
    assert len(packages) - 1 <= MAX_PACKAGES  # pipeline itself is not below pipeline/


def test_no_drawers() -> None:
    """Every file says by its name what is inside."""
    assert [f for f in product() if f.rsplit("/", 1)[-1] in DRAWERS] == []


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_no_code_in_init() -> None:
    """Importing a package runs nothing. diagnostics names its checks, and imports them on first use."""
    code = {f: [n for n in tree.body if not _is_text(n)] for f, tree in product().items() if f.endswith("__init__.py")}
    assert [f for f, body in code.items() if body] == ["diagnostics/__init__.py"]


def test_the_lowest_layer_stands_on_numpy_alone() -> None:
    """escaping, errors, results and history import the standard library, numpy and each other."""
    allowed = {*sys.stdlib_module_names, "numpy"}
    own = {"pipeline"} | {f.removesuffix(".py").replace("/", ".") for f in LOWEST}
    wrong = []
    for file in LOWEST:
        for node in ast.walk(product()[file]):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"pipeline.{a.name}" for a in node.names] if node.module == "pipeline" else [node.module or ""]
            wrong += [f"{file}: {n}" for n in names if n.split(".")[0] not in allowed and n not in own]
    assert wrong == []


def test_nobody_imports_the_face() -> None:
    """fivegate.py knows everybody and is known by nobody; import-linter cannot watch a lone module."""
    names: dict[str, list[str]] = {}
    for file, tree in product().items():
        imported = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        imported += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names[file] = [n for n in imported if n.split(".")[0] == "fivegate"]
    assert {file: n for file, n in names.items() if n} == {}


def test_one_optimizer_step() -> None:
    """Only the stepper moves weights, by `step()` or by a kernel, so its permit is in front of all training.

    A task's `step(model, batch)` takes arguments, and moves nothing. Copies of a loop of the user's own have no plan,
    and so no permit.
    """
    files = set()
    for file, tree in product().items():
        for call in calls(tree):
            *owner, name = parts(call.func)
            stepped = name == "step" and owner and owner[-1] not in NOT_OPTIMIZERS and not call.args
            if stepped or name.startswith("_fused_"):
                files.add(file)
    assert files == {THE_STEP, COPIES_OF_A_LOOP}


def test_all_writes_pass_through_files() -> None:
    """No file of the product writes but the one that is atomic and tested with faults."""
    wrong = []
    for file, tree in product().items():
        if file not in WRITERS:
            buffers = buffers_in(tree)
            wrong += [f"{file}:{c.lineno} {ast.unparse(c)[:60]}" for c in calls(tree) if writes(c, buffers)]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("open(p, 'w')", True),
        ("open(p)", False),
        ("p.open('ab')", True),
        ("p.open('rb')", False),
        ("p.write_text(t)", True),
        ("files.write_text(p, t)", False),
        ("np.save(p, a)", True),
        ("np.save(buffer, a)", False),
        ("torch.jit.save(m, buffer)", False),
        ("torch.save(m, p)", True),
        ("os.replace(a, b)", True),
        ("text.replace(a, b)", False),
        ("shutil.rmtree(p)", True),
        ("os.open(p, os.O_RDONLY)", False),
    ],
)
def test_what_counts_as_writing(source: str, expected: bool) -> None:
    """The rule above sees what it forbids, and lets buffers and readers pass."""
    tree = ast.parse(f"buffer, other = io.BytesIO(), 1\n{source}")
    call = next(c for c in calls(tree) if ast.unparse(c) == source)
    assert writes(call, buffers_in(tree)) == expected


def test_only_the_command_line_prints() -> None:
    """Nobody but the commands speaks on stdout."""
    wrong = [
        f"{file}:{call.lineno}"
        for file, tree in product().items()
        if not file.startswith(SPEAKERS)
        for call in calls(tree)
        if parts(call.func) == ["print"]
    ]
    assert wrong == []


def test_no_error_is_swallowed_whole() -> None:
    """Nobody catches everything and does nothing."""
    wide = {"Exception", "BaseException"}
    wrong = []
    for file, tree in product().items():
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)):
            silent = all(isinstance(b, ast.Pass | ast.Continue) for b in node.body)
            if node.type is None or (silent and parts(node.type)[-1] in wide):
                wrong.append(f"{file}:{node.lineno}")
    assert wrong == []


@pytest.mark.parametrize("phase", PHASES)
def test_four_files_share_a_stem(phase: str) -> None:
    """A phase is its code, its workflow, its checklist and its test, all of one name."""
    four = (f"phases/{phase}.py", f"phases/{phase}.md", f"checklists/{phase}.yaml", f"tests/test_phase_{phase}.py")
    assert [f for f in four if not (ROOT / f).is_file()] == []


def test_there_are_five_phases() -> None:
    """No phase without a checklist, and no checklist without a phase."""
    assert {p.stem for p in (ROOT / "phases").glob("*.py")} - {"__init__"} == set(PHASES)
    assert {p.stem for p in (ROOT / "checklists").glob("*.yaml")} == set(PHASES)


def items(phase: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load((ROOT / "checklists" / f"{phase}.yaml").read_text())["items"])


@pytest.mark.parametrize("phase", PHASES)
def test_every_check_exists_and_takes_its_thresholds(phase: str) -> None:
    """Each `check: subject.function` binds against the keys of its `with`."""
    wrong = []
    for item in (i for i in items(phase) if "check" in i):
        subject, _, name = item["check"].partition(".")
        check = getattr(import_module(f"checklists.checks.{subject}"), name, None)
        if check is None:
            wrong.append(f"{item['id']}: there is no {item['check']}")
            continue
        try:
            inspect.signature(check).bind("evidence", **item.get("with", {}))
        except TypeError as error:
            wrong.append(f"{item['id']}: {item['check']}: {error}")
    assert wrong == []


@pytest.mark.parametrize("phase", PHASES)
def test_every_item_asks_one_question_and_has_one_answerer(phase: str) -> None:
    """An item has an id of its own, a question, and exactly one of check, sign_off and not_built."""
    ids = [i["id"] for i in items(phase)]
    assert len(ids) == len(set(ids)) > 0
    assert [i["id"] for i in items(phase) if not i["ask"].endswith("?")] == []
    assert [i["id"] for i in items(phase) if len({"check", "sign_off", "not_built"} & i.keys()) != 1] == []


def test_check_ids_are_unique_over_all_gates() -> None:
    """`explain RUN CHECK` and `waive RUN CHECK` name a check by its id alone, so no two gates share one."""
    lists = (yaml.safe_load(path.read_text())["items"] for path in (ROOT / "checklists").glob("*.yaml"))
    ids = [item["id"] for items in lists for item in items]

    assert len(ids) == len(set(ids)) > 60


def test_finalization_asks_24_questions() -> None:
    """The last gate is exactly as wide as it is said to be."""
    assert len(items("finalization")) == 24


def test_seeds_come_first_and_cannot_be_waived() -> None:
    """Without fixed seeds nothing else is asked."""
    first = items("planning")[0]
    assert (first["id"], first["waivable"]) == ("seeds_fixed", False)


def loaded_by(code: str, cwd: Path) -> set[str]:
    """Top-level modules that a fresh process has loaded after running some code."""
    code += "\nimport sys; print('LOADED', *{m.partition('.')[0] for m in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    completed = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return set(completed.stdout.rsplit("LOADED", 1)[1].split())


HEAVY = {"torch", "hydra", "omegaconf", "mlflow", "onnx", "onnxruntime", "sklearn", "scipy", "matplotlib"}


@pytest.mark.process
@pytest.mark.parametrize(
    "arguments", [["--help"], ["status", "demo"], ["verify", "demo"], ["status", "demo", "--json"]]
)
def test_records_answer_without_heavy_libraries(tmp_path: Path, arguments: list[str]) -> None:
    """Asking for help or for a run's records loads neither Hydra nor torch, nor what they bring."""
    from pipeline.run_store.run import Run, opened

    with opened(Run.at(tmp_path / "runs", "demo")):
        pass
    loaded = loaded_by(f"from pipeline.__main__ import main; assert main({arguments}) in (0, 3, 4)", tmp_path)
    assert loaded & {*HEAVY, "numpy"} == set()


@pytest.mark.process
def test_logs_are_diagnosed_without_torch(tmp_path: Path) -> None:
    """Reading logs and naming their causes needs neither torch nor what the siblings are blind to."""
    loaded = loaded_by("from fivegate import diagnose; import diagnostics.logs.report", tmp_path)
    assert loaded & {"torch", "hydra", "mlflow", "onnx"} == set()


FRAMES_TO_THE_PHASE = ["main", "run_once", "execute_run", "run_phase", "run"]
MAX_FRAMES_TO_THE_KERNEL = 10


def test_call_depth_from_command_to_kernel(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader gets from the command line to the optimizer's kernel through few functions of ours."""
    import torch

    from pipeline.__main__ import main
    from tests.conftest import SMALL

    kernel, stacks = torch._fused_adamw_, set()

    def record_stack(*args: Any, **options: Any) -> None:
        names: list[tuple[str, str]] = []
        frame = sys._getframe(1)
        while frame.f_back and frame.f_code is not test_call_depth_from_command_to_kernel.__code__:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and ".venv" not in path.parts:
                names.insert(0, (path.relative_to(ROOT).as_posix(), frame.f_code.co_name))
            frame = frame.f_back
        stacks.add(tuple(names))
        kernel(*args, **options)

    monkeypatch.setattr(torch, "_fused_adamw_", record_stack)
    assert main(["phase=baseline", *SMALL]) == 0

    # The baseline trains for its sanity checks too; the training itself is called by the phase without a detour.
    training = next(s for s in stacks if s[4:6] == (("phases/baseline.py", "run"), ("pipeline/engine/fit.py", "fit")))
    assert [name for _, name in training[:5]] == FRAMES_TO_THE_PHASE
    assert len(training) <= MAX_FRAMES_TO_THE_KERNEL


def test_contributing_lists_the_layers_in_their_order() -> None:
    """The list of `CONTRIBUTING.md` is that of import-linter: a reader finds each package, and what it may import."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [inside] = [contract for contract in contracts if contract["id"] == "pipeline"]
    text = (ROOT / "CONTRIBUTING.md").read_text().split("only packages below it in this list:\n\n")[1].split("\n\n")[0]
    named = [re.match(r" {4}([a-z_/]+(?:, [a-z_/]+)*) ", line) for line in text.splitlines()]

    listed = [name.removesuffix("/") for found in named if found for name in found[1].split(", ")]
    assert listed == [layer for layer in inside["layers"] if layer != "__main__"]
