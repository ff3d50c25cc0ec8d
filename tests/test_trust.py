"""Configs of somebody else: what they may set, read and run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from pipeline import safe_yaml
from pipeline.__main__ import main
from pipeline.config.compose import composition
from pipeline.config.hydra_main import hydra_sweep
from pipeline.errors import UserError
from pipeline.orchestration.run_request import resolve_request
from pipeline.orchestration.sweep import multirun
from pipeline.run_store import plan as plans
from pipeline.trust import expansion
from tests.conftest import SMALL, Cli, go

HEADER = "# @package _global_\ndefaults: [digits]\nseed: 1\n"
LOAD = "{_target_: torch.load, f: pwned.pkl, weights_only: false}"


class Leaves:
    """Unpickling it leaves a file behind."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


@pytest.fixture
def theirs(own_folder: Path) -> Path:
    """Somebody's folder of configs, next to a pickle that makes the folder `pwned` when it is loaded."""
    (own_folder / "pwned.pkl").write_bytes(pickle.dumps(Leaves()))
    (own_folder / "conf" / "experiment").mkdir(parents=True)
    return own_folder / "conf"


def write(folder: Path, name: str, text: str) -> None:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- settings of Hydra -----------------------------------------------------------------------------------------------

SETTINGS = [
    (f"callbacks: {{x: {LOAD}}}", "hydra.callbacks"),
    ("job_logging: {handlers: {x: {(): torch.load, f: pwned.pkl}}}", "hydra.job_logging"),
    ("hydra_logging: {handlers: {x: {class: my_pkg.Handler}}}", "hydra.hydra_logging"),
    ("launcher: {_target_: torch.load}", "hydra.launcher._target_"),
    (f"launcher: {{inner: {LOAD}}}", "'inner' not in 'BasicLauncherConf'"),
    ("sweeper: {_target_: hydra_plugins.evil.Sweeper}", "hydra.sweeper._target_"),
    ("sweeper: {params: {trust: '[my_pkg]'}}", "hydra.sweeper.params"),
    ("sweeper: {params: {++hydra.callbacks: '{}'}}", "hydra.sweeper.params"),
    ("sweeper: {params: {seed: '${oc.env:HOME}'}}", "hydra.sweeper.params"),
    ("job: {env_set: {LD_PRELOAD: x.so}}", "hydra.job.env_set"),
    ("job: {env_copy: [PATH]}", "hydra.job.env_copy"),
    ("mode: MULTIRUN", "hydra.mode"),
    ("help: {template: x}", "hydra.help"),
    ("overrides: {hydra: ['hydra.callbacks={}']}", "hydra.overrides"),
    ("verbose: '${oc.env:HOME}'", "hydra.verbose"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "key"), SETTINGS)
def test_foreign_config_sets_no_setting_of_hydra_that_is_not_listed(theirs: Path, setting: str, key: str) -> None:
    """Whatever Hydra might build or follow is refused before it does, and the message names file and key."""
    write(theirs, "experiment/sly", HEADER + f"hydra: {{{setting}}}\n")

    with pytest.raises(UserError, match=key) as refusal:
        composition(["experiment=sly"], [theirs])
    assert all("  Do: " in message for message in refusal.value.faults)
    if key.startswith("hydra.") and key != "hydra.overrides":
        assert any(message.startswith(f"experiment/sly.yaml: {key}") for message in refusal.value.faults)


