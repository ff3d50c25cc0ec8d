"""A diagnosis as a chain on the page: symptom, observation, cause, experiment, verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.repair.diagnosis_record import (
    DiagnosisRecord,
    ExperimentRecord,
    FixRecord,
    RootCauseRecord,
    SymptomRecord,
    TimeRecord,
    read_diagnosis,
)
from pipeline.reporting.tables import in_words
from pipeline.run_store.run import Run

SEVERITIES = ("blocking", "serious", "warning")  # from worst to mildest; others come after
OF_AN_EXPERIMENT = "experiment"  # how evidence begins that an experiment gave, and not the training itself
VERDICTS = {"confirmed": "good", "refuted": "bad"}


@dataclass(frozen=True)
class Chain:
    """One named cause, with what was observed of it, what tested it, and what mends it."""

    cause: RootCauseRecord
    means: str
    observations: Sequence[str]
    experiments: Sequence[ExperimentRecord]
    fixes: Sequence[FixRecord]

    @property
    def tone(self) -> str:
        return VERDICTS.get(self.cause["status"], "plain")

    @property
    def verdict(self) -> str:
        return "possible" if self.cause["status"] == "candidate" else self.cause["status"]


@dataclass(frozen=True)
class DiagnosisSection:
    """The diagnosis of one round; `symptoms` have their earliest onset in words."""

    round: int
    record: DiagnosisRecord
    symptoms: Sequence[tuple[SymptomRecord, str]]
    chains: Sequence[Chain]


def read_diagnoses(run: Run, missing: list[str]) -> list[DiagnosisSection]:
    """Return the diagnosis of every round, newest first; a file that is none is added to `missing`."""
    paths = [path for path in run.path.glob("diagnostics/*/diagnosis.json") if path.parent.name.isdecimal()]
    sections = []
    for path in sorted(paths, key=lambda p: int(p.parent.name), reverse=True):
        try:
            sections.append(diagnosis_section(int(path.parent.name), read_diagnosis(path, run.relative(path))))
        except UserError as error:
            missing += error.faults
    return sections


def diagnosis_section(round_: int, record: DiagnosisRecord) -> DiagnosisSection:
    """Return what the page shows of a diagnosis; the most severe symptoms come first."""
    order = {name: at for at, name in enumerate(SEVERITIES)}
    symptoms = sorted(record["symptoms"], key=lambda symptom: order.get(symptom["severity"], len(order)))
    chains = [_chain(cause, record) for cause in record["root_causes"]]
    return DiagnosisSection(round_, record, [(symptom, onset_in_words(symptom)) for symptom in symptoms], chains)


def _chain(cause: RootCauseRecord, record: DiagnosisRecord) -> Chain:
    issue = cause["issue"]
    return Chain(
        cause=cause,
        means=_meaning(issue),
        observations=[text for text in cause["evidence"] if not text.startswith(OF_AN_EXPERIMENT)],
        experiments=[experiment for experiment in record["experiments"] if experiment["hypothesis"] == issue],
        fixes=[fix for fix in record["recommended_fixes"] if fix["cause"] == issue],
    )


def _meaning(issue: str) -> str:
    """Return what a cause means; empty for one that this version does not know."""
    from pipeline.repair.causes import load

    cause = load().get(issue)
    return cause.means if cause else ""


def onset_in_words(symptom: SymptomRecord) -> str:
    """Return since when a symptom has held, as `since step 3`; empty where no observation has a time."""
    for unit in ("step", "epoch"):
        times = [observation["since"].get(unit) for observation in symptom["observations"]]
        known = [int(time) for time in times if isinstance(time, int)]
        if known:
            return f"since {unit} {min(known)}"
    return ""


def onsets(sections: Iterable[DiagnosisSection], round_: int) -> tuple[list[TimeRecord], list[str]]:
    """Return the earliest time of each symptom of a round, and the symptom in words."""
    times: list[TimeRecord] = []
    names: list[str] = []
    for section in sections:
        for symptom in section.record["symptoms"] if section.round == round_ else ():
            onsets = [o["since"] for o in symptom["observations"] if o["since"]["step"] is not None]
            onsets = onsets or [o["since"] for o in symptom["observations"] if o["since"]["epoch"] is not None]
            if onsets:
                times.append(min(onsets, key=lambda time: (time["step"] or 0, time["epoch"] or 0)))
                names.append(in_words(symptom["id"]))
    return times, names
