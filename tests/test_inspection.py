"""Inspections: each speaks of the flaw that it is made for, and is silent on healthy trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics.monitor import Monitor
from pipeline.data.splits import Split
from pipeline.evaluation.task import build_task
from pipeline.inspection.activations import inspect_activations
from pipeline.inspection.attention import inspect_attention, inspect_axes
from pipeline.inspection.evaluation import inspect_metric
from pipeline.inspection.finding import Finding, Inspections, Measured, NotChecked, judge, meanings, place
from pipeline.inspection.inspect import inspect_model
from pipeline.inspection.losses import inspect_loss
from pipeline.inspection.outputs import inspect_outputs
from pipeline.inspection.rows import inspect_rows
from pipeline.inspection.settings import inspect_last_batch, inspect_regularizers, inspect_update
from pipeline.inspection.subject import Subject, observe
from pipeline.inspection.weights import inspect_membership, inspect_weights
from pipeline.repair import causes as vocabulary
from tests.check_helpers import judge as judge_check

CLASSES, FEATURES, ROWS = 3, 4, 32


def net(*last: nn.Module, outputs: int = CLASSES) -> nn.Sequential:
    """Return a small net that ends with these modules."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, outputs), *last)


def subject(
    model: nn.Module, loss: Any = None, kind: str = "classification", targets: Tensor | None = None, metric: Any = None
) -> Subject:
    """Return a model with one batch of random rows under a task."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(ROWS, FEATURES, generator=generator)
    classes = torch.arange(ROWS) % CLASSES
    y = targets if targets is not None else classes if kind == "classification" else X[:, :1] * 2
    section = {"kind": kind, "metric": metric or ("accuracy" if kind == "classification" else "r2"), "target": 0.5}
    loss = loss or (nn.CrossEntropyLoss() if kind == "classification" else nn.MSELoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return observe(model, build_task({"task": section}, loss, model), X, y, optimizer)


def causes(results: Any) -> set[str]:
    """Return the causes of the contradictions, and the names of the quantities that are not 0."""
    found = list(results)
    wrong = {f.cause for f in found if isinstance(f, Finding)}
    return wrong | {m.quantity for m in found if isinstance(m, Measured) and m.value}


def contradictions(results: Any) -> list[Finding]:
    """Return what is true by definition."""
    return [result for result in results if isinstance(result, Finding)]


# --- findings ---------------------------------------------------------------------------------------------------------


def test_inspections_survive_json() -> None:
    """Findings read back from JSON equal those that were written, also with a value that is not a number."""
    finding = Finding("nonfinite_inputs", "rows", "definition", 1.0, math.inf, None, "rows", "Infinity is in a row.")
    inspections = Inspections((finding,), (NotChecked("outputs", "the step returns none"),))
    assert Inspections.from_json(json.loads(json.dumps(inspections.to_json()))) == inspections
    assert Inspections.from_json({}) == Inspections()


def test_meanings_name_known_causes() -> None:
    """Every quantity supports causes of the vocabulary."""
    assert {m.cause for entries in meanings().values() for m in entries} <= set(vocabulary.load())


@pytest.mark.parametrize(("value", "side"), [(50.0, "high"), (0.9, "low")])
def test_place_grows_beyond_the_healthy_values(value: float, side: str) -> None:
    """Beyond every healthy value the share goes on towards 1; inside it is the share that is less extreme."""
    healthy = [float(n) for n in range(1, 41)]
    beyond, edge = place(value, healthy, side)
    far, _ = place(value * (100 if side == "high" else 0.01), healthy, side)
    assert 40 / 41 <= beyond < far < 1 and edge == (40 if side == "high" else 1)
    assert place(20.0, healthy, "high")[0] == 19 / 41
    assert place(math.nan, healthy, side)[0] == 1


def test_judge_is_silent_inside_the_usual_values() -> None:
    """A value that healthy trainings have supports nothing, whatever its quantity."""
    assert judge(Measured("dropped_share", 0.1)) == []
    assert judge(Measured("a quantity that nobody knows", 1e9)) == []


@pytest.mark.parametrize(
    ("cause", "outcome"), [("metric_wrong", "failed"), ("redundant_softmax", "passed"), ("", "passed")]
)
def test_nothing_contradicts_closes_the_gate_for_a_metric_alone(cause: str, outcome: str) -> None:
    """A contradiction that makes scores meaningless closes the gate; another one warns."""
    finding = Finding(cause, "some", "definition", 1.0, None, None, "", "A thing is another thing.")
    inspections = Inspections((finding,) if cause else ()).to_json()
    thresholds = {"named": 3, "invalidating": ["metric_wrong"]}
    item = judge_check("sanity.nothing_contradicts", {"inspections": inspections}, **thresholds)
    assert (item.outcome, item.cause or "") == (outcome, cause) and item.warns == (cause == "redundant_softmax")


# --- outputs and losses -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_outputs_and_losses_are_silent_on_healthy_pairs() -> None:
    """Logits with cross entropy, log-probabilities with NLLLoss and plain outputs of a regression fit each other."""
    healthy = (
        subject(net()),
        subject(net(nn.LogSoftmax(1)), nn.NLLLoss()),
        subject(net(nn.Softmax(1)), nn.CrossEntropyLoss()),
        subject(net(outputs=1), kind="regression"),
        subject(net(nn.Tanh(), outputs=1), kind="regression", targets=torch.linspace(-0.9, 0.9, ROWS)[:, None]),
    )
    for each in healthy:
        found = [*inspect_outputs(each), *inspect_loss(each), *inspect_metric(each)]
        assert contradictions(found) == []
    assert "softmax_twice" not in causes(inspect_outputs(healthy[0]))
    assert "softmax_twice" not in causes(inspect_outputs(healthy[1]))


class FunctionalSoftmax(nn.Module):
    """A net with a softmax that is a function instead of a module."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis, self.net = axis, net()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softmax(self.net(x), dim=self.axis)


