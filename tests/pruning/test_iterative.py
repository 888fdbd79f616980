"""The loop of ranking, removing and fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY_CFG, tiny_config
from torch import Tensor, nn

from benchmarks.taylor_oracle import classification_task
from commands.train_recipe import read_hyp
from engine.training.task import TrainingTask
from models.classifiers import LeNet5
from models.complexity import count_macs, count_parameters
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.iterative import IterativeSettings, Quantity, Round, prune_iteratively
from pruning.selection.rounding import Direction, Rounding
from tasks.choose import DETECTION
from tasks.short_training import short_training
from tasks.task import Network
from utils.datasets.classes.pictures import PictureSet, read_picture_file
from utils.errors import ConfigError, PruningError

IMAGE = (1, 28, 28)
QUICK = IterativeSettings(ratio=0.5, step=50, rank_batches=1, updates=2, lr=0.01, final_updates=2, final_lr=0.001)
# LeNet5: 6 + 16 + 120 + 84.
LENET_CHANNELS = 226


def noise_task() -> TrainingTask:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (32, *IMAGE), generator=generator, dtype=torch.uint8)
    names = tuple("0123456789")
    return classification_task(PictureSet(images=images, labels=torch.arange(32) % 10, names=names), batch_size=8)


def lenet() -> LeNet5:
    torch.manual_seed(0)
    return LeNet5()


def state_of(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_rounds_remove_one_step_each_and_the_last_what_is_missing() -> None:
    rounds: list[Round] = []
    pruned, last = prune_iteratively(
        lenet(), noise_task(), settings=QUICK, image_chw=IMAGE, on_round=lambda state, _: rounds.append(state)
    )
    # 226 - 50 - 50 - 13 = 113, half of them.
    assert [state.now["channels"] for state in rounds] == [176, 126, 113]
    assert [state.number for state in rounds] == [1, 2, 3]
    assert last == rounds[-1]
    assert len(ChannelGraph.of(pruned, image_chw=IMAGE).prunable_ids) == 113
    assert last.dense["channels"] == LENET_CHANNELS


@pytest.mark.parametrize(
    ("quantity", "channel"),
    [
        # Of the first convolution: 28 x 28 positions of 25 weights, and 10 x 10 of 16 filters that read it.
        ("macs", 28 * 28 * 25 + 10 * 10 * 16 * 25),
        # Of the second: 6 x 25 weights and a bias, and 25 positions that 120 neurons read.
        ("params", 6 * 25 + 1 + 25 * 120),
    ],
)
def test_loop_ends_within_a_channel_of_the_target(quantity: Quantity, channel: int) -> None:
    settings = replace(QUICK, quantity=quantity, ratio=0.4, step=20)
    model = lenet()
    pruned, last = prune_iteratively(model, noise_task(), settings=settings, image_chw=IMAGE)
    dense, small = ({"macs": count_macs(x, IMAGE), "params": count_parameters(x)}[quantity] for x in (model, pruned))
    assert (last.dense[quantity], last.now[quantity]) == (dense, small)
    assert 0.6 * dense - channel < small <= 0.6 * dense


def test_network_that_was_given_is_untouched() -> None:
    model = lenet().train()
    before = [tensor.clone() for tensor in state_of(model)]
    pruned, _ = prune_iteratively(model, noise_task(), settings=QUICK, image_chw=IMAGE)
    assert all(torch.equal(*pair) for pair in zip(before, state_of(model), strict=True))
    assert model.training
    assert pruned.training


def test_going_on_after_a_round_gives_the_same_network() -> None:
    kept: list[tuple[Round, nn.Module]] = []
    whole, last = prune_iteratively(
        lenet(), noise_task(), settings=QUICK, image_chw=IMAGE, on_round=lambda *round_: kept.append(round_)
    )
    start, model = kept[0]
    resumed, again = prune_iteratively(model, noise_task(), settings=QUICK, image_chw=IMAGE, start=start)
    assert again == last
    assert all(torch.equal(*pair) for pair in zip(state_of(whole), state_of(resumed), strict=True))


def test_round_says_which_outputs_of_the_first_network_are_left() -> None:
    # No updates, so every weight that is left is still the one it was.
    settings = replace(QUICK, updates=0, final_updates=0)
    model = lenet()
    pruned, last = prune_iteratively(model, noise_task(), settings=settings, image_chw=IMAGE)
    assert sum(len(kept) for kept in last.kept.values()) == 113 + 10
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert list(last.kept) == layers
    for name in layers:
        kept = torch.tensor(last.kept[name])
        assert torch.equal(model.get_submodule(name).bias[kept], pruned.get_submodule(name).bias)


def test_round_keeps_the_latest_importance_of_every_output_of_the_first_network() -> None:
    rounds: list[Round] = []
    settings = replace(QUICK, updates=0, final_updates=0)
    prune_iteratively(
        lenet(), noise_task(), settings=settings, image_chw=IMAGE, on_round=lambda state, _: rounds.append(state)
    )
    first, last = rounds[0], rounds[-1]
    assert {name: len(values) for name, values in last.importance.items()} == {
        **{"features.0": 6, "features.3": 16},
        **{name: len(values) for name, values in first.importance.items() if name.startswith("classifier")},
    }
    for name, values in last.importance.items():
        # Outputs of the network cannot be pruned, and are not ranked.
        assert all((value is None) == (name == "classifier.4") for value in values)
        cut = set(range(len(values))) - set(first.kept[name])
        # What the first round cut was ranked once, the rest again, in a smaller network.
        assert all(values[index] == first.importance[name][index] for index in cut)
    assert last.importance != first.importance
    ranked = dict(enumerate(first.importance["features.3"]))
    kept = [ranked[i] for i in first.kept["features.3"]]
    assert min(kept) >= max(value for i, value in ranked.items() if i not in first.kept["features.3"])


@pytest.mark.parametrize("direction", ["nearest", "up", "down"])
def test_widths_are_rounded_in_every_round(direction: Direction) -> None:
    widths: list[list[int]] = []

    def note(state: Round, model: nn.Module) -> None:
        widths.append([len(kept) for kept in state.kept.values()])

    rounding = Rounding(unit=0, direction=direction)
    settings = replace(QUICK, updates=0, final_updates=0, rounding=rounding)
    prune_iteratively(lenet(), noise_task(), settings=settings, image_chw=IMAGE, on_round=note)
    # LeNet5 makes 6, 16, 120 and 84 channels, and 10 answers: whole, or a power of two.
    allowed = [{6, 4, 2, 1}, {16, 8, 4, 2, 1}, {120, 64, 32, 16}, {84, 64, 32, 16}, {10}]
    assert len(widths) > 1
    assert all(width in choice for row in widths for width, choice in zip(row, allowed, strict=True))
    assert sum(widths[-1]) <= 113 + 10


def test_protected_layers_stay_whole() -> None:
    settings = replace(QUICK, updates=0, protect=("features.3",), ratio=0.7)
    _, last = prune_iteratively(lenet(), noise_task(), settings=settings, image_chw=IMAGE)
    assert len(last.kept["features.3"]) == 16
    assert sum(len(kept) for kept in last.kept.values()) == 67 + 10


def test_limited_layers_keep_their_width_over_all_rounds() -> None:
    settings = replace(QUICK, updates=0, least_widths={"features.0": 5, "features.3": 12}, ratio=0.7, step=20)
    _, last = prune_iteratively(lenet(), noise_task(), settings=settings, image_chw=IMAGE)
    assert len(last.kept["features.0"]) >= 5
    assert len(last.kept["features.3"]) >= 12
    assert last.now["channels"] == 67


@pytest.mark.parametrize("count", [42, 118, 217])
def test_share_that_floats_cannot_hold_is_met_to_the_channel(count: int) -> None:
    # Without a grain of tolerance one channel more would go.
    assert LENET_CHANNELS * (1 - count / LENET_CHANNELS) < LENET_CHANNELS - count
    settings = replace(QUICK, updates=0, final_updates=0, ratio=count / LENET_CHANNELS, step=500)
    _, last = prune_iteratively(lenet(), noise_task(), settings=settings, image_chw=IMAGE)
    assert last.now["channels"] == LENET_CHANNELS - count


def test_no_layer_is_emptied() -> None:
    settings = replace(QUICK, ratio=0.95, step=500)
    pruned, _ = prune_iteratively(lenet(), noise_task(), settings=settings, image_chw=IMAGE)
    graph = ChannelGraph.of(pruned, image_chw=IMAGE)
    assert min(len(layer.output_ids) for layer in graph.layers.values()) >= 1
    assert pruned(torch.rand(2, *IMAGE)).shape == (2, 10)


def test_target_out_of_reach_is_refused_before_anything_is_trained() -> None:
    settings = replace(QUICK, ratio=0.99, step=5)
    rounds: list[Round] = []
    with pytest.raises(PruningError, match="cannot be reached .* nearest is 4;"):
        prune_iteratively(
            lenet(), noise_task(), settings=settings, image_chw=IMAGE, on_round=lambda state, _: rounds.append(state)
        )
    assert rounds == []


def test_detector_stays_a_detector_with_explicit_widths(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, no_amp=True)
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml(TINY_CFG, num_classes=3))
    network = Network(model=model, spec=model.spec, names=("RBC", "WBC", "Platelets"))
    hyp = read_hyp(config, DETECTION.recipe)
    task = short_training(DETECTION, config, network, hyp=hyp, device=torch.device("cpu"), amp=config.amp_name)
    settings = replace(QUICK, quantity="macs", ratio=0.3, updates=1)
    pruned, last = prune_iteratively(model, task, settings=settings, image_chw=(3, 64, 64))
    assert isinstance(pruned, Detector)
    assert pruned.spec.widths
    assert count_macs(pruned, (3, 64, 64)) == last.now["macs"] <= 0.7 * count_macs(model, (3, 64, 64))
    assert last.loss > 0


def test_lenet_without_half_of_its_channels_still_reads_digits(shared: Path) -> None:
    digits = read_picture_file(shared / "data/classification/mnist.npz")
    task = classification_task(digits.train)
    model = lenet()
    task.train_(model, updates=150, lr=0.05)
    settings = replace(QUICK, rank_batches=2, updates=20, lr=0.05, final_updates=30, final_lr=0.005)
    pruned, _ = prune_iteratively(model, task, settings=settings, image_chw=IMAGE)
    test = digits.test.first(2000)
    with torch.no_grad():
        share_right = (pruned(test.images / 255).argmax(1) == test.labels).float().mean()
    assert share_right > 0.9


@pytest.mark.parametrize(
    "settings", [{"ratio": 0.0}, {"ratio": 1.0}, {"ratio": 0.5, "step": 0}, {"ratio": 0.5, "lr": 0.0}]
)
def test_settings_that_prune_nothing_or_everything_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        IterativeSettings(**settings)  # type: ignore[arg-type]
