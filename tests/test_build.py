"""Building from a `_target_`: what a target may be, and that no other code ever runs."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.building.builder import build_schedule
from pipeline.config.build import ALLOWED, _home, build, locate
from pipeline.config.compose import compose
from pipeline.config.conf_dir import conf_dir
from pipeline.errors import Refused, UserError
from pipeline.results import digest
from pipeline.trust.grants import activate, grant, roots
from pipeline.trust.source_files import source_digests

COMPLETE = [(group, path.stem) for group in ("data", "model", "loss") for path in (conf_dir() / group).glob("*.yaml")]


@pytest.mark.parametrize(("group", "option"), COMPLETE)
def test_build_builds_every_complete_option(group: str, option: str) -> None:
    """Every option of conf/ is built without trust; options that read a file report that no path is given."""
    node = compose([f"{group}={option}"])[group]
    if "path" in node and node["path"] is None:
        with pytest.raises(UserError, match=r"data\.path: is not given"):
            build(node, where=group)
    else:
        known = {
            key: 8 if value == "auto" else value for key, value in node.items()
        }  # planning finds `auto` in the data
        assert build(known, where=group) is not None


@pytest.mark.parametrize("option", [path.stem for path in (conf_dir() / "optimizer").glob("*.yaml")])
@pytest.mark.parametrize("scheduler", [path.stem for path in (conf_dir() / "scheduler").glob("*.yaml")])
def test_build_leaves_optimizers_and_schedulers_partial(option: str, scheduler: str) -> None:
    """Partial targets are completed with the parameters, then with the optimizer."""
    config = compose([f"optimizer={option}", f"scheduler={scheduler}"])

    optimizer = build(config["optimizer"], where="optimizer")([torch.nn.Parameter(torch.zeros(2))])
    assert optimizer.param_groups[0]["lr"] == config["optimizer"]["lr"]

    schedule = build_schedule(config, optimizer, steps=100, epochs=10)

    assert schedule is None if scheduler == "none" else schedule.scheduler.optimizer is optimizer  # type: ignore[union-attr, attr-defined]


HOSTILE = [
    "os.system",
    "posix.system",
    "builtins.eval",
    "subprocess.Popen",
    "pathlib.Path.unlink",
    "shutil.rmtree",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.optim.os.system",
    "torch.nn.modules.module.torch.load",
    "torch.nn.functional.torch.hub.load",
    "torch.nn.modules.module.functools.partial",
    "torch.nn.modules.module.OrderedDict.fromkeys",
    "torch.nn.modules.container.operator.attrgetter",
    "torch.nn.functional.relu.__globals__.get",
    "torch.nn.Linear.__init__",
    "torch.nn.Linear.__subclasses__",
    "torch.nn.modules.module.warnings.sys.exit",
    "torch.nnx.Linear",
    "torch.nn.attention._fa3._fa3_import_module",
    "torch.nn.attention._fa4.register_flash_attention_fa4",
    "torch.nn.attention.activate_flash_attention_impl",
    "torch.nn.quantized.modules.lazy_deprecated_import",
    "torch.nn.utils._deprecation_utils.lazy_deprecated_import",
    "torch.nn.modules.module._addindent",
    "pipeline.models.parts._Missing",
    "torch.nn",
    "pipeline.models.mlp.getattr",
    "pipeline.models.mlp.UserError",
    "pipeline.data.digits.np.load",
    "pipeline.data.load.load",
    "pipeline.config.build.build",
    "pipeline.run_store.files.remove_folder",
    "os",
    "",
    "torch.nn.",
    "torch.nn.Linear; import os",
    "${oc.env:HOME}",
    None,
    print,
    ["torch.nn.Linear"],
]


@pytest.mark.parametrize("target", HOSTILE, ids=str)
@pytest.mark.parametrize("shape", ["plain", "partial", "deep"])
def test_build_refuses_targets_outside_the_allowed_packages(target: Any, shape: str) -> None:
    """Names, aliases, attributes and nested arguments are refused; the message names the key."""
    node = {"_target_": target, "_partial_": shape == "partial"}
    if shape == "deep":
        node = {"_target_": "torch.nn.Sequential", "_args_": [[{"_recursive_": False, "y": node}]]}

    with pytest.raises(UserError, match=r"^model\.\S*_target_: "):
        build(node, where="model")


def test_build_calls_nothing_if_any_target_is_wrong(package: Path) -> None:
    """All targets of a node are checked, and all faults reported, before the first is called."""
    (package / "loud.py").write_text("calls = []\ndef loud(**kw): calls.append(kw)\n")
    activate(grant(["our_pkg"], [package.parent]))
    node: dict[str, Any] = {"_target_": "our_pkg.loud.loud", "inner": {"_target_": "our_pkg.loud.loud"}}
    node |= {"bad": {"_target_": "os.system"}, "worse": {"_target_": "torch.nn.Linear", "in_feature": 3}}

    with pytest.raises(UserError) as refused:
        build(node, trust=["our_pkg"], where="data")

    assert sys.modules["our_pkg.loud"].calls == []
    assert [message.split(":", 1)[0] for message in refused.value.faults] == [
        "data.bad._target_",
        "data.worse.in_feature",
    ]


STARTS = [
    *ALLOWED,
    "torch.nn.modules.module",
    "torch.nn.functional",
    "torch.optim.optimizer",
    "pipeline.data.digits",
    "",
]
WORDS = [*sys.stdlib_module_names, "torch", "np", "hub", "load", "system", "Linear", "Module", "apply", "__globals__"]


@given(st.sampled_from(STARTS), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
def test_locate_never_leaves_the_allowed_packages(start: str, parts: list[str]) -> None:
    """A random name is refused or comes from an allowed package; nothing else is imported."""
    modules = set(sys.modules)
    try:
        target = locate(".".join([start, *parts]), ALLOWED, "model")
    except UserError:
        target = None
    assert target is None or (_home(target) or "").startswith(ALLOWED)
    assert {name for name in set(sys.modules) - modules if not name.startswith(("torch", "pipeline"))} == set()


@given(st.text(max_size=30))
def test_locate_takes_any_text(text: str) -> None:
    """Any text names an allowed object, or is a UserError."""
    try:
        target = locate(text, ALLOWED, "model")
    except UserError:
        return
    assert (_home(target) or "").startswith(ALLOWED)


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A package of the user's own outside the checkout, beside a config folder; forgotten afterwards."""
    folder = tmp_path / "project" / "our_pkg"
    folder.mkdir(parents=True)
    (tmp_path / "project" / "conf" / "model").mkdir(parents=True)
    (tmp_path / "project" / "conf" / "model" / "net.yaml").write_text("_target_: our_pkg.model.Net\nwidth: 3\n")
    (folder / "__init__.py").write_text("")
    (folder / "model.py").write_text(
        "import os\nfrom os import system as Net2\nfrom torch import nn\n"
        "class Net(nn.Linear):\n    def __init__(self, width: int, bias: bool = True):\n"
        "        if width > 9:\n            raise KeyError('too wide')\n        super().__init__(width, 2, bias)\n"
        "    @classmethod\n    def small(cls):\n        return cls(1)\n"
        "class Call:\n    def __call__(self):\n        return 5\n"
        "instance = Call()\n"
    )
    path = list(sys.path)
    activate(grant(["our_pkg"], [folder.parent]))
    yield folder
    sys.path[:] = path
    for name in [n for n in sys.modules if n.partition(".")[0] == "our_pkg"]:
        del sys.modules[name]


