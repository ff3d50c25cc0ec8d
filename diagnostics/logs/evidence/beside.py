"""Files beside a log that say something of the training: a config, a traceback, the source of the model or the loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diagnostics.logs.evidence.accidents import accidents_in, source_findings
from diagnostics.logs.header import settings_in
from pipeline.errors import UserError
from pipeline.foreign_files import read_bytes
from pipeline.inspection.finding import Finding

MAX_BYTES = 2**22
CONFIGS = (".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".args")
SOURCES = (".py", ".ipynb")
NAMES = ("config", "args", "hparams", "hyperparameters", "settings", "training_args", "error", "traceback", "stderr")


@dataclass
class Beside:
    """What the files beside a log say: settings, findings, and remarks on each file."""

    settings: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read_beside(paths: Iterable[Path]) -> Beside:
    """Return what the files say. Raises UserError with every file that cannot be read."""
    beside, faults = Beside(), list[str]()
    for path in paths:
        try:
            text = read_bytes(path, "a file beside a log", MAX_BYTES).decode("utf-8", errors="replace")
        except UserError as error:
            faults += error.faults
            continue
        file_findings = source_findings(text, path.name) if path.suffix in SOURCES else accidents_in(text, path.name)
        settings = {} if path.suffix in SOURCES else _settings(text)
        beside.findings += file_findings
        beside.settings |= settings
        if not file_findings and not settings:
            beside.remarks.append(f"{path}: says nothing that is understood of the training")
        for finding in file_findings:
            beside.remarks.append(f"{path}: {finding.sentence}")
        if settings:
            beside.remarks.append(f"{path}: states " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    if faults:
        raise UserError(*faults)
    return beside


def _settings(text: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    for line in text.splitlines():
        for name, value in settings_in(line).items():
            settings.setdefault(name, value)
    return settings


def files_beside(folder: Path, logs: Sequence[Path]) -> list[Path]:
    """Return the configs, tracebacks and sources in a folder of logs, which are not logs themselves."""
    known = set(logs)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path not in known)
    return [path for path in files if path.suffix in SOURCES or _is_named_so(path)]


def _is_named_so(path: Path) -> bool:
    return path.stem.lower() in NAMES and path.suffix in (*CONFIGS, ".txt", ".log", ".err", "")
