"""Build the parts of a training from a plain config: model, loss, optimizer, scheduler."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pipeline.building.auto_values import model_node
from pipeline.building.compiler import compiler_unloaded
from pipeline.checkpoints.weights import read_foreign_weights
from pipeline.config.build import build, build_function, section_of
from pipeline.data.dataset import Data
from pipeline.error_attribution import attributed_to
from pipeline.errors import UserError, fault
from pipeline.evaluation.task import Loss, Task, build_task
from pipeline.models import surgery
from pipeline.preprocess.modules import unwrap, without_preprocessing
from pipeline.preprocess.wrap import wrap_model
from pipeline.runtime.seeds import derive, seeded

# Optimizers with a fused kernel on CPU and CUDA: one call per step instead of several per parameter.
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def build_model(config: Mapping[str, object], trust: Sequence[str], seed: int, data: Data) -> nn.Module:
    """Build the model of a config, after surgery, with weights initialized from (seed, "init").

    Widths that are `auto` are those of `data`. The modules of the `preprocess` section are wrapped around the model,
    fitted on the train rows of `data`. Raises UserError for a target that is not a module, for `init_from` weights that
    do not fit, and for preprocessing that does not fit the data.
    """
    node = model_node(config, data)
    weights_file = node.pop("init_from", None)
    # The weights depend on the seed alone, whatever was drawn before in this process.
    with seeded(derive(seed, "init")), attributed_to("model", "cannot be built"):
        model = build(node, trust=trust, where="model")
        if not isinstance(model, nn.Module):
            raise UserError(fault("model", "is not a torch.nn.Module", got=type(model).__name__))
        if weights_file is not None:
            _load_initial_weights(model, Path(str(weights_file)))
        model = surgery.apply_surgery(model, config.get("surgery") or ())
    return wrap_model(model, config, data)


def _load_initial_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of a file. Raises UserError naming the weights that do not fit.

    If the file holds a model with its preprocessing, only the model's weights are loaded: this run fits its own
    preprocessing. A name that all weights begin with, such as `model.` in a checkpoint of Lightning, is left out.
    """
    saved, own = read_foreign_weights(path, "model.init_from"), model.state_dict()
    of_checkpoint = {name.partition(".")[2]: value for name, value in saved.items()}
    of_checkpoint = of_checkpoint if len({name.partition(".")[0] for name in saved}) == 1 else {}
    candidates = (saved, without_preprocessing(saved), of_checkpoint)
    weights = next((names for names in candidates if names.keys() & own.keys()), saved)
    mismatches = [f"{name} is missing" for name in own if name not in weights]
    mismatches += [f"{name} is not in the model" for name in weights if name not in own]
    mismatches += [
        f"{name} is {list(value.shape)}, the model's {list(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    if mismatches:
        raise UserError(fault("model.init_from", "weights do not fit the model", got="; ".join(mismatches[:8])))
    model.load_state_dict(weights)


def _class_weights(setting: object, counts: Mapping[str, int] | None) -> Tensor | None:
    """One weight per class: the values of a list, or for `balanced` rows / (classes · rows of the class)."""
    if setting in (None, "none"):
        return None
    if setting == "balanced":
        if not counts:
            return None
        sizes = [counts.get(str(c), 0) for c in range(max(map(int, counts)) + 1)]
        return torch.tensor([sum(sizes) / (len(sizes) * max(n, 1)) for n in sizes], dtype=torch.float32)
    if isinstance(setting, str) or not isinstance(setting, Sequence):
        expected = "none, balanced or a list"
        raise UserError(fault("task.class_weights", "unknown weights", got=setting, expected=expected))
    return torch.tensor([float(weight) for weight in setting])


def no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of a task whose step returns one."""
    raise AssertionError("a step returns its loss")


def build_loss(
    config: Mapping[str, object], trust: Sequence[str] = (), counts: Mapping[str, int] | None = None
) -> Loss:
    """Build the loss of a config: a callable (outputs, targets) -> scalar, weighted by `task.class_weights`.

    `counts` are the train rows per class, which `balanced` needs; without them that loss is unweighted.
    """
    if not config.get("loss"):
        return no_loss  # the step returns its loss
    with attributed_to("loss", "cannot be built"):
        loss: Any = build_function(section_of(config, "loss"), 2, trust=trust, where="loss")
    if not callable(loss):
        raise UserError(
            fault("loss", "is not callable", got=type(loss).__name__, expected="(outputs, targets) -> scalar")
        )
    weights = _class_weights(section_of(config, "task").get("class_weights"), counts)
    if weights is None:
        return loss
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        loss.weight = weights
    elif isinstance(loss, nn.BCEWithLogitsLoss) and len(weights) == 2:
        # This loss weights class 1 only: what matters is the ratio of both weights.
        loss.pos_weight = weights[1] / weights[0]
    else:
        expected = "CrossEntropyLoss, NLLLoss, or BCEWithLogitsLoss for two classes"
        raise UserError(
            fault("task.class_weights", "this loss takes no weights", got=type(loss).__name__, expected=expected)
        )
    return loss


def build_training_task(
    config: Mapping[str, object],
    model: nn.Module,
    trust: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
    column_targets: bool = False,
) -> Task:
    """Build the task of a config with its loss, on the model's device.

    `counts` as for `build_loss`, `column_targets` as in `Data`.
    """
    loss = build_loss(config, trust, counts)
    if isinstance(loss, nn.Module):
        first = next(model.parameters(), None)
        loss.to(first.device if first is not None else "cpu")
    return build_task(config, loss, model, trust, column_targets)


def _parameter_groups(model: nn.Module, groups: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Return the parameter groups of `optimizer.groups`; parameters that no pattern matches come last.

    A parameter belongs to the first pattern that matches its name. Raises UserError for patterns without a match.
    """
    remaining = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameter_groups, faults = list[dict[str, object]](), list[str]()
    for i, group in enumerate(groups):
        options = {key: value for key, value in group.items() if key != "match"}
        names = fnmatch.filter(remaining, str(group.get("match")))
        if not names:
            where, pattern = f"optimizer.groups[{i}].match", group.get("match")
            faults.append(fault(where, "matches no remaining parameter", got=pattern, among=remaining))
        parameter_groups.append({"params": [remaining.pop(name) for name in names], **options})
    if faults:
        raise UserError(*faults)
    return [*parameter_groups, {"params": list(remaining.values())}] if remaining else parameter_groups


def build_optimizer(config: Mapping[str, object], model: nn.Module, trust: Sequence[str] = ()) -> Optimizer:
    """Build the optimizer of a config over the trainable parameters.

    torch's Adam, AdamW and SGD use their fused kernels, unless the config names an implementation.
    """
    node = {"_partial_": True, **section_of(config, "optimizer")}
    groups: Any = node.pop("groups", None) or []
    with attributed_to("optimizer", "cannot be built"), compiler_unloaded():
        factory: Any = build(node, trust=trust, where="optimizer")
        implementation = {"fused", "foreach", "capturable", "differentiable"} & set(node)
        if getattr(factory, "func", None) in FUSED and not implementation and _supports_fused(model):
            optimizer = factory(_parameter_groups(unwrap(model), groups), fused=True)
        else:
            optimizer = factory(_parameter_groups(unwrap(model), groups))
    if not isinstance(optimizer, Optimizer):
        raise UserError(fault("optimizer", "is not a torch.optim.Optimizer", got=type(optimizer).__name__))
    return optimizer


def _supports_fused(model: nn.Module) -> bool:
    """Whether the fused kernels take these parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return not sparse and all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda") and p.layout == torch.strided for p in trained
    )


@dataclass(frozen=True, eq=False)
class Schedule:
    """A learning rate scheduler, and whether it steps after every update or after every epoch."""

    scheduler: LRScheduler
    every_step: bool

    def after_step(self) -> None:
        """Set the learning rate of the next step."""
        with attributed_to("scheduler"):
            self.scheduler.step()

    def after_epoch(self, loss: float, value: float) -> None:
        """Set the learning rate of the next epoch; ReduceLROnPlateau follows the loss if its mode is `min`."""
        with attributed_to("scheduler"):
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(loss if self.scheduler.mode == "min" else value)
            elif not self.every_step:
                self.scheduler.step()


def build_schedule(
    config: Mapping[str, object], optimizer: Optimizer, trust: Sequence[str] = (), steps: int = 1, epochs: int = 1
) -> Schedule | None:
    """Build the schedule of a config; None if it has none.

    With `interval: step` it steps after every update. An argument `budget` is replaced by the length of the training in
    that unit. Raises UserError for an object that is not a scheduler, and for a scheduler of another optimizer.
    """
    node = section_of(config, "scheduler")
    if not node:
        return None
    interval = node.pop("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise UserError(fault("scheduler.interval", "unknown interval", got=interval, among=("epoch", "step")))
    length = max(1, steps if interval == "step" else epochs)
    node = {name: length if value == "budget" else value for name, value in node.items()}
    # The stepper calls the optimizer's kernels, not `optimizer.step`; without the mark every scheduler would warn.
    marked: Any = optimizer
    marked._opt_called = True
    with attributed_to("scheduler", "cannot be built"):
        scheduler: Any = build({"_partial_": True, **node}, trust=trust, where="scheduler")(optimizer)
    if not callable(getattr(scheduler, "step", None)) or not hasattr(scheduler, "state_dict"):
        raise UserError(fault("scheduler", "is not a torch scheduler", got=type(scheduler).__name__))
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        do = "let scheduler be the _target_ of a torch scheduler with _partial_: true; it is called with the optimizer"
        raise UserError(fault("scheduler", "belongs to another optimizer than the one that trains", do=do))
    schedule = Schedule(scheduler, interval == "step")
    if isinstance(scheduler, ReduceLROnPlateau) and schedule.every_step:
        got, expected = "interval: step", "interval: epoch, since a plateau is detected on validation"
        raise UserError(fault("scheduler.interval", "does not fit ReduceLROnPlateau", got=got, expected=expected))
    return schedule
