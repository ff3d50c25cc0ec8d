"""Advice leads somewhere: every word of the table, and every correction that a message proposes, is tried."""

from __future__ import annotations

import shlex
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.arguments import REFUSED_FLAGS, parse
from pipeline.config.build import build
from pipeline.config.compose import compose
from pipeline.config.override_keys import command, familiar_words, is_sentence, key_of, leaves
from pipeline.errors import UserError
from pipeline.evaluation.metric_config import metric_from_config, metrics_from_config
from pipeline.evaluation.metrics import METRICS_BY_KIND
from tests.conftest import Cli

COMMAND = "python -m pipeline"
KEYS: dict[str, Any] = familiar_words()["keys"]
VALUES: dict[str, dict[str, str]] = familiar_words()["values"]
COMMANDS: dict[str, str] = familiar_words()["commands"]
# What must be chosen for a key to exist.
OPTION_WITH = {
    "data.": "data=csv", "optimizer.momentum": "optimizer=sgd", "model.hidden": "model=mlp", "model.in_f": "model=mlp",
}  # fmt: skip
METRICS = ("task.metric", "task.metrics")
CHOICES = {
    "data": "wine", "model": "linear", "loss": "mse", "optimizer": "sgd", "scheduler": "cosine", "tracking": "none",
    "task": "regression", "experiment": "wine", "phase": "baseline", "task.step": "{_target_: my_pkg.step}",
    "tracking.uri": "http://here",
    "ckpt_path": "weights.pt", "callbacks": "[]", "plan.purpose": "to be", "plan.owner": "Ada",
}  # fmt: skip


def advice(message: str) -> list[str]:
    """The overrides that a message proposes, with a value for each gap; none where it says to leave something out."""
    _, found, do = message.rpartition("  Do: ")
    assert found, message
    if do in ("leave it out", "python -m pipeline --cfg job") or do.startswith(
        ("leave out ", f"{COMMAND} --config-dir DIR")
    ):
        return []
    assert do.startswith(f"{COMMAND} ... "), message
    return [filled(word) for word in shlex.split(do.removeprefix(f"{COMMAND} ... "))]


def filled(word: str) -> str:
    """An override whose gap has a value that the key takes."""
    key = key_of(word)
    value = "1" if "[<value>]" in word else default_of((*base(key),), key) if "<value>" in word else ""
    return word.replace("<value>", value).replace("<option>", CHOICES.get(key, "")).replace("NAME", "mine")


def followed(words: list[str], message: str) -> list[str]:
    """The command line of somebody who does what the message says: what was wrong is replaced."""
    proposed = advice(message)
    replaced = {message.partition(":")[0], *map(key_of, proposed)}
    return [*(word for word in words if key_of(word) not in replaced), *proposed]


def base(*keys: str) -> list[str]:
    return [option for key in keys for start, option in OPTION_WITH.items() if key.startswith(start)]


@cache
def defaults(words: tuple[str, ...]) -> dict[str, Any]:
    return dict(leaves(compose(words)))


def default_of(words: tuple[str, ...], key: str) -> str:
    """A value that a key takes: an option of a group, else its value in a valid config, as an override has it."""
    value = defaults(words).get(key)
    if key in CHOICES or value is None:
        return CHOICES.get(key, "1")
    return str(value).replace(" ", "").lower() if isinstance(value, bool | list) else str(value)


@cache
def refused(*words: str) -> str:
    """Why a config with these overrides does not compose; empty where it does."""
    try:
        compose(words)
    except UserError as error:
        return str(error)
    return ""


def target_of(entry: str | list[str]) -> str:
    """The key or group that an entry of the table leads to."""
    return key_of((entry if isinstance(entry, str) else entry[0]).split()[-1])


def words_by_option() -> list[tuple[str, dict[str, str]]]:
    """The typed words with the keys that they lead to, twenty at a time, by the option that has these keys."""
    meant = {
        word: "" if isinstance(entry, str) and is_sentence(entry) else target_of(entry) for word, entry in KEYS.items()
    }
    options = sorted({"", *OPTION_WITH.values()})
    arguments = {option: [w for w in KEYS if base(meant[w]) == [option] * bool(option)] for option in options}
    parts = [
        (option, arguments[option][i : i + 20]) for option in options for i in range(0, len(arguments[option]), 20)
    ]
    return [(option, {word: meant[word] for word in part}) for option, part in parts]