@pytest.mark.parametrize("model", [net(nn.Softmax(1)), FunctionalSoftmax(1), FunctionalSoftmax(-1)])
def test_outputs_see_a_second_softmax(model: nn.Module) -> None:
    """A softmax before cross entropy is seen whether it is a module or a function."""
    assert "softmax_twice" in causes(inspect_outputs(subject(model)))


@pytest.mark.parametrize(
    ("last", "loss", "outputs", "expected"),
    [
        (nn.Softmax(0), None, CLASSES, "output_activation_mismatch"),
        (FunctionalSoftmax(0), None, CLASSES, "output_activation_mismatch"),
        (None, nn.NLLLoss(), CLASSES, "loss_mismatch"),
    ],
)
def test_outputs_contradict_their_loss(last: nn.Module | None, loss: Any, outputs: int, expected: str) -> None:
    """A softmax over the rows, and raw outputs in a loss of log-probabilities, are wrong by definition."""
    model = last if isinstance(last, FunctionalSoftmax) else net(*([last] if last else []), outputs=outputs)
    assert expected in [f.cause for f in contradictions(inspect_outputs(subject(model, loss)))]


def test_outputs_see_a_softmax_of_one_unit() -> None:
    """A softmax over one unit is 1 for every row."""
    found = contradictions(inspect_outputs(subject(net(nn.Softmax(1), outputs=1), kind="regression")))
    assert "output_activation_mismatch" in [finding.cause for finding in found]


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Sigmoid(), nn.Softplus()])
def test_outputs_that_cannot_reach_their_targets(last: nn.Module) -> None:
    """An activation whose range leaves out much of the targets is wrong by definition."""
    found = contradictions(inspect_outputs(subject(net(last, outputs=1), kind="regression")))
    assert [finding.cause for finding in found] == ["output_activation_mismatch"]


def broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.squeeze(-1) - targets) ** 2).mean()


def of_first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets.float()).square().mean()


def upside_down(outputs: Tensor, targets: Tensor) -> Tensor:
    return -nn.functional.cross_entropy(outputs, targets)


def over_rows(outputs: Tensor, targets: Tensor) -> Tensor:
    return -outputs.log_softmax(0)[torch.arange(len(targets)), targets].mean()


