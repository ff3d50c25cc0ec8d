"""Logs as people post them: bars, prints and tables of many programs, each with what must be found in it.

`$i` stands for 0, 1, 2, ..., `$t` for ten times that, `$x` for a loss that falls and `$s` for a score that rises.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from string import Template

import pytest

from diagnostics.logs.read import read
from diagnostics.logs.report import diagnose_log
from pipeline.errors import UserError

N = 24
LOSSES = [0.2 + 2.1 * math.exp(-4 * i / N) for i in range(N)]
SCORES = [0.1 + 0.8 * (1 - math.exp(-4 * i / N)) for i in range(N)]
BOTH = ("train/loss", "val/loss")


def posted(template: str, head: str = "", end: str = "\n") -> str:
    """The lines of a training of `N` steps or epochs."""
    pairs = enumerate(zip(LOSSES, SCORES, strict=True))
    places = ({"i": i, "t": 10 * i, "x": f"{x:.5f}", "s": f"{s:.4f}"} for i, (x, s) in pairs)
    return head + "".join(Template(template).substitute(place) + end for place in places)


POSTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "diffusers": (
        posted("Steps:  9%|█▏  | $t/240 [00:01<08:02,  1.9it/s, lr=1e-5, step_loss=$x]", end="\r"),
        ("lr", "train/loss"),
    ),
    "DeepSpeed": (
        posted(
            "[2026-07-30 09:16:29,681] [INFO] [logging.py:123:log_dist] [Rank 0] step=$i, skipped=0, lr=[1e-06], "
            "mom=[0.0]\nsteps: $i loss: $x iter time (s): 3.181 samples/sec: 0.314"
        ),
        ("lr", "train/loss"),
    ),
    "maskrcnn-benchmark": (
        posted(
            "2019-04-20 17:25:55,002 maskrcnn_benchmark.trainer INFO: eta: 8:00:58  iter: $t  loss: $x (5.6273)  "
            "loss_cls: 1.1 (0.6047)  time: 0.2908 (0.2888)  lr: 0.003333  max mem: 2082"
        ),
        ("lr", "train/cls_loss", "train/loss"),
    ),
    "TensorFlow": (posted("INFO:tensorflow:global step $t: loss = $x (57.126 sec/step)"), ("train/loss",)),
    "a printed history": (str({"loss": LOSSES, "val_loss": LOSSES}), BOTH),
    "a JSON array": (
        json.dumps([{"epoch": i, "train": {"loss": x}, "val": {"loss": x}} for i, x in enumerate(LOSSES)], indent=1),
        BOTH,
    ),
    "a data frame": (posted("$i      $i    $x   $x", "    epoch  train_loss  val_loss\n"), BOTH),
    "tensors": (
        posted(
            "epoch $i train_loss: tensor($x, device='cuda:0', grad_fn=<NllLossBackward0>) "
            "val_loss: tensor($x, device='cuda:0')"
        ),
        BOTH,
    ),
    "words of callbacks": (
        posted(
            "Epoch $i/24, loss: $x, val_loss: $x\nEpoch 00001: val_loss improved from inf to 0.5, saving model\n"
            "Validation loss decreased (inf --> 0.512300).  Saving model ...\nEarlyStopping counter: 3 out of 5"
        ),
        BOTH,
    ),
    "adversaries": (
        posted("[0/5][$t/1583]\tLoss_D: 1.2\tLoss_G: 2.3\tD(x): 0.9\tD(G(z)): 0.1 / 0.05"),
        ("train/d_loss", "train/g_loss"),
    ),
    "Stable Baselines": (
        posted(
            "| time/               |       |\n|    total_timesteps  | $t    |\n| train/              |       |\n"
            "|    loss             | $x |"
        ),
        ("train/loss",),
    ),
    "a copied table of a notebook": (
        posted("$i $x $x $s", "Epoch Training Loss Validation Loss Accuracy\n"),
        ("train/loss", "val/accuracy", "val/loss"),
    ),
    "a table that begins with No log": (
        posted("${t}0\t$x\t$x", "Step\tTraining Loss\tValidation Loss\n-1\tNo log\t2.3\n"),
        BOTH,
    ),
    "full-width signs": (posted("epoch：$i，loss：$x，val_loss：$x"), BOTH),
    "decimal commas": ("epoch;loss;val_loss\n" + posted("$i;$x;$x").replace(".", ","), BOTH),
    "the console of ultralytics": (
        posted(
            "\n      Epoch    GPU_mem   box_loss   cls_loss  Instances       Size\n"
            "       $i/24      9.03G     $x      $x         22        640: 100%|███| 954/954 [11:41<00:00]\n"
            "                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95): 100%|██| 66/66\n"
            "                   all       1049       1164      0.764      0.776      $s      0.526"
        ),
        ("train/box_loss", "train/cls_loss", "train/loss", "val/map50", "val/map50_95", "val/precision", "val/recall"),
    ),
    "the end of each bar": (
        posted("accuracy: $s, loss: $x ||: 100%|##########| 313/313 [00:05<00:00, 57.43it/s]"),
        ("train/accuracy", "train/loss"),
    ),
    "absl": (
        posted(
            "I0301 12:00:00.000000 140 train.py:100] train epoch: $i, loss: $x, accuracy: $s\n"
            "I0301 12:00:00.000000 140 train.py:110] eval epoch: $i, loss: $x, accuracy: $s"
        ),
        ("train/accuracy", "train/loss", "val/accuracy", "val/loss"),
    ),
    "Megatron": (
        posted(
            " iteration $t/     300 | consumed samples:  96 | elapsed time per iteration (ms): 93.1 | learning rate: "
            "1.000E-02 | global batch size:    32 | lm loss: $x | loss scale: 1.0 | grad norm: 0.9 | "
            "number of skipped iterations:   0 | number of nan iterations:   0 |"
        ),
        ("grad_norm", "lr", "train/loss"),
    ),
    "mmengine": (
        posted(
            "03/01 12:00:05 - mmengine - INFO - Epoch(train)  [$i][ 50/100]  lr: 2.0e-02  eta: 0:39:15  loss: $x\n"
            "03/01 12:00:05 - mmengine - INFO - Epoch(val) [$i][8/8]    accuracy: $s  loss: $x  time: 0.03"
        ),
        ("lr", "train/loss", "val/accuracy", "val/loss"),
    ),
    "epochs as steps": (
        posted('{"lr": 0.01, "loss": $x, "epoch": $i, "iter": $t, "step": $t}\n{"val/accuracy": $s, "step": $i}'),
        ("lr", "train/loss", "val/accuracy"),
    ),
    "the bar of Lightning": (
        posted(
            "\rEpoch $i:  50%|██▌  | 2/4 [00:04<00:01, 27.84it/s, v_num=7, train_loss=$x]"
            "\rValidation DataLoader 0: 100%|██| 8/8 [00:00<00:00, 612.03it/s]"
            "\rEpoch $i: 100%|████| 4/4 [00:04<00:01, 27.84it/s, v_num=7, train_loss=$x, val_loss=$x]",
            end="",
        ),
        BOTH,
    ),
}


@pytest.mark.parametrize("name", POSTED)
def test_read_takes_logs_as_they_are_posted(tmp_path: Path, name: str) -> None:
    """Each column is found with every value that was posted, and a falling loss is not accused."""
    text, columns = POSTED[name]
    (tmp_path / "log").write_text(text, newline="")
    report = diagnose_log(tmp_path / "log")
    assert report.reading
    [run] = report.reading.runs

    assert columns == tuple(run.history.names())
    assert all(len(run.history.series(column)[1]) >= N for column in columns)
    assert [] == run.restarts and not report.reading.files[0].notes.set_aside_count
    assert () == report.diagnoses[0][1].root_causes


NO_CURVE = {
    "a summary of Weights & Biases": "wandb: Run history:\nwandb:   train/loss █▇▁\nwandb:   train/loss 0.2\n",
    "a row for each run": "name,lr,val_loss\nrun-1,0.1,0.5\nrun-2,0.2,0.9\nrun-3,0.3,0.4\n",
    "one score": "final test accuracy: 0.93\n",
    "a config": "lr: 0.1\nbatch_size: 32\nloss: cross_entropy\nlabel_smoothing: 0.1\n",
    "a program": "for epoch in range(10):\n    loss = criterion(model(x), y)\n",
}


@pytest.mark.parametrize("name", NO_CURVE)
def test_read_refuses_what_holds_no_curve(tmp_path: Path, name: str) -> None:
    """What holds no curve is refused, since nothing can be said of it: not even that there is no symptom."""
    (tmp_path / "log").write_text(NO_CURVE[name])
    with pytest.raises(UserError, match="Do: python -m pipeline diagnose"):
        read(tmp_path / "log")


def test_read_names_a_compressed_log(tmp_path: Path) -> None:
    """Of a compressed file it is said that it is one, since its content is a log after all."""
    (tmp_path / "log").write_bytes(b"\x1f\x8b\x08\0\0\0")
    with pytest.raises(UserError, match="is compressed with gzip"):
        read(tmp_path / "log")
