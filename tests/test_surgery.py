"""Surgery: each operation makes the change that it documents on any module, and no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models.mlp import MLP
from pipeline.models.surgery import OPERATIONS, apply_surgery


class Foreign(nn.Module):
    """A user's net: convolution, a shared activation, attention, a functional head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.deep = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 8)])
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.conv(x)).mean(1).flatten(1)
        for layer in self.deep:
            x = self.act(layer(x))
        x = self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return self.out(x)


IMAGES = torch.rand(5, 1, 8, 8)


@pytest.mark.parametrize(
    "step",
    [
        {"swap_activation": {"from": "ReLU", "to": "LeakyReLU"}},
        {"insert_normalization": {"kind": "layer"}},
        {"insert_normalization": {"kind": "batch"}},
        {"replace_output_activation": {"to": "Softmax"}},
        {"set_dropout": {"p": 0.25}},
        {"reinitialize": {"scheme": "orthogonal"}},
        {"resize_output": {"out_features": 7}},
        {"freeze": {"match": "conv.*"}},
    ],
)
def test_apply_surgery_works_on_a_users_model(step: dict[str, dict[str, object]]) -> None:
    """The result runs forward and backward, and the original is not changed."""
    model = Foreign()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    changed = apply_surgery(model, [step])
    changed(IMAGES).sum().backward()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert str(changed) != str(model) or next(iter(step)) in ("reinitialize", "freeze")


def test_swap_activation_keeps_sharing_and_weights() -> None:
    """A shared activation stays one module, and weights do not change."""
    model = Foreign()
    changed = apply_surgery(model, [{"swap_activation": {"from": "ReLU", "to": "Tanh"}}])
    assert isinstance(changed.act, nn.Tanh)
    assert torch.equal(model.conv.weight, changed.conv.weight)


def test_swap_activation_names_the_present_activations() -> None:
    """If the activation is missing, the message names those of the model."""
    with pytest.raises(UserError, match="while the model has ReLU"):
        apply_surgery(MLP(4, 2), [{"swap_activation": {"from": "Tanh", "to": "ReLU"}}])


def test_apply_surgery_replaces_a_root_module() -> None:
    """A model that is itself the module in question is replaced as a whole."""
    assert isinstance(apply_surgery(nn.ReLU(), [{"swap_activation": {"from": "ReLU", "to": "ELU"}}]), nn.ELU)
    assert 3 == apply_surgery(nn.Linear(4, 2), [{"resize_output": {"out_features": 3}}])(torch.zeros(1, 4)).shape[1]


def test_replace_output_activation_removes_replaces_or_inserts() -> None:
    """Only the last activation after the last layer counts; a softmax counts wherever it is registered."""
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
    squashed = nn.Sequential(*plain, nn.ReLU(), nn.Sigmoid())

    def layers_after(model: nn.Module, to: str) -> list[str]:
        return [type(m).__name__ for m in apply_surgery(model, [{"replace_output_activation": {"to": to}}]).children()]

    assert ["Linear", "Sigmoid", "Linear", "ReLU", "Identity"] == layers_after(squashed, "none")
    assert ["Linear", "Sigmoid", "Linear", "ReLU", "Tanh"] == layers_after(squashed, "Tanh")
    assert ["Linear", "Sigmoid", "Sequential"] == layers_after(plain, "Sigmoid")
    outputs = apply_surgery(plain, [{"replace_output_activation": {"to": "Softmax"}}])(torch.rand(3, 4))
    torch.testing.assert_close(outputs.sum(1), torch.ones(3))

    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squash, self.out = nn.Softmax(dim=1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.squash(self.out(x))

    model, x = Before(), torch.rand(3, 4)
    torch.testing.assert_close(apply_surgery(model, [{"replace_output_activation": {}}])(x), model.out(x))


def test_reinitialize_recurrent_layers() -> None:
    """All matrices of a GRU follow the scheme, its biases are zero."""
    drawn = apply_surgery(nn.GRU(4, 8), [{"reinitialize": {"scheme": "orthogonal"}}])
    torch.testing.assert_close(drawn.weight_hh_l0.T @ drawn.weight_hh_l0, torch.eye(8), rtol=0, atol=1e-5)
    assert not drawn.bias_ih_l0.any() and not drawn.bias_hh_l0.any()


def test_insert_normalization_spares_the_output_layer_and_attention() -> None:
    """Hidden layers are followed by a normalization; the last layer and attention's own projection are not."""
    changed = apply_surgery(Foreign(), [{"insert_normalization": {}}])
    assert [type(m).__name__ for m in changed.deep[0]] == ["Linear", "LayerNorm"]
    assert [type(m).__name__ for m in changed.conv] == ["Conv2d", "GroupNorm"]
    assert isinstance(changed.out, nn.Linear) and not isinstance(changed.attention.out_proj, nn.Sequential)


def test_insert_normalization_refuses_a_second_time() -> None:
    """A model with normalization is refused."""
    with pytest.raises(UserError, match="already has normalization"):
        apply_surgery(MLP(4, 2, normalization="layer"), [{"insert_normalization": {}}])


def test_set_dropout_changes_or_inserts() -> None:
    """Existing dropout gets the new probability; otherwise it is inserted after hidden activations only."""
    existing = apply_surgery(MLP(4, 2, dropout=0.1), [{"set_dropout": {"p": 0.4}}])
    assert [0.4] == [m.p for m in existing.modules() if isinstance(m, nn.Dropout)]
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid())
    inserted = apply_surgery(plain, [{"set_dropout": {"p": 0.4}}])
    assert 1 == sum(isinstance(m, nn.Dropout) for m in inserted.modules()) and isinstance(inserted[3], nn.Sigmoid)


