"""From settings to a plan: mixed thresholds, protection, shortcuts, bottlenecks, and what people are told."""

from __future__ import annotations

import logging
import re
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY_CFG
from torch import nn

from commands.prune_config import PruneConfig
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.channels.shortcuts import candidate_ids
from pruning.importance.cost import ChannelCost
from pruning.importance.criteria import bn_gamma, kernel_l1
from pruning.selection.candidates import protected_ids
from pruning.selection.planner import Planner
from utils.errors import PruningError

BOTTLENECKS = ("model.3.m.0", "model.5.m.0")


@pytest.fixture(scope="module")
def model() -> Detector:
    """The tiny network with scales in [0, 1)."""
    torch.manual_seed(0)
    detector = build_model(ModelSpec.from_yaml(TINY_CFG))
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0, 1)
    return detector


def planner_of(model: Detector, **settings: Any) -> Planner:
    return Planner.of(
        model,
        PruneConfig(**{"weights": "a.pt", "round": "none", "img_size": 64, **settings}).plan_settings((3, 64, 64)),
    )


def test_half_of_the_free_channels_go_by_default(model: Detector) -> None:
    planner = planner_of(model)
    allocation = planner.allocate()
    free = candidate_ids(model, planner.graph, "skip")
    assert len(free) == 184
    assert len(allocation.dropped) == 92
    gammas = bn_gamma(model, planner.graph)
    assert gammas[allocation.dropped].max() < gammas[np.setdiff1d(free, allocation.dropped)].min()


def test_tied_prunes_across_shortcuts_and_skip_does_not(model: Detector) -> None:
    skipped = planner_of(model, percent=0.5)
    tied = planner_of(model, percent=0.5, shortcuts="tied")
    joined = {"model.3.cv1.conv", "model.3.m.0.cv1.conv", "model.3.m.0.cv2.conv"}
    assert joined.isdisjoint(skipped.plan(skipped.allocate()).keep)
    keep = tied.plan(tied.allocate()).keep
    assert joined <= keep.keys()
    assert keep["model.3.cv1.conv"] == keep["model.3.m.0.cv2.conv"]


def test_mixed_drops_what_either_criterion_drops(model: Detector) -> None:
    planner = planner_of(model, bn_percent=0.3, conv_percent=0.2)
    dropped = set(planner.allocate().dropped.tolist())
    free = candidate_ids(model, planner.graph, "skip")
    expected: set[int] = set()
    for criterion, share in ((bn_gamma, 0.3), (kernel_l1, 0.2)):
        worst_first = free[np.argsort(criterion(model, planner.graph)[free])]
        expected |= set(worst_first[: int(share * len(free))].tolist())
    assert dropped == expected
    assert len(dropped) > 0.3 * len(free)


def test_mixed_importance_is_the_worse_of_two_margins(model: Detector) -> None:
    planner = planner_of(model, bn_percent=0.5)
    free = planner.allocator.candidates
    ranks = np.argsort(np.argsort(bn_gamma(model, planner.graph)[free]))
    by_kernel = np.argsort(np.argsort(kernel_l1(model, planner.graph)[free]))
    margins = np.minimum((ranks - 92) / 184, by_kernel / 184)
    np.testing.assert_allclose(planner.allocator.importance[free], margins)


def test_pattern_protects_what_these_layers_make(model: Detector) -> None:
    graph = ChannelGraph.of(model)
    expected = [layer.output_ids for name, layer in graph.layers.items() if fnmatchcase(name, "model.8.*.conv")]
    np.testing.assert_array_equal(protected_ids(graph, ["model.8.*"]), np.unique(np.concatenate(expected)))
    planner = planner_of(model, percent=0.9, protect=("model.8.*", "model.0.conv"))
    assert not any(name.startswith(("model.8.", "model.0.")) for name in planner.plan(planner.allocate()).keep)


def test_pattern_that_fits_no_layer_is_refused(model: Detector) -> None:
    message = r"--protect model.77\* matches no layer; the layers include model.0.conv, model.1.conv, model.2.conv"
    with pytest.raises(PruningError, match=message):
        planner_of(model, protect=("model.8.*", "model.77*"))


def test_dropping_bottlenecks_alone_cuts_no_channel(model: Detector) -> None:
    planner = planner_of(model, drop_bottlenecks=("all",))
    plan = planner.plan(planner.allocate())
    assert (plan.bottlenecks, plan.keep) == (BOTTLENECKS, {})
    # Without its shortcut nothing holds the convolution before the bottleneck any more.
    beside = planner_of(model, drop_bottlenecks=("model.3.m.0",), percent=0.6)
    assert beside.plan(beside.allocate()).bottlenecks == ("model.3.m.0",)
    assert np.isin(beside.graph.layers["model.3.cv1.conv"].output_ids, beside.allocator.candidates).all()


