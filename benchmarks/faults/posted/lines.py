"""Logs that are printed lines, as the sources of their writers say, with the noise that stands between them."""

from __future__ import annotations

from posted.training import Training

Files = dict[str, str]
NOISE = (
    "/usr/lib/python3.11/site-packages/torch/utils/data/dataloader.py:557: UserWarning: This DataLoader will create 8"
    " worker processes in total.",
    "saving checkpoint to out",
    "[W socket.cpp:601] [c10d] The client socket has failed to connect (errno: 97).",
    "Some weights were not initialized from the model checkpoint and are newly initialized",
)


def nanogpt(run: Training) -> Files:
    """nanoGPT's train.py: `step` lines with both losses, `iter` lines between."""
    lines = ["found vocab_size = 65 (inside data/meta.pkl)", "number of parameters: 0.80M", run.draw.choice(NOISE)]
    for e in run.epochs:
        for step in run.steps_of(e):
            lines.append(f"iter {step.number}: loss {step.loss:.4f}, time {run.draw.uniform(20, 30):.2f}ms, mfu 15.30%")
        lines.append(f"step {e.steps}: train loss {e.train_loss:.4f}, val loss {e.val_loss:.4f}")
        if run.draw.random() < 0.1:
            lines.append(run.draw.choice(NOISE))
    return {"train.log": "\n".join(lines) + "\n"}


def fastai(run: Training) -> Files:
    """The table of a Learner outside a notebook (fastprogress/fastprogress.py, ConsoleMasterBar)."""
    lines = ["epoch     train_loss  valid_loss  " + f"{run.metric:<10}  time    "]
    for e in run.epochs:
        lines.append(f"{e.number:<8}  {e.train_loss:<10.6f}  {e.val_loss:<10.6f}  {e.score:<10.6f}  00:03    ")
    return {"fit.txt": "\n".join(lines) + "\n"}


def torchtune(run: Training) -> Files:
    """The log of torchtune's DiskLogger (torchtune/training/metric_logging.py)."""
    lines = []
    for step in run.steps:
        norm = "" if step.norm is None else f" grad_norm:{step.norm}"
        lines.append(f"Step {step.number + 1} | loss:{step.loss} lr:{step.rate} tokens_per_second_per_gpu:812.3{norm} ")
    for e in run.epochs:
        lines.append(f"Step {e.steps} | val_loss:{e.val_loss} val_{run.metric}:{e.score} ")
    lines.sort(key=lambda line: int(line.split()[1]))
    return {"log_1700000000.txt": "\n".join(lines) + "\n"}


def mmengine_log(run: Training) -> Files:
    """The text log of mmengine (mmengine/runner/log_processor.py): iterations count anew in each epoch."""
    stamp, lines = "03/01 12:00:05 - mmengine - INFO -", []
    for e in run.epochs:
        for step in run.steps_of(e):
            inner = step.number - (e.steps - run.steps_per_epoch) + 1
            lines.append(
                f"{stamp} Epoch(train)  [{e.number + 1}][{inner:>3}/{run.steps_per_epoch}]  lr: {step.rate:.4e}  "
                f"eta: 0:39:15  time: 0.0578  data_time: 0.0017  memory: 2389  loss: {step.loss:.4f}"
            )
        lines.append(f"{stamp} Saving checkpoint at {e.number + 1} epochs")
        lines.append(
            f"{stamp} Epoch(val) [{e.number + 1}][8/8]    {run.metric}: {e.score:.4f}  loss: {e.val_loss:.4f}  "
            "data_time: 0.0123  time: 0.0310"
        )
    return {"20260301_120000.log": "\n".join(lines) + "\n"}


def detectron(run: Training) -> Files:
    """detectron2's CommonMetricPrinter (detectron2/utils/events.py), with two parts of the loss."""
    lines = []
    for step in run.steps:
        part = 0.6 * step.loss
        lines.append(
            f"[03/01 19:16:15 d2.utils.events]:  eta: 4:52:26  iter: {step.number}  total_loss: {step.loss:.4g}  "
            f"loss_cls: {part:.4g}  loss_box_reg: {step.loss - part:.4g}  time: 0.1960  data_time: 0.0033  "
            f"lr: {step.rate:.5g}  max_mem: 2996M"
        )
    for e in run.epochs:
        lines.append(f"[03/01 19:16:15 d2.utils.events]:  iter: {e.steps}  validation_loss: {e.val_loss:.4g}")
    lines.sort(key=lambda line: int(line.partition("iter: ")[2].split()[0]))
    return {"log.txt": "\n".join(lines) + "\n"}


