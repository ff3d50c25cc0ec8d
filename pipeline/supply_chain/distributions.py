"""The installed Python distributions that a release depends on, each with its licence as an SPDX expression."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Literal

SERVING = ("numpy", "onnxruntime")  # what predict.py imports besides the standard library
TRAINING = ("fivegate",)
Scope = Literal["serving", "training"]

# Licences as distributions without an SPDX expression name them: in the field License, or by a classifier.
_NAMES = {
    "apache": "Apache-2.0", "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache-2.0": "Apache-2.0",
    "apache software": "Apache-2.0", "apache, version 2.0": "Apache-2.0",
    "bsd": "LicenseRef-BSD",  # one of the BSD licences; which, it does not say
    "bsd-2-clause": "BSD-2-Clause", "bsd 2-clause": "BSD-2-Clause", "2-clause bsd": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause", "bsd 3-clause": "BSD-3-Clause", "3-clause bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause", "modified bsd": "BSD-3-Clause", "simplified bsd": "BSD-2-Clause",
    "mit": "MIT", "mit no attribution (mit-0)": "MIT-0", "historical permission notice and disclaimer (hpnd)": "HPND",
    "isc": "ISC", "isc  (iscl)": "ISC", "isc (iscl)": "ISC", "zlib": "Zlib", "zlib/libpng": "Zlib",
    "psf": "PSF-2.0", "psfl": "PSF-2.0", "python software foundation": "PSF-2.0",
    "mozilla public 2.0 (mpl 2.0)": "MPL-2.0", "the un (unlicense)": "Unlicense",
    "gnu general public (gpl)": "LicenseRef-GPL", "gnu general public v2 (gplv2)": "GPL-2.0-only",
    "gnu general public v2 or later (gplv2+)": "GPL-2.0-or-later",
    "gnu general public v3 (gplv3)": "GPL-3.0-only",
    "gnu general public v3 or later (gplv3+)": "GPL-3.0-or-later",
    "gnu affero general public v3": "AGPL-3.0-only",
    "gnu affero general public v3 or later (agplv3+)": "AGPL-3.0-or-later",
    "gnu library or lesser general public (lgpl)": "LicenseRef-LGPL",
    "gnu lesser general public v2 (lgplv2)": "LGPL-2.0-only",
    "gnu lesser general public v2 or later (lgplv2+)": "LGPL-2.0-or-later",
    "gnu lesser general public v3 (lgplv3)": "LGPL-3.0-only",
    "gnu lesser general public v3 or later (lgplv3+)": "LGPL-3.0-or-later",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "other/proprietary": "LicenseRef-Proprietary",
}  # fmt: skip


@dataclass(frozen=True)
class Component:
    """An installed distribution: what it needs directly, what it is needed for, and its licence.

    `licence` is an SPDX expression, empty where none is known; `declared` is what the distribution says.
    """

    name: str
    version: str
    licence: str
    declared: str
    scope: Scope
    needs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "needs": list(self.needs)}


def components(paths: Iterable[Path] | None = None, imported: Iterable[str] | None = None) -> list[Component]:
    """Return what serving needs, and what else trained the model, by name.

    The serving scope is numpy and onnxruntime with all their dependencies; the training scope is this project with its
    dependencies, and the distributions of every module that this process imported, such as those of the user's code.
    `paths` are the folders to search instead of `sys.path`, `imported` the module names instead of `sys.modules`.
    """
    installed = _installed(paths)
    serving = _closure(SERVING, installed)
    loaded = _distributions_of(sys.modules if imported is None else imported, installed)
    training = _closure([*TRAINING, *loaded], installed)
    scopes: dict[str, Scope] = {name: "serving" if name in serving else "training" for name in {*serving, *training}}
    return [_component(installed[name], scopes[name], installed) for name in sorted(scopes)]


def missing_roots(serving: Iterable[Component]) -> list[str]:
    """Return the distributions that serving needs and that are not installed, such as in a vendored environment."""
    names = {component.name for component in serving}
    return [name for name in SERVING if name not in names]


def _installed(paths: Iterable[Path] | None) -> dict[str, Distribution]:
    on_path = distributions() if paths is None else distributions(path=[str(path) for path in paths])
    installed: dict[str, Distribution] = {}
    for distribution in on_path:
        if distribution.metadata and distribution.metadata["Name"]:
            installed.setdefault(_key(distribution.name), distribution)  # the first on the path is imported
    return installed


def _key(name: str) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _needs(distribution: Distribution, installed: Mapping[str, Distribution]) -> list[str]:
    """Return the installed distributions that one requires here, without those of its extras."""
    from packaging.requirements import InvalidRequirement, Requirement

    names = set()
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # of a distribution that is older than the rules
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            names.add(_key(requirement.name))
    return sorted(names & set(installed))


def _closure(roots: Iterable[str], installed: Mapping[str, Distribution]) -> set[str]:
    reached: set[str] = set()
    left = [name for name in roots if name in installed]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += _needs(installed[name], installed)
    return reached


def _distributions_of(modules: Iterable[str], installed: Mapping[str, Distribution]) -> set[str]:
    """Return the distributions that top-level modules were installed with."""
    loaded = {module.partition(".")[0] for module in modules}
    return {name for name, distribution in installed.items() if loaded & set(_top_level(distribution))}


def _top_level(distribution: Distribution) -> Iterator[str]:
    if (listed := distribution.read_text("top_level.txt")) is not None:
        yield from listed.split()
        return
    for path in distribution.files or ():
        first = path.parts[0]
        if len(path.parts) > 1 and "." not in first and first != "__pycache__":
            yield first
        elif len(path.parts) == 1 and path.suffix in (".py", ".so", ".pyd"):
            yield first.partition(".")[0]


def _component(distribution: Distribution, scope: Scope, installed: Mapping[str, Distribution]) -> Component:
    licence, declared = licence_of(distribution)
    needs = tuple(_needs(distribution, installed))
    return Component(_key(distribution.name), distribution.version, licence, declared, scope, needs)


def licence_of(distribution: Distribution) -> tuple[str, str]:
    """Return a distribution's licence as an SPDX expression, empty where it is unknown, and what it declares.

    The expression of PEP 639 comes first, then the field License where it is a name and no text, then the classifiers,
    all of which have to hold.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    metadata = distribution.metadata
    # Some versions of the metadata reader raise KeyError for a field that is missing, others return None.
    field, expression = ((metadata.get_all(name) or [""])[0].strip() for name in ("License", "License-Expression"))
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
    classifiers = [name for name in classifiers if name != "OSI Approved"]
    short = field if len(field) < 80 and "\n" not in field else ""
    candidates = [(text, _spdx(text) or text) for text in (expression, short)]
    candidates.append((" / ".join(classifiers), " AND ".join(dict.fromkeys(_spdx(c) or "?" for c in classifiers))))
    for declared, expression in candidates:
        try:
            return str(canonicalize_license_expression(expression)), declared
        except InvalidLicenseExpression:  # also of an empty text
            continue
    declared = " / ".join(filter(None, [field.split("\n")[0][:80], *classifiers]))
    return "", declared if declared != "UNKNOWN" else ""


def _spdx(name: str) -> str | None:
    shortened = re.sub(r"\blicen[cs]e\b|^the ", "", name.lower())
    return _NAMES.get(re.sub(r"\s+", " ", shortened).strip())