def test_resize_output_of_a_convolution_keeps_its_shape() -> None:
    """Kernel, stride and padding of the last convolution do not change."""
    changed = apply_surgery(
        nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1)), [{"resize_output": {"out_features": 6}}]
    )
    assert (5, 6, 4, 4) == tuple(changed(IMAGES).shape)


def test_freeze_and_unfreeze_by_pattern() -> None:
    """Patterns select parameters by name; the last step wins."""
    changed = apply_surgery(MLP(4, 2), [{"freeze": {"match": "*"}}, {"unfreeze": {"match": "head.*"}}])
    assert ["head.weight", "head.bias"] == [name for name, p in changed.named_parameters() if p.requires_grad]


def test_apply_surgery_checks_all_steps_first() -> None:
    """All faults of a list are reported at once, each with the closest valid name."""
    steps = [{"set_dropuot": {"p": 0.1}}, {"resize_output": {"out_feature": 3}}, {"set_dropout": {}}, "freeze"]
    with pytest.raises(UserError) as caught:
        apply_surgery(MLP(4, 2), steps)  # type: ignore[list-item]
    message = str(caught.value)
    assert 4 == len(caught.value.faults)
    for expected in ("did you mean 'set_dropout'?", "did you mean 'out_features'?", "'p' is missing", "surgery[3]"):
        assert expected in message


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"set_dropout": {"p": 1.5}}, "0 <= p < 1"),
        ({"set_dropout": {"p": "much"}}, "set_dropout"),
        ({"reinitialize": {"scheme": "xavir"}}, "did you mean 'xavier'"),
        ({"reinitialize": {"match": "tail"}}, "matches no module"),
        ({"freeze": {"match": "boddy.*"}}, "matches no parameter"),
        ({"insert_normalization": {"kind": "group"}}, "one of batch, layer"),
        ({"swap_activation": {"from": "ReLU", "to": "ReLUU"}}, "did you mean 'ReLU'"),
        ({"replace_output_activation": {"to": "Sigmoidd"}}, "did you mean 'Sigmoid'"),
        ({"replace_output_activation": {}}, "no activation module after its last layer"),
        ({"resize_output": {"out_features": 0}}, "at least 1 output"),
    ],
)
def test_apply_surgery_refuses_impossible_operations(step: dict[str, dict[str, object]], message: str) -> None:
    """The message names the argument and what is expected."""
    with pytest.raises(UserError, match=message):
        apply_surgery(MLP(4, 2), [step])


def test_operations_are_documented() -> None:
    """The names in the table are those of the functions, and each has a docstring."""
    assert all(name == f.__name__ and f.__doc__ for name, f in OPERATIONS.items())


CHAINS = {
    "linear layers with batch norm": (
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5, bias=False), nn.Linear(5, 2)),
        (7, 6),
    ),
    "layer norm": (
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)),
        (7, 6),
    ),
    "convolutions that are flattened": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
        ),
        (7, 1, 8, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_widen_multiplies_every_hidden_width(name: str) -> None:
    """Inputs and outputs of the model stay, and every hidden layer has three times its units."""
    model, shape = CHAINS[name]
    changed = apply_surgery(model, [{"widen": {"factor": 3}}])
    layers, before = ([m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)] for net in (changed, model))
    outputs = changed(torch.rand(shape))
    outputs.sum().backward()

    assert outputs.shape == model(torch.rand(shape)).shape
    assert [len(m.weight) for m in layers[:-1]] == [3 * len(m.weight) for m in before[:-1]]
    assert all(p.grad is not None for p in changed.parameters())


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (nn.Linear(3, 2), "no hidden linear or convolution layer"),
        (Foreign(), "takes a chain of linear layers and convolutions, got 'Foreign'"),
        (nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 2)]), "got '3 units before a layer of 4 inputs'"),
        (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(3), nn.Linear(6, 2)), "normalization over the units of a layer"),
    ],
)
def test_widen_refuses_layers_that_do_not_follow_each_other(model: nn.Module, what: str) -> None:
    """A model whose layers do not take what the one before gives is refused, and says which."""
    with pytest.raises(UserError, match=what):
        apply_surgery(model, [{"widen": {}}])


@pytest.mark.parametrize("factor", [1, 0, 2.5, True, "wide"])
def test_widen_refuses_a_factor_that_widens_nothing(factor: object) -> None:
    """Only whole numbers from 2 on are factors."""
    with pytest.raises(UserError, match="cannot be a factor"):
        apply_surgery(MLP(4, 2), [{"widen": {"factor": factor}}])
