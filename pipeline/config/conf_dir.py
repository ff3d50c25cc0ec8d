"""The location of the configuration: next to the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path

LOSSES = {  # the bundled loss of each kind of task, an option of conf/loss
    "classification": "cross_entropy",
    "binary": "bce_with_logits",
    "multilabel": "bce_with_logits",
    "regression": "mse",
    "autoencoder": "mse",
    "language_model": "cross_entropy",
}


@cache
def conf_dir() -> Path:
    """The folder of `config.yaml` and its groups. Raises FileNotFoundError when the installation lost it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"conf/config.yaml is neither in {package} nor next to it; install fivegate again")


@cache
def loss_target(kind: str) -> str:
    """The `_target_` of the bundled loss of a kind of task. Raises KeyError for a kind without one."""
    import yaml

    return str(yaml.safe_load((conf_dir() / "loss" / f"{LOSSES[kind]}.yaml").read_text())["_target_"])
