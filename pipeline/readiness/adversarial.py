"""The score under worst-case changes of the inputs: FGSM and PGD within an L-infinity ball, and proof that they work.

FGSM is one step along the sign of the loss's gradient (Goodfellow et al., ICLR 2015), PGD many smaller steps from
several starts (Madry et al., ICLR 2018). A model that hides its gradients looks robust and is not: therefore random
noise of the same size must not do more than the attacks, and an attack of unlimited size must reach chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Generator, Tensor

from pipeline.error_attribution import attributed_to
from pipeline.evaluation.evaluate import forward
from pipeline.readiness.corruption import plan_threads, sample, trivial_baseline
from pipeline.readiness.perturbations import InputPart, input_parts
from pipeline.readiness.subject import Subject
from pipeline.runtime.seeds import derive, seeded
from pipeline.runtime.threads import running_on

MAX_ROWS = 500
BATCH_ROWS = 250  # of one gradient
STEPS, RESTARTS = 20, 3
STEP_SHARE = 2.5 / STEPS  # of the radius per step of PGD, as Madry et al. take it
TABLE_RADII = (0.1,)  # standard deviations of each column
IMAGE_RADII = (1 / 255, 2 / 255, 4 / 255)  # of the value range
UNLIMITED = 10.0  # standard deviations, or value ranges: every row can become any other one


class AttackScore(TypedDict):
    """The metric on the attacked rows at one radius of the ball; `noise` is a random corner of it."""

    radius: float
    noise: float
    fgsm: float
    pgd: float


class AdversarialEvidence(TypedDict):
    """The curve of scores; `why` is the reason where no attack has a meaning. `huge` is PGD without a limit."""

    metric: str
    greater_is_better: bool
    rows: int
    unit: str
    clean: float
    trivial: float
    curve: list[AttackScore]
    huge: float | None
    zero_gradient_rows: int
    steps: int
    restarts: int
    why: str | None


Damage = Callable[[Tensor, Tensor], Tensor]


def _damage(kind: str) -> Damage:
    """Return the function that says how wrong each row of outputs is: [N], higher is worse."""

    def of_classes(outputs: Tensor, y: Tensor) -> Tensor:
        if outputs.ndim != 2 or outputs.shape[1] == 1:
            return outputs.reshape(len(outputs), -1).mean(1) * (1 - 2 * y.reshape(len(y)).to(outputs.dtype))
        own = outputs.gather(1, y[:, None])[:, 0]
        return outputs.scatter(1, y[:, None], -torch.inf).amax(1) - own

    def of_labels(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs * (1 - 2 * y.to(outputs.dtype))).flatten(1).sum(1)

    def of_values(outputs: Tensor, y: Tensor) -> Tensor:
        return ((outputs.reshape(y.shape) - y) ** 2).reshape(len(y), -1).sum(1)

    return {"classification": of_classes, "binary": of_classes, "multilabel": of_labels}.get(kind, of_values)


class _Attack:
    """FGSM and PGD on the rows of one array of inputs."""

    def __init__(self, subject: Subject, part: InputPart, rows: Tensor, y: Tensor) -> None:
        self.subject, self.part, self.rows, self.y = subject, part, rows, y
        self.damage = _damage(subject.task.kind)
        image = part.kind == "image"
        unit = torch.full_like(part.std, part.high - part.low) if image else part.std
        columns = [column not in part.codes for column in range(rows.shape[-1])]
        # Codes are names: no neighbour of a code is a small change.
        self.unit = unit if image else unit * torch.tensor(columns)

    def gradient(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sign of the loss's gradient for every row, and how wrong the outputs are."""
        signs, damages, task = [], [], self.subject.task
        for inputs, targets in zip(X.split(BATCH_ROWS), self.y.split(BATCH_ROWS), strict=True):
            inputs = inputs.detach().requires_grad_()
            with torch.enable_grad(), attributed_to("model"):
                outputs = self.subject.model(inputs)
            with torch.enable_grad(), attributed_to("loss"):
                loss = task.loss(outputs, task.loss_targets(targets, outputs))
            gradient = None
            if loss.requires_grad:
                with attributed_to("model or loss", "fails in the backward pass"):
                    (gradient,) = torch.autograd.grad(loss, inputs, allow_unused=True)
            signs.append(torch.zeros_like(inputs) if gradient is None else gradient.nan_to_num().sign())
            damages.append(self.damage(outputs.detach(), targets))
        return torch.cat(signs), torch.cat(damages)

    def inside(self, X: Tensor, radius: float) -> Tensor:
        """Return the rows moved back into the ball around the clean ones, and images into their value range."""
        X = torch.minimum(torch.maximum(X, self.rows - radius * self.unit), self.rows + radius * self.unit)
        return X.clamp(self.part.low, self.part.high) if self.part.kind == "image" else X

    def noise(self, radius: float, draw: Generator) -> Tensor:
        corner = torch.randint(2, self.rows.shape, generator=draw) * 2.0 - 1.0
        return self.inside(self.rows + radius * self.unit * corner, radius)

    def fgsm(self, radius: float) -> Tensor:
        sign, _ = self.gradient(self.rows)
        return self.inside(self.rows + radius * self.unit * sign, radius)

    def pgd(self, radius: float, draw: Generator, restarts: int, first: Tensor) -> Tensor:
        """Return for every row the worst point of all steps and starts; `first` is a point that is known already."""
        worst = first.clone()
        _, most = self.gradient(first)
        for restart in range(restarts):
            X = self.rows
            if restart:
                start = torch.rand(self.rows.shape, generator=draw) * 2 - 1
                X = self.inside(self.rows + radius * self.unit * start, radius)
            sign, damage = self.gradient(X)
            for _ in range(STEPS):
                X = self.inside(X + STEP_SHARE * radius * self.unit * sign, radius)
                sign, damage = self.gradient(X)
                worse = damage > most
                worst[worse], most[worse] = X[worse], damage[worse]
        return worst


