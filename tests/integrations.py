"""Where the programs and packages of `make test-integrations` are, which the project itself does not need."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("FIVEGATE_INTEGRATIONS") or ROOT / ".integrations")
INSTALL = "make test-integrations installs it"


def full_mlflow() -> Path:
    """The folder of MLflow's own environment with its programs; skips the test where there is none."""
    programs = FOLDER / "mlflow" / "bin"
    if not (programs / "mlflow").is_file():
        pytest.skip(f"the whole of MLflow is not installed in {programs.parent}; {INSTALL}")
    return programs


def node_with(package: str) -> Path:
    """The folder with `node_modules`; skips the test where node or the package is missing."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules" / package).is_dir():
        pytest.skip(f"{package} is not installed in {FOLDER / 'node_modules'}; {INSTALL}")
    return FOLDER


def add_packages(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package be imported from the folder of packages; skips the test where it is not there."""
    folder = FOLDER / "packages"
    if not (folder / package).is_dir():
        pytest.skip(f"{package} is not installed in {folder}; {INSTALL}")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])  # last: the project's own packages come first
