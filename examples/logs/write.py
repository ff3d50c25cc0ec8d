"""How `trainer_state.json` came about: a Trainer of Hugging Face whose warmup ends at a learning rate of 3.

python -m pip install transformers accelerate
python examples/logs/write.py
"""

import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn


class Model(nn.Module):
    """Three layers: x [B, 8] and the targets [B, 1] to the loss and the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.layers(x)
        return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}


transformers.set_seed(0)
x = torch.randn(256, 8)
rows = [{"x": row, "labels": row[:3].sum(0, keepdim=True)} for row in x]
with tempfile.TemporaryDirectory() as folder:
    options = transformers.TrainingArguments(
        output_dir=folder, num_train_epochs=6, logging_steps=2, eval_strategy="epoch", save_strategy="epoch",
        per_device_train_batch_size=32, learning_rate=3.0, lr_scheduler_type="constant_with_warmup",
        warmup_steps=36, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(Model(), options, train_dataset=rows[:192], eval_dataset=rows[192:]).train()
    newest = max(Path(folder).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    shutil.copy(newest / "trainer_state.json", Path(__file__).with_name("trainer_state.json"))
