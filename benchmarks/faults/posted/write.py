"""Every writer of logs by the name of its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from posted import bars, lines, tables
from posted.training import Training

WRITERS: dict[str, Callable[[Training], dict[str, str]]] = {
    writer.__name__: writer
    for writer in (
        tables.lightning_csv, tables.keras_csv, tables.ultralytics_csv, tables.tensorboard_csv, tables.wandb_panel,
        tables.trainer_state, tables.printed_dicts, tables.swift_jsonl, tables.mmengine_json, tables.nested_jsonl,
        tables.markdown_report, lines.nanogpt, lines.fastai, lines.torchtune, lines.mmengine_log, lines.detectron,
        lines.megatron, lines.imagenet, lines.mnist, lines.tutorial, lines.own_words, bars.keras_bars,
        bars.lightning_bar, bars.ultralytics_console,
    )
}  # fmt: skip


def write(format_name: str, run: Training, folder: Path) -> Path:
    """Write the log of a training; return the file, or the folder if the format has several files."""
    written = WRITERS[format_name](run)
    for name, text in written.items():
        (folder / name).write_text(text, newline="")
    return folder if len(written) > 1 else folder / next(iter(written))
