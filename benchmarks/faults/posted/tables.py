"""Logs that are tables or objects, as the sources of their writers say. Each writer returns files by name."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping

from posted.training import Training

Files = dict[str, str]


def lightning_csv(run: Training) -> Files:
    """`metrics.csv` of Lightning (lightning/fabric/loggers/csv_logs.py): sparse rows, columns sorted."""
    rows: list[dict[str, object]] = []
    for epoch in run.epochs:
        for step in run.steps_of(epoch):
            rows.append({"lr-Adam": step.rate, "step": step.number})
            rows.append({"epoch": epoch.number, "step": step.number, "train_loss_step": step.loss})
        scores = {"val_loss": epoch.val_loss, f"val_{run.metric}": epoch.score}
        rows.append({"epoch": epoch.number, "step": epoch.steps - 1, **scores})
        rows.append({"epoch": epoch.number, "step": epoch.steps - 1, "train_loss_epoch": epoch.train_loss})
    return {"metrics.csv": _csv(sorted({name for row in rows for name in row}), rows)}


def keras_csv(run: Training) -> Files:
    """The file of Keras's CSVLogger (keras/src/callbacks/csv_logger.py)."""
    names = ["epoch", "learning_rate", "loss", f"val_{run.metric}", "val_loss"]
    rate = run.steps[-1].rate if run.steps else 0.001
    rows = [
        dict(zip(names, (e.number, rate, e.train_loss, e.score, e.val_loss), strict=True)) for e in run.epochs
    ]  # fmt: skip
    return {"training.csv": _csv(names, rows)}


def ultralytics_csv(run: Training) -> Files:
    """`results.csv` of a classification (ultralytics/engine/trainer.py, save_metrics), padded as YOLOv5 pads it."""
    names = ["epoch", "time", "train/loss", f"metrics/{run.metric}", "val/loss", "lr/pg0"]
    lines = [",".join(f"{name:>23}" for name in names)]
    for e in run.epochs:
        rate = next((step.rate for step in run.steps_of(e)), 0.01)
        values = (e.number + 1, 3.2 * (e.number + 1), e.train_loss, e.score, e.val_loss, rate)
        lines.append(",".join(f"{value:>23.5g}" for value in values))
    return {"results.csv": "\n".join(lines) + "\n"}


def tensorboard_csv(run: Training) -> Files:
    """A folder of scalar downloads of TensorBoard, one for each tag."""
    curves = {
        "train_loss": [(step.number, step.loss) for step in run.steps],
        "val_loss": [(epoch.steps, epoch.val_loss) for epoch in run.epochs],
        f"val_{run.metric}": [(epoch.steps, epoch.score) for epoch in run.epochs],
    }
    return {
        f"run-version_0-tag-{tag}.csv": "Wall time,Step,Value\n"
        + "".join(f"{1.7e9 + at / 10:.3f},{at},{value}\n" for at, value in points)
        for tag, points in curves.items()
    }


def wandb_panel(run: Training) -> Files:
    """The export of a panel of Weights & Biases: quoted, with __MIN and __MAX, empty where a curve has no point."""
    name = f"fancy-{run.draw.choice(['sunset', 'river', 'moon'])}-{run.draw.randint(1, 99)}"
    curves = {
        "train/loss": {step.number: step.loss for step in run.steps},
        "val/loss": {epoch.steps: epoch.val_loss for epoch in run.epochs},
        f"val/{run.metric}": {epoch.steps: epoch.score for epoch in run.epochs},
    }
    bounds = ("", "__MIN", "__MAX")
    rows = [["Step", *(f"{name} - {curve}{bound}" for curve in curves for bound in bounds)]]
    for at in sorted({at for curve in curves.values() for at in curve}):
        cells = [str(curve[at]) if at in curve else "" for curve in curves.values() for _ in bounds]
        rows.append([str(at), *cells])
    text = "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows)
    return {"wandb_export_2026-03-01T10_12_44.123+01_00.csv": text}


def trainer_state(run: Training) -> Files:
    """`trainer_state.json` of the Hugging Face Trainer (transformers/trainer_callback.py, TrainerState)."""
    history = [row for row, _ in _hugging_face_rows(run)]
    last = run.steps[-1].number + 1 if run.steps else 0
    state = {"best_metric": None, "epoch": float(len(run.epochs)), "global_step": last, "log_history": history}
    return {"trainer_state.json": json.dumps({**state, "train_batch_size": 32}, indent=2) + "\n"}


