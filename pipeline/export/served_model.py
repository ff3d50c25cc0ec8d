"""The model as it is served: the trained model with its preprocessing, and what its outputs mean, in one graph.

Every exported form is this graph, with the outputs

- `output`: what the trained model returns;
- `probabilities`, for classes: calibrated, [B, C] with one column per class, also where a model of two classes has one
  output; for several labels [B, L], one probability per label;
- `lower` and `upper`, for a regression with a calibrated interval: the ends of the interval around each value;
- `reconstruction`, for an autoencoder that is trained on logits: the values that the logits stand for;
- `label`, in ONNX only: the name of the class with the largest probability, as text.

Language models, custom tasks and tasks with a step of their own have `output` only: what their outputs mean is known to
their owner. `task.predict` of the user's own is Python and is not exported: `label` is what `predict: auto` would say.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.evaluation.task import Task

OUTPUT, PROBABILITIES, LOWER, UPPER, RECONSTRUCTION, LABEL = (
    "output",
    "probabilities",
    "lower",
    "upper",
    "reconstruction",
    "label",
)
OF_CLASSES = ("classification", "binary")
TINY = 1e-12  # a probability of 0 has no logarithm


class ServedModel(nn.Module):
    """Returns a dict of named outputs for a batch of inputs.

    `temperature` divides the logits before they become probabilities, None leaves them; `half_width` is half the width
    of the interval of a regression, in the unit of the target. Without a task the outputs have no known meaning.
    `class_names` name the classes of `label`; without them a class is called by its number.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task | None = None,
        temperature: float | None = None,
        half_width: float | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        known = task is not None and task.step is None
        self.kind = task.kind if task is not None and known else "custom"
        self.takes = task.takes if task is not None and known else "logits"
        self.logits_of_inputs = task is not None and known and task.predict is torch.sigmoid
        self.temperature = 1.0 if temperature is None else float(temperature)
        self.half_width = None if half_width is None else float(half_width)
        self.class_names = None if class_names is None else tuple(class_names)

    def forward(self, inputs: object) -> dict[str, Tensor]:
        output = self.model(inputs)
        served = {OUTPUT: output}
        if not isinstance(output, Tensor):
            return served  # the exporters report it
        if self.kind in OF_CLASSES:
            served[PROBABILITIES] = self._of_classes(output)
        elif self.kind == "multilabel":
            served[PROBABILITIES] = torch.sigmoid(self._logits(output) / self.temperature)
        elif self.kind == "regression" and self.half_width is not None:
            served[LOWER] = output - self.half_width
            served[UPPER] = output + self.half_width
        elif self.kind == "autoencoder" and self.logits_of_inputs:
            served[RECONSTRUCTION] = torch.sigmoid(output)
        return served

    def _of_classes(self, output: Tensor) -> Tensor:
        """Return [B, C] probabilities of classes; [B, 2] for one output, which is about class 1."""
        output = output.float()
        if output.ndim > 1 and output.shape[1] > 1:
            if self.takes == "probabilities":
                output = torch.log(torch.clamp(output, min=TINY))
            return torch.softmax(output / self.temperature, dim=1)
        positive = torch.sigmoid(self._logits(output.reshape(output.shape[0])) / self.temperature)
        return torch.stack([1.0 - positive, positive], dim=1)

    def _logits(self, output: Tensor) -> Tensor:
        """Return the logits of outputs that are each the probability of a yes, or its logit already."""
        if self.takes != "probabilities":
            return output.float()
        share = torch.clamp(output.float(), min=1e-7, max=1.0 - 1e-7)  # 1 - 1e-12 is 1 in float32
        return torch.log(share) - torch.log1p(-share)

    def label_names(self, classes: int) -> list[str] | None:
        """Return the name of each class by its number, or None where rows have no class or the names do not fit."""
        if self.kind not in OF_CLASSES:
            return None
        names = self.class_names or tuple(map(str, range(classes)))
        return list(names) if len(names) == classes else None

    def class_axis(self, output: Tensor) -> int | None:
        """Return the axis of `output` that holds the scores of classes; None if it holds none."""
        if self.kind == "language_model":
            return output.ndim - 1
        of_classes = self.kind in (*OF_CLASSES, "custom") and output.ndim > 1 and output.shape[1] > 1
        if self.kind == "custom" and output.ndim != 2:
            return None
        return 1 if of_classes and output.is_floating_point() else None