@pytest.mark.parametrize(
    ("group", "content", "override"),
    [
        ("hydra/callbacks/sly", f"x: {LOAD}", "+hydra/callbacks=sly"),
        ("hydra/launcher/joblib", f"_target_: torch.load\nx: {LOAD}", "hydra/launcher=joblib"),
        ("hydra/launcher/sly", f"_target_: torch.load\nx: {LOAD}", "hydra/launcher=sly"),
        ("hydra/sweeper/sly", f"_target_: torch.load\nx: {LOAD}", "hydra/sweeper=sly"),
        ("hydra/job_logging/sly", "version: 1", "hydra/job_logging=sly"),
        ("hydra/sly", f"# @package hydra\ncallbacks: {{x: {LOAD}}}", "hydra=sly"),
        ("model/sly", "# @package hydra.callbacks.x\n_target_: torch.load", "model=sly"),
        ("model/sly", "_target_: torch.load", "+model@hydra.callbacks.x=sly"),
    ],
)
def test_foreign_option_sets_no_setting_of_hydra(theirs: Path, group: str, content: str, override: str) -> None:
    """Options of Hydra's own groups, and packages that point there, are no way around."""
    write(theirs, group, content)

    with pytest.raises(UserError, match="hydra"):
        composition(["seed=1", override], [theirs])


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x._target_=torch.load",
        "hydra={callbacks:{x:{_target_:torch.load}}}",
        "++hydra.searchpath=[pkg://os]",
        "hydra={searchpath:[pkg://os]}",
        "hydra.job.env_set={A:b}",
        "hydra.launcher={_target_:torch.load}",
        "hydra.job.chdir=true",
        "hydra.sweep.dir=/tmp/elsewhere",
        "hydra.run.dir=/tmp/elsewhere",
        "hydra.output_subdir=.hydra",
    ],
)
def test_override_sets_no_setting_of_hydra_that_is_not_listed(override: str) -> None:
    """The command line of somebody's README may set no more than a file."""
    with pytest.raises(UserError, match="hydra"):
        composition(["seed=1", override])


def test_files_of_the_same_name_hide_none_of_ours(theirs: Path) -> None:
    """A `config.yaml` and a `hydra/default.yaml` of somebody else are not read."""
    write(theirs, "config", f"hydra: {{callbacks: {{x: {LOAD}}}}}")
    write(theirs, "hydra/default", f"callbacks: {{x: {LOAD}}}")

    assert composition(["seed=7"], [theirs]).config["seed"] == 7


@pytest.mark.parametrize(
    "setting",
    [
        "launcher: {n_jobs: 2, timeout: 1000}",
        "sweeper: {params: {optimizer.lr: '0.1,0.2', seed: 3}, max_batch_size: 2}",
        "verbose: [pipeline]",
    ],
)
def test_foreign_config_may_set_what_is_listed(theirs: Path, setting: str) -> None:
    """Numbers of jobs, batches and swept values are anybody's to choose."""
    write(theirs, "experiment/fair", HEADER + f"hydra: {{{setting}}}\n")

    assert composition(["experiment=fair", "hydra/launcher=joblib"], [theirs]).config["seed"] == 1


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_callback_of_a_foreign_config_runs_nothing(theirs: Path, mode: list[str], capsys: Any) -> None:
    """The pickle that a callback names is not loaded, neither by a run nor by a sweep."""
    write(theirs, "experiment/sly", HEADER + f"hydra: {{callbacks: {{x: {LOAD}}}}}\n")

    assert main([*mode, "--config-dir", str(theirs), "experiment=sly", "phase=planning", "tracking=none"]) == 2
    assert "experiment/sly.yaml: hydra.callbacks: is fixed" in capsys.readouterr().err
    assert not Path("pwned").exists() and not Path("runs").exists()


def test_jobs_that_no_check_composed_are_refused_by_the_loader(theirs: Path) -> None:
    """Of a long sweep only the first jobs are composed beforehand; the loader refuses a later one all the same."""
    handlers = "job_logging: {version: 1, handlers: {x: {(): torch.load, f: pwned.pkl}}, root: {handlers: [x]}}"
    write(theirs, "experiment/sly", HEADER + f"hydra: {{{handlers}}}\n")
    done: list[int] = []

    def job(composed: DictConfig) -> None:
        done.append(1)

    with pytest.raises(UserError, match=r"hydra\.job_logging: is fixed"):
        hydra_sweep(["+run.sweep=1", "experiment=digits,sly"], [theirs], job)
    assert not Path("pwned").exists() and not done


