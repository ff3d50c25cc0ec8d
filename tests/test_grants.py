"""Grants of trust: who gave them, where the code may be, and that the code that runs is the code that was trusted."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import py_compile
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from pipeline.errors import Refused, UserError
from pipeline.run_store.job import Job
from pipeline.run_store.run import Run
from pipeline.trials import worker
from pipeline.trust import signing
from pipeline.trust.grants import activate, activate_recorded, grant, signed, with_noted
from pipeline.trust.source_guard import GUARD
from tests.conftest import Cli, go
from tests.user_package import WORDS, write_package


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the key of a user who has none yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "fivegate" / "trust.key"


LAB = {
    "lab/__init__.py": "",
    "lab/net.py": "def make():\n    return 7\n",
    "lab/late.py": "import importlib\n\ndef load(name):\n    return importlib.import_module(name)\n",
    "near.py": "",
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    """The folder of a package, which can be imported anew."""
    root = tmp_path / "user"
    for name, text in LAB.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lab", "near", "apart")]:
        del sys.modules[name]
    GUARD.folders.clear()


# --- the key ---------------------------------------------------------------------------------------------------------


def test_sign_makes_one_key_that_only_the_user_can_read(key: Path) -> None:
    """The first signature creates the key, later ones use it, and a record that changed is not signed any more."""
    record = {"package": "lab", "root": "/lab"}
    signature = signing.sign(record)

    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert signing.sign(record) == signature and [p.name for p in key.parent.iterdir()] == ["trust.key"]
    assert signing.is_signed({**record, "signature": signature})
    assert not signing.is_signed({**record, "root": "/other", "signature": signature})
    assert not signing.is_signed(record) and not signing.is_signed({**record, "signature": 3})


def test_is_signed_makes_no_key(key: Path) -> None:
    """Who has trusted nothing on a machine trusts nothing there, and reading a run leaves no file."""
    assert not signing.is_signed({"package": "lab", "signature": "0" * 64}) and not key.parent.exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda key: key.chmod(0o640), "others can use your key, got 'mode 640"),
        (lambda key: key.parent.chmod(0o777), "others can use your key"),
        (lambda key: key.write_bytes(b"short"), "is not a key, got '5 bytes'"),
        (lambda key: (key.rename(key.with_name("real")), key.symlink_to("real")), "cannot be read"),
        (lambda key: (key.unlink(), key.mkdir()), "others can use your key"),
    ],
)
def test_sign_refuses_a_key_that_others_could_have(key: Path, spoil: object, says: str) -> None:
    """A key that others can read, a link, or something else under its name signs nothing, and verifies nothing."""
    signing.sign({"package": "lab"})
    spoil(key)  # type: ignore[operator]

    with pytest.raises(UserError, match=f"trust.key: .*{says}.*Do: "):
        signing.sign({"package": "lab"})
    with pytest.raises(UserError, match=says):
        signing.is_signed({"package": "lab", "signature": "0" * 64})


def test_sign_says_what_to_do_where_no_key_can_be_kept(key: Path) -> None:
    """A state folder that cannot be written is one message."""
    key.parent.parent.write_text("a file")

    with pytest.raises(UserError, match=r"cannot keep the key .*Do: set XDG_STATE_HOME"):
        signing.sign({"package": "lab"})


# --- a run that somebody sends ---------------------------------------------------------------------------------------


@pytest.fixture
def planned_package(own_folder: Path) -> Run:
    """A planned run of somebody's package, and the files that it came from."""
    write_package(own_folder)
    return go(own_folder / "runs", "phase=planning", *WORDS[2:], "run.name=got", config_dirs=["conf"]).run


def test_run_of_another_user_asks_for_trust(planned_package: Run, key: Path, cli: Cli) -> None:
    """No command runs the code of a run that somebody else trusted; the command of the message trusts it."""
    source = Path("somebody.py")
    source.write_text(source.read_text())  # not changed: only the user is another one
    code, _, message = cli("phase=baseline", "run.name=got")

    assert code == 3 and not key.exists() and len(message.splitlines()) == 1
    assert f"trust: the run imports code that you did not trust on this machine: somebody in {Path.cwd()}" in message
    assert "(somebody.py)" in message and "phase=baseline run.name=got 'trust=[somebody]'" in message
    assert not planned_package.inside("baseline").exists()
    cli("phase=baseline", "run.name=got", "trust=[somebody]")
    assert key.exists() and planned_package.state().finished["baseline"]