@pytest.mark.parametrize(("quantity", "count"), [("macs", "macs"), ("params", "parameters")])
def test_target_is_reached(model: Detector, quantity: str, count: str) -> None:
    planner = planner_of(model, target=f"{quantity}=50%", round="pow2")
    cost = getattr(ChannelCost.of(model, planner.graph, (3, 64, 64)), count)
    assert 0.3 < cost(planner.allocate().dropped) / cost() <= 0.5


def test_balance_keeps_layers_near_the_width_that_cutting_all_alike_would_leave(model: Detector) -> None:
    def least_share(balance: float) -> float:
        settings: dict[str, Any] = {"target": "macs=50%", "criterion": "kernel_l1", "cost_power": 2.0}
        planner = planner_of(model, shortcuts="tied", balance=balance, **settings)
        allocation = planner.allocate()
        cost = ChannelCost.of(model, planner.graph, (3, 64, 64))
        assert cost.macs(allocation.dropped) <= 0.5 * cost.macs()
        keep = planner.plan(allocation).keep
        return min(len(kept) / len(planner.graph.layers[name].output_ids) for name, kept in keep.items())

    free, half, whole = least_share(0.0), least_share(0.6), least_share(1.0)
    assert free < 0.25
    assert free < half < whole
    # Widths of which a share w stays make about w squared of the multiply-adds; the least layer has 8 channels.
    assert 0.5**0.5 - 1 / 8 < whole < 0.5**0.5
    assert half > 0.6 * 0.5**0.5 - 1 / 8


@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_importance_per_cost_reaches_the_target_with_fewer_channels(model: Detector, quantity: str) -> None:
    plain, weighed = (
        planner_of(model, target=f"{quantity}=50%", round="none", cost_power=power).allocate().dropped
        for power in (0.0, 1.0)
    )
    assert len(weighed) < 0.9 * len(plain)


def test_percent_beyond_the_limit_warns_and_keeps_one_channel(
    model: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    planner = planner_of(model, percent=0.95)
    with caplog.at_level(logging.WARNING):
        plan = planner.plan(planner.allocate())
    assert min(len(kept) for kept in plan.keep.values()) == 1
    assert "layers would keep fewer than --min-channels 1, kept at that many: model." in caplog.text


def test_percent_beyond_the_limit_is_refused_under_strict(model: Detector) -> None:
    limit = planner_of(model).allocator.limit
    message = rf"above {limit.threshold:.4g} \(--percent {limit.percent:.3f}\) a layer would lose all its channels"
    with pytest.raises(PruningError, match=message):
        planner_of(model, percent=0.95, strict=True).allocate()
    assert planner_of(model, percent=limit.percent, strict=True).allocate().raised == ()


def test_percent_alone_cuts_below_one_threshold_of_gammas_outside_shortcuts_to_powers_of_two(model: Detector) -> None:
    settings = PruneConfig(weights="a.pt", percent=0.6).plan_settings((3, 64, 64))
    planner = Planner.of(model, settings)
    allocation = planner.allocate()
    free = candidate_ids(model, planner.graph, "skip")
    gammas = bn_gamma(model, planner.graph)
    assert settings.latency is None
    assert allocation.threshold == np.sort(gammas[free])[int(0.6 * len(free))]
    assert np.isin(allocation.dropped, free).all()
    assert not np.isin(planner.graph.layers["model.3.m.0.cv2.conv"].output_ids, allocation.dropped).any()
    for group in planner.graph.groups:
        below = int((gammas[np.intersect1d(group.ids, free)] < allocation.threshold).sum())
        kept = len(np.setdiff1d(group.ids, allocation.dropped))
        total = len(group.ids)
        powers = [2**exponent for exponent in range(8)]
        # The nearest power of two, the larger of two equally near, never more than there are.
        nearest = min(powers, key=lambda power: (abs(power - (total - below)), -power))
        assert kept == (min(nearest, total) if below else total)


def test_random_order_follows_the_seed(model: Detector) -> None:
    first, again, other = (
        planner_of(model, criterion="random", seed=seed).allocate().dropped.tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_dense_network_is_called_dense_with_numbers() -> None:
    dense = build_model(ModelSpec.from_yaml(TINY_CFG))
    planner = planner_of(dense)
    text = planner.describe(planner.allocate())
    assert "was not trained sparse: only 0.0% of scales are below 1e-2, half of them above 1;" in text
    assert "train_sparsity.py first" in text


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        (
            {"criterion": "kernel_l1"},
            "only 0.0% of kernels (relative to their layer's mean) are below 1e-2, half of them above",
        ),
        (
            {"bn_percent": 0.3, "conv_percent": 0.3},
            "half of them above 1, only 0.0% of kernels (relative to their layer's mean)",
        ),
    ],
)
def test_network_that_is_dense_in_kernels_is_called_so(settings: dict[str, Any], finding: str) -> None:
    planner = planner_of(build_model(ModelSpec.from_yaml(TINY_CFG)), **settings)
    assert finding in planner.describe(planner.allocate())


