"""RePr on a small classifier and a detector: dropped filters are gone, and come back as something else."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stepping import average_of, fit, make_trainer, small_net
from tiny import TINY_CFG
from torch import Tensor, nn

from engine.choices import OptimizerName
from engine.training.hooks import Hook
from models.copies import tensors_by_name
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.repr.hook import ReprHook, revive_
from pruning.repr.ranked_filters import most_overlapping, ranked_layers, zeros_of
from pruning.repr.settings import ReprSettings
from utils.errors import ConfigError

# Off in epochs 1 and 3 of 5.
SHORT = ReprSettings(s1=1, s2=1, cycles=2)


def detector() -> Detector:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_yaml(TINY_CFG))


def zeros_now(trainer: Any, hook: ReprHook) -> dict[str, Tensor]:
    """Where each tensor that has zeros has them, in its own shape."""
    tensors = tensors_by_name(trainer.model)
    zeros = zeros_of(trainer.model, hook.layers, hook.off)
    return {name: mask.expand_as(tensors[name]) for name, mask in zeros.items()}


def check_all_zero(trainer: Any, hook: ReprHook) -> int:
    """Network, averages and optimiser; returns how many numbers were looked at."""
    tensors, averages = tensors_by_name(trainer.model), tensors_by_name(average_of(trainer))
    seen = 0
    for name, mask in zeros_now(trainer, hook).items():
        remembered = [
            value
            for value in trainer.optimizer.state.get(tensors[name], {}).values()
            if isinstance(value, Tensor) and value.shape == mask.shape
        ]
        for values in (tensors[name], averages[name], *remembered):
            assert not values[mask].any(), name
            seen += int(mask.sum())
    return seen


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"s1": 0}, "s1 is 0: expected at least 1"),
        ({"s2": 0}, "s2 is 0: expected at least 1"),
        ({"cycles": 0}, "cycles is 0: expected at least 1"),
        ({"ratio": 0.0}, "ratio is 0.0: expected a share between 0 and 1"),
        ({"ratio": 1.0}, "ratio is 1.0: expected a share between 0 and 1"),
        ({"ratio": float("nan")}, "ratio is nan: expected a share between 0 and 1"),
    ],
)
def test_settings_without_meaning_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReprSettings(**values)


def test_filters_are_off_after_s1_epochs_for_s2_in_each_cycle() -> None:
    settings = ReprSettings(s1=3, s2=2, cycles=2)
    assert [epoch for epoch in range(20) if settings.is_off(epoch)] == [3, 4, 8, 9]


def test_run_that_ends_before_filters_are_back_is_refused() -> None:
    hook = ReprHook(small_net(), settings=SHORT)
    with pytest.raises(ConfigError, match="does not fit a run of 4: .* at least 5 epochs or lower cycles"):
        fit(make_trainer(small_net(), [hook], epochs=4))


def test_ratio_of_no_filter_is_refused() -> None:
    with pytest.raises(ConfigError, match="ratio is 0.01: that drops 0 of 18 filters; give a larger share"):
        ReprHook(small_net(), settings=ReprSettings(ratio=0.01))


def test_the_share_of_filters_is_that_of_the_ranked_ones() -> None:
    model = small_net()
    hook = ReprHook(model, settings=SHORT)
    fit(make_trainer(model, [hook], epochs=5))
    # .3 of the 8 + 10 filters of the second and the third layer.
    assert [sum(map(len, stage.off.values())) for stage in hook.record.stages] == [5, 5]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "ranger"])
@pytest.mark.parametrize("network", [small_net, detector])
def test_dropped_filters_are_exactly_zero_after_every_step(
    network: Callable[[], nn.Module], optimizer: OptimizerName
) -> None:
    model = network()
    hook = ReprHook(model, settings=ReprSettings(s1=1, s2=1, cycles=1))
    trainer = make_trainer(model, [hook], optimizer=optimizer, epochs=3)
    looked_at = []

    def check(_: Any) -> None:
        assert bool(hook.off) == (trainer.state.epoch == 1)
        looked_at.append(check_all_zero(trainer, hook))

    fit(trainer, check=check)
    assert [count > 0 for count in looked_at] == [False] * 8 + [True] * 8 + [False] * 8


def test_filters_that_stay_train_on_while_others_are_off() -> None:
    model = small_net()
    hook = ReprHook(model, settings=SHORT)
    trainer = make_trainer(model, [hook], epochs=5)
    fit(trainer, epochs=1)
    before = model.third.weight.detach().clone()
    trainer.state.epoch = 0
    fit(trainer, epochs=2)
    moved = (model.third.weight != before).flatten(1).any(1)
    assert moved.all()
    assert len(hook.off["third"]) < 10


class AtReturn(Hook):
    """Stands behind RePr and keeps the network and optimiser at the first step after filters came back."""

    def __init__(self, hook: ReprHook) -> None:
        self.hook, self.off, self.dropped = hook, {}, {}
        self.found: dict[str, Any] = {}

    def gradients_ready(self, trainer: Any) -> None:
        if self.hook.off:
            self.off, self.dropped = self.hook.off, dict(self.hook.dropped)
        elif self.off and not self.found:
            self.found = {name: tensor.clone() for name, tensor in tensors_by_name(trainer.model).items()}
            self.gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
            self.memory = {
                name: {key: value.clone() for key, value in trainer.optimizer.state[parameter].items()}
                for name, parameter in trainer.model.named_parameters()
            }


def returned(network: Callable[[], nn.Module], optimizer: OptimizerName = "ranger") -> AtReturn:
    model = network()
    hook = ReprHook(model, settings=ReprSettings(s1=1, s2=1, cycles=1))
    spy = AtReturn(hook)
    trainer = make_trainer(model, [hook], optimizer=optimizer, epochs=3)
    trainer.hooks.insert(1, spy)
    fit(trainer)
    assert spy.found
    return spy


@pytest.mark.parametrize("network", [small_net, detector])
def test_filters_come_back_orthogonal_while_there_is_room(network: Callable[[], nn.Module]) -> None:
    spy = returned(network)
    with_room = 0
    for name, rows in spy.off.items():
        filters = nn.functional.normalize(spy.found[f"{name}.weight"].flatten(1))
        old = nn.functional.normalize(spy.dropped[name])
        if len(filters) + len(rows) > filters.shape[1]:
            continue
        others = (filters[rows] @ filters.T).abs()
        others[torch.arange(len(rows)), torch.from_numpy(rows)] = 0
        assert max(others.max(), (filters[rows] @ old.T).abs().max()) < 1e-5
        with_room += 1
    assert with_room


def test_filters_of_a_layer_without_room_come_back_random() -> None:
    spy = returned(lambda: small_net(width=60))  # 60 filters of 54 weights
    rows = spy.off["second"]
    norms = torch.linalg.vector_norm(spy.found["second.weight"].flatten(1), dim=1)
    is_back = torch.zeros(60, dtype=torch.bool)
    is_back[rows] = True
    torch.testing.assert_close(norms[is_back], norms[~is_back].mean().expand(len(rows)))
    stage = spy.hook.record.stages[0]
    assert stage.orthogonal == sum(len(rows) for name, rows in spy.off.items() if name != "second")


def test_batch_norm_comes_back_like_the_others_of_its_layer() -> None:
    spy = returned(small_net)
    rows = spy.off["third"]
    stayed = [row for row in range(10) if row not in rows]
    for name in ("weight", "running_var"):
        values = spy.found[f"norm3.{name}"]
        torch.testing.assert_close(values[rows], values[stayed].mean().expand(len(rows)))
    assert not spy.found["norm3.bias"][rows].any()
    assert not spy.found["norm3.running_mean"][rows].any()


def test_optimiser_knows_nothing_of_filters_that_come_back() -> None:
    spy = returned(small_net)
    rows = spy.off["third"]
    memory = spy.memory["third.weight"]
    assert not spy.gradients["third.weight"][rows].any()
    assert not memory["exp_avg"][rows].any()
    assert not memory["exp_avg_sq"][rows].any()
    assert torch.equal(memory["slow"][rows], spy.found["third.weight"][rows])
    assert memory["exp_avg"].any()


def test_training_before_the_first_drop_is_untouched() -> None:
    plain, watched = small_net(), small_net()
    fit(make_trainer(plain, [], epochs=40), epochs=2)
    hook = ReprHook(watched, settings=ReprSettings(s1=2, s2=1, cycles=1))
    fit(make_trainer(watched, [hook], epochs=40), epochs=2)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "ranger"])
@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_resumed_run_equals_the_unbroken_one(optimizer: OptimizerName, killed_after: int) -> None:
    def begun() -> tuple[Any, ReprHook]:
        model = small_net()
        hook = ReprHook(model, settings=SHORT)
        return make_trainer(model, [hook], optimizer=optimizer, epochs=5), hook

    whole, hook = begun()
    fit(whole)
    first, killed = begun()
    fit(first, epochs=killed_after)
    saved = io.BytesIO()
    ema = first.hooks[-1].ema
    torch.save(
        [first.model.state_dict(), first.optimizer.state_dict(), ema.model.state_dict(), ema.updates, killed.state()],
        saved,
    )
    saved.seek(0)
    weights, memory, averages, updates, state = torch.load(saved, weights_only=True)

    second, resumed = begun()
    second.model.load_state_dict(weights)
    second.optimizer.load_state_dict(memory)
    second.hooks[-1].ema.restore_(averages, updates)
    resumed.restore(state)
    second.state.epoch = killed_after - 1
    fit(second)
    for one, two in ((whole.model, second.model), (average_of(whole), average_of(second))):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
        )
    assert resumed.record.state() == hook.record.state()


def test_epochs_with_filters_off_do_not_count_as_best() -> None:
    model = small_net()
    trainer = make_trainer(model, [ReprHook(model, settings=SHORT)], epochs=5)
    found = []
    for epochs in range(1, 6):
        fit(trainer, epochs=epochs, steps=1)
        found.append(trainer.state.best_epoch)
    assert found == [0, 0, 2, 2, 4]


class TwoNorms(nn.Module):
    """One convolution whose two halves have a batch norm each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.left, self.right, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(self.stem(x).relu()).chunk(2, 1)
        return self.last(torch.cat((self.left(left).relu(), self.right(right).relu()), 1).mean((2, 3)))


