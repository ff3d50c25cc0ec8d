"""provenance.json: where a release comes from, as an in-toto Statement v1 with a SLSA provenance v1 predicate.

It is not signed here: the approval signs the digest of the whole payload, of which the file is a part. It names no
user of the machine and no path on it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from pipeline.results import digest, plain
from pipeline.run_store.plan import Plan
from pipeline.supply_chain.distributions import Component

FILE = "provenance.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:fivegate:finalization:1"
GIT_SECONDS = 10.0


class Origin(TypedDict):
    """The last entry of the ledger before the phase began, and when it was written (UTC, ISO 8601)."""

    seq: int
    hash: str
    time: str


class Commit(TypedDict):
    """The git commit of the working tree, and whether the tree has changes."""

    commit: str
    dirty: bool


class Build(NamedTuple):
    """A run as a build: what made the files of the release, and from what."""

    run: str
    plan: Plan
    weights: str
    origin: Origin
    commit: Commit | None
    components: Sequence[Component]


def provenance(build: Build, subjects: Mapping[str, str]) -> dict[str, Any]:
    """Return the statement about files, given as SHA-256 by name, that a run made from its plan and its data."""
    plan, commit = build.plan, build.commit
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha}} for name, sha in sorted(subjects.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"plan": plan.digest, "revision": plan.revision, "seed": plan.seed},
                "internalParameters": {
                    "candidate": build.weights,
                    "environment": plan.facts.get("environment"),
                    "determinism": plan.facts.get("determinism"),
                    "lock": lock_digest(build.components),
                    "sourceChanged": commit["dirty"] if commit else None,
                },
                "resolvedDependencies": _dependencies(build),
            },
            "runDetails": _run_details(build),
        },
    }
    plained: dict[str, Any] = plain(statement)
    return plained


def _dependencies(build: Build) -> list[dict[str, Any]]:
    """Data and packages of the user by digest, the source by commit, distributions by version."""
    facts = build.plan.facts
    listed = [_digested(f"data, {name} rows", split["digest"]) for name, split in facts["splits"].items()]
    listed += [_digested(f"package {grant['package']}", grant["digest"]) for grant in facts.get("trust") or ()]
    if build.commit:
        listed.append({"name": "source", "digest": {"gitCommit": build.commit["commit"]}})
    return listed + [{"name": c.name, "uri": f"pkg:pypi/{c.name}@{c.version}"} for c in build.components]


def _run_details(build: Build) -> dict[str, Any]:
    origin = build.origin
    version = {component.name: component.version for component in build.components if component.name == "fivegate"}
    return {
        "builder": {"id": "urn:fivegate:local", "version": version},
        "metadata": {"invocationId": f"{build.run}/{origin['hash']}", "startedOn": origin["time"]},
        "byproducts": [_digested(f"ledger.jsonl, entry {origin['seq']}", origin["hash"])],
    }


def _digested(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def lock_digest(components: Iterable[Component]) -> str:
    """Return one SHA-256 over name and version of every distribution that trained or serves the model."""
    return digest(sorted(f"{component.name}=={component.version}" for component in components))


def commit_of(folder: Path) -> Commit | None:
    """Return the git commit of a working tree, and whether it has changes; None outside of one, or without git."""
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    return {"commit": head.strip(), "dirty": bool((_git(folder, "status", "--porcelain") or "").strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        # --no-optional-locks: somebody may be committing in this tree at the same time.
        process = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=GIT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout if process.returncode == 0 else None
