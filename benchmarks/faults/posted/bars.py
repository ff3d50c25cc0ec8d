"""Progress bars that overwrite themselves, as a console saves them."""

from __future__ import annotations

from posted.training import Training

Files = dict[str, str]


def keras_bars(run: Training) -> Files:
    """The bars of Keras 2 (keras/src/utils/generic_utils.py, Progbar): overwritten after \\b, or after \\r."""
    back, text = run.draw.choice(["\b" * 80, "\r"]), ""
    n = run.steps_per_epoch
    for e in run.epochs:
        text += f"Epoch {e.number + 1}/{len(run.epochs)}\n"
        for step in run.steps_of(e):
            count = step.number % n + 1
            text += f"{count}/{n} [====>.........] - ETA: 0s - loss: {step.loss:.4f}{back}"
        text += f"{n}/{n} [==============] - 1s 3ms/step - loss: {e.train_loss:.4f} - "
        text += f"val_loss: {e.val_loss:.4f} - val_{run.metric}: {e.score:.4f}\n"
    return {"keras.log": text}


def lightning_bar(run: Training) -> Files:
    """The bar of Lightning (lightning/pytorch/callbacks/progress/tqdm_progress.py), with values at its end."""
    text, n, scores = "", run.steps_per_epoch, ""
    for e in run.epochs:
        for step in run.steps_of(e):
            count = step.number % n + 1
            text += (
                f"\rEpoch {e.number}: {100 * count // n:3d}%|███▎      | {count}/{n} [00:0{count % 10}<00:01, "
                f"27.84it/s, v_num=7, train_loss={step.loss:.3f}{scores}]"
            )
        text += "\rValidation DataLoader 0: 100%|██████████| 8/8 [00:00<00:00, 612.03it/s]"
        scores = f", val_loss={e.val_loss:.3f}, val_{run.metric}={e.score:.3f}"
        text += (
            f"\rEpoch {e.number}: 100%|██████████| {n}/{n} [00:01<00:00, 27.84it/s, v_num=7, "
            f"train_loss={e.train_loss:.3f}{scores}]"
        )
    return {"console.txt": text + "\n"}


def ultralytics_console(run: Training) -> Files:
    """The console of ultralytics (ultralytics/engine/trainer.py, progress_string): a head, then a bar per epoch."""
    text = "Ultralytics 8.3.0 Python-3.11.2 torch-2.5.0 CPU\nlr0=0.01, batch=16, optimizer=auto, amp=True\n"
    n = run.steps_per_epoch
    for e in run.epochs:
        text += "\n      Epoch    GPU_mem       loss  Instances       Size\n"
        text += f"{e.number + 1:>7}/{len(run.epochs)}      2.31G  {e.train_loss:>9.4g}         16        224: "
        text += f"100%|██████████| {n}/{n} [00:12<00:00,  1.36it/s]\n"
        text += f"               classes   {run.metric}: 100%|██████████| 8/8 [00:00<00:00, 11.01it/s]\n"
        text += f"                   all  {e.score:>9.3g}\n"
    return {"console.log": text}
