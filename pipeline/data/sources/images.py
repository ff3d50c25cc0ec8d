"""Folders of pictures, one per class: `_target_: pipeline.data.sources.images.image_folder`; Pillow decodes them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.labels import require_classes
from pipeline.data.splits import split_rows
from pipeline.errors import UserError, fault

SIDES = ("train", "val", "test")
MODES = {1: "L", 3: "RGB"}
TOLD = 5  # faults of one kind told one by one


def image_folder(
    path: str | None,
    *,
    channels: int = 3,
    size: Sequence[int] | None = None,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    source: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """X float32 [N, channels, H, W] in 0..1 and y int64 [N], the class being the name of the folder a picture is in.

    A folder that holds `train`, `val` and `test`, each with a folder per class, is divided as given; otherwise rows are
    divided by `seed`. `size` [H, W] scales every picture; without it all must be equal. Names that begin with a dot
    are left out. Raises UserError naming every picture that does not decode or fit, up to five.
    """
    if path is None:
        raise UserError(fault("data.path", "is not given", expected="a folder with a folder for each class"))
    if channels not in MODES:
        raise UserError(fault("data.channels", "cannot be read", got=channels, expected="1 (grey) or 3 (colour)"))
    root = Path(path)
    given = [root / side for side in SIDES] if all((root / side).is_dir() for side in SIDES) else [root]
    found = [_pictures(folder) for folder in given]
    names = sorted({name for pictures in found for _, name in pictures})
    files = [file for pictures in found for file, _ in pictures]
    y = np.array([names.index(name) for pictures in found for _, name in pictures], np.int64)
    require_classes(y, names, str(root), lambda row: str(files[row]))
    X = _decoded(files, channels, size)
    if len(given) == 1:
        sides: dict[str, Any] = dict(split_rows(X, y, val=val, test=test, seed=seed))
    else:
        cuts = np.cumsum([len(pictures) for pictures in found])[:-1]
        parts = zip(np.split(X, cuts), np.split(y, cuts), strict=True)
        sides = dict(zip(SIDES, parts, strict=True))
    return {**sides, "class_names": names, "feature_names": None, "source": source or str(root), "licence": licence}


def _pictures(folder: Path) -> list[tuple[Path, str]]:
    """Files with their class, by name. Raises UserError for a folder that is not there or holds no class."""
    try:
        classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(
            fault("data.path", what, got=str(folder), expected=f"a folder, seen from {Path.cwd()}")
        ) from error
    found = []
    for place in classes:
        files = sorted(p for p in place.rglob("*") if p.is_file() and not p.name.startswith("."))
        if not files:
            raise UserError(fault(str(place), "class has no picture", expected="pictures in every folder of a class"))
        found += [(file, place.name) for file in files]
    if not found:
        raise UserError(fault(str(folder), "has no folder of a class", expected="<class>/<picture>"))
    return found


def _decoded(files: Sequence[Path], channels: int, size: Sequence[int] | None) -> NDArray[np.float32]:
    """Every picture as [channels, H, W] in 0..1."""
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError as error:
        do = "pip install pillow"
        raise UserError(fault("data.path", "Pillow, which decodes pictures, is not installed", do=do)) from error
    pictures, faults, shape = [], list[str](), None
    for file in files:
        try:
            with pillow.open(file) as opened:
                picture = opened.convert(MODES[channels])
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
            reason = str(error).replace(f" {str(file)!r}", "")
            faults.append(fault(str(file), f"does not decode ({reason})", expected="a picture"))
            continue
        if size is not None:
            picture = picture.resize((int(size[1]), int(size[0])))
        array = np.asarray(picture, np.float32).reshape(picture.height, picture.width, channels) / 255
        shape = shape or array.shape[:2]
        if array.shape[:2] != shape:
            do = f"python -m pipeline ... data.size=[{shape[0]},{shape[1]}]"
            expected = f"{shape} as {files[0].name} has"
            faults.append(
                fault(str(file), "differs in height and width", got=array.shape[:2], expected=expected, do=do)
            )
            continue
        pictures.append(array.transpose(2, 0, 1))
    if faults:
        more = [f"{len(faults) - TOLD} more pictures do not decode or fit"] if len(faults) > TOLD else []
        raise UserError(*faults[:TOLD], *(fault("data.path", said) for said in more))
    return np.stack(pictures)
