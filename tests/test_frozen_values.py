"""Every value survives freezing: composed, written to the plan, read again and given to a worker, with its type."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline.config.compose import compose
from pipeline.errors import Refused, UserError
from pipeline.results import PHASES, exact, tagged, untagged
from pipeline.run_store import checklist
from pipeline.run_store import plan as plans
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run, opened
from tests.check_helpers import CHECKS, resolve_check
from tests.ledger_fixtures import freeze

ODD_WORDS = [
    "nan", ".nan", "NaN", "inf", ".inf", "-inf", "-.inf", "yes", "no", "on", "off", "y", "n", "Y", "N", "true", "True",
    "false", "null", "Null", "~", "None", "1e3", "1e-4", "1.", ".5", "0o17", "0x1f", "0b11", "017", "1_000", "12:30",
    "12:30:45", "2020-01-01", "2020-01-01T00:00:00Z", "", " ", " x ", "007", "<<", "=", "!tag", "!!binary aGk=", "a: b",
    "a #b", "#", "- a", "[", "{", "&a", "*a", "|", ">", "%", "@", "`", "?", "a\nb", "a\r\nb", "\t", "\x00", "\x85",
    "\u2028", "\ufeff", "é", "日本", "😀", "'", '"', "''", "\\", "\\n", "${seed}", "\\${seed}", "\\\\${seed}",
    "$${a.b}", "${", "${now:%Y}", "--- a", "...", "-0", "-0.0", "+1", "1,5",
]  # fmt: skip
texts = st.one_of(st.sampled_from(ODD_WORDS), st.text(max_size=8))
numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.none())
keys = st.one_of(texts, st.integers(-9, 9), st.booleans())
values = st.recursive(
    st.one_of(texts, numbers),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, with their types, the order of their keys, NaN and the sign of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    return bool(a == b)


def frozen(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config after it was frozen to the plan of a new run and read again, as a worker reads it."""
    run = Run.at(folder, f"run-{len(list(folder.iterdir()))}")
    with opened(run) as ledger:
        freeze(run, ledger, exact(config))
    return plans.load(Run(run.path)).config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frozen")


@pytest.mark.hypothesis
@settings(suppress_health_check=list(HealthCheck))
@given(value=values)
@example(value={1: math.nan, "1": "nan", False: -math.inf})
@example(value=ODD_WORDS)
def test_plan_keeps_value_and_type(root: Path, value: Any) -> None:
    """What is frozen is what is read: value, type, keys and their order."""
    assert same(frozen(root, {"plan": {"purpose": value}}), {"plan": {"purpose": value}})


@given(value=values)
def test_job_keeps_value_and_type(value: Any) -> None:
    """A worker reads the overrides of its job from JSON as the phase wrote them."""
    job = Job("digest", "trial", Delta({"model.width": value}))
    read = Job.from_json(json.loads(json.dumps(job.to_json())))

    assert same(read.delta.overrides["model.width"], value)


def test_tagged_keeps_keys_that_look_marked() -> None:
    """Text keys that begin like the mark of a type, and keys of that type, are told apart."""
    value = {"int:0": 1, 0: 2, "str:x": 3, "float": 4, True: 5}
    assert same(untagged(json.loads(json.dumps(tagged(value)))), value)


@given(a=st.one_of(texts, numbers), b=st.one_of(texts, numbers))
def test_plan_digest_tells_values_apart(a: Any, b: Any) -> None:
    """Two plans have one digest only if their values have one type and are equal: the text `nan` is not the number."""
    digests = {plans.Plan(1, {"x": value}, {}, {}).digest for value in (a, b)}

    assert (len(digests) == 1) == same(a, b)


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        (math.nan, math.nan, False),
        (math.nan, "nan", True),
        (1, True, True),
        (0, False, True),
        (1, 1.0, False),
        (1, "1", True),
        ([1, math.nan], [1, math.nan], False),
        ([1], [True], True),
        ([{"a": math.inf}], [{"a": "inf"}], True),
        ("", None, True),
    ],
)
def test_differences_compare_types(old: Any, new: Any, differs: bool) -> None:
    """An edit that changes the type of a value is a change; NaN is equal to itself, and 1 to 1.0."""
    assert bool(plans.changed_config({"x": old}, {"x": new})) == differs


@given(value=texts)
@example(value="\\\\\\${task.target}")
def test_checklist_does_not_resolve_text_of_config(value: str) -> None:
    """A text of the config that looks like an interpolation stays a text when a checklist is read."""
    config = {"task": {"target": value, "metric": "accuracy"}, "plan": {"margins": {"target": None}, "purpose": value}}
    items = checklist.read(CHECKS.parent / "diagnostics.yaml", config, resolve_check)
    whole = OmegaConf.create(checklist._escaped(config))

    assert items and (value == "???" or OmegaConf.to_container(whole, resolve=True) == config)