def test_batch_norm_whose_channels_were_all_off_comes_back_as_a_new_one() -> None:
    torch.manual_seed(0)
    model = TwoNorms()
    with torch.no_grad():
        model.conv.weight[1:4] = model.conv.weight[:1]
        model.right.weight.fill_(0.5)
    (layer,) = ranked_layers(model, ChannelGraph.of(model, image_chw=(3, 8, 8)))
    off = most_overlapping(model, [layer], count=4)["conv"]
    assert off.tolist() == [0, 1, 2, 3]
    old = model.conv.weight.detach()[:4].flatten(1).clone()
    revive_(model, layer, off, old, generator=np.random.default_rng(0))
    assert model.left.weight.tolist() == model.left.running_var.tolist() == [1.0] * 4
    assert model.right.weight.tolist() == [0.5] * 4


def test_record_tells_stages_curve_and_plots_them(tmp_path: Path) -> None:
    model = small_net()
    fit(make_trainer(model, [ReprHook(model, settings=SHORT, folder=tmp_path)], epochs=5))
    record = json.loads((tmp_path / "repr.json").read_text())
    assert record["settings"] == {"s1": 1, "s2": 1, "cycles": 2, "ratio": 0.3}
    assert record["widths"] == {"second": 8, "third": 10}
    assert [(stage["start"], stage["end"], stage["orthogonal"]) for stage in record["stages"]] == [
        (1, 2, 5),
        (3, 4, 5),
    ]
    assert record["metric"] == "accuracy"
    assert record["curve"] == {"0": 0.0, "1": 0.1, "2": 0.2, "3": 0.3, "4": 0.4}
    assert (tmp_path / "repr_map.png").stat().st_size > 1000
    assert (tmp_path / "repr_curve.png").stat().st_size > 1000


def test_run_that_stops_with_filters_off_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = small_net()
    hook = ReprHook(model, settings=SHORT, folder=tmp_path, is_plotting=False)
    trainer = make_trainer(model, [hook], epochs=5)
    fit(trainer, epochs=2)
    with caplog.at_level(logging.WARNING):
        hook.end(trainer)
    assert "ended early with filters off" in caplog.text
    assert not (tmp_path / "repr_map.png").exists()
