"""Typed sections of a frozen config for code that trains: attributes instead of nested dictionaries.

The frozen config was validated when it was composed, so these classes only fill in defaults. They import neither
pydantic nor torch, because every worker process reads its config through them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from pipeline.errors import UserError, fault

# Every value that these options can have in this version; any other is refused, never ignored.
BUILT: dict[str, tuple[object, ...]] = {
    "trainer.precision": (32, "32", "bf16", "bf16-mixed", "16-mixed"),
    "trainer.accelerator": ("auto", "cpu", "cuda", "mps"),
    "trainer.devices": (1,),
    "trainer.strategy": ("none",),
    "trainer.deterministic": (True, False, "warn"),
    "trainer.on_nonfinite": ("stop",),
    "trainer.on_spike": ("none", "stop", "skip", "rollback"),
    "loader.sampler": ("none", "balanced"),
}


@dataclass(frozen=True)
class Section:
    """A typed section of a config."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Return the typed section; a key that is null or missing has its default, unknown keys are left out."""
        names = [field.name for field in fields(cls) if values.get(field.name) is not None]
        return cls(**{name: values[name] for name in names})


@dataclass(frozen=True)
class LoaderConfig(Section):
    """The `loader` section: how rows become batches."""

    batch_size: int
    shuffle: bool = True
    num_workers: int = 0
    sampler: Literal["none", "balanced"] = "none"
    augment: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True)
class TrainerConfig(Section):
    """The `trainer` section: how long, where and with which numbers a model trains."""

    max_epochs: int
    max_steps: int | None = None
    max_minutes: float | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    val_check_interval: int | float | None = None
    patience: int | None = None
    precision: int | str = 32
    accelerator: str = "auto"
    devices: int = 1
    strategy: Literal["none"] = "none"
    threads: int | Literal["auto"] = "auto"
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    deterministic: bool | Literal["warn"] = True
    compile: bool = False
    on_nonfinite: Literal["stop"] = "stop"
    on_spike: Literal["none", "stop", "skip", "rollback"] = "none"
    checkpoint_minutes: float | None = None
    checkpoint_steps: int | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """What the engine reads of a job's config.

    `source` is the whole config as a mapping; model, data, loss, optimizer and scheduler are built from it, since their
    keys are those of the user's own classes.
    """

    seed: int
    target: float | None
    loader: LoaderConfig
    trainer: TrainerConfig
    source: Mapping[str, Any]

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> TrainingConfig:
        """Return the typed config. Raises UserError naming every option that this version does not carry out."""
        require_built(config)
        return cls(
            seed=int(config["seed"]),
            target=config["task"].get("target"),
            loader=LoaderConfig.from_mapping(config["loader"]),
            trainer=TrainerConfig.from_mapping(config["trainer"]),
            source=config,
        )


def require_built(config: Mapping[str, Any]) -> None:
    """Raise UserError with one message for every option whose value this version does not carry out."""
    faults = []
    for key, built in BUILT.items():
        section, name = key.split(".")
        value = config[section].get(name)
        # `True == 1` in Python, so that the types are compared as well.
        if value is not None and not any(value == b and isinstance(value, bool) == isinstance(b, bool) for b in built):
            option_names = [str(b).lower() for b in dict.fromkeys(map(str, built))]
            do = f"python -m pipeline ... {key}={option_names[0]}"
            faults.append(
                fault(key, "is not built in this version", got=value, expected=" or ".join(option_names), do=do)
            )
    if faults:
        raise UserError(*faults)