@pytest.mark.parametrize(
    ("loss", "kind", "expected"),
    [
        (broadcast, "regression", "loss_mismatch"),
        (of_first_output, "classification", "loss_mismatch"),
        (upside_down, "classification", "loss_reduction_or_sign"),
    ],
)
def test_losses_that_do_not_see_their_targets(loss: Callable[..., Tensor], kind: str, expected: str) -> None:
    """A loss that broadcasts, reads one output or has the wrong sign is found by trying it on made-up outputs."""
    each = subject(net(outputs=1 if kind == "regression" else CLASSES), loss, kind)
    assert [finding.cause for finding in contradictions(inspect_loss(each))] == [expected]


def test_losses_over_the_rows() -> None:
    """A softmax over the rows of a batch inside the loss is wrong by definition."""
    found = contradictions(inspect_outputs(subject(net(), over_rows)))
    assert [finding.cause for finding in found] == ["loss_reduction_or_sign"]


def test_losses_that_sum_grow_with_the_rows() -> None:
    """The loss of twice the rows is twice as large for a sum, and the same for a mean."""
    growth = {
        loss.reduction: next(m.value for m in inspect_loss(subject(net(), loss)) if m.quantity == "loss_growth")  # type: ignore[union-attr]
        for loss in (nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss())
    }
    assert growth["sum"] == pytest.approx(2) and growth["mean"] == pytest.approx(1)


def exactly_right(targets: Any, predictions: Any) -> float:
    return float((targets == predictions).mean())


exactly_right.greater_is_better = True  # type: ignore[attr-defined]


def test_metric_that_measures_nothing() -> None:
    """Accuracy of a regression does not move with the distance of predictions."""
    metric = {"_target_": "tests.test_inspection.exactly_right", "_partial_": True}
    model = net(outputs=1)
    section = {"kind": "regression", "metric": metric, "target": 0.5}
    task = build_task({"task": section}, nn.MSELoss(), model, ("tests",))
    X = torch.randn(ROWS, FEATURES)
    each = observe(model, task, X, X[:, :1] * 2, None)
    assert [finding.cause for finding in inspect_metric(each)] == ["metric_wrong"]


# --- weights, axes, activations ---------------------------------------------------------------------------------------


def test_weights_are_silent_on_usual_initializations() -> None:
    """Layers as torch makes them contradict nothing and have gains about 0.6."""
    found = list(inspect_weights(subject(net())))
    assert contradictions(found) == []
    gains = [m.value for m in found if isinstance(m, Measured) and m.quantity.startswith("gain")]
    assert all(0.4 < gain < 1.5 for gain in gains)


@pytest.mark.parametrize(("value", "layer"), [(0.1, 0), (0.0, 0), (math.nan, 2)])
def test_weights_that_cannot_learn(value: float, layer: int) -> None:
    """Constant, zero and non-finite weights are wrong by definition; a last layer of zeros is not."""
    model = net()
    nn.init.constant_(model[layer].weight, value)  # type: ignore[arg-type]
    found = contradictions(inspect_weights(Subject(model, None, None, None, None)))
    assert [finding.cause for finding in found] == ["weight_init_bad"]
    healthy = net()
    nn.init.zeros_(healthy[2].weight)  # type: ignore[arg-type]
    assert contradictions(inspect_weights(Subject(healthy, None, None, None, None))) == []


def test_weights_of_zero_in_all_layers_say_nothing_of_depth() -> None:
    """The biases make such a net learn: its weights are abnormal, and its depth is not measured."""
    model = net()
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    seen = subject(model)
    gains = [m for m in inspect_weights(seen) if isinstance(m, Measured) and m.quantity == "gain_low"]
    assert [m.value for m in gains] == [0.0]
    depth = {m.quantity for m in inspect_activations(seen)}
    assert not depth & {"first_over_last_gradient", "rows_apart"}
    healthy = {m.quantity for m in inspect_activations(subject(net()))}
    assert {"first_over_last_gradient", "rows_apart"} <= healthy


class Listed(nn.Module):
    """A net whose layers are in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(FEATURES, 8), nn.Linear(8, 8)]
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def test_membership_of_listed_layers_and_other_models() -> None:
    """Layers in a plain list are found, and an optimizer of another model; parts of a model left out are a quantity."""
    model = Listed()
    assert causes(inspect_membership(model, torch.optim.SGD(model.parameters()))) == {"parameters_not_trained"}
    other = torch.optim.SGD(net().parameters())
    assert "parameters_not_trained" in causes(inspect_membership(net(), other))
    healthy = net()
    assert causes(inspect_membership(healthy, torch.optim.SGD(healthy.parameters()))) == set()
    assert causes(inspect_membership(healthy, torch.optim.SGD(healthy[0].parameters()))) == {"share_missing"}


class Scan(nn.Module):
    """An LSTM over rows [B, T, F]."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(2, 8, batch_first=batch_first)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x.reshape(len(x), 2, 2))[0][:, -1])