def test_build_needs_trust_for_a_users_package(package: Path) -> None:
    """Without trust the config is refused, and the message says how to grant it; with trust it is built."""
    config = compose(["model=net"], [package.parent / "conf"])

    with pytest.raises(UserError, match=r"model\._target_: is not allowed.*trust=\[our_pkg\]"):
        build(config["model"], where="model")
    assert build(config["model"], trust=["our_pkg"], where="model").in_features == 3


@pytest.mark.parametrize("target", ["our_pkg.model.Net2", "our_pkg.model.os.system", "our_pkg_evil.model.Net"])
def test_build_refuses_aliases_inside_a_trusted_package(package: Path, target: str) -> None:
    """An object that a trusted package re-exports belongs to its own package; a longer name is another package."""
    with pytest.raises(UserError, match="is not allowed"):
        build({"_target_": target}, trust=["our_pkg"], where="model")


def test_build_takes_methods_and_callable_instances(package: Path) -> None:
    """Class methods and instances of a trusted package are allowed like its classes."""
    assert build({"_target_": "our_pkg.model.Net.small"}, trust=["our_pkg"], where="model").in_features == 1
    assert build({"_target_": "our_pkg.model.instance"}, trust=["our_pkg"], where="model") == 5
    assert _home(functools.partial(functools.partial(torch.nn.functional.relu))) == "torch.nn.functional"


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"_target_": "our_pkg.model.Net", "widht": 3}, "model.widht: .* has no such argument.*did you mean 'width'"),
        ({"_target_": "our_pkg.model.Net"}, "model: our_pkg.model.Net needs width"),
        (
            {"_target_": "our_pkg.model.Net", "width": 10},
            r"^model: our_pkg\.model\.Net fails at .*model\.py:7 \(KeyError: 'too wide'\)$",
        ),
        ({"_target_": "our_pkg.model.Nett"}, "has no 'Nett'.*did you mean 'Net'"),
        ({"_target_": "our_pkg.modle.Net"}, "has no 'modle'"),
        (
            {"_target_": "our_pkg.broken.Net"},
            r"our_pkg.broken cannot be imported at .*broken\.py:1 \(ZeroDivisionError",
        ),
        (
            {"_target_": "our_pkg.lacking.Net"},
            r"our_pkg.lacking cannot be imported at .*lacking\.py:1 \(ModuleNotFoundError",
        ),
        ({"_target_": "our_pkg.model.__name__"}, "is not allowed"),
        ({"_target_": "our_pkg.model.nn"}, "is not allowed|cannot be called"),
        ({"_target_": "torch.nn.Linear", "_args_": 3}, "model._args_: is not a list"),
        ({"_target_": "gone_pkg.Net"}, "model._target_: "),
    ],
)
def test_build_reports_a_target_that_fails_in_one_message(package: Path, node: dict[str, Any], says: str) -> None:
    """The message names the key, the error and its place, and the closest name."""
    (package / "broken.py").write_text("1 / 0\n")
    (package / "lacking.py").write_text("import not_installed_anywhere\n")
    activate(grant(["our_pkg"], [package.parent]))

    with pytest.raises(UserError, match=says):
        build(node, trust=["our_pkg", "gone_pkg"], where="model")


