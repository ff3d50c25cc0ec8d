"""What a user gets: a wheel that works in an empty folder, pins that fit, and one message when a name is hidden."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import fivegate
from pipeline import import_guard

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("pipeline", "phases", "diagnostics", "checklists")
SHIPPED = {".py", ".yaml", ".md", ".j2"}
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = (
    {"sys_platform": "linux", "platform_system": "Linux"},
    {"sys_platform": "darwin", "platform_system": "Darwin"},
)
CUDA = re.compile(r"nvidia-|cuda-|triton")  # torch pins its own, and only where there is a CUDA build


def environment(*path: Path) -> dict[str, str]:
    """This process's environment with another import path; what runs outside the checkout is not measured."""
    variables = {k: v for k, v in os.environ.items() if ROOT in path or not k.startswith("COVERAGE_")}
    return {**variables, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONSAFEPATH": ""}


def call(arguments: list[Any], cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(w) for w in arguments], cwd=cwd, env=env, capture_output=True, text=True)


def make(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """make as a user types it, whatever make runs these tests."""
    outer = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "RUN", "ARGS", "PYTHON"}
    env = {k: v for k, v in os.environ.items() if k not in outer}
    return call(["make", "--no-print-directory", *arguments], cwd, env)


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("fivegate.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    arguments = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        source / "dist",
        source,
    ]
    completed = call(arguments, source)
    assert completed.returncode == 0, completed.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; the libraries come from the environment of the tests."""
    target = tmp_path_factory.mktemp("installed")
    completed = call([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel], target)
    assert completed.returncode == 0, completed.stderr
    return target


def test_every_package_is_listed() -> None:
    """setuptools ships what pyproject.toml lists; a folder that is not listed would be missing from the wheel."""
    folders = {
        ".".join(p.parent.relative_to(ROOT).parts) for name in PACKAGES for p in (ROOT / name).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | {"pipeline.conf"}


@pytest.mark.process
def test_wheel_holds_everything_and_nothing_else(wheel: Path) -> None:
    """Every source, setting, playbook and template of the checkout is in the wheel, conf/ inside `pipeline`."""
    own = {p.relative_to(ROOT).as_posix() for n in PACKAGES for p in (ROOT / n).rglob("*") if p.suffix in SHIPPED}
    conf = {f"pipeline/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "conf").rglob("*") if p.suffix in SHIPPED}
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        (points,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "fivegate = fivegate:main" in archive.read(points).decode()
    assert names == own | conf | {"fivegate.py"}


@pytest.mark.process
@pytest.mark.parametrize("start", ["-m pipeline", "-m fivegate"])
def test_wheel_answers_in_an_empty_folder(installed: Path, tmp_path: Path, start: str) -> None:
    """Away from the checkout, the command line answers and a whole experiment composes from the shipped conf/."""
    env = environment(installed)
    assert call([sys.executable, *start.split(), "--help"], tmp_path, env).stdout.startswith("Fivegate")
    composed = call([sys.executable, *start.split(), "experiment=digits", "--cfg", "job"], tmp_path, env)
    assert composed.returncode == 0, composed.stderr
    assert "experiment" in composed.stdout and "seed:" in composed.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_wheel_is_what_ran(installed: Path, tmp_path: Path) -> None:
    """The installed copy is used, not the checkout that the environment may also know."""
    code = "import pipeline; from pipeline.config.conf_dir import conf_dir; print(pipeline.__path__[0], conf_dir())"
    completed = call([sys.executable, "-c", code], tmp_path, environment(installed))
    assert completed.stdout.split() == [str(installed / "pipeline"), str(installed / "pipeline" / "conf")]


@pytest.mark.process
@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_hidden_name_is_one_message(tmp_path: Path, name: str, kind: str) -> None:
    """A user's own package or module of our name is named, with what to do, and nothing of it runs."""
    place = tmp_path / name if kind == "package" else tmp_path / f"{name}.py"
    file = place / "__init__.py" if kind == "package" else place
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('the user\\'s own code ran')")
    code = "import sys, fivegate; sys.argv = ['fivegate', '--help']; sys.exit(fivegate.main())"
    completed = call([sys.executable, "-c", code], tmp_path, environment(tmp_path, ROOT))
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr.startswith(f"{place}: hides Fivegate's own package '{name}'; expected {ROOT / name}\nDo: ")


@pytest.mark.process
def test_python_m_pipeline_checks_the_other_names(tmp_path: Path) -> None:
    """Beside a `phases` of the user's that the environment names, `python -m pipeline` says so too."""
    (tmp_path / "phases.py").touch()
    completed = call([sys.executable, "-m", "pipeline", "--help"], tmp_path, environment(tmp_path, ROOT))
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr.startswith(f"{tmp_path / 'phases.py'}: hides")


@pytest.mark.process
def test_the_face_checks_the_names(tmp_path: Path) -> None:
    """`from fivegate import ...` in a notebook beside a user's own `diagnostics` fails with the same message."""
    (tmp_path / "diagnostics.py").touch()
    completed = call([sys.executable, "-c", "from fivegate import Monitor"], tmp_path, environment(tmp_path, ROOT))
    assert f"ImportError: {tmp_path / 'diagnostics.py'}: hides" in completed.stderr


def test_our_own_names_are_not_hidden() -> None:
    """In the checkout under test every name is ours, and a home without the packages says which are missing."""
    assert import_guard.message() is None


def test_a_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that lost a package is told to be installed again."""
    monkeypatch.setattr(import_guard, "NAMES", ("pipeline", "fivegate_lost_package"))
    message = import_guard.message()
    assert (
        message
        == f"{ROOT / 'fivegate_lost_package'}: package is missing from this installation\nDo: install Fivegate again"
    )


def test_the_face_hands_on_its_names() -> None:
    """Each public name is that of its own file, and an unknown name is an AttributeError."""
    from diagnostics.diagnose import diagnose
    from diagnostics.monitor import Monitor
    from pipeline.python_api.run import Run
    from pipeline.tuning.compare import compare
    from pipeline.tuning.optimize import optimize

    names = fivegate.Run, fivegate.Monitor, fivegate.diagnose, fivegate.compare, fivegate.optimize
    assert names == (Run, Monitor, diagnose, compare, optimize)
    assert set(fivegate.__all__) <= set(dir(fivegate))
    with pytest.raises(AttributeError, match="no attribute 'Runs'"):
        _ = fivegate.Runs


def required(requirement: Requirement, python: str, system: dict[str, str]) -> Iterator[Requirement]:
    """What an installed distribution asks for under another Python or system, extras included."""
    for text in metadata.requires(requirement.name) or []:
        child = Requirement(text)
        for extra in ("", *requirement.extras):
            where = {**system, "python_version": python, "python_full_version": f"{python}.0", "extra": extra}
            if child.marker is None or child.marker.evaluate(where):
                yield child
                break


@pytest.mark.parametrize("system", SYSTEMS, ids=["linux", "macos"])
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_is_complete_and_fits(python: str, system: dict[str, str]) -> None:
    """Everything that pyproject.toml asks for, and what that asks for, is pinned once to a version that fits."""
    lock = pins()
    project = PROJECT["project"]
    left = [Requirement(r) for r in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    seen, wrong = set(), []
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if CUDA.match(name) or (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        if name not in lock:
            wrong.append(f"{requirement}: not pinned")
            continue
        if not requirement.specifier.contains(lock[name], prereleases=True):
            wrong.append(f"{requirement}: pinned to {lock[name]}")
        fits = metadata.metadata(name).get("Requires-Python", "")
        if not SpecifierSet(fits or "").contains(f"{python}.0"):
            wrong.append(f"{name}: {lock[name]} needs Python {fits}")
        left += required(requirement, python, system)
    assert wrong == []


def test_lock_says_how_it_was_made() -> None:
    """Its first line is the command that makes it anew; pins are exact, without addresses, hashes or local versions."""
    first, *rest = (ROOT / "requirements.lock").read_text().splitlines()
    assert first == "# make lock PYTHON=python3.11"
    assert [line for line in rest if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert pins()["torch"] == "2.13.0"


@pytest.mark.process
def test_make_lists_its_targets() -> None:
    """`make help` names exactly the targets that are promised."""
    promised = (
        "train-baseline diagnose optimize finalize auto status report smoke test test-process coverage test-crash "
        "test-fuzz test-integrations test-page lint check docs docs-site mutants bench-faults bench-repair bench-loops "
        "bench-logs bench-variants bench-guard fit-ranker verify-faults healthy-ranges programs bench bench-executors "
        "bench-drift bench-intervals lock help"
    )
    completed = make(["help"], ROOT)
    assert re.findall(r"^  make (\S+)", completed.stdout, re.M) == promised.split()


@pytest.mark.process
def test_make_refuses_a_python_that_does_not_fit(tmp_path: Path) -> None:
    """An interpreter that is too old or absent is one message, and no half-made environment."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    completed = make(["status", "PYTHON=/bin/false"], tmp_path)
    assert completed.returncode == 2
    assert (
        "got /bin/false" in completed.stderr
        and "expected CPython 3.11 to 3.13  Do: make status PYTHON=" in completed.stderr
    )
    assert not (tmp_path / ".venv").exists()


def pipeline_that_ends(folder: Path, code: int) -> None:
    """A checkout whose pipeline prints its arguments and ends with a code."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("requirements.lock", "pyproject.toml"):
        (folder / name).touch()
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    python.chmod(0o755)
    (folder / ".venv" / ".ready").touch()


MEANINGS = {
    1: "fault of the program or the machine, or your code asked to exit",
    2: "wrong input, or an error in your code",
    3: "gate closed",
    4: "only an approval is missing",
    130: "interrupted; the same command continues",
    137: "killed or unknown",
}


@pytest.mark.process
@pytest.mark.parametrize(
    ("target", "code"),
    [*(("auto", code) for code in MEANINGS), *((name, 3) for name in ("train-baseline", "diagnose", "status"))],
)
def test_make_ends_with_exit_code_of_the_pipeline(tmp_path: Path, target: str, code: int) -> None:
    """The last line of every target that runs the pipeline is its exit code with its meaning; nothing after 0."""
    pipeline_that_ends(tmp_path, code)
    done = make([target], tmp_path)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]

    assert lines == [f"pipeline exit code {code}: {MEANINGS[code]}"]
    assert done.returncode == (0 if code == 4 else 2)


@pytest.mark.process
@pytest.mark.parametrize(("ends", "expected"), [(0, 0), (4, 0), (3, 2), (2, 2)])
def test_make_takes_pending_for_success(tmp_path: Path, ends: int, expected: int) -> None:
    """Exit code 4 of the pipeline is a success of make; any other that is not 0 is a failure."""
    pipeline_that_ends(tmp_path, ends)
    completed = make(["train-baseline", "RUN=digits_hot", "ARGS=seed=3"], tmp_path)
    assert (completed.returncode, completed.stdout) == (
        expected,
        "-m pipeline phase=baseline experiment=digits_hot seed=3\n",
    )
    assert ("pipeline exit code" in completed.stderr) == (ends != 0)
    (tmp_path / "runs" / "digits_hot").mkdir(parents=True)
    (tmp_path / "runs" / "digits_hot" / "ledger.jsonl").touch()
    completed = make(["auto", "RUN=digits_hot"], tmp_path)
    assert completed.stdout == "-m pipeline phase=auto run.name=digits_hot\n"


@pytest.mark.process
def test_make_auto_names_the_page_of_the_run(tmp_path: Path) -> None:
    """Also where an approval is missing, the last line of the output is the path of the page."""
    pipeline_that_ends(tmp_path, 4)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "report.html").touch()
    ended = make(["auto", "RUN=digits"], tmp_path)
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1] == "the page of this run: runs/digits/report.html"


@pytest.mark.process
@pytest.mark.parametrize(("ends", "said"), [(0, "exit code 0; expected 4"), (4, "stopped before finalization")])
def test_make_smoke_expects_a_missing_approval(tmp_path: Path, ends: int, said: str) -> None:
    """A run that needs no approval is a failure, and so is one that waits before the last gate."""
    pipeline_that_ends(tmp_path, ends)
    ended = make(["smoke"], tmp_path)
    assert ended.returncode == 2 and said in ended.stderr