def test_network_sparse_in_scales_alone_is_not_called_dense_by_mixed() -> None:
    sparse = build_model(ModelSpec.from_yaml(TINY_CFG))
    for module in sparse.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[::2] = 1e-4
    planner = planner_of(sparse, bn_percent=0.3, conv_percent=0.3)
    assert "not trained sparse" not in planner.describe(planner.allocate())


def test_mixed_prints_and_keeps_both_thresholds(model: Detector) -> None:
    planner = planner_of(model, bn_percent=0.3, conv_percent=0.2)
    allocation = planner.allocate()
    free = planner.allocator.candidates
    by_scale = float(np.sort(bn_gamma(model, planner.graph)[free])[55])  # of 184, 30 % are 55 and 20 % are 36
    by_kernel = float(np.sort(kernel_l1(model, planner.graph)[free])[36])
    text = planner.describe(allocation)
    assert f"with scales below {by_scale:.4g} (--bn-percent 0.3) or with kernels below {by_kernel:.4g} of " in text
    assert planner.plan(allocation).settings["threshold"] == {"bn_gamma": by_scale, "kernel_l1": by_kernel}
    alone = planner_of(model, bn_percent=0.3)
    assert alone.plan(alone.allocate()).settings["threshold"] == {"bn_gamma": by_scale}


@pytest.mark.parametrize("shares", [{"bn_percent": 0.3, "conv_percent": 0.2}, {"bn_percent": 0.9}])
def test_mixed_limit_is_the_highest_shares_at_which_no_layer_is_emptied(
    model: Detector, shares: dict[str, float]
) -> None:
    planner = planner_of(model, **shares)
    text = planner.describe(planner.allocate())
    found = re.findall(r"(--\w+-percent) (\d\.\d{3})(?= and| a layer)", text)
    assert [flag for flag, _ in found] == [f"--{name.replace('_', '-')}" for name in shares]

    def at(step: float) -> dict[str, float]:
        return {name: float(limit) + step for name, (_, limit) in zip(shares, found, strict=True)}

    # A channel is 1 / 184 of the candidates; printed digits are rounded.
    assert planner_of(model, **at(-0.001), strict=True).allocate().raised == ()
    assert len(planner_of(model, **at(1.5 / 184)).decide().raised) == 1


def test_strict_names_the_shares_to_lower_to(model: Detector) -> None:
    message = r"above --bn-percent 0\.\d{3} and --conv-percent 0\.\d{3} a layer would lose all its channels; lower"
    with pytest.raises(PruningError, match=message):
        planner_of(model, bn_percent=0.99, conv_percent=0.99, strict=True).allocate()


def test_description_names_threshold_and_limit(model: Detector) -> None:
    planner = planner_of(model)
    limit = planner.allocator.limit
    text = planner.describe(planner.allocate())
    assert text.startswith(f"pruning 92 of 184 channels (50.0%) below {planner.threshold:.4g}; above ")
    assert f"{limit.threshold:.4g} (--percent {limit.percent:.3f})" in text


def test_channels_without_batch_norm_stay_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    mobile = build_model(ModelSpec.from_yaml("yolov5s-mobilenetv3-small-075", num_classes=2))
    with caplog.at_level(logging.WARNING):
        by_gamma = planner_of(mobile)
    assert "456 of 6984 channels are kept: bn_gamma cannot rank them" in caplog.text
    assert len(planner_of(mobile, criterion="kernel_l1").allocator.candidates) == 6984
    assert len(by_gamma.allocator.candidates) == 6984 - 456


def test_plan_keeps_the_importance_that_channels_were_ranked_by(model: Detector) -> None:
    planner = planner_of(model, percent=0.5)
    plan = planner.plan(planner.allocate())
    name = "model.1.conv"
    gammas = model.get_parameter("model.1.bn.weight").abs().tolist()
    assert plan.importance[name] == pytest.approx(gammas, rel=1e-3)
    above = [index for index, value in enumerate(gammas) if value >= planner.threshold]
    assert plan.keep[name] == tuple(above)


def test_settings_are_kept_with_the_plan(model: Detector) -> None:
    planner = planner_of(model, percent=0.25, protect=("model.0.conv",))
    settings = planner.plan(planner.allocate()).settings
    assert (settings["percent"], settings["protect"]) == (0.25, ["model.0.conv"])
    assert settings["threshold"] == planner.threshold