def test_foreign_config_sweeps_its_own_params(theirs: Path) -> None:
    """`hydra.sweeper.params` of a file makes one job of each value."""
    write(theirs, "experiment/fair", HEADER + "hydra: {sweeper: {params: {seed: '3,4'}}}\n")
    seeds: list[int] = []

    def job(config: dict[str, Any], words: list[str]) -> int:
        seeds.append(config["seed"])
        return 0

    multirun(["-m", "--config-dir", str(theirs), "experiment=fair"], job)
    assert seeds == [3, 4]


# --- YAML that stands for too much -----------------------------------------------------------------------------------


def bomb(levels: int = 9) -> str:
    """A few lines of aliases to aliases: `levels` nines of values."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb(), r"f\.yaml:\d: aliases stand for too many values; expected at most 10,000"),
        ("[" * 100_000, r"f\.yaml:1: is nested too deeply"),
        ("- " * 5_000 + "x", r"f\.yaml:1: is nested too deeply"),
        ("a: &a {b: *a}", r"f\.yaml:1: &a contains itself"),
        ("a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 1000 + "]", r"f\.yaml:2: aliases stand for too many values"),
    ],
)
def test_safe_yaml_refuses_what_would_not_end(text: str, says: str) -> None:
    """Aliases of aliases, deep nesting (which ends the process inside libyaml) and loops are found while parsing."""
    with pytest.raises(UserError, match=says):
        safe_yaml.load(text, "f.yaml")


def test_safe_yaml_reads_honest_aliases_and_long_lists() -> None:
    """A few aliases, and a file that simply holds many values, are read."""
    assert safe_yaml.load("a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}, e: 2}", "f.yaml") == {
        "a": [1, 2], "b": [1, 2], "c": {"d": 1, "e": 2},
    }  # fmt: skip
    assert len(safe_yaml.load("\n".join(["- 1"] * 20_000), "f.yaml")) == 20_000


def test_safe_yaml_load_strict_reads_as_omegaconf_does() -> None:
    """Playbooks, causes and rankers have the values that OmegaConf gives, and a key that comes twice is refused."""
    root = Path(safe_yaml.__file__).parents[1]
    tables = [root / "pipeline" / "repair" / "causes.yaml", root / "diagnostics" / "ranker.yaml"]
    texts = [path.read_text() for path in tables]
    texts += [path.read_text().split("\n---\n")[0] for path in (root / "diagnostics").glob("*.md")]
    texts += ["a: [1e-4, 1e4, -2E+3, 1.5, 1., .5, 1e, e4, 0x1f, 12, 2024-01-02, yes, null, ~, 1:30, '1e3']"]
    for text in texts:
        assert safe_yaml.load_strict(text, "f.yaml") == OmegaConf.to_container(OmegaConf.create(text))
    with pytest.raises(yaml.YAMLError, match="found duplicate key a"):
        safe_yaml.load_strict("{a: 1, b: {c: 1}, a: 2}", "f.yaml")


def test_foreign_config_with_an_alias_bomb_is_refused(theirs: Path) -> None:
    """The message names the file and the line, and comes at once."""
    write(theirs, "experiment/sly", HEADER + bomb())

    with pytest.raises(UserError, match=r"conf/experiment/sly\.yaml:\d+: aliases stand for too many values"):
        composition(["experiment=sly"], [theirs])


@pytest.mark.parametrize(
    ("one", "joined"),
    [
        ("${{data.a{}}}", "{}{}{}{}{}{}{}{}"),
        ("${{.a{}}}", "{}{}{}{}{}{}{}{}"),
        ("'${{oc.select:data.a{}}}'", "[{}, {}, {}, {}, {}, {}, {}, {}]"),
    ],
)
def test_interpolations_that_stand_for_too_much_are_refused(theirs: Path, one: str, joined: str) -> None:
    """Keys that each repeat the one before are measured before they are resolved."""
    lines = [f"  a{n}: {joined.format(*[one.format(n - 1)] * 8)}" for n in range(1, 12)]
    write(theirs, "experiment/sly", HEADER + "data:\n  a0: xxxxxxxx\n" + "\n".join(lines) + "\n")

    with pytest.raises(UserError, match="data: its interpolations stand for too much"):
        composition(["experiment=sly"], [theirs])


def test_faults_of_expansion_measures_names_that_are_computed() -> None:
    """The text at `k0` is a part of the name in `${data.${data.k0}}`, so that this refers to `a0`."""
    data = {"a0": "xxxxxxxx"}
    for n in range(1, 8):
        data |= {f"k{n - 1}": f"a{n - 1}", f"a{n}": f"${{data.${{data.k{n - 1}}}}}" * 8}

    assert expansion.faults_of({"data": {"a": "x", "k": "a", "b": "${data.${data.k}}"}}) == []
    assert "data: its interpolations stand for too much" in expansion.faults_of({"data": data})[0]
    data["k0"] = "${data.k1}"
    assert "cannot be measured" in expansion.faults_of({"data": data})[0]


def test_faults_of_expansion_measures_keys_with_dots() -> None:
    """A key that itself has dots, which no interpolation can name, is measured where it stands."""
    columns = {f"column.{n}": "${data.text}" for n in range(11)}

    assert expansion.faults_of({"data": {"text": "x" * 1_000_000, "columns": columns}})


# --- environment variables -------------------------------------------------------------------------------------------

READERS = {
    "plain": "plan: {owner: '${oc.env:SECRET}'}",
    "in a text": "plan: {owner: 'name ${oc.env:SECRET}'}",
    "decoded": "plan: {owner: '${oc.decode:${oc.env:SECRET}}'}",
    "with a default": "plan: {owner: '${oc.env:SECRET,nobody}'}",
    "by another key": "plan: {owner: '${plan.purpose}', purpose: '${oc.env:SECRET}'}",
    "by a computed name": "plan: {owner: '${oc.env:${plan.purpose}}', purpose: SECRET}",
    "by Hydra": "hydra: {runtime: {choices: {x: '${oc.env:SECRET}'}}}\nplan: {owner: '${hydra:runtime.choices.x}'}",
    "as a key of open sections": "model: {note: '${oc.env:SECRET}'}",
}


@pytest.mark.parametrize("text", READERS.values(), ids=READERS)
def test_foreign_config_reads_no_environment_variable(theirs: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the config asks for it, the value is not read, and the message says how to allow it."""
    monkeypatch.setenv("SECRET", "hunter2")
    write(theirs, "experiment/sly", HEADER + text + "\n")

    with pytest.raises(UserError, match=r"reads the environment variable SECRET.*'env=\[SECRET\]'") as refusal:
        composition(["experiment=sly"], [theirs])
    assert "hunter2" not in str(refusal.value)