@pytest.mark.parametrize(("option", "typed"), words_by_option())
def test_familiar_key_leads_to_a_config(option: str, typed: dict[str, str]) -> None:
    """Somebody who types the key of another library gets overrides that compose, or the reason why there is none."""
    arguments = (option,) if option else ("model=mlp",)
    values = {word: "true" if "=" in str(KEYS[word]) else default_of(arguments, key) for word, key in typed.items()}

    with pytest.raises(UserError) as refusal:
        compose([*arguments, *(f"{word}={value}" for word, value in values.items())])

    messages = {message.partition(":")[0]: message for message in refusal.value.faults}
    assert set(messages) == set(typed)
    for word, key in typed.items():
        if not key:
            assert messages[word] == f"{word}: is {KEYS[word]}  Do: leave it out"
            continue
        assert f"did you mean '{key}'?" in messages[word]
        corrected = followed([*arguments, f"{word}={values[word]}"], messages[word])
        assert any(key_of(o) == key for o in corrected)
        assert not refused(*corrected), (messages[word], refused(*corrected))


def test_familiar_flag_leads_to_an_override() -> None:
    """The same word as a flag, `--learning-rate 0.1`, is answered with an override that composes."""
    flags = [f"--{word.replace('_', '-')}" for word in KEYS if f"--{word.replace('_', '-')}" not in REFUSED_FLAGS]

    with pytest.raises(UserError) as refusal:
        parse([word for flag in flags for word in (flag, "true")])

    assert len(refusal.value.faults) == len(flags)
    for message in refusal.value.faults:
        assert "did you mean '--" not in message
        arguments = advice(message)
        corrected = [*base(*map(key_of, arguments)), *arguments]
        assert not refused(*corrected), (message, refused(*corrected))


@pytest.mark.parametrize("typed", ["momentum", "optimizer.momentum"])
def test_momentum_without_sgd_leads_to_sgd(typed: str) -> None:
    """AdamW has no momentum: the command chooses SGD and keeps the value."""
    message = refused("optimizer=adamw", f"{typed}=0.9")

    assert "did you mean 'optimizer.momentum'?" in message or typed == "optimizer.momentum"
    assert message.endswith("Do: python -m pipeline ... optimizer=sgd optimizer.momentum=0.9")
    assert not refused("optimizer=sgd", "optimizer.momentum=0.9")


# The classes of `model` and Hydra's launchers refuse these words later, with messages of their own.
JUDGED_LATER = ("hydra/launcher", "model.activation", "model.normalization")
ENTRIES = {key: words for key, words in VALUES.items() if key not in (*METRICS, *JUDGED_LATER)}
COLUMNS = zip_longest(*([(key, word) for word in words] for key, words in ENTRIES.items()))


@pytest.mark.parametrize("typed", [dict(entry for entry in column if entry) for column in COLUMNS])
def test_familiar_value_leads_to_a_config(typed: dict[str, str]) -> None:
    """The value that another library calls so is refused here, and the proposed one composes and builds."""
    arguments = {key: f"{key}=[{word}]" if key == "export.formats" else f"{key}={word}" for key, word in typed.items()}
    with pytest.raises(UserError) as refusal:
        compose(list(arguments.values()))
    messages = {message.partition(":")[0].removesuffix(".0"): message for message in refusal.value.faults}
    assert set(messages) == set(typed)

    for key, message in messages.items():
        entry = VALUES[key][typed[key]]
        corrected = followed([arguments[key]], message)

        assert not refused(*corrected), (message, refused(*corrected))
        if is_sentence(entry):
            assert entry in message
        elif "_target_=" in entry:
            made = build(compose(corrected)[key], where=key)
            weights = [torch.nn.Parameter(torch.zeros(2))]
            if key == "loss":
                made(*weights, *weights)
            else:
                made(weights if key == "optimizer" else torch.optim.SGD(weights))
        elif "=" not in entry:
            assert {f"{key}={entry}", f"{key}=[{entry}]"} & set(corrected)


@pytest.mark.parametrize("typed", sorted(VALUES["task.metric"]))
def test_familiar_metric_is_accepted(typed: str) -> None:
    """The proposed metric measures a task of the kind that the word is used for."""
    meant = VALUES["task.metric"][typed]
    kinds = [kind for kind in METRICS_BY_KIND if accepted({"kind": kind, "metric": meant})]
    assert kinds

    for kind in kinds:
        with pytest.raises(
            UserError, match=rf"did you mean '{meant}'\?  Do: python -m pipeline \.\.\. task\.metric={meant}$"
        ):
            metric_from_config({"kind": kind, "metric": typed})
        first = METRICS_BY_KIND[kind][1].partition(" ")[0].strip(",")
        with pytest.raises(UserError, match=rf"Do: python -m pipeline \.\.\. 'task\.metrics=\[{first},{meant}\]'$"):
            metrics_from_config({"kind": kind, "metric": first, "metrics": [first, typed]})


def accepted(task: dict[str, str]) -> bool:
    try:
        metric_from_config(task)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("kind", sorted(METRICS_BY_KIND))
@pytest.mark.parametrize("name", ["acc", "mse", "f1_score", "accuracy", "rmse", "perplexity", "nonsense"])
def test_metric_correction_measures_the_task(kind: str, name: str) -> None:
    """Whatever is typed for whatever task, the metric that the message proposes is one for this kind of task."""
    try:
        metric_from_config({"kind": kind, "metric": name})
    except UserError as error:
        _, _, do = error.faults[0].partition("  Do: python -m pipeline ... task.metric=")
        assert metric_from_config({"kind": kind, "metric": do}).name == do


