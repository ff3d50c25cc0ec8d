"""The console of ultralytics and YOLOv5: a head above each bar, and the scores of validation below it.

Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size
 1/55      9.03G      1.321      3.032      1.308         22        640: 100%|████| 954/954 [11:41<00:00]
           Class     Images  Instances      Box(P          R      mAP50  mAP50-95): 100%|████| 66/66 [00:36]
             all       1049       1164      0.764      0.776      0.739      0.526
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from diagnostics.logs.header import settings_in
from diagnostics.logs.row import Notes, Row, number
from diagnostics.logs.source import Source

NAME = "the console of ultralytics"
PRIORITY = 24
_HEAD = re.compile(r"^\s*Epoch\s+gpu_mem\s", re.IGNORECASE)
_SCORES_HEAD = re.compile(r"^\s*class(?:es)?\s", re.IGNORECASE)
_EPOCH = re.compile(r"^\s*(\d+)/\d+\s")
_REST = re.compile(r":?\s*\d+%.*$")  # the bar
LOSSES = ("box", "obj", "cls", "dfl", "seg", "pose", "kobj")  # YOLOv5 names its losses without `loss`
SCORES = {"box(p": "precision", "mask(p": "mask_precision", "p": "precision", "r": "recall", "map50": "map50",
          "map@.5": "map50", "map50-95)": "map50_95", "map50-95": "map50_95", "map@.5:.95": "map50_95",
          "top1_acc": "accuracy", "top5_acc": "accuracy_top5"}  # fmt: skip


def matches(source: Source) -> bool:
    return any(_HEAD.match(line) for line in source.head)


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    """Yield the last state of each epoch's bar, and the line of scores of all classes below it."""
    names: list[str] = []
    scores: list[str] = []
    epoch, last = -1, None
    for line, text in source.lines():
        cells = _REST.sub("", text).split()
        if _HEAD.match(text):
            names, scores = [_train_name(name) for name in cells], []
        elif _SCORES_HEAD.match(text) and epoch >= 0:
            scores = [name for cell in cells if (name := SCORES.get(cell.lower().rstrip(":"), cell)) not in ("Class",)]
        elif names and (match := _EPOCH.match(text)):
            if last and last.values["epoch"] != int(match[1]):
                yield last
            epoch = int(match[1])
            numbers = [number(cell) for cell in cells[: len(names)]]
            known = {n: v for n, v in zip(names, numbers, strict=False) if n.startswith("train/") and v is not None}
            last = Row(line, {"epoch": epoch, **known})
        elif cells[:1] == ["all"] and scores and len(scores) >= len(cells) - 1:
            if last:
                yield last
                last = None
            measured = zip(reversed(scores), reversed(cells[1:]), strict=False)
            yield Row(line, {"epoch": epoch, **{f"val/{name}": cell for name, cell in measured if name[:1].islower()}})
        elif epoch < 0:
            notes.header.update(settings_in(text))
    if last:
        yield last


def _train_name(cell: str) -> str:
    plain = cell.lower().removesuffix("_loss")
    return f"train/{plain}_loss" if plain in LOSSES else "train/loss" if plain == "loss" else cell