def _not_applicable(subject: Subject, parts: dict[str, InputPart]) -> str | None:
    """Return why no small change of the inputs can be attacked; None where one can."""
    part = parts.get("X")
    if subject.task.step is not None or subject.task.kind == "custom":
        return "only task.step or the owner's own code knows what a wrong output is"
    if part is None:
        return "inputs are nested: a ball of one radius around several arrays has no meaning"
    if part.kind not in ("table", "image"):
        return "inputs are whole numbers (tokens or codes), which have no small changes"
    if not bool(part.std.any()) or len(part.codes) == part.train.shape[-1]:
        return "no column of the inputs holds numbers that vary"
    if bool(subject.data.val.X.isnan().any()):
        return "validation rows have missing values, which have no small changes"
    return None


def measure(subject: Subject) -> AdversarialEvidence:
    """Attack up to 500 validation rows. Raises UserError where the user's model or loss fails."""
    parts, task = input_parts(subject.data, subject.config), subject.task
    why = _not_applicable(subject, parts)
    evidence: AdversarialEvidence = {
        "metric": task.metric.name, "greater_is_better": task.metric.greater_is_better, "rows": 0, "unit": "",
        "clean": 0.0, "trivial": 0.0, "curve": [], "huge": None, "zero_gradient_rows": 0,
        "steps": STEPS, "restarts": RESTARTS, "why": why,
    }  # fmt: skip
    if why is not None:
        return evidence
    rows = sample(subject, "adversarial", MAX_ROWS)
    attack, image = _Attack(subject, parts["X"], rows.X, rows.y), parts["X"].kind == "image"
    draw = Generator().manual_seed(derive(subject.seed, "adversarial"))

    def score(X: Tensor) -> float:
        return task.deciding_value(forward(subject.model, X), rows.y)

    with running_on(plan_threads(subject)), seeded(derive(subject.seed, "adversarial")):
        for radius in IMAGE_RADII if image else TABLE_RADII:
            one_step = attack.fgsm(radius)
            worst = attack.pgd(radius, draw, RESTARTS, one_step)
            noisy = attack.noise(radius, draw)
            evidence["curve"].append(
                {"radius": radius, "noise": score(noisy), "fgsm": score(one_step), "pgd": score(worst)}
            )
        signs, _ = attack.gradient(rows.X)
        evidence["huge"] = score(attack.pgd(1.0 if image else UNLIMITED, draw, 1, rows.X))
        evidence["clean"], evidence["trivial"] = score(rows.X), trivial_baseline(subject, rows)["value"]
    evidence["zero_gradient_rows"] = int((~signs.reshape(len(signs), -1).any(1)).sum())
    evidence["rows"] = len(rows)
    evidence["unit"] = "of the value range" if image else "standard deviations of each column"
    return evidence
