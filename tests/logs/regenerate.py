"""Write the logs in this folder that real libraries wrote: `python tests/logs/regenerate.py [NAME ...]`.

It needs lightning, transformers, accelerate, keras, tensorboard and wandb beside torch; each log is of a
training of a few seconds. The other logs of this folder follow the source of their writers:

- `mmdet.log.json`: `mmcv/runner/hooks/logger/text.py`; `swift.jsonl`: `swift/plugin/callback.py` of ms-swift
- `nanogpt.log`: `train.py` of nanoGPT; `torchtune.log`: `torchtune/training/metric_logging.py`, StdoutLogger as a line
- `fairseq.log`: `fairseq/logging/progress_bar.py`; `mnist.log`: `mnist/main.py` of pytorch/examples
- `fastai.txt`: `fastprogress/fastprogress.py`, `ConsoleMasterBar.write`
- `tutorial.log`: PyTorch's tutorial on transfer learning; `notebook.md`: the table of the Trainer in a notebook
- `run-a-tag-train_loss.csv`: TensorBoard's scalar download; `semicolons.csv`, `nested.jsonl`: loggers of one's own
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent


def rows() -> tuple[Tensor, Tensor]:
    """A regression that a linear layer learns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    return x, x.sum(1, keepdim=True)


def lightning_csv(folder: Path) -> Path:
    """`metrics.csv` of Lightning's CSVLogger."""
    import lightning
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: list[Tensor], _: int) -> None:
            self.log("val_loss", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    lightning.seed_everything(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows()), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=3,
        log_every_n_steps=2,
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=[LearningRateMonitor()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader, loader)
    return next(folder.rglob("metrics.csv"))


def _hugging_face(folder: Path) -> str:
    """Train with the Trainer; its state is in the folder, and back comes what it printed."""
    import transformers

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": nn.functional.mse_loss(self.layer(x), labels), "logits": self.layer(x)}

    transformers.set_seed(0)
    data = [{"x": x, "labels": y} for x, y in zip(*rows(), strict=True)]
    options = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        logging_steps=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        per_device_train_batch_size=16,
        learning_rate=0.05,
        report_to="none",
        use_cpu=True,
        disable_tqdm=False,
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        transformers.Trainer(Model(), options, train_dataset=data, eval_dataset=data).train()
    return printed.getvalue()


def trainer_state(folder: Path) -> Path:
    """`trainer_state.json` of the Hugging Face Trainer."""
    _hugging_face(folder)
    return max(folder.rglob("trainer_state.json"), key=lambda path: path.stat().st_mtime_ns)


def trainer_log(folder: Path) -> Path:
    """What the Hugging Face Trainer prints between its progress bars."""
    printed = _hugging_face(folder)
    (folder / "printed").write_text(printed, newline="")
    return folder / "printed"


def _keras(folder: Path) -> str:
    """Train with Keras and its CSVLogger; back comes what it printed."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.utils.set_random_seed(0)
    x, y = (values.numpy() for values in rows())
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        model.fit(x, y, epochs=3, batch_size=8, validation_split=0.25,
                  callbacks=[keras.callbacks.CSVLogger(str(folder / "log.csv"))])  # fmt: skip
    return printed.getvalue()


def keras_csv(folder: Path) -> Path:
    """The file of Keras's CSVLogger."""
    _keras(folder)
    return folder / "log.csv"


def keras_log(folder: Path) -> Path:
    """The bars that Keras prints."""
    printed = _keras(folder)
    (folder / "printed").write_text(printed, newline="")
    return folder / "printed"


def tensorboard_events(folder: Path) -> Path:
    """An event file of `torch.utils.tensorboard`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step in range(5):
            writer.add_scalar("train/loss", 2 / (step + 1), step)
        writer.add_scalar("val/loss", 0.5, 4)
    return next(folder.glob("events.*"))


def wandb_offline(folder: Path) -> Path:
    """The file of an offline run of Weights & Biases."""
    import wandb

    with wandb.init(project="a", dir=str(folder), mode="offline", settings=wandb.Settings(console="off")) as run:
        for step in range(5):
            run.log({"train/loss": 2 / (step + 1), "val/loss": 0.5 if step == 4 else None})
    return next(folder.rglob("*.wandb"))


WRITERS: dict[str, Callable[[Path], Path]] = {
    "lightning.csv": lightning_csv,
    "trainer_state.json": trainer_state,
    "trainer.log": trainer_log,
    "keras.csv": keras_csv,
    "keras.log": keras_log,
    "tensorboard.events": tensorboard_events,
    "offline.wandb": wandb_offline,
}


def main() -> None:
    for name in sys.argv[1:] or list(WRITERS):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(WRITERS[name](Path(folder)), HERE / name)
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
