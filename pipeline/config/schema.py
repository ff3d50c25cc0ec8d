"""The schema of the config: a typed model for each closed section, and rules that no configuration can change.

`model data loss optimizer scheduler` are open: they need a `_target_`, and their other keys are its arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.config.conf_dir import LOSSES, conf_dir
from pipeline.config.override_keys import command
from pipeline.config.validation_errors import format_errors
from pipeline.config.value_types import (
    DOTTED,
    Batches,
    Count,
    Licence,
    PartialTarget,
    Positive,
    Target,
    Text,
    not_built,
    read_value,
)
from pipeline.errors import UserError, fault
from pipeline.run_store.run import NAME, RESERVED
from pipeline.trust.grants import why_not


class Section(BaseModel):
    """A closed section, strictly typed: no unknown keys, no numbers in quotes, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Run(Section):
    name: Annotated[str, Field(max_length=63)]
    root: Text
    sweep: Count | None

    @field_validator("name")
    @classmethod
    def names_a_run(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ValueError("a-z 0-9 _ -, beginning with a letter or digit, not mlartifacts")
        return name


class Limits(Section):
    latency_ms_p99: Positive | None
    size_mb: Positive | None
    memory_mb: Positive | None


class Margins(Section):
    target: Annotated[float, Field(ge=0)] | None
    slice: Annotated[float, Field(ge=0)] | None
    regression: Annotated[float, Field(ge=0)] | None
    metrics: dict[str, Annotated[float, Field(ge=0)]] | None = None
    cost: Annotated[float, Field(ge=0)] | None = None
    quality: Annotated[float, Field(ge=0)] | None = None


class Robustness(Section):
    corruption: Annotated[float, Field(ge=0, le=1)] = 0.8
    worst_corruption: Annotated[float, Field(ge=0, le=1)] = 0.6
    adversarial: float | None = None


class Statement(Section):
    who: Text
    why: Text


class ProblemCard(Section):
    purpose: Text | None
    intended_use: Text | None
    out_of_scope: Text | None
    population: Text | None
    assumptions: list[Text]
    risks: list[Text]
    owner: Text | None
    approvers: list[Text]
    license: Licence | None = None  # in American spelling, as in pyproject.toml and on the Hub
    limits: Limits
    margins: Margins
    robustness: Robustness = Robustness()
    small_sample: Statement | None = None
    not_audited: Statement | None = None


class Task(Section):
    kind: Literal["classification", "binary", "multilabel", "regression", "autoencoder", "language_model", "custom"]
    metric: Text | Target  # with a step also `loss`, or a scalar that it returns; `-name`: less is better
    metrics: list[Text | Target]
    target: float | None
    predict: Literal["auto"] | Target
    step: Target | None
    class_weights: Literal["none", "balanced"] | list[Positive]


class Preprocess(Section):
    integers: Literal["auto", "float32", "keep"] = "float32"
    impute: Literal["none", "mean", "median"]
    standardize: bool
    one_hot: bool
    images: Literal["none", "unit", "channels"]
    targets: Literal["none", "standardize"]


class Loader(Section):
    batch_size: Count
    shuffle: bool
    num_workers: Annotated[int, Field(ge=0)]
    sampler: Literal["none", "balanced"]
    augment: list[Target]


class Trainer(Section):
    max_epochs: Count
    max_steps: Count | None
    max_minutes: Positive
    limit_train_batches: Batches | None = None
    limit_val_batches: Batches | None = None
    val_check_interval: Batches | None = None
    patience: Count | None
    precision: Literal[32, "bf16", "bf16-mixed", "16-mixed"]
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    devices: Annotated[Literal[1], not_built(*range(2, 1025), use="1")]
    strategy: Annotated[Literal["none"], not_built("ddp", "fsdp", use="none")]
    threads: Literal["auto"] | Count
    gradient_clip_val: Positive | None
    accumulate_grad_batches: Count
    deterministic: bool | Literal["warn"]
    compile: bool
    on_nonfinite: Annotated[Literal["stop"], not_built("skip", use="stop")]
    on_spike: Literal["none", "stop", "skip", "rollback"]
    guard: Literal["off", "warn", "stop", False]  # YAML reads a bare off as false
    checkpoint_minutes: Positive | None
    checkpoint_steps: Count | None


class Tracking(Section):
    kind: Literal["mlflow", "none"]
    uri: Text | None
    experiment: Text
    tensorboard: bool = False


class Export(Section):
    formats: list[Literal["onnx", "torchscript", "program"]]
    vulnerability_db: Text | None = None


class Executor(Section):
    kind: Literal["local", "submitit", "ray"]
    cluster: Literal["slurm", "local"] = "slurm"
    timeout_min: Count = 1440
    parameters: dict[str, Any] = Field(default_factory=dict)
    address: Text | None = None
    gpus_per_job: Annotated[float, Field(ge=0)] = 0.0


class AfterPlanning(Section):
    sufficient: Literal["baseline"]
    insufficient: Literal["baseline"]


class AfterBaseline(Section):
    sufficient: Literal["finalization", "diagnostics"]
    insufficient: Literal["diagnostics"]


class AfterDiagnostics(Section):
    sufficient: Literal["finalization"]
    insufficient: Literal["optimization"]


class AfterOptimization(Section):
    sufficient: Literal["finalization"]
    insufficient: Literal["diagnostics"]


class AfterFinalization(Section):
    sufficient: Literal["released"]
    insufficient: None


class Planning(Section):
    checklist: Literal["planning"]
    next: AfterPlanning


class Baseline(Section):
    checklist: Literal["baseline"]
    next: AfterBaseline
    overfit_steps: Count
    sanity_check_steps: Annotated[int, Field(ge=0)]
    reproducibility_steps: Annotated[int, Field(ge=0)]
    folds: Annotated[int, Field(ge=0)]
    baseline_model_seconds: Annotated[float, Field(ge=0)]


class Diagnostics(Section):
    checklist: Literal["diagnostics"]
    next: AfterDiagnostics
    experiments: bool
    parallel: Literal["auto"] | Count


class Optimization(Section):
    checklist: Literal["optimization"]
    next: AfterOptimization
    rounds: Annotated[int, Field(ge=1, le=3)]
    candidates: Count
    seeds_per_arm: Annotated[int, Field(ge=2, le=10)]  # the seed indices 20 to 29 are for confirmations
    goal: Literal["quality", "train_speed", "latency", "memory"] = "quality"
    review: bool = False
    min_effect: Annotated[float, Field(ge=0, le=1)] = 0.1
    ablate: list[str] = Field(default_factory=list)
    parallel: Literal["auto"] | Count


class Finalization(Section):
    checklist: Literal["finalization"]
    next: AfterFinalization
    seeds: Annotated[int, Field(ge=1, le=7)] = 7
    parallel: Literal["auto"] | Count = "auto"
    replay_seconds: Annotated[float, Field(ge=0)] = 60.0


class Phases(Section):
    """All five phases, each with its own gate: none can be removed, renamed or moved."""

    planning: Planning
    baseline: Baseline
    diagnostics: Diagnostics
    optimization: Optimization
    finalization: Finalization


class Config(Section):
    """The whole config."""

    phase: Literal["planning", "baseline", "diagnostics", "optimization", "finalization", "auto"]
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None
    run: Run
    plan: ProblemCard
    task: Task
    data: Target
    preprocess: Preprocess
    model: Target
    loss: Target | None = None
    optimizer: PartialTarget
    scheduler: PartialTarget | None = None
    loader: Loader
    trainer: Trainer
    surgery: list[dict[str, Any]]
    ckpt_path: Text | None = None
    callbacks: list[Target] | None = None
    tracking: Tracking
    export: Export
    executor: Executor
    phases: Phases
    trust: list[Annotated[str, Field(pattern=DOTTED)]]
    env: list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]] = Field(default_factory=list)

    @field_validator("surgery")
    @classmethod
    def one_change_each(cls, surgery: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(len(change) != 1 for change in surgery):
            raise ValueError("a list of changes with one name each: [{swap_activation: {from: ReLU, to: LeakyReLU}}]")
        return surgery

    @field_validator("trust")
    @classmethod
    def not_ours(cls, trust: list[str]) -> list[str]:
        if wrong := [f"{name} {why}" for name in trust if (why := why_not(name))]:
            raise ValueError(f"packages of your own ({', '.join(wrong)})")
        return trust


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted key of the closed sections."""

    def inside(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield (key := f"{prefix}{field.alias or name}")
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from inside(field.annotation, f"{key}.")

    return tuple(inside(Config))


def accepts(key: str, text: str) -> bool:
    """Whether a key has a value that is written like this in an override, or a group such a bundled option.

    The keys of open sections take any value.
    """
    if options := [path.stem for path in conf_dir().joinpath(key).glob("*.yaml")]:
        return text in options
    *path, name = key.split(".")
    section: type[BaseModel] = Config
    for part in path:
        inner = section.model_fields[part].annotation if part in section.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, Section)):
            return True
        section = inner
    try:
        section.__pydantic_validator__.validate_assignment(section.model_construct(), name, read_value(text))
    except ValidationError:
        return False
    return True


def faults_of(config: Mapping[str, Any], typed: Collection[str] = ()) -> list[str]:
    """Every fault of a resolved config, one message per key; `typed` are the keys of the command line."""
    faults = list[str]()
    try:
        Config.model_validate(config)
    except ValidationError as error:
        faults = format_errors(error.errors(include_url=False), config, known_keys(), accepts, typed)
    return faults + _lacking_loss(config)


def _lacking_loss(config: Mapping[str, Any]) -> list[str]:
    """A fault for a config without a loss, unless the task has a step, which returns its loss."""
    task = config.get("task")
    task = task if isinstance(task, Mapping) else {"kind": "custom"}
    if config.get("loss") is not None or task.get("step") or task.get("kind") == "custom":
        return []
    do = command(f"loss={LOSSES.get(str(task.get('kind')), 'mse')}")
    return [fault("loss", "is missing", expected="a loss, or a task.step that returns one", do=do)]


def validate(config: Mapping[str, Any]) -> None:
    """Raise one UserError with every fault of the config."""
    if faults := faults_of(config):
        raise UserError(*faults)