@pytest.mark.parametrize(("batch_first", "expected"), [(False, ["batch_axis_swapped"]), (True, [])])
def test_axes_of_a_recurrent_net(batch_first: bool, expected: list[str]) -> None:
    """A recurrent layer that takes the batch for time is found."""
    assert [f.cause for f in inspect_axes(subject(Scan(batch_first)))] == expected


class Tokens(nn.Module):
    """A model of tokens whose outputs see all tokens, or only the earlier ones."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked, self.embed, self.head = masked, nn.Embedding(7, 8), nn.Linear(8, 7)

    def forward(self, ids: Tensor) -> Tensor:
        seen = torch.ones(ids.shape[1], ids.shape[1])
        seen = seen.tril() if self.masked else seen
        return self.head((seen / seen.sum(1, keepdim=True)) @ self.embed(ids))


@pytest.mark.parametrize(("masked", "expected"), [(False, ["attention_misbuilt"]), (True, [])])
def test_attention_must_not_see_the_future(masked: bool, expected: list[str]) -> None:
    """A language model whose outputs change with later tokens is found."""
    torch.manual_seed(0)
    model, ids = Tokens(masked), torch.randint(0, 7, (8, 6))
    each = Subject(model, ids, ids, model(ids), None, kind="language_model")
    assert [finding.cause for finding in contradictions(inspect_attention(each))] == expected


class Padded(nn.Module):
    """A transformer over padded ids [B, T] whose first output is read; its mask may be the wrong way round."""

    def __init__(self, inverted: bool) -> None:
        super().__init__()
        self.inverted, self.embed = inverted, nn.Embedding(9, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0) if self.inverted else (ids == 0)
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=mask)[:, 0])


@pytest.mark.parametrize(("inverted", "expected"), [(True, ["attention_misbuilt"]), (False, [])])
def test_attention_must_see_tokens(inverted: bool, expected: list[str]) -> None:
    """A padding mask that is the wrong way round is found, whatever the lengths of the rows."""
    torch.manual_seed(0)
    ids = torch.randint(1, 9, (16, 10))
    for row, length in enumerate(torch.randint(4, 10, (16,)).tolist()):
        ids[row, length:] = 0
    model = Padded(inverted)
    each = Subject(model, ids, torch.arange(16) % CLASSES, model(ids), None)
    assert [finding.cause for finding in contradictions(inspect_attention(each))] == expected


def test_attention_that_starts_at_zero_is_silent() -> None:
    """Residual branches may start at 0, so that a token sees no other one before the first update."""
    torch.manual_seed(0)
    model, ids = Padded(inverted=False), torch.randint(1, 9, (16, 10))
    for layer in model.encoder.layers:
        nn.init.zeros_(layer.self_attn.out_proj.weight)
    each = Subject(model, ids, torch.arange(16) % CLASSES, model(ids), None)
    assert contradictions(inspect_attention(each)) == []


def test_activations_of_linear_and_dead_nets() -> None:
    """A stack of linear layers is affine, and a bias of -8 makes units dead; a usual net is neither."""
    linear = nn.Sequential(nn.Linear(FEATURES, 8), nn.Identity(), nn.Linear(8, CLASSES))
    assert {"affine_model", "layers_without_activation"} <= causes(inspect_activations(subject(linear)))
    dead = net()
    nn.init.constant_(dead[0].bias, -8.0)  # type: ignore[arg-type]
    values = {m.quantity: m.value for m in inspect_activations(subject(dead)) if isinstance(m, Measured)}
    assert values["dead_at_start"] > 0.9
    healthy = causes(inspect_activations(subject(net())))
    assert not {"affine_model", "layers_without_activation"} & healthy


# --- settings and rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "clip", "quantity", "low", "high"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 1e-6, "clipped_share_of_update", 0.0, 1e-3),
        (lambda p: torch.optim.Adam(p, lr=0.1), None, "clipped_share_of_update", 1.0, 1.0),
        (lambda p: torch.optim.Adam(p, lr=0.1, eps=1.0), None, "epsilon_share_of_update", 0.0, 0.5),
        (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=30), None, "decay_over_update", 1.0, 1e9),
        (lambda p: torch.optim.SGD(p, lr=1e-7), None, "reach_of_updates", 0.0, 1e-3),
    ],
)
def test_update_says_what_a_setting_takes_away(
    make: Callable[[Any], Any], clip: float | None, quantity: str, low: float, high: float
) -> None:
    """The first update shows a clip bound, an epsilon, a decay and a rate that leave too little of it."""
    each = subject(net())
    values = {m.quantity: m.value for m in inspect_update(each, make(each.model.parameters()), clip, 100)}  # type: ignore[union-attr]
    assert low <= values[quantity] <= high


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_update_is_that_of_the_optimizer(name: str) -> None:
    """The computed first update has the size of the one that torch makes."""
    each = subject(net())
    model = each.model
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, weight_decay=0.1)
    values = {m.quantity: m.value for m in inspect_update(each, optimizer, None, 1)}  # type: ignore[union-attr]
    before = [p.detach().clone() for p in model.parameters()]
    for parameter_name, parameter in model.named_parameters():
        parameter.grad = each.gradients[parameter_name]
    optimizer.step()
    moved = math.sqrt(
        sum(float((p.detach() - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True))
    )
    size = math.sqrt(sum(float(b.square().sum()) for b in before))
    assert values["first_update_ratio"] == pytest.approx(moved / size, rel=1e-3)


def test_normalization_without_momentum() -> None:
    """Batch norm whose running statistics never change is wrong by definition."""
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8, momentum=0.0), nn.ReLU(), nn.Linear(8, CLASSES))
    assert [f.cause for f in contradictions(inspect_regularizers(subject(model)))] == ["normalization_misused"]


def rows_of(n: int, seed: int, shift: float = 0.0, leak: bool = False, order: tuple[int, ...] = (0, 1, 2)) -> Split:
    """Return clouds of points, maybe shifted, with the class as a feature, or with other class ids."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    X = torch.randn(n, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4)
    X = torch.cat([X, y[:, None].float()], 1) if leak else X
    return Split("train", X + shift, torch.tensor(order)[y])


