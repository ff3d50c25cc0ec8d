"""Building what a training consists of from a plain config: model, loss, optimizer, scheduler."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pipeline.building.compiler import compiler_unloaded
from pipeline.checkpoints.weights import read_tensors
from pipeline.config.build import build
from pipeline.data.dataset import Data
from pipeline.error_attribution import attributed_to
from pipeline.errors import FivegateError, UserError, fault
from pipeline.evaluation.task import Task, build_task
from pipeline.models import surgery
from pipeline.preprocess.modules import unwrap, without_preprocessing
from pipeline.preprocess.wrap import wrapped
from pipeline.runtime.seeds import derive, seeded

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


@contextmanager
def _at(where: str) -> Iterator[None]:
    """An exception of the user's own constructor becomes one UserError that names the config key."""
    try:
        yield
    except FivegateError:
        raise
    except Exception as error:
        raise UserError(fault(where, f"cannot be built ({type(error).__name__}: {error})")) from error


def build_model(config: Mapping[str, Any], trust: Sequence[str], seed: int, data: Data) -> nn.Module:
    """The model of a config with its surgery done, initialized from (seed, "init") whatever was drawn before.

    Around it stands what `preprocess` asks for, fitted on the train rows of `data`; without that it stands alone.
    Raises UserError for a target that is no module, for `init_from` weights that do not fit, and for preprocessing
    that the data cannot have.
    """
    node = dict(config["model"])
    start = node.pop("init_from", None)
    with seeded(derive(seed, "init")), _at("model"):
        model = build(node, trust=trust, where="model")
        if not isinstance(model, nn.Module):
            raise UserError(fault("model", "is no torch.nn.Module", got=type(model).__name__))
        if start is not None:
            _start_from(model, Path(start))
        model = surgery.operate(model, config.get("surgery") or ())
    return wrapped(model, config, data)


def _start_from(model: nn.Module, path: Path) -> None:
    """The model holds the weights of a safetensors file. Raises UserError naming every weight that does not fit.

    Of a model that was saved with its preprocessing the model alone is taken: this run fits its own.
    """
    given, own = read_tensors(path, "model.init_from"), model.state_dict()
    given = given if given.keys() & own.keys() else without_preprocessing(given)
    odd = [f"{n} is missing" for n in own if n not in given] + [
        f"{n} is not in the model" for n in given if n not in own
    ]
    odd += [
        f"{n} is {list(t.shape)}, the model's {list(own[n].shape)}"
        for n, t in given.items()
        if n in own and t.shape != own[n].shape
    ]
    if odd:
        raise UserError(fault("model.init_from", "weights do not fit the model", got="; ".join(odd[:8])))
    model.load_state_dict(given)


def _class_weights(asked: Any, counts: Mapping[str, int] | None) -> Tensor | None:
    """One weight per class: the list asked for, or for `balanced` rows / (classes · rows of the class)."""
    if asked in (None, "none"):
        return None
    if asked == "balanced":
        if not counts:
            return None
        sizes = [counts.get(str(c), 0) for c in range(max(map(int, counts)) + 1)]
        return torch.tensor([sum(sizes) / (len(sizes) * max(n, 1)) for n in sizes], dtype=torch.float32)
    if isinstance(asked, str) or not isinstance(asked, Sequence):
        raise UserError(fault("task.class_weights", "unknown weights", got=asked, expected="none, balanced or a list"))
    return torch.tensor([float(w) for w in asked])


def build_loss(config: Mapping[str, Any], trust: Sequence[str] = (), counts: Mapping[str, int] | None = None) -> Any:
    """The loss of a config: a callable (outputs, targets) -> scalar, weighted by `task.class_weights`.

    `counts` are the train rows per class, which `balanced` needs; without them that loss is unweighted.
    """
    with _at("loss"):
        loss: Any = build(dict(config["loss"]), trust=trust, where="loss")
    if not callable(loss):
        raise UserError(
            fault("loss", "is not callable", got=type(loss).__name__, expected="(outputs, targets) -> scalar")
        )
    weights = _class_weights(config["task"].get("class_weights"), counts)
    if weights is None:
        return loss
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        loss.weight = weights
    elif isinstance(loss, nn.BCEWithLogitsLoss) and len(weights) == 2:
        loss.pos_weight = weights[1] / weights[0]
    else:
        expected = "CrossEntropyLoss, NLLLoss, or BCEWithLogitsLoss for two classes"
        raise UserError(fault("task.class_weights", "this loss takes none", got=type(loss).__name__, expected=expected))
    return loss


