"""Weights that are held at zero stay exactly there, and gradual pruning raises their number by the cube."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stepping import average_of, fit, make_trainer, small_net
from tiny import ROOT, TINY_CFG
from torch import Tensor, nn

from engine.choices import OptimizerName
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.zeros.hooks import FrozenZerosHook, GradualPruning, cubic_sparsity
from pruning.zeros.masks import UnstructuredSettings, apply_masks_, l1_masks, prunable_weights, zero_masks
from utils.errors import ConfigError, PruningError

HALF = UnstructuredSettings(sparsity=0.5)


def detector() -> Detector:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_yaml(TINY_CFG))


def check_held(trainer: Any, hook: FrozenZerosHook) -> None:
    """What masks leave out is zero in network, averages and optimiser."""
    parameters, averages = dict(trainer.model.named_parameters()), dict(average_of(trainer).named_parameters())
    for name, mask in hook.masks.items():
        memory = trainer.optimizer.state[parameters[name]].values()
        remembered = [value for value in memory if isinstance(value, Tensor) and value.shape == mask.shape]
        assert remembered
        for values in (parameters[name], averages[name], *remembered):
            assert not values[~mask].any(), name


def share_of_zeros(model: nn.Module) -> float:
    weights = prunable_weights(model).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def own_loop() -> str:
    """The training loop of docs/unstructured.md."""
    page = (ROOT / "docs/unstructured.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("In a training loop of your own")
    return rest.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_loop_of_the_docs_freezes_zeros(kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    apply_masks_(model, l1_masks(model, HALF))
    before = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    momentum = {} if kind is torch.optim.AdamW else {"momentum": 0.9}
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1, **momentum)  # type: ignore[call-arg]
    loader = [(torch.rand(8, 1, 8, 8), torch.arange(8) % 3) for _ in range(4)]
    names = {"model": model, "optimizer": optimizer, "loader": loader, "loss_of": nn.CrossEntropyLoss(), "nn": nn}
    imports, code = own_loop().split("\n\n")
    assert (len(imports.splitlines()), len(code.splitlines())) == (2, 10)
    exec(compile(own_loop(), "docs/unstructured.md", "exec"), names)
    assert share_of_zeros(model) == pytest.approx(0.5, abs=0.01)
    for name, weight in prunable_weights(model).items():
        zero = before[name] == 0
        assert not weight[zero].any()
        assert (weight[~zero] != before[name][~zero]).any()
        memory = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
        remembered = [value for value in memory if value.shape == weight.shape]
        assert remembered
        assert not any(value[zero].any() for value in remembered)


@pytest.mark.parametrize(
    ("progress", "expected"), [(-1.0, 0.1), (0.0, 0.1), (0.5, 0.9 - 0.8 / 8), (1.0, 0.9), (2.0, 0.9)]
)
def test_sparsity_rises_by_the_cube(progress: float, expected: float) -> None:
    assert cubic_sparsity(progress, final=0.9, initial=0.1) == pytest.approx(expected)


def test_gradual_pruning_begins_and_ends_where_it_should() -> None:
    gradual = GradualPruning(settings=UnstructuredSettings(sparsity=0.8), begin=2, epochs=2)
    # 0.8 * (1 - (1 / 2) ** 3) after half of the way
    assert [gradual.sparsity_at(epoch) for epoch in range(6)] == pytest.approx([0, 0, 0.7, 0.8, 0.8, 0.8])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "ranger"])
@pytest.mark.parametrize("network", [small_net, detector])
def test_held_weights_are_exactly_zero_after_every_step(
    network: Callable[[], nn.Module], optimizer: OptimizerName
) -> None:
    model = network()
    hook = FrozenZerosHook(l1_masks(model, HALF))
    trainer = make_trainer(model, [hook], optimizer=optimizer, epochs=2)
    fit(trainer, check=lambda _: check_held(trainer, hook))
    assert share_of_zeros(model) == pytest.approx(0.5, abs=0.001)
    assert share_of_zeros(average_of(trainer)) == pytest.approx(0.5, abs=0.001)


def test_weights_that_stay_train() -> None:
    model = small_net()
    masks = l1_masks(model, HALF)
    before = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    fit(make_trainer(model, [FrozenZerosHook(masks)], epochs=1))
    for name, weight in prunable_weights(model).items():
        assert (weight != before[name])[masks[name]].all()


def test_zeros_that_a_run_starts_with_become_masks() -> None:
    model = small_net()
    with torch.no_grad():
        model.second.weight[2:5] = 0
    hook = FrozenZerosHook(zero_masks(model))
    fit(make_trainer(model, [hook], optimizer="ranger", epochs=2))
    assert list(hook.masks) == ["second.weight"]
    assert not model.second.weight[2:5].any()
    assert model.second.weight[5:].all()


def test_held_weights_have_no_part_in_the_length_of_the_gradient() -> None:
    model = small_net()
    hook = FrozenZerosHook(l1_masks(model, HALF))
    trainer = make_trainer(model, [hook])
    hook.before_training(trainer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    hook.gradients_ready(trainer)
    assert model.third.weight.grad is not None
    assert torch.equal(model.third.weight.grad.bool(), hook.masks["third.weight"])


def test_training_with_nothing_to_hold_is_bit_identical() -> None:
    plain, held = small_net(), small_net()
    fit(make_trainer(plain, [], epochs=2))
    fit(make_trainer(held, [FrozenZerosHook({})], epochs=2))
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), held.state_dict().values(), strict=True)
    )


def test_gradual_pruning_holds_more_weights_every_epoch_and_gives_none_back() -> None:
    model = small_net()
    hook = FrozenZerosHook({}, gradual=GradualPruning(settings=UnstructuredSettings(sparsity=0.8), begin=1, epochs=2))
    trainer = make_trainer(model, [hook], optimizer="ranger", epochs=4)
    shares: list[float] = []
    masks: list[dict[str, Tensor]] = []

    def look(_: Any) -> None:
        check_held(trainer, hook)
        shares.append(share_of_zeros(model))
        masks.append(dict(hook.masks))

    fit(trainer, steps=3, check=look)
    assert shares == pytest.approx([0] * 3 + [0.7] * 3 + [0.8] * 6, abs=0.001)
    assert not any((masks[-1][name] & ~masks[4][name]).any() for name in masks[4])
    assert trainer.state.extra == {"sparsity/held_zeros": pytest.approx(0.8, abs=0.001)}


def test_epochs_with_too_few_zeros_do_not_count_as_best() -> None:
    hook = FrozenZerosHook({}, gradual=GradualPruning(settings=HALF, begin=1, epochs=2))
    trainer = make_trainer(small_net(), [hook], epochs=4)
    found = []
    for epochs in range(1, 5):
        fit(trainer, epochs=epochs, steps=1)
        found.append(trainer.state.best_epoch)
    assert found == [-1, -1, 2, 3]


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_resumed_gradual_run_equals_the_unbroken_one(killed_after: int) -> None:
    def begun() -> tuple[Any, FrozenZerosHook]:
        model = small_net()
        hook = FrozenZerosHook({}, gradual=GradualPruning(settings=HALF, begin=1, epochs=2))
        return make_trainer(model, [hook], epochs=4), hook

    whole, _ = begun()
    fit(whole)
    first, killed = begun()
    fit(first, epochs=killed_after)
    saved = io.BytesIO()
    torch.save([first.model.state_dict(), first.optimizer.state_dict(), killed.state()], saved)
    saved.seek(0)
    weights, memory, state = torch.load(saved, weights_only=True)
    second, resumed = begun()
    second.model.load_state_dict(weights)
    second.optimizer.load_state_dict(memory)
    resumed.restore(state)
    second.state.epoch = killed_after - 1
    fit(second)
    states = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_masks_of_other_shapes_are_refused_before_training() -> None:
    masks = l1_masks(small_net(width=9), HALF)
    with pytest.raises(
        PruningError, match=r"mask of second.weight has shape \(9, 6, 3, 3\), which is of shape \(8, 6"
    ):
        fit(make_trainer(small_net(), [FrozenZerosHook(masks)]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "over 0 epochs: expected at least 0 and 1"),
        ({"epochs": 2, "begin": -1}, "from epoch -1 over 2 epochs: expected"),
        ({"epochs": 2, "initial": 0.6}, "from sparsity 0.6 to 0.5: expected 0 or more, and no less at the end"),
    ],
)
def test_gradual_pruning_without_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GradualPruning(settings=HALF, **values)


def test_run_that_ends_before_the_sparsity_is_reached_is_refused() -> None:
    hook = FrozenZerosHook({}, gradual=GradualPruning(settings=HALF, begin=3, epochs=2))
    with pytest.raises(ConfigError, match="ends after epoch 5, the run after 4; train longer or prune faster"):
        fit(make_trainer(small_net(), [hook], epochs=4))