def test_familiar_command_leads_to_a_command(cli: Cli) -> None:
    """`train`, `fit` or `test` as a command is answered with one that exists."""
    for typed, meant in COMMANDS.items():
        code, _, said = cli(typed)

        assert code == 2
        assert said.rstrip().endswith(f"did you mean '{meant}'?  Do: python -m pipeline {meant}")
        arguments = meant.split()
        assert not refused(*parse(arguments).overrides) if "=" in arguments[-1] else cli(*arguments, "-h")[0] == 0


@pytest.mark.parametrize(
    "typed",
    [
        "optimizer.learning_rate=0.1", "trainer.accelerator=gpu", "logger=wandb", "loss=null", "scheduler=null",
        "data=null", "model=null", "task=null", "tracking=null", "debug=null", "preprocess=null", "experiment=null",
        "trainer=null", "optimizer.lrr=0.1", "lr=0.1", "trainer.max_epoch=3", "+trainer.epochs=3",
        "trainer.epochs=abc", "phase=train", "optimizer.amsgrad=true", "optimizer.amsgrd=true", "optimizer.foo=1",
        "model.foo=1", "~model.foo", "~model.hiden", "task.class_weights=[1,-2]", "run=foo", "run.name=A B",
        "seed=true", "seed=-1", "trainer.threads=0", "devices=2", "trainer.devices=2", "trainer.strategy=ddp",
        "trainer.max_epochs=abc", "task.target=nan", "plan.owner=3", "plan.purpose=''", "+experiment=digits",
        "+seed=3", "task.metrics=acc", "surgery=[{a: 1, b: 2}]", "criterion=Focal", "metrics=[accuracy]",
        "metrics=['acc']", "hidden_layer_sizes=[3,4]", "fp16=false", "executor=submitt", "optimizer.lr=???",
        "trust=my_pkg", "trainer.deterministic=maybe", "export.formats=[pt]", "loader.sampler=null",
    ],
)  # fmt: skip
def test_correction_is_accepted(typed: str) -> None:
    """Doing what the message says ends in a config that composes, at the latest after a second message."""
    arguments = [typed]
    for _ in range(2):
        try:
            compose(arguments)
            return
        except UserError as error:
            assert len(error.faults) == 1
            arguments = followed(arguments, error.faults[0])
    compose(arguments)


def test_correction_of_a_file_removes_the_key(tmp_path: Any) -> None:
    """A wrong key in a config file is still there when an override is added: the command removes it as well."""
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [digits]\ntrainer: {epochs: 3}\nlogger: wandb\nlimit_test_batches: 3\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)

    with pytest.raises(UserError) as refusal:
        compose(["experiment=mine"], [tmp_path])

    proposed = [word for message in refusal.value.faults for word in advice(message)]
    assert proposed == ["~trainer.epochs", "trainer.max_epochs=3", "~logger", "tracking=mlflow", "~limit_test_batches"]
    assert compose(["experiment=mine", *proposed], [tmp_path])["trainer"]["max_epochs"] == 3


def test_unknown_option_is_found_in_a_folder(tmp_path: Any) -> None:
    """An option of nobody's is answered with where one's own is put; there it is found."""
    message = refused("model=resnet50")
    assert message.endswith(
        "Do: python -m pipeline --config-dir DIR ... model=resnet50, with resnet50.yaml in DIR/model"
    )

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "resnet50.yaml").write_text("_target_: my_pkg.ResNet\n")
    assert compose(["model=resnet50"], [tmp_path])["model"]["_target_"] == "my_pkg.ResNet"


@given(st.lists(st.text(min_size=1, max_size=12), max_size=3))
def test_command_survives_a_shell(overrides: list[str]) -> None:
    """Split by a shell, a proposed command has the overrides that were meant."""
    assert shlex.split(command(*overrides)) == ["python", "-m", "pipeline", "...", *overrides]


@pytest.mark.parametrize("word", ["lion", "lbfgs"])
def test_optimizer_without_equivalent_in_a_file_is_one_message(word: str, tmp_path: Path) -> None:
    """An experiment file whose optimizer is a word that has no equivalent ends in a message with a next step."""
    (tmp_path / "experiment").mkdir()
    text = f"# @package _global_\ndefaults: [/experiment/digits, _self_]\noptimizer: {word}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"optimizer: .*Do: "):
        compose(["experiment=mine"], [tmp_path])


def test_unknown_key_proposes_no_internal_key() -> None:
    """`data.target` is not taken for `data._target_`, which names a function."""
    with pytest.raises(UserError) as refused:
        compose(["experiment=wine", "data.target=x"], [])
    assert "_target_=" not in str(refused.value)