def build_training_task(
    config: Mapping[str, Any], model: nn.Module, trust: Sequence[str] = (), counts: Mapping[str, int] | None = None
) -> Task:
    """The task of a config with its loss, on the model's device; `counts` as for `build_loss`."""
    loss = build_loss(config, trust, counts)
    if isinstance(loss, nn.Module):
        first = next(model.parameters(), None)
        loss.to(first.device if first is not None else "cpu")
    return build_task(config, loss, model, trust)


def _groups(model: nn.Module, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups by the first pattern that matches a name; the rest last. Raises UserError for idle patterns."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups, faults = [], []
    for i, group in enumerate(asked):
        options = {k: v for k, v in group.items() if k != "match"}
        names = fnmatch.filter(named, str(group.get("match")))
        if not names:
            faults.append(
                fault(f"optimizer.groups[{i}].match", "matches no parameter left", got=group.get("match"), among=named)
            )
        groups.append({"params": [named.pop(n) for n in names], **options})
    if faults:
        raise UserError(*faults)
    return [*groups, {"params": list(named.values())}] if named else groups


def build_optimizer(config: Mapping[str, Any], model: nn.Module, trust: Sequence[str] = ()) -> Optimizer:
    """The optimizer of a config over the parameters that train; torch's Adam, AdamW and SGD fused unless chosen."""
    node = {"_partial_": True, **config["optimizer"]}
    asked = node.pop("groups", None) or []
    with _at("optimizer"), compiler_unloaded():
        make: Any = build(node, trust=trust, where="optimizer")
        chosen = {"fused", "foreach", "capturable", "differentiable"} & set(node)
        if getattr(make, "func", None) in FUSED and not chosen and _fusible(model):
            optimizer = make(_groups(unwrap(model), asked), fused=True)
        else:
            optimizer = make(_groups(unwrap(model), asked))
    if not isinstance(optimizer, Optimizer):
        raise UserError(fault("optimizer", "is no torch.optim.Optimizer", got=type(optimizer).__name__))
    return optimizer


def _fusible(model: nn.Module) -> bool:
    """Whether the fused kernels take these parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return not sparse and all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda") and p.layout == torch.strided for p in trained
    )


@dataclass(frozen=True, eq=False)
class Schedule:
    """A scheduler of the learning rate, and whether it moves after every update or after every epoch."""

    scheduler: LRScheduler
    every_step: bool

    def after_step(self) -> None:
        """The learning rate is that of the next step."""
        with attributed_to("scheduler"):
            self.scheduler.step()

    def after_epoch(self, loss: float, value: float) -> None:
        """The learning rate is that of the next epoch; a plateau in `min` mode is of the loss, else of the metric."""
        with attributed_to("scheduler"):
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(loss if self.scheduler.mode == "min" else value)
            elif not self.every_step:
                self.scheduler.step()


def build_schedule(
    config: Mapping[str, Any], optimizer: Optimizer, trust: Sequence[str] = (), steps: int = 1, epochs: int = 1
) -> Schedule | None:
    """The schedule of a config; None where there is none.

    `interval: step` moves it after every update; the word `budget` for an argument is the length of the training in
    that unit. Raises UserError for what is no scheduler, and for one that holds another optimizer.
    """
    if not config.get("scheduler"):
        return None
    node = dict(config["scheduler"])
    interval = node.pop("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise UserError(fault("scheduler.interval", "unknown interval", got=interval, among=("epoch", "step")))
    length = max(1, steps if interval == "step" else epochs)
    node = {name: length if value == "budget" else value for name, value in node.items()}
    stepped: Any = optimizer
    stepped._opt_called = True  # we call its kernels ourselves; a scheduler would warn that nobody steps
    with _at("scheduler"):
        scheduler: Any = build({"_partial_": True, **node}, trust=trust, where="scheduler")(optimizer)
    if not callable(getattr(scheduler, "step", None)) or not hasattr(scheduler, "state_dict"):
        raise UserError(fault("scheduler", "is no torch scheduler", got=type(scheduler).__name__))
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        do = "let scheduler be the _target_ of a torch scheduler with _partial_: true; it is handed the optimizer"
        raise UserError(fault("scheduler", "moves another optimizer than the one that trains", do=do))
    schedule = Schedule(scheduler, interval == "step")
    if isinstance(scheduler, ReduceLROnPlateau) and schedule.every_step:
        got, expected = "interval: step", "interval: epoch; a plateau is seen on validation"
        raise UserError(fault("scheduler.interval", "does not fit ReduceLROnPlateau", got=got, expected=expected))
    return schedule