# --- from a command or a file ----------------------------------------------------------------------------------------


@pytest.fixture
def own_config(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    yield tmp_path / "conf"


def line_words() -> list[str]:
    """The odd words that can be typed as `key=word` without quotes."""
    return ["nan", "inf", "-inf", "yes", "no", "on", "off", "y", "n", "null", "true", "1e3", "1e-4", "0o17", "0x1f",
            "1_000", "12:30", "2020-01-01", "007", "''", "' x '", "'true'", "'null'", "'nan'", "'a: b #c'", "'é'",
            "'\\${seed}'", '"a, b"']  # fmt: skip


def test_overrides_survive_freezing(root: Path) -> None:
    """Odd words as overrides of one command: each is frozen and read again as it was composed."""
    config = compose(["experiment=digits", *[f"+model.word{i}={word}" for i, word in enumerate(line_words())]])
    model = config["model"]

    assert same(frozen(root, {"model": model})["model"], model)
    assert (type(model["word0"]), model["word10"], model["word20"], model["word23"]) == (float, True, " x ", "nan")


def test_experiment_file_survives_freezing(root: Path, own_config: Path) -> None:
    """Odd words in an experiment file, plain and quoted: each is frozen and read again as it was composed."""
    plain = ["nan", ".nan", ".inf", "-.inf", "yes", "no", "on", "off", "y", "n", "null", "~", "true", "1e3", "1e-4",
             "0o17", "0x1f", "1_000", "12:30", "2020-01-01", "007", "\\${seed}"]  # fmt: skip
    quoted = [word for word in ODD_WORDS if "${" not in word and "\x85" not in word]  # a line break in a file
    lines = [f"  plain{i}: {word}" for i, word in enumerate(plain)]
    lines += [f"  quoted{i}: {json.dumps(word, ensure_ascii=False)}" for i, word in enumerate(quoted)]
    head = "# @package _global_\ndefaults:\n  - digits\n  - _self_\nmodel:\n"
    (own_config / "experiment" / "odd.yaml").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    model = compose(["experiment=odd"], [own_config])["model"]

    assert [model[f"quoted{i}"] for i in range(len(quoted))] == quoted
    assert same(frozen(root, {"model": model})["model"], model)


def test_value_that_no_plan_can_hold_is_named(own_config: Path) -> None:
    """Binary data in a config file is one message with its key."""
    head = "# @package _global_\ndefaults:\n  - digits\n  - _self_\nmodel:\n  word: !!binary aGk=\n"
    (own_config / "experiment" / "odd.yaml").write_text(head)
    with pytest.raises(UserError, match=r"model\.word: cannot be stored in a plan, got '?bytes'?; expected a number"):
        compose(["experiment=odd"], [own_config])


def test_text_that_is_not_unicode_is_named(own_config: Path) -> None:
    """Half of a pair of surrogates, which no file can hold, is one message with its key."""
    head = "# @package _global_\ndefaults:\n  - digits\n  - _self_\nmodel:\n"
    (own_config / "experiment" / "odd.yaml").write_text(f'{head}  word: "caf\\udce9"\n')
    with pytest.raises(UserError, match=r"model\.word: cannot be stored in a plan, got .*udce9"):
        compose(["experiment=odd"], [own_config])


def test_plan_file_is_yaml_that_others_read(root: Path) -> None:
    """The plan file holds NaN as YAML's own word, so that any reader of YAML gets the number."""
    run = Run.at(root, "readable")
    with opened(run) as ledger:
        freeze(run, ledger, {"optimizer": {"lr": math.nan}})
    body = yaml.safe_load((run.path / "plan" / "1.yaml").read_text())

    assert math.isnan(body["config"]["optimizer"]["lr"]) and set(body["checklists"]) == set(PHASES)


def test_load_reads_a_plan_anew(planned: Run) -> None:
    """A plan that was read before is compared with the ledger again, and what callers get is their own."""
    file = planned.path / "plan" / "1.yaml"
    original = file.read_text()
    plans.load(planned).config["seed"] = -1
    assert plans.load(planned).seed >= 0

    file.write_text(original.replace("max_epochs: ", "max_epochs: 9", 1))
    with pytest.raises(Refused, match="is not the plan that the ledger recorded"):
        plans.load(planned)
    file.write_text(original)
    assert plans.load(planned).seed >= 0
