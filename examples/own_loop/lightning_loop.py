"""A Lightning loop with the callback: `Trainer(callbacks=[LightningMonitor()])` is all that is added.

python -m pip install lightning
python examples/own_loop/lightning_loop.py
"""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import LightningMonitor

digits = load_digits()
X, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
train, val = TensorDataset(X[:1200], y[:1200]), TensorDataset(X[1200:], y[1200:])


class Classifier(pl.LightningModule):
    """A small network whose learning rate is a thousand times too high."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        outputs = self.layers(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]))
        self.log("val_accuracy", (outputs.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1.0)


pl.seed_everything(0)
monitor = LightningMonitor()
trainer = pl.Trainer(
    max_epochs=8, accelerator="cpu", callbacks=[monitor], logger=False, enable_checkpointing=False,
    enable_progress_bar=False,
)  # fmt: skip
trainer.fit(Classifier(), DataLoader(train, 64, shuffle=True), DataLoader(val, 256))
print(monitor.diagnose().incident())
