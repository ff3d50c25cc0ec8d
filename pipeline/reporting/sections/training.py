"""The trainings of a run on the page: learning curves with the onsets of symptoms, and heat maps by module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline.errors import UserError
from pipeline.foreign_files import read_bytes
from pipeline.history import EXPECTED as HISTORY
from pipeline.history import History
from pipeline.reporting.panels import Panel, panels
from pipeline.reporting.sections.diagnosis import DiagnosisSection, onsets
from pipeline.reporting.sections.heat_maps import HeatMap, heat_maps
from pipeline.run_store.run import Run


@dataclass(frozen=True)
class TrainingSection:
    """One training: its panels, each with its drawing, and its heat maps, which a log may not have."""

    title: str
    panels: Sequence[tuple[Panel, Markup]]
    heat_maps: Sequence[HeatMap]


def training_sections(run: Run, diagnoses: Sequence[DiagnosisSection], missing: list[str]) -> list[TrainingSection]:
    """Return the baseline and each round's fixed training; a file that is none is added to `missing`.

    The symptoms of a round are those of the training that it explains: the baseline in the first, then the fixed one of
    the round before. Of a training that was interrupted, or still runs, its last checkpoint has what was recorded.
    """
    from pipeline.reporting.plots import inline_svg

    sections = []
    for folder in [run.inside("baseline"), *sorted(run.path.glob("optimization/*/trials/fixed"))]:
        path = _newest_history(folder)
        if path is None:
            continue
        round_ = 0 if folder.name == "baseline" else int(folder.parts[-3])
        title = "baseline" if folder.name == "baseline" else f"after the fix, round {round_}"
        try:
            history = History.from_bytes(read_bytes(path, HISTORY), run.relative(path))
            shown = panels(history, *onsets(diagnoses, round_ + 1))
        except UserError as error:
            missing += error.faults
            continue
        if path.parent != folder:
            title += ", not finished: up to its last checkpoint"
        if shown:
            drawn = [(panel, inline_svg(panel, f"{title}/{panel.title}")) for panel in shown]
            sections.append(TrainingSection(title, drawn, heat_maps(history, title)))
    return sections


def _newest_history(folder: Path) -> Path | None:
    """Return the history that a training ended with, else that of its last checkpoint; None without one."""
    ended = folder / "history.npz"
    if ended.exists():
        return ended
    saved = [path for path in folder.glob("checkpoints/*/history.npz") if path.parent.name.isdigit()]
    return max(saved, key=lambda path: int(path.parent.name), default=None)
