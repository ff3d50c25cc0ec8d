"""Healthy variants and mutants of the tuning part's healthy experiments.  `make bench-variants`

A healthy case of the tuning part, its parent, is changed in one place. A change of `HARMLESS` should leave it healthy,
one of `MUTATIONS` should break it, and its name is the label. Both are verified: a variant is healthy if it still
reaches the bound of its parent, and broken if it does not, while the parent, in which the mutation is removed, does. A
harmless change that breaks its parent has no label and is left out.

    benchmarks/faults/variants.py [--kind healthy|faulty] [--sample N] --facts DIR [--again]

Prints how often healthy variants are accused and by what, the largest abnormality that the inspections find in a
healthy variant, and how often the first cause of a mutant is right. The facts stay in DIR, `--again` explains those
that are there, and fit_ranker.py reads them. No family of the held-out part is touched.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from answers import answer
from cases import HERE, Case, cases
from facts import Facts, stored
from omegaconf import OmegaConf
from run_case import run_case
from score import Pairs, score_row
from side_by_side import run_each

from pipeline.repair.config_edits import format_override_value

Config = Mapping[str, Any]
Change = Callable[[Config], list[str]]  # the overrides of a change; none where it does not apply to a config
WITH = "_with_"  # between the names of a parent and of its change
ACTIVATIONS = ("ReLU", "Tanh", "Sigmoid", "LeakyReLU", "GELU", "ELU")


def _times(key: str, factor: float, least: float = 0.0) -> Change:
    """Return the change that multiplies a number of the config, which stays an integer if it is one."""

    def change(config: Config) -> list[str]:
        value = OmegaConf.select(OmegaConf.create(dict(config)), key)
        if value is None:
            return []
        changed = max(least, value * factor)
        return [f"{key}={max(1, round(changed)) if isinstance(value, int) else changed}"]

    return change


def _set(*overrides: str) -> Change:
    return lambda config: list(overrides)


def _layers(edit: Callable[[list[str]], list[str]]) -> Change:
    """Return the change of the layers of a network; none if nothing differs."""

    def change(config: Config) -> list[str]:
        layers = [str(layer) for layer in config["model"].get("layers") or ()]
        edited = edit(list(layers))
        return [f"model.layers={format_override_value(edited)}"] if layers and edited != layers else []

    return change


def _plant(*plants: str) -> Change:
    """Return the change that plants a flaw in the rows, after those that are there."""
    return lambda config: [] if config["data"].get("plant") else [f"data.plant=[{', '.join(plants)}]"]


def _of_classes(change: Change) -> Change:
    return lambda config: change(config) if "CrossEntropy" in str(config["loss"]["_target_"]) else []


def _adaptive(change: Change) -> Change:
    return lambda config: change(config) if "Adam" in config["optimizer"].get("_target_", "") else []


def _of_numbers(change: Change) -> Change:
    return lambda config: change(config) if "MSE" in str(config["loss"]["_target_"]) else []


def _is_activation(layer: str) -> bool:
    return layer.split()[0] in ACTIVATIONS


def _swap_activations(name: str) -> Change:
    return _layers(lambda layers: [name if _is_activation(layer) else layer for layer in layers])


def _narrow(layers: list[str]) -> list[str]:
    """Return the layers with one unit between the last two linear ones."""
    linear = [i for i, layer in enumerate(layers) if layer.startswith("Linear ")]
    if len(linear) < 2:
        return layers
    before, after = linear[-2:]
    layers[before] = " ".join([*layers[before].split()[:2], "1"])
    layers[after] = " ".join(["Linear", "1", layers[after].split()[2]])
    return [layer for i, layer in enumerate(layers) if not (before < i < after and "Norm" in layer)]


HARMLESS: dict[str, Change] = {
    "rate_halved": _times("optimizer.lr", 0.5),
    "rate_doubled": _times("optimizer.lr", 2.0),
    "batch_halved": _times("loader.batch_size", 0.5, 4),
    "batch_doubled": _times("loader.batch_size", 2.0),
    "more_epochs": _times("trainer.max_epochs", 1.5),
    "other_activation": _swap_activations("GELU"),
    "light_dropout": _layers(lambda layers: [*layers[:-1], "Dropout 0.05", layers[-1]]),
    "clipped": _set("trainer.gradient_clip_val=1.0"),
    "other_seed": _set("seed=11"),
    "two_accumulated": _set("trainer.accumulate_grad_batches=2"),
}
MUTATIONS: dict[str, tuple[tuple[str, ...], Change]] = {
    "rate_times_1000": (("learning_rate_too_high",), _times("optimizer.lr", 1000.0)),
    "rate_times_100": (("learning_rate_too_high",), _times("optimizer.lr", 100.0)),
    "rate_divided_by_1000": (("learning_rate_too_low",), _times("optimizer.lr", 1e-3)),
    "rate_divided_by_100": (("learning_rate_too_low", "too_few_epochs"), _times("optimizer.lr", 0.01)),
    "one_epoch": (("too_few_epochs",), _set("trainer.max_epochs=1")),
    "all_rows_in_a_batch": (("batch_size_too_large", "too_few_epochs"), _set("loader.batch_size=100000")),
    "clipped_to_nothing": (("gradient_clip_too_tight",), _set("trainer.gradient_clip_val=1e-6")),
    "strong_decay": (("regularization_too_strong",), _set("++optimizer.weight_decay=30")),
    "strong_dropout": (
        ("regularization_too_strong",), _layers(lambda layers: [*layers[:-1], "Dropout 0.95", layers[-1]]),
    ),
    "large_epsilon": (("optimizer_mismatch", "learning_rate_too_low"), _adaptive(_set("++optimizer.eps=100.0"))),
    "linear_only": (
        ("hidden_activation_missing",), _layers(lambda layers: [x for x in layers if not _is_activation(x)]),
    ),
    "one_unit": (("model_too_small",), _layers(_narrow)),
    "softmax_twice": (
        ("redundant_softmax", "output_activation_mismatch"),
        _of_classes(_layers(lambda layers: [*layers, "Softmax 1"])),
    ),
    "relu_outputs": (
        ("output_activation_mismatch", "dead_relu"), _of_classes(_layers(lambda layers: [*layers, "ReLU"])),
    ),
    "sigmoid_outputs": (("output_activation_mismatch",), _of_numbers(_layers(lambda layers: [*layers, "Sigmoid"]))),
    "weights_zero": (("weight_init_bad",), _set("++model.constant=0.0")),
    "weights_huge": (("weight_init_bad",), _set("++model.std=30.0")),
    "frozen_body": (("parameters_not_trained", "weight_init_bad"), _set("++model.frozen=[0]", "++model.std=0.001")),
    "features_raw": (("inputs_not_normalized",), _plant("{scale: {by: 100000}}")),
    "features_faint": (("inputs_normalized_twice", "inputs_not_normalized"), _plant("{scale: {by: 0.0001}}")),
    "features_blank": (("inputs_uninformative",), _plant("{blank: {}}")),
    "features_noisy": (("inputs_uninformative",), _plant("{noise: {std: 20}}")),
    "labels_flipped": (("label_noise",), _of_classes(_plant("{flip: {share: 0.6}}"))),
    "labels_misaligned": (("labels_misaligned", "label_noise"), _plant("{misalign: {}}")),
    "few_rows": (("too_little_data",), _plant("{few: {rows: 12}}")),
    "validation_shifted": (("split_shift",), _plant("{shift: {by: 4, side: val}}")),
    "targets_far": (("targets_not_scaled",), _of_numbers(_plant("{scale_targets: {by: 10000, plus: 50000}}"))),
}  # fmt: skip


def variants(kind: str | None = None) -> Iterator[Case]:
    """Yield the variants of every healthy experiment of the tuning part, with the label that their change gives."""
    for parent in cases():
        if parent.part != "tuning" or parent.way != "experiment" or not parent.healthy:
            continue
        config = _config_of(parent)
        for name, change in HARMLESS.items() if kind != "faulty" else ():
            yield from _variant(parent, name, change(config), ())
        for name, (causes, change) in MUTATIONS.items() if kind != "healthy" else ():
            yield from _variant(parent, name, change(config), causes)


def _variant(parent: Case, name: str, overrides: Sequence[str], causes: tuple[str, ...]) -> Iterator[Case]:
    if overrides:
        faults = (causes,) if causes else ()
        yield replace(
            parent, id=f"{parent.id}{WITH}{name}", parent=parent.id, overrides=tuple(overrides), faults=faults
        )


def _config_of(case: Case) -> Config:
    """Return what an experiment file of the benchmark says, on top of those that it is derived from."""
    content: Any = OmegaConf.load(HERE / "conf" / "experiment" / f"{case.id}.yaml")
    for entry in content.pop("defaults", None) or ():
        if isinstance(entry, str) and (HERE / "conf" / "experiment" / f"{entry}.yaml").is_file():
            content = OmegaConf.merge(OmegaConf.load(HERE / "conf" / "experiment" / f"{entry}.yaml"), content)
    content.pop("defaults", None)
    merged = OmegaConf.merge({"loader": {"batch_size": 32}, "loss": {"_target_": "CrossEntropyLoss"}}, content)
    plain: Any = OmegaConf.to_container(merged)
    return dict(plain)


def verified(variant: Case, facts: Facts) -> Case | None:
    """Return a variant with the label that its training has earned; None for a harmless change that breaks it."""
    if variant.well(facts.value):
        return replace(variant, faults=(), harmless=(*variant.harmless, *variant.causes))
    return None if variant.healthy else variant


def lines(known: Sequence[tuple[Case, Facts]]) -> Iterator[str]:
    """Yield what the benchmark counts, as sentences and tables."""
    pairs: Pairs = [(case, answer(facts)) for case, facts in known]
    row = score_row(pairs)
    healthy = [(case, facts) for case, facts in known if case.healthy]
    accusers = Counter(
        f"{cause} ({case.id})" for case, reply in pairs if case.healthy for cause in reply.ids
        if cause not in case.harmless
    )  # fmt: skip
    most = sorted(max((f.abnormality for f in facts.findings), default=0.0) for _, facts in healthy)
    yield f"{len(healthy)} healthy variants, {len(known) - len(healthy)} mutants"
    for name in ("false_alarms", "detected", "first", "shown3", "precision"):
        counted = row[name]
        if counted["n"]:
            share = f"{counted['share']:.1%} ({counted['low']:.1%} to {counted['high']:.1%})"
            yield f"  {name:<13} {counted['k']:>4}/{counted['n']:<4} {share}"
    if most:
        quantiles = ", ".join(f"{q:.0%} {np.quantile(most, q):.3f}" for q in (0.5, 0.9, 0.95, 0.99, 1.0))
        yield f"  largest abnormality of any inspection on a healthy variant: {quantiles}"
    yield from (f"  accused: {name}" for name in accusers)
    by_change: dict[str, list[bool]] = {}
    for case, reply in pairs:
        if not case.healthy:
            by_change.setdefault(case.id.partition(WITH)[2], []).append(next(iter(reply.ids), "") in case.causes)
    yield from (f"  {name:<22} first cause right {sum(right)} of {len(right)}" for name, right in by_change.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("healthy", "faulty"), help="harmless changes or mutations only")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every N-th variant")
    parser.add_argument("--facts", type=Path, metavar="DIR", required=True, help="folder of the facts")
    parser.add_argument("--again", action="store_true", help="train nothing")
    args = parser.parse_args()
    selected = list(variants(args.kind))[:: args.sample]
    missing = [] if args.again else [case for case in selected if not (args.facts / f"{case.id}.json").is_file()]
    for case, result in zip(missing, run_each(run_case, [(c, 1, None, args.facts) for c in missing]), strict=True):
        if "error" in result:
            print(f"{case.id}: {result['error']}", flush=True)
    known = [(verified(case, facts), facts) for case, facts in stored(args.facts, selected)]
    print("\n".join(lines([(case, facts) for case, facts in known if case is not None])))


if __name__ == "__main__":
    main()