@pytest.mark.parametrize(
    ("val", "train", "quantity", "at_least"),
    [
        (rows_of(200, 1, shift=2.0), rows_of(300, 0), "splits_told_apart", 0.9),
        pytest.param(
            *(rows_of(200, 1, order=(1, 2, 0)), rows_of(300, 0), "accuracy_by_exchanging_classes", 0.5),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(rows_of(200, 1, leak=True), rows_of(300, 0, leak=True), "target_in_one_feature", 0.999),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rows_of_two_splits(val: Split, train: Split, quantity: str, at_least: float) -> None:
    """A shift, exchanged class ids and a feature that is the class are measured; healthy splits have none of them."""
    values = {m.quantity: m.value for m in inspect_rows(train, val, None, "classification")}  # type: ignore[union-attr]
    usual = {m.quantity: m.value for m in inspect_rows(rows_of(300, 0), rows_of(200, 1), None, "classification")}  # type: ignore[union-attr]
    assert values[quantity] >= at_least
    assert usual[quantity] < at_least - 0.3


def test_rows_tell_misplaced_labels_from_features_that_say_nothing() -> None:
    """Where validation rows can be learned, train rows that cannot have labels of other rows."""
    val, train, noise = rows_of(200, 1), rows_of(300, 0), rows_of(200, 2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    misplaced = Split("train", train.X, train.y[order])
    unlearnable = Split("val", torch.zeros_like(noise.X), noise.y)
    found = {
        name: {m.quantity: m.value for m in inspect_rows(first, second, None, "classification")}  # type: ignore[union-attr]
        for name, first, second in (
            ("healthy", train, val),
            ("misplaced", misplaced, val),
            ("blank", Split("train", torch.zeros_like(train.X), train.y), unlearnable),
        )
    }
    assert found["misplaced"]["signal_missing_in_train"] > 0.85 > 0.2 > found["healthy"]["signal_missing_in_train"]
    assert found["misplaced"]["signal_in_features"] > 0.2 and found["misplaced"]["accuracy_by_exchanging_classes"] == 0
    assert found["blank"]["signal_missing_in_train"] == 0 and found["blank"]["signal_in_features"] < 0.1


@pytest.mark.parametrize(
    ("scale", "misplaced", "expected"),
    [(1.0, False, {}), (1.0, True, {"signal_missing_in_train"}), (1e200, False, None), (1e-200, False, None)],
)
def test_rows_of_numeric_targets(scale: float, misplaced: bool, expected: set[str] | None) -> None:
    """Targets of other rows are told from targets that follow; those that cannot be squared are not judged."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(500, 4, generator=generator)
    y = scale * (X[:, :1].double() * 2 + X[:, 1:2].double())
    order = torch.randperm(300, generator=generator) if misplaced else torch.arange(300)
    train, val = Split("train", X[:300], y[:300][order]), Split("val", X[300:], y[300:])
    values = {m.quantity: m.value for m in inspect_rows(train, val, None, "regression")}  # type: ignore[union-attr]

    if expected is None:
        assert "variance_in_features" not in values
    else:
        assert values["variance_in_features"] > 0.7
        assert {name for name in ("signal_missing_in_train", "signal_reduced_in_train") if values[name] > 0.4} == set(
            expected
        )


# --- in a loop of the user's own --------------------------------------------------------------------------------------


def test_inspect_model_in_a_loop_changes_nothing() -> None:
    """A model is inspected before `backward`; weights, gradients, modes and random numbers stay as they are."""
    model = net(nn.Softmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = torch.randn(ROWS, FEATURES), torch.arange(ROWS) % CLASSES
    weights, state = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    outputs = model(X)
    loss = nn.functional.cross_entropy(outputs, y)
    inspections = inspect_model(model, optimizer, X, y, outputs, loss)
    assert {finding.kind for finding in inspections.findings} <= {"abnormality"}
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    loss.backward()


@pytest.mark.parametrize(
    ("mend", "expected"), [(lambda model: model, []), (lambda model: net(), ["parameters_not_trained"])]
)
def test_monitor_inspects_the_first_step(mend: Callable[[nn.Module], nn.Module], expected: list[str]) -> None:
    """In a loop of the user's own the first step is inspected after `backward`, and the diagnosis knows the result."""
    model = net()
    optimizer = torch.optim.SGD(mend(model).parameters(), lr=0.1)
    X, y = torch.randn(ROWS, FEATURES), torch.arange(ROWS) % CLASSES
    with Monitor(model, optimizer) as monitor:
        outputs = model(X)
        loss = nn.functional.cross_entropy(outputs, y)
        loss.backward()
        monitor.step(loss, X, y, outputs)
        optimizer.step()
    assert [f.cause for f in monitor.inspections.findings if f.kind == "definition"] == expected
    assert monitor.inspections.not_checked == ()


@pytest.mark.parametrize(("evaluates", "expected"), [(True, []), (False, ["eval_mode_missing"])])
def test_monitor_sees_validation_in_train_mode(evaluates: bool, expected: list[str]) -> None:
    """A validation pass with dropout switched on is wrong by definition; one in eval mode is silent."""
    model = net(nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = torch.randn(ROWS, FEATURES), torch.arange(ROWS) % CLASSES
    with Monitor(model, optimizer) as monitor:
        for epoch in range(2):
            model.train()
            loss = nn.functional.cross_entropy(model(X), y)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, X, y)
            optimizer.step()
            model.train(not evaluates)
            with torch.no_grad():
                monitor.validated(epoch, loss=float(nn.functional.cross_entropy(model(X), y)))
        named = [cause.issue for cause in monitor.diagnose().root_causes]
    assert [cause for cause in named if cause == "eval_mode_missing"] == expected


@pytest.mark.parametrize(("rows", "found"), [(97, 1), (96, 0), (98, 0)])
def test_inspect_last_batch_finds_a_single_row(rows: int, found: int) -> None:
    """A last batch of one row is a contradiction where batch norm sees rows alone, and no other size is."""
    normalized = subject(nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)))
    assert len(list(inspect_last_batch(normalized, rows, 16))) == found
    assert not list(inspect_last_batch(subject(net()), rows, 16))
