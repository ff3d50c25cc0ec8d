"""Folders of images, one per class: `_target_: pipeline.data.sources.images.image_folder`; Pillow decodes them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.override_keys import command
from pipeline.data.source_data import SPLITS, SourceData, SplitPairs, take_splits
from pipeline.data.sources.labels import check_class_counts
from pipeline.data.splits import split_rows
from pipeline.errors import UserError, fault

MODES = {1: "L", 3: "RGB"}  # channels: the mode of Pillow
MAX_FAULTS = 5  # reported one by one


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
) -> SourceData:
    """X float32 [N, channels, H, W] in 0..1 and y int64 [N]; the class is the name of the folder an image is in.

    If the folder has the subfolders `train`, `val` and `test`, each with a folder per class, these are the splits;
    otherwise rows are divided by `seed`. `size` [H, W] rescales every image; without it all must have equal size. Names
    that begin with a dot are ignored. Raises UserError naming the images that cannot be decoded or differ in size, up
    to five.
    """
    if path is None:
        raise UserError(fault("data.path", "is not given", expected="a folder with a folder for each class"))
    if channels not in MODES:
        raise UserError(fault("data.channels", "cannot be read", got=channels, expected="1 (grey) or 3 (colour)"))
    root = Path(path)
    folders = [root / split for split in SPLITS] if all((root / split).is_dir() for split in SPLITS) else [root]
    images = [_list_images(folder) for folder in folders]
    names = sorted({name for listed in images for _, name in listed})
    files = [file for listed in images for file, _ in listed]
    y = np.array([names.index(name) for listed in images for _, name in listed], np.int64)
    check_class_counts(y, names, str(root), lambda row: str(files[row]))
    X = _decode_images(files, channels, size)
    pairs: SplitPairs
    if len(folders) == 1:
        pairs = split_rows(X, y, val=val, test=test, seed=seed)
    else:
        train, val_rows, test_rows = np.split(np.arange(len(y)), np.cumsum([len(listed) for listed in images])[:-1])
        pairs = take_splits(X, y, {"train": train, "val": val_rows, "test": test_rows})
    return {**pairs, "class_names": names, "feature_names": None, "source": source or str(root), "licence": licence}


def _list_images(folder: Path) -> list[tuple[Path, str]]:
    """Files with their class, sorted. Raises UserError for a folder that does not exist or has no class."""
    try:
        classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        expected = f"a folder, relative to {Path.cwd()}"
        raise UserError(fault("data.path", what, got=str(folder), expected=expected)) from error
    images = []
    for class_folder in classes:
        files = sorted(p for p in class_folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        if not files:
            raise UserError(fault(str(class_folder), "class has no image", expected="images in every class folder"))
        images += [(file, class_folder.name) for file in files]
    if not images:
        raise UserError(fault(str(folder), "has no class folder", expected="<class>/<image>"))
    return images


def _decode_images(files: Sequence[Path], channels: int, size: Sequence[int] | None) -> NDArray[np.float32]:
    """All images as [N, channels, H, W] in 0..1. Raises UserError for files that do not decode or differ in size."""
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError as error:
        do = "pip install pillow"
        raise UserError(fault("data.path", "Pillow, which decodes images, is not installed", do=do)) from error
    arrays, faults, shape = [], list[str](), None
    for file in files:
        try:
            with pillow.open(file) as opened:
                image = opened.convert(MODES[channels])
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
            reason = str(error).replace(f" {str(file)!r}", "")
            faults.append(fault(str(file), f"cannot be decoded ({reason})", expected="an image"))
            continue
        if size is not None:  # Pillow has (width, height)
            image = image.resize((int(size[1]), int(size[0])))
        array = np.asarray(image, np.float32).reshape(image.height, image.width, channels) / 255
        shape = shape or array.shape[:2]
        if array.shape[:2] != shape:
            do = command(f"data.size=[{shape[0]},{shape[1]}]")
            what, expected = "differs in height and width", f"{shape} as {files[0].name}"
            faults.append(fault(str(file), what, got=array.shape[:2], expected=expected, do=do))
            continue
        arrays.append(array.transpose(2, 0, 1))  # channels first, as torch expects
    if len(faults) > MAX_FAULTS:
        rest = f"{len(faults) - MAX_FAULTS} more images cannot be decoded or differ in size"
        faults = [*faults[:MAX_FAULTS], fault("data.path", rest)]
    if faults:
        raise UserError(*faults)
    return np.stack(arrays)