def printed_dicts(run: Training) -> Files:
    """What the Hugging Face Trainer prints between tqdm's bars (transformers/trainer_callback.py, ProgressCallback)."""
    total = run.steps[-1].number + 1 if run.steps else 1
    text = "***** Running training *****\n  Num Epochs = " + f"{len(run.epochs)}\n"
    for row, at in _hugging_face_rows(run):
        printed = {name: _short(value) for name, value in row.items() if name != "step"}
        text += f"\r {100 * at // total:3d}%|███      | {at}/{total} [00:{at % 60:02d}<01:02, 12.1it/s]{printed}\n"
    summary = {"train_runtime": 31.2, "train_samples_per_second": 812.1, "train_loss": 0.5, "epoch": len(run.epochs)}
    return {"train.log": text + str(summary) + "\n"}


def _hugging_face_rows(run: Training) -> Iterable[tuple[dict[str, object], int]]:
    for epoch in run.epochs:
        for step in run.steps_of(epoch):
            row: dict[str, object] = {"loss": step.loss}
            row |= {} if step.norm is None else {"grad_norm": step.norm}
            at = step.number + 1
            yield {**row, "learning_rate": step.rate, "epoch": at / run.steps_per_epoch, "step": at}, at
        scores = {"eval_loss": epoch.val_loss, f"eval_{run.metric}": epoch.score, "eval_runtime": 0.31}
        number = epoch.steps / run.steps_per_epoch
        yield {**scores, "eval_samples_per_second": 812.0, "epoch": number, "step": epoch.steps}, epoch.steps


def swift_jsonl(run: Training) -> Files:
    """`logging.jsonl` of ms-swift (swift/trainers/callback.py): the step as `10/1600`, validation rows between."""
    total, lines = (run.steps[-1].number + 1 if run.steps else 1), []
    for row, at in _hugging_face_rows(run):
        row.pop("step")
        row.pop("eval_samples_per_second", None)
        lines.append(json.dumps({**row, "global_step/max_steps": f"{at}/{total}", "percentage": "1.0%"}))
    return {"logging.jsonl": "\n".join(lines) + "\n"}


def mmengine_json(run: Training) -> Files:
    """`vis_data/scalars.json` of mmengine (mmengine/hooks/logger_hook.py): validation rows have only `step`."""
    lines = []
    for epoch in run.epochs:
        for step in run.steps_of(epoch):
            row = {"lr": step.rate, "data_time": 0.004, "loss": step.loss, "time": 0.2, "epoch": epoch.number + 1}
            lines.append(json.dumps({**row, "iter": step.number + 1, "memory": 1203, "step": step.number + 1}))
        scores = {f"val/{run.metric}": epoch.score, "val/loss": epoch.val_loss, "data_time": 0.01, "time": 0.03}
        lines.append(json.dumps({**scores, "step": epoch.number + 1}))
    return {"scalars.json": "\n".join(lines) + "\n"}


def nested_jsonl(run: Training) -> Files:
    """A logger of one's own: objects within objects, one for each epoch."""
    scores = [(e, {"loss": e.val_loss, run.metric: e.score}) for e in run.epochs]
    lines = [json.dumps({"epoch": e.number, "train": {"loss": e.train_loss}, "valid": valid}) for e, valid in scores]
    return {"history.jsonl": "\n".join(lines) + "\n"}


def markdown_report(run: Training) -> Files:
    """A report with the table of the Trainer in a notebook (transformers/utils/notebook.py)."""
    opening = run.draw.choice(["## Results\n\nHere is what I get:", "# Training report", "This is my training:"])
    rows = [
        f"| {e.number + 1} | {e.train_loss:.6f} | {e.val_loss:.6f} | {e.score:.6f} |" for e in run.epochs
    ]  # fmt: skip
    head = f"| Epoch | Training Loss | Validation Loss | {run.metric.capitalize()} |\n|---|---|---|---|"
    return {"report.md": "\n".join([opening, "", head, *rows, "", "Any ideas?", ""])}


def _csv(names: list[str], rows: Iterable[Mapping[str, object]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _short(value: object) -> object:
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) and abs(value) > 1e-3 else value