def test_list_of_defaults_reads_no_environment_variable(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of an option is no way around, since the plan records chosen options."""
    monkeypatch.setenv("SECRET", "mlp")
    write(theirs, "experiment/sly", "# @package _global_\ndefaults: [digits, override /model: '${oc.env:SECRET}']\n")

    with pytest.raises(UserError, match="reads the environment variable SECRET"):
        composition(["experiment=sly"], [theirs])


def test_all_environment_variables_are_named_at_once(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command allows all of them; on the command line the same rule holds."""
    monkeypatch.setenv("C", "anybody")
    write(theirs, "experiment/sly", HEADER + "plan: {owner: '${oc.env:A}', purpose: '${oc.env:B}'}\n")

    with pytest.raises(UserError) as refusal:
        composition(["experiment=sly", "plan.population=${oc.env:C}", "env=[C]"], [theirs])
    assert len(refusal.value.faults) == 2 and all("'env=[A,B,C]'" in message for message in refusal.value.faults)


def test_named_environment_variables_are_read(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line names is read, also in a job of a sweep; the name alone is recorded beside the value."""
    monkeypatch.setenv("WHO", "Ada")
    write(theirs, "experiment/fair", HEADER + "plan: {owner: '${oc.env:WHO}', purpose: '${oc.env:NOT_SET,else}'}\n")
    words = ["experiment=fair", "env=[WHO,NOT_SET]"]
    owners: list[str] = []

    def job(config: dict[str, Any], overrides: list[str]) -> int:
        owners.append(config["plan"]["owner"])
        return 0

    config = composition(words, [theirs]).config
    assert (config["plan"]["owner"], config["plan"]["purpose"], config["env"]) == ("Ada", "else", ["WHO", "NOT_SET"])
    multirun(["-m", "--config-dir", str(theirs), *words, "seed=1,2"], job)
    assert owners == ["Ada", "Ada"]


@pytest.mark.parametrize("text", ["env: [SECRET]", "env: [SECRET]\nplan: {owner: '${oc.env:SECRET}'}"])
def test_config_file_cannot_allow_environment_variables(theirs: Path, text: str) -> None:
    """Only the command line names what may be read."""
    write(theirs, "experiment/sly", HEADER + text + "\n")

    with pytest.raises(UserError, match=r"env: a config file cannot allow|reads the environment variable SECRET"):
        composition(["experiment=sly"], [theirs])


def test_later_commands_name_environment_variables_again(own_folder: Path, theirs: Path, monkeypatch: Any) -> None:
    """A ledger, which may be somebody's, allows no variable; a frozen plan needs none."""
    monkeypatch.setenv("WHO", "Ada")
    plan_of_who = "plan: {owner: '${oc.env:WHO}', small_sample: {who: '${oc.env:WHO}', why: a small public set}}"
    write(theirs, "experiment/fair", f"{HEADER}{plan_of_who}\ntracking: {{kind: none}}\n")
    words = ["experiment=fair", "run.name=mine", "env=[WHO]"]
    run = go(own_folder / "runs", "phase=planning", *words, *SMALL[1:], config_dirs=[str(theirs)]).run

    plan = plans.load(run)
    assert plan.config["plan"]["owner"] == "Ada" and plan.facts["env"] == ["WHO"] and "env" not in plan.config
    with pytest.raises(UserError, match=r"plan\.owner: reads the environment variable WHO.*'env=\[WHO\]'"):
        resolve_request(["phase=baseline", "run.name=mine", f"run.root={own_folder}/runs"], [])
    for words in (["phase=baseline", "env=[WHO]"], ["phase=auto"], ["phase=auto", "env=[WHO]"], ["phase=diagnostics"]):
        request = resolve_request([*words, "run.name=mine", f"run.root={own_folder}/runs"], [])
        assert request.config["plan"]["owner"] == "Ada" and not request.changed


# --- the current folder ----------------------------------------------------------------------------------------------


@pytest.mark.process
def test_current_folder_hides_no_library_and_adds_no_plugin(own_folder: Path) -> None:
    """`python -m pipeline` in somebody's folder imports neither a `yaml.py` nor plugins of Hydra from it."""
    ran = f"open({str(own_folder / 'ran')!r}, 'w')\n"
    (own_folder / "yaml.py").write_text(ran)
    (own_folder / "hydra_plugins" / "evil").mkdir(parents=True)
    (own_folder / "hydra_plugins" / "evil" / "__init__.py").write_text(ran)
    command = [sys.executable, "-m", "pipeline", "--cfg", "job"]
    done = subprocess.run(command, cwd=own_folder, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0 and "model:" in done.stdout, done.stderr
    assert not (own_folder / "ran").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["phase=planning"],
        ["-m", "seed=1,2"],
        ["--cfg", "job"],
        ["preflight", "a:b", "c:d"],
        ["drift", "a", "b"],
        ["worker", "job"],
    ],
)
def test_commands_in_a_removed_folder_end_with_one_message(own_folder: Path, cli: Cli, words: list[str]) -> None:
    """What needs the current folder says that it is gone, and how to go on."""
    removed = own_folder / "removed"
    removed.mkdir()
    os.chdir(removed)
    removed.rmdir()
    code, out, message = cli(*words)
    os.chdir(own_folder)

    assert (code, out) == (2, "") and message.startswith("current folder: was removed")
    assert len(message.splitlines()) == 1 and "Do: cd to a folder that exists" in message


@pytest.mark.process
def test_hydra_is_imported_in_a_removed_folder(own_folder: Path) -> None:
    """A program of the user's that composes configs does not fail at the import."""
    code = "import os, sys; os.rmdir(os.getcwd()); import pipeline.trust.hydra_loader"
    (own_folder / "removed").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=own_folder / "removed", env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