def megatron(run: Training) -> Files:
    """Megatron-LM's training_log (megatron/training/training.py), and its lines of validation."""
    total, lines = len(run.epochs) * run.steps_per_epoch, []
    for e in run.epochs:
        for step in run.steps_of(e):
            norm = "" if step.norm is None else f" grad norm: {step.norm:.3f} |"
            lines.append(
                f" iteration {step.number + 1:8d}/{total:8d} | consumed samples: {32 * step.number:12d} | elapsed time "
                f"per iteration (ms): {run.draw.uniform(90, 110):.1f} | learning rate: {step.rate:.3E} | global batch "
                f"size:    32 | lm loss: {step.loss:.6E} | loss scale: 1.0 |{norm} number of skipped iterations:   0 | "
                "number of nan iterations:   0 |"
            )
        lines += ["-" * 60, f" validation loss at iteration {e.steps} | lm loss value: {e.val_loss:.6E} | ", "-" * 60]
    return {"slurm-1203.out": "\n".join(lines) + "\n"}


def imagenet(run: Training) -> Files:
    """imagenet/main.py of pytorch/examples: a value and its running mean in brackets."""
    lines = []
    for e in run.epochs:
        for step in run.steps_of(e):
            inner = step.number - (e.steps - run.steps_per_epoch) + 1
            lines.append(
                f"Epoch: [{e.number}][{inner:3d}/{run.steps_per_epoch}]\tTime  0.213 ( 0.301)\tData  0.001 ( 0.012)\t"
                f"Loss {step.loss:.4e} ({e.train_loss:.4e})"
            )
        lines.append(f"Test: [8/8]\tTime  0.1 ( 0.2)\tLoss {e.val_loss:.4e} ({e.val_loss:.4e})")
        lines.append(f" *   {run.metric} {e.score:.3f}")
    return {"run.log": "\n".join(lines) + "\n"}


def mnist(run: Training) -> Files:
    """mnist/main.py of pytorch/examples."""
    lines, rows = [], 32 * run.steps_per_epoch
    for e in run.epochs:
        for step in run.steps_of(e):
            seen = 32 * (step.number % run.steps_per_epoch)
            lines.append(f"Train Epoch: {e.number + 1} [{seen}/{rows} ({100 * seen // rows}%)]\tLoss: {step.loss:.6f}")
        lines.append(f"\nTest set: Average loss: {e.val_loss:.4f}, {run.metric.capitalize()}: {e.score:.4f}\n")
    return {"out": "\n".join(lines) + "\n"}


def tutorial(run: Training) -> Files:
    """The tutorial on transfer learning of PyTorch: a head for each epoch, a line for each split."""
    lines = []
    for e in run.epochs:
        lines += [f"Epoch {e.number}/{len(run.epochs) - 1}", "----------", f"train Loss: {e.train_loss:.4f}"]
        lines += [f"val Loss: {e.val_loss:.4f} {run.metric.capitalize()}: {e.score:.4f}", ""]
    return {"notebook.txt": "\n".join([*lines, "Training complete in 1m 7s"]) + "\n"}


def own_words(run: Training) -> Files:
    """Prints of one's own, as everybody words them otherwise."""
    form = run.draw.choice(
        [
            "Epoch [{n}/{total}], Train Loss: {train:.4f}, Val Loss: {val:.4f}, Val {metric}: {score:.4f}",
            "[epoch {n:03d}] tr_loss={train:.5f} | va_loss={val:.5f} | va_{metric}={score:.4f} | lr={rate:.2e}",
            "INFO:root:ep {n}/{total} - training loss {train:.4f} - validation loss {val:.4f} ({metric} {score:.3f})",
            "2026-03-01 12:00:01,203 trainer INFO Epoch: {n} train_loss: {train:.4f} dev_loss: {val:.4f} "
            "dev_{metric}: {score:.4f} elapsed: 3.1s",
            ">> {n} ... loss (train) {train:.4f}, loss (val) {val:.4f}, {metric} (val) {score:.4f}",
        ]
    )
    lines = [run.draw.choice(NOISE)]
    for e in run.epochs:
        rate = next((step.rate for step in run.steps_of(e)), 0.001)
        values = {"n": e.number + 1, "total": len(run.epochs), "train": e.train_loss, "val": e.val_loss, "rate": rate}
        lines.append(form.format(**values, metric=run.metric, score=e.score))
    return {"log": "\n".join(lines) + "\n"}
