"""The callbacks for Lightning and for the Trainer of Hugging Face, each in a training by the real library.

Both libraries are in an environment of their own, in which `make test-integrations` runs this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.integration


def rows() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 6, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


# --- Lightning -------------------------------------------------------------------------------------------------------


@pytest.fixture
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch", reason="make test-integrations installs it")


def lightning_module(lightning: Any, rate: float = 0.05, half: bool = False) -> Any:
    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
            self.seen: list[float] = []

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.seen.append(loss.item())
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            outputs = self.net(batch[0])
            self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]))
            self.log("val_accuracy", (outputs.argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    return Net()


def fit(lightning: Any, root: Path, module: Any, callbacks: list[Any], epochs: int = 3, **options: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=root, callbacks=callbacks, **quiet, **options
    )
    data = rows()
    lightning.seed_everything(0)
    trainer.fit(module, DataLoader(data, 16, shuffle=True), DataLoader(data, 64))
    return trainer


@pytest.mark.parametrize("accumulate", [1, 4])
def test_lightning_monitor_records_a_training(lightning: Any, tmp_path: Path, accumulate: int) -> None:
    """Losses, gradients and validations are those of the training, which has the same bits without the monitor."""
    from fivegate import LightningMonitor

    monitor, watched, plain = LightningMonitor(every=5), lightning_module(lightning), lightning_module(lightning)
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
    fit(lightning, tmp_path, watched, [monitor], **options)
    fit(lightning, tmp_path, plain, [], **options)
    history = monitor.monitor.history
    losses = torch.tensor(watched.seen).reshape(-1, accumulate).mean(1)

    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    assert losses.tolist() == pytest.approx(history.series("train/loss")[1].tolist(), rel=1e-5)
    assert [0, 1, 2] == history.series("val/loss")[0].tolist() == history.series("val/accuracy")[0].tolist()
    assert max(history.series("grad_norm")[1]) > 0.5 and len(history.series("update_ratio")[1])
    assert len(history.series("activation_rms/net.0")[1])
    assert () == monitor.diagnose().root_causes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())


def test_lightning_monitor_stops_a_training_that_diverges(lightning: Any, tmp_path: Path) -> None:
    """With "stop" a training whose loss is not finite ends early, and the diagnosis says why."""
    from fivegate import LightningMonitor

    told: list[Any] = []
    monitor = LightningMonitor(every=5, on_symptom="stop", notify=told.append)
    trainer = fit(lightning, tmp_path, lightning_module(lightning, 1e30), [monitor], epochs=20)

    assert trainer.current_epoch < 5 and told
    assert "nan_loss" in [symptom.id for symptom in told[0].symptoms]


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers", reason="make test-integrations installs it")


class Classifier(nn.Module):
    """A model as the Trainer wants it: it returns its loss with its logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
        self.seen: list[float] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, labels)
        if torch.is_grad_enabled():
            self.seen.append(loss.item())
        return {"loss": loss, "logits": logits}


def train(transformers: Any, root: Path, callbacks: list[Any], rate: float = 0.05, accumulate: int = 1) -> Any:
    model, data = Classifier(), [{"x": x, "labels": y} for x, y in rows()]
    options = transformers.TrainingArguments(
        output_dir=str(root), num_train_epochs=3, per_device_train_batch_size=16, learning_rate=rate, report_to=[],
        gradient_accumulation_steps=accumulate, eval_strategy="epoch", save_strategy="no", disable_tqdm=True,
        use_cpu=True, seed=0, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, options, train_dataset=data, eval_dataset=data, callbacks=callbacks)
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulate", [1, 4])
def test_transformers_monitor_records_a_training(transformers: Any, tmp_path: Path, accumulate: int) -> None:
    """Losses and evaluations are those of the training, which is bit for bit the same without the monitor."""
    from fivegate import TransformersMonitor

    monitor = TransformersMonitor(every=5)
    watched = train(transformers, tmp_path, [monitor], accumulate=accumulate).model
    plain = train(transformers, tmp_path, [], accumulate=accumulate).model
    history = monitor.monitor.history
    losses = torch.tensor(watched.seen).reshape(-1, accumulate).mean(1)

    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    assert losses.tolist() == pytest.approx(history.series("train/loss")[1].tolist(), rel=1e-5)
    assert [0, 1, 2] == history.series("val/loss")[0].tolist() and "val/runtime" not in history.names()
    assert len(history.series("update_ratio")[1]) and len(history.series("activation_rms/net.0")[1])
    assert () == monitor.diagnose().root_causes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())


def test_transformers_monitor_stops_a_training_that_diverges(transformers: Any, tmp_path: Path) -> None:
    """With "stop" a training whose loss is not finite ends early."""
    from fivegate import TransformersMonitor

    told: list[Any] = []
    monitor = TransformersMonitor(every=5, on_symptom="stop", notify=told.append)
    trainer = train(transformers, tmp_path, [monitor], rate=1e30)

    assert trainer.state.global_step < 40 and told