def test_worker_asks_for_trust(planned_package: Run, key: Path) -> None:
    """A worker believes the ledger of its run no more than a command does."""
    folder = planned_package.inside("optimization", "1", "trial")
    folder.mkdir(parents=True)
    plan = planned_package.state().plan
    assert plan is not None
    (folder / "job.json").write_text(json.dumps(Job(plan["digest"], "trial").to_json()))

    with pytest.raises(Refused, match="did not trust on this machine: somebody in"):
        worker.work(folder, list)


def test_trust_after_planning_is_for_the_planned_files(planned_package: Run, key: Path, cli: Cli) -> None:
    """Who trusts a package again in a later phase trusts what was planned with; other files need a new plan."""
    with Path("somebody.py").open("a") as source:
        source.write("changed = True\n")
    code, _, message = cli("phase=finalization", "run.name=got", "trust=[somebody]")

    assert code == 3 and "somebody: has changed since it was trusted: somebody.py  Do: " in message
    assert "phase=planning run.name=got 'trust=[somebody]'" in message


def test_grants_of_records_without_a_signature_are_asked_for(lab: Path) -> None:
    """A record that an older version wrote, and one that was edited, count as nobody's."""
    [entry] = granted = signed(grant(["lab"], [lab], ["lab.net.make"]), lab / "runs" / "mine")
    run = lab.parent / "runs" / "mine"
    activate_recorded(granted, run, "run.name=mine")

    unsigned = {name: value for name, value in entry.items() if name != "signature"}
    other_files, other_root = {**entry["files"], "near.py": "0"}, str(lab.parent)
    for record in (unsigned, {**entry, "files": other_files}, {**entry, "root": other_root}):
        with pytest.raises(Refused, match=r"did not trust on this machine: lab in .*\(.*lab/net\.py"):
            activate_recorded([record], run, "run.name=mine")  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("user", "is not the path of a folder"),
        ("{base}/link", "is not the path of a folder"),
        ("{base}/runs/mine/code", "is inside .*runs/mine, where runs are"),
        ("{base}/runs/elsewhere", "is inside .*runs, where runs are"),
        ("{base}/other/code", "is inside .*other, where runs are"),
    ],
)
def test_code_of_a_run_is_outside_of_runs(lab: Path, root: str, says: str) -> None:
    """Relative folders, links, and folders in this or another run or next to it are refused, even if signed."""
    base = lab.parent
    (base / "link").symlink_to(lab)
    for folder in ("runs/mine", "other"):
        (base / folder).mkdir(parents=True)
        (base / folder / "ledger.jsonl").write_text("")
    [entry] = grant(["lab"], [lab])
    entry["root"] = root.format(base=base)

    with pytest.raises(UserError, match=f"trust: lab: {says}"):
        signed([entry], base / "runs" / "mine")
    entry["signature"] = signing.sign({**entry})
    with pytest.raises(Refused, match=f"trust: lab: {says}"):
        activate_recorded([entry], base / "runs" / "mine", "run.name=mine")


# --- what a grant covers ---------------------------------------------------------------------------------------------


def test_cached_bytecode_of_trusted_code_does_not_run(lab: Path) -> None:
    """Bytecode that comes with a folder and claims to be its source is not read, and none is written."""
    evil, source = lab / "evil.py", lab / "lab" / "net.py"
    evil.write_text("def make():\n    return 'evil'\n")
    cached = Path(importlib.util.cache_from_source(str(source)))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(evil), cfile=str(cached), invalidation_mode=mode)
    evil.unlink()
    before = cached.read_bytes()

    activate(grant(["lab"], [lab], ["lab.net.make"]))
    assert importlib.import_module("lab.net").make() == 7
    assert cached.read_bytes() == before and not list((lab / "__pycache__").glob("*"))