def test_build_supports_the_special_keys() -> None:
    """`_args_`, `_partial_`, `_recursive_` and nested targets work as in Hydra."""
    relu = {"_target_": "torch.nn.ReLU"}
    linear = {"_target_": "torch.nn.Linear", "_args_": [2, 3]}
    net = build({"_target_": "torch.nn.Sequential", "_args_": [linear, relu]})
    later = {"_target_": "torch.nn.ParameterDict", "_partial_": True, "_recursive_": False, "parameters": {"a": relu}}
    partial = build(later)

    assert [type(module).__name__ for module in net] == ["Linear", "ReLU"]
    assert partial.keywords == {"parameters": {"a": relu}}
    assert build({"a": [1, {"b": None}]}, where="data") == {"a": [1, {"b": None}]}
    assert build(None) is None


def test_activate_refuses_a_changed_source(package: Path) -> None:
    """A worker checks the digests: a changed line is refused, changed bytecode is not."""
    [entry] = granted = grant(["our_pkg"], roots([package.parent / "conf"]))

    assert entry == {
        "package": "our_pkg",
        "root": str(package.parent),
        "digest": digest(source_digests(package)),
        "files": source_digests(package),
        "others": {},
    }
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")
    assert activate(granted) == ("our_pkg",)
    (package / "model.py").write_text("changed = True\n")
    with pytest.raises(Refused, match=r"has changed since it was trusted: our_pkg/model\.py  Do: "):
        activate(granted)
    for path in package.iterdir():
        if path.is_file():
            path.unlink()
    with pytest.raises(Refused, match=r"has changed|is gone"):
        activate(granted)


