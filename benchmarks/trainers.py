"""What the callbacks cost: time per step of Lightning and of the Hugging Face Trainer on a CNN, with and without them.

Trainings with and without the callback alternate, so that both meet the same load of the machine, and each pair gives
one ratio. The median ratio is printed with its interval by bootstrap. It needs lightning, transformers and accelerate:
`make test-integrations` installs them.

    .integrations/trainers/bin/python benchmarks/trainers.py lightning|transformers [--pairs 12] [--steps 150]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BATCH = 64
BAR = 1.02


class Net(nn.Module):
    """A CNN for pictures of 28 x 28, which returns its loss as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 49, 10),
        )  # fmt: skip

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.net(x)
        return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}


def pictures(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 1, 28, 28, generator=generator), torch.randint(0, 10, (rows,), generator=generator)


def lightning_steps(steps: int, watched: bool) -> float:
    """Return the seconds of a training by Lightning, without its set-up."""
    import lightning.pytorch as lightning

    from fivegate import LightningMonitor

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Net()

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss: Tensor = self.model(*batch)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    clock = _clock(lightning.Callback, "on_train_batch_end")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=[clock, *[LightningMonitor()] * watched],
        **quiet,
    )
    data = torch.utils.data.TensorDataset(*pictures(BATCH * steps))
    trainer.fit(Module(), torch.utils.data.DataLoader(data, BATCH))
    return float(clock.seconds)


def transformers_steps(steps: int, watched: bool) -> float:
    """Return the seconds of a training by the Trainer, without its set-up."""
    import transformers

    from fivegate import TransformersMonitor

    clock = _clock(transformers.TrainerCallback, "on_step_end")
    x, y = pictures(BATCH * steps)
    rows = [{"x": image, "labels": label} for image, label in zip(x, y, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH, report_to="none", use_cpu=True,
            save_strategy="no", logging_steps=10**6, disable_tqdm=True,
        )  # fmt: skip
        callbacks = [clock, *[TransformersMonitor()] * watched]
        transformers.Trainer(Net(), options, train_dataset=rows, callbacks=callbacks).train()
    return float(clock.seconds)


def _clock(base: type, event: str) -> Any:
    """Return a callback that measures from the fifth step to the last one."""

    def tick(self: Any, *_: object, **__: object) -> None:
        self.count += 1
        now = time.perf_counter()
        self.began = now if self.count == 5 else self.began
        self.seconds = now - self.began

    return type("Clock", (base,), {event: tick, "count": 0, "began": 0.0, "seconds": 0.0})()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer", choices=("lightning", "transformers"))
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    train: Callable[[int, bool], float] = lightning_steps if args.trainer == "lightning" else transformers_steps
    train(20, True)  # imports, and the first use of every kernel
    ratios = []
    for pair in range(args.pairs):
        order = (False, True) if pair % 2 else (True, False)
        seconds = {watched: train(args.steps, watched) for watched in order}
        ratios.append(seconds[True] / seconds[False])
        print(
            f"pair {pair + 1}: {seconds[False] / args.steps * 1e3:.2f} ms per step, ratio {ratios[-1]:.3f}", flush=True
        )
    draws = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, 1), (0.025, 0.975))
    print(f"{args.trainer}: median ratio {np.median(ratios):.3f} ({low:.3f} to {high:.3f}), bar {BAR}")


if __name__ == "__main__":
    main()