def test_bytecode_without_source_is_refused(lab: Path) -> None:
    """A package with such a file cannot be trusted; one that appears later, or next to it, is not imported."""
    granted = grant(["lab"], [lab], ["lab.net.make"])
    activate(granted)
    for name in ("lab/bare.py", "apart.py"):
        (lab / name).write_text("x = 1\n")
        py_compile.compile(str(lab / name), cfile=str(lab / f"{name}c"))
        (lab / name).unlink()

    with pytest.raises(UserError, match=r"lab/bare\.pyc: is bytecode without its source, which no digest covers"):
        grant(["lab"], [lab])
    for module in ("lab.bare", "apart"):
        with pytest.raises(Refused, match=r"\.pyc: is bytecode without its source"):
            importlib.import_module("lab.late").load(module)


@pytest.mark.parametrize("is_folder", [True, False])
def test_links_out_of_the_package_are_refused(lab: Path, is_folder: bool) -> None:
    """Neither a linked sub-package nor a linked module is trusted; a link that appears later is not imported."""
    outside = lab.parent / "outside"
    outside.mkdir()
    (outside / "__init__.py").write_text("ran = True\n")
    granted = grant(["lab"], [lab], ["lab.net.make"])
    activate(granted)
    link = lab / "lab" / ("sub" if is_folder else "sub.py")
    link.symlink_to(outside if is_folder else outside / "__init__.py")

    with pytest.raises(UserError, match=r"lab/sub.*: is a link .*outside"):
        grant(["lab"], [lab])
    with pytest.raises(Refused, match=r"is a link out of|did not exist"):
        importlib.import_module("lab.sub")


def test_link_to_data_inside_a_package_is_no_fault(lab: Path) -> None:
    """A linked folder without modules holds data, which a grant does not cover anyway."""
    (lab.parent / "rows").mkdir()
    (lab.parent / "rows" / "rows.csv").write_text("1\n")
    (lab / "lab" / "rows").symlink_to(lab.parent / "rows")

    assert grant(["lab"], [lab])


def test_modules_next_to_the_package_are_noted_by_planning_only(lab: Path) -> None:
    """A sibling that is imported by a name made at run time is recorded at planning, and compared from then on."""
    (lab / "apart.py").write_text("x = 1\n")
    granted = signed(grant(["lab"], [lab], ["lab.late.load"]), lab.parent / "runs" / "mine")
    activate(granted)
    GUARD.noting = True
    try:
        importlib.import_module("lab.late").load("near")
    finally:
        GUARD.noting = False
    [noted] = with_noted(granted)
    assert set(noted.get("loaded", {})) == {"near.py"} and signing.is_signed(noted)

    activate([noted])
    with pytest.raises(Refused, match=r"apart\.py: did not exist when its package was trusted"):
        importlib.import_module("lab.late").load("apart")
    (lab / "near.py").write_text("changed = True\n")
    with pytest.raises(Refused, match=r"lab: has changed since it was trusted: near\.py"):
        activate([noted])