# A package with a module that the run imports in three ways, one that it does not import, and one beside the package.
LAB = {
    "lab/__init__.py": "",
    "lab/net.py": "from .blocks import Block\nimport near\n\ndef make():\n    from lab import late\n    return 7\n",
    "lab/blocks/__init__.py": "class Block: pass\n",
    "lab/late.py": "",
    "lab/unused.py": "",
    "near.py": "",
    "far.py": "",
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package, which can be imported anew."""
    root = tmp_path / "user"
    for name, text in LAB.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lab", "near", "far")]:
        del sys.modules[name]


def test_grant_tells_what_a_run_imports(lab: Path) -> None:
    """The files that the targets can import, in functions and beside the package too, are apart from the others."""
    [entry] = grant(["lab"], [lab], ["lab.net.make", "torch.nn.Linear"])

    assert set(entry["files"]) == {"lab/__init__.py", "lab/net.py", "lab/blocks/__init__.py", "lab/late.py", "near.py"}
    assert set(entry["others"]) == {"lab/unused.py"}


@pytest.mark.parametrize(
    "line", ["import importlib", "from pickle import load", "eval('1')", "from lab.blocks import *", "broken("]
)
def test_grant_covers_the_package_where_the_source_cannot_tell(lab: Path, line: str) -> None:
    """A file that may import by a name that is not in its source makes every file of the package count."""
    (lab / "lab" / "late.py").write_text(f"{line}\n")
    [entry] = grant(["lab"], [lab], ["lab.net.make"])

    assert set(entry["files"]) == {name for name in LAB if name.startswith("lab/")} and entry["others"] == {}


@pytest.mark.parametrize("name", ["lab/net.py", "lab/blocks/__init__.py", "lab/late.py", "near.py"])
def test_activate_names_the_changed_file(lab: Path, name: str) -> None:
    """A file that the run imports was changed: it is named, and one command renews the trust."""
    granted = grant(["lab"], [lab], ["lab.net.make"])
    (lab / name).write_text("changed = True\n")

    with pytest.raises(Refused) as refused:
        activate(granted, "run.name=mine")
    [message] = refused.value.faults
    assert message.startswith(f"{lab}/lab: has changed since it was trusted: {name}  Do: read it, then ")
    assert message.endswith("python -m pipeline phase=planning run.name=mine 'trust=[lab]'")
    activate(grant(["lab"], [lab], ["lab.net.make"]))


def test_unused_file_may_change_until_it_is_imported(lab: Path) -> None:
    """A file that the run never imports does not matter; when it is imported all the same, it does not run."""
    granted = grant(["lab"], [lab], ["lab.net.make"])
    (lab / "lab" / "unused.py").write_text("raise SystemExit('it ran')\n")
    (lab / "lab" / "new.py").write_text("raise SystemExit('it ran')\n")

    names = activate(granted, "run.name=mine")
    assert build({"_target_": "lab.net.make"}, trust=names, where="model") == 7
    with pytest.raises(
        Refused, match=r"unused.py: has changed since it was trusted, and the run imports it now  Do: .*trust"
    ):
        build({"_target_": "lab.unused.make"}, trust=names, where="model")
    with pytest.raises(Refused, match=r"new\.py: did not exist when its package was trusted"):
        importlib.import_module("lab.new")


def test_new_file_cannot_take_the_place_of_a_trusted_one(lab: Path) -> None:
    """A new folder of a module's name is imported in its place: it is refused, although no trusted file changed."""
    granted = grant(["lab"], [lab], ["lab.net.make"])
    (lab / "lab" / "net").mkdir()
    (lab / "lab" / "net" / "__init__.py").write_text("raise SystemExit('it ran')\n")

    names = activate(granted)
    with pytest.raises(Refused, match=r"net/__init__\.py: did not exist when its package was trusted"):
        build({"_target_": "lab.net.make"}, trust=names, where="model")


def test_grant_names_all_packages_that_cannot_be_trusted(package: Path) -> None:
    """Python's own modules, ours, missing packages, and a name with two locations are refused."""
    (package.parent / "yaml.py").write_text("")

    with pytest.raises(UserError) as refused:
        grant(["os", "pipeline", "torch.hub", "our_pk", "yaml", "our_pkg"], [package.parent])

    assert len(refused.value.faults) == 5
    assert "did you mean 'our_pkg'?" in str(refused.value)
    with pytest.raises(UserError, match="'torch' is a package of"):
        build(None, trust=["torch"])


def test_grant_takes_a_module_of_one_file(package: Path) -> None:
    """A file next to the config folder is trusted like a package."""
    (package.parent / "our_pkg_file.py").write_text("def three():\n    return 3\n")

    names = activate(grant(["our_pkg_file"], [package.parent]))

    assert build({"_target_": "our_pkg_file.three"}, trust=names, where="data") == 3