@pytest.mark.parametrize("noting", [True, False])
@pytest.mark.parametrize("name", ["apart.py", f"apart{EXTENSION_SUFFIXES[0]}", "apart/__init__.py"])
def test_library_finds_no_module_next_to_the_package(
    lab: Path, name: str, noting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that looks whether an optional module is installed neither sees nor runs one of the user's folder."""
    (lab / name).parent.mkdir(exist_ok=True)
    (lab / name).write_text("raise SystemExit('ran')\n")
    activate(grant(["lab"], [lab], ["lab.net.make"]))
    importlib.import_module("lab.net")
    monkeypatch.setattr(GUARD, "noting", noting)

    assert importlib.util.find_spec("apart") is None
    with pytest.raises(ModuleNotFoundError, match=r"apart.*is not trusted itself.*'trust=\[apart,lab\]'"):
        importlib.import_module("apart")
    assert GUARD.noted(str(lab)) == {} and str(lab) not in sys.path


def test_trusted_package_needs_no_init_file(lab: Path) -> None:
    """A folder of modules is a package too, though the folder that it is in is not on Python's path."""
    (lab / "apart").mkdir()
    (lab / "apart" / "net.py").write_text("import near\n")
    activate(grant(["apart"], [lab], ["apart.net.make"]))

    assert importlib.import_module("apart.net").near.__file__ == str(lab / "near.py")


def test_trusted_code_imports_a_sibling_without_init_file(lab: Path) -> None:
    """A folder of modules beside the package is found by the package, and by nobody else."""
    (lab / "apart").mkdir()
    (lab / "apart" / "rows.py").write_text("")
    (lab / "lab" / "net.py").write_text("def read():\n    import apart.rows\n    return apart.rows\n")
    activate(grant(["lab"], [lab], ["lab.net.read"]))

    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("apart")
    assert importlib.import_module("lab.net").read().__file__ == str(lab / "apart" / "rows.py")


def test_module_that_another_folder_is_trusted_for_is_found(lab: Path, tmp_path: Path) -> None:
    """A file of the same name beside another trusted package does not hide it."""
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "apart.py").write_text("x = 5\n")
    (lab / "apart.py").write_text("raise SystemExit('ran')\n")
    activate(grant(["apart"], [tmp_path / "second"]))
    activate(grant(["lab"], [lab], ["lab.net.make"]))

    assert importlib.import_module("apart").x == 5


def test_program_of_the_user_imports_what_planning_noted(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script is the user's as his package is; what Python runs by `-c`, as it starts processes, is not."""
    (lab / "apart.py").write_text("")
    activate(grant(["lab"], [lab], ["lab.net.make"]))
    monkeypatch.setattr(GUARD, "noting", True)
    for file, error in (("<string>", ModuleNotFoundError), ("train.py", None)):
        code = compile("import apart", file, "exec")
        with pytest.raises(error) if error else nullcontext():
            exec(code, {"__name__": "__main__"})

    assert list(GUARD.noted(str(lab))) == ["apart.py"]


def test_guard_leaves_other_modules_alone(lab: Path, tmp_path: Path) -> None:
    """Modules from elsewhere are found as ever, also when a folder with data has their name."""
    (lab / "apart").mkdir()
    other = tmp_path / "other"
    (other / "apart").mkdir(parents=True)
    (other / "apart" / "__init__.py").write_text("x = 5\n")
    sys.path.append(str(other))
    activate(grant(["lab"], [lab]))

    assert importlib.import_module("apart").x == 5


STARTS_ANEW = """
import importlib, multiprocessing, sys
from pathlib import Path
from pipeline.trust.grants import activate, grant

if __name__ == "__main__":
    root, method = Path(sys.argv[1]), sys.argv[2]
    activate(grant(["lab"], [root]))
    from lab import late, net
    (root / "lab" / "changed.py").write_text("print('ran')")
    with multiprocessing.get_context(method).Pool(1) as pool:
        print(pool.apply(net.make))
        for call, name in ((late.load, "near"), (late.load, "lab.changed"), (importlib.import_module, "near")):
            try:
                print(pool.apply(call, (name,)).__name__)
            except Exception as error:
                print(type(error).__name__, error)
"""


@pytest.mark.process
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_are_started_anew_are_guarded(lab: Path, method: str) -> None:
    """A process that is not forked finds the trusted package, and refuses what nobody trusted, as its parent does."""
    (lab / "lab" / "changed.py").write_text("")
    (lab / "near.py").write_text("print('ran')")
    (lab.parent / "starts.py").write_text(STARTS_ANEW)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, str(lab.parent / "starts.py"), str(lab), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    first, *refusals = done.stdout.splitlines()
    assert (first, done.stderr, "ran" in done.stdout) == ("7", "", False)
    assert "near.py: did not exist when its package was trusted" in refusals[0]
    assert "changed.py: has changed since it was trusted" in refusals[1]
    assert refusals[2].startswith("ModuleNotFoundError") and "near.py: lies next to a trusted package" in refusals[2]
