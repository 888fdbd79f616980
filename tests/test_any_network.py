"""benchmarks/any_network.py: comparisons that find planted faults, children with limits, the table."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import any_network_ours
from benchmarks.any_network import AnyNetworkConfig, Entry, body_of, chosen, measure, summary
from benchmarks.any_network_cases import WANTED, Case, all_cases, freeze_norms_
from benchmarks.any_network_children import Limits, is_fault, measure_apart, read_result, result_path
from benchmarks.any_network_numbers import (
    EXACT,
    further_outputs,
    largest_difference,
    mask_,
    outputs_at,
    random_drop,
    settle_,
)
from benchmarks.any_network_ours import measure_ours
from benchmarks.any_network_peer import mask_removed_, measure_peer, removed_indices
from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import LayerChannels
from pruning.surgery.cut import cut
from utils.errors import ConfigError

CHW = (3, 32, 32)


class Tiny(nn.Module):
    """A shortcut, a split and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU())
        self.fc = nn.Linear(6, 10)
        nn.init.zeros_(self.block[1].weight)  # as in networks whose shortcuts begin as identities

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        first, second = (x + self.block(x)).chunk(2, 1)
        result: Tensor = self.fc(self.last(first * second).mean((2, 3)))
        return result


class Normed(nn.Module):
    """A layer norm over channels, a stored scale and a stored shift."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 10)
        self.scale, self.shift = nn.Parameter(torch.ones(1, 8)), nn.Parameter(torch.zeros(1, 8))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(self.first(images.mean((2, 3))) * self.scale + self.shift))
        return result


def settled(model: nn.Module) -> nn.Module:
    return settle_(model, CHW)


def graph_of(kinds: dict[str, str], *, rows: int) -> ChannelGraph:
    """A graph in which every layer makes the channels 0, 1, 2, ..."""
    ids = np.arange(rows, dtype=np.int64)
    layers = {
        name: LayerChannels(name=name, kind=kind, input_ids=ids, output_ids=ids) for name, kind in kinds.items()
    }
    return ChannelGraph(layers=layers, protected={}, parts=(), stored={}, norms_after={}, input_shapes=(CHW,))


def case_of(model: nn.Module, monkeypatch: pytest.MonkeyPatch, *, name: str = "tiny:tiny") -> Case:
    """A case that builds this network."""
    monkeypatch.setattr(Case, "build", lambda self: copy.deepcopy(model))
    return Case(name=name, side=CHW[1])


def test_settled_network_keeps_no_constant_and_no_two_equal_weights() -> None:
    model: Any = settled(Tiny())
    assert model.block[1].weight.abs().min() >= 0.5
    assert not model.training
    assert model.block[1].momentum == 0.1
    values = torch.cat([parameter.flatten() for parameter in model.parameters()])
    assert values.dtype == torch.float64
    assert len(values.unique()) == len(values)
    # Statistics of noise: neither those of a fresh norm nor far from the scales before.
    assert 0.01 < float(model.block[1].running_var.mean()) < 100
    assert not model.block[1].running_mean.eq(0).any()


def test_random_drop_is_a_share_and_leaves_every_layer_and_slice_one() -> None:
    graph = ChannelGraph.of(Tiny(), image_chw=CHW)
    some = random_drop(graph, 0.5)
    assert len(some) == len(graph.prunable_ids) // 2
    assert np.array_equal(some, random_drop(graph, 0.5))
    left = ~np.isin(graph.prunable_ids, random_drop(graph, 1.0))
    assert left.any()
    for ids in [layer.output_ids for layer in graph.layers.values()]:
        assert not np.isin(ids, random_drop(graph, 1.0)).all()


def test_masked_network_equals_the_cut_one_and_a_wrong_cut_shows() -> None:
    model = settled(Tiny())
    graph = ChannelGraph.of(model, image_chw=CHW)
    dropped = random_drop(graph, 0.4)
    pruned = cut(model, graph, dropped, carry=False)
    dense = outputs_at(model, CHW)
    mask_(model, graph, dropped)
    masked = outputs_at(model, CHW)
    assert largest_difference(masked, dense) > 1e-3
    assert largest_difference(outputs_at(pruned, CHW), masked) < EXACT
    with torch.no_grad():
        next(pruned.parameters())[0] *= 1 + 1e-6
    assert largest_difference(outputs_at(pruned, CHW), masked) > EXACT


def test_mask_covers_transposed_convolutions_frozen_norms_and_stored_tensors() -> None:
    model: Any = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4))
    settled(model)
    freeze_norms_(model)
    assert type(model[1]).__name__ == "FrozenBatchNorm2d"
    owners = graph_of({"0": "conv", "1": "batch_norm"}, rows=4)
    mask_(model, owners, np.array([1]))
    (output,) = outputs_at(model, CHW)
    assert (output[:, 1] == 0).all()
    assert (output[:, [0, 2, 3]] != 0).all()
    stored: Any = settled(Normed())
    mask_(stored, graph_of({"shift": "stored"}, rows=8), np.array([5]))
    assert (stored.shift == 0).flatten().tolist() == [number == 5 for number in range(8)]
    with pytest.raises(LookupError, match=r"last \(linear\): no tensor with 8 rows"):
        mask_(stored, graph_of({"last": "linear"}, rows=8), np.array([5]))


def test_further_size_is_left_out_where_the_network_takes_one_size_or_the_first_is_large() -> None:
    whole = settle_(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 2)), CHW)
    assert further_outputs(whole, CHW) is None
    assert further_outputs(settled(Tiny()), CHW) is not None
    assert further_outputs(settled(Tiny()), (3, 224, 224)) is None


def test_difference_is_infinite_for_other_shapes_and_refuses_numbers_that_are_not_finite() -> None:
    one = torch.ones(2, 3)
    assert largest_difference([one], [one + 1]) == 0.5
    assert largest_difference([one], [one[:1]]) == float("inf")
    assert largest_difference([one * float("nan")], [one]) == float("inf")
    with pytest.raises(ArithmeticError, match="not finite"):
        largest_difference([one], [one * float("nan")])


def test_ours_measures_share_size_and_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result: dict[str, Any] = {}
    any_network_ours.measure_ours(case_of(Tiny(), monkeypatch), result)
    assert result["verdict"] == "exact"
    assert result["error"] < EXACT
    assert result["further_error"] < EXACT
    # Stem and block make the same 8 channels, whose halves the product joins; then 6, and 10 outputs.
    assert (result["made"], result["prunable"], result["share"]) == (20, 10, 0.5)
    # By layers: 8, 8 and 6 of 32.
    assert result["positions_share"] == 22 / 32
    assert 0.3 < result["left"] < 1


def test_ours_shows_a_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_wrongly(*args: Any, **kwargs: Any) -> nn.Module:
        pruned = cut(*args, **kwargs)
        with torch.no_grad():
            next(pruned.parameters())[0] *= 1 + 1e-6
        return pruned

    monkeypatch.setattr(any_network_ours, "cut", cut_wrongly)
    result: dict[str, Any] = {}
    any_network_ours.measure_ours(case_of(Tiny(), monkeypatch), result)
    assert result["verdict"] == "differs"
    assert is_fault(result)


def test_large_network_is_planned_only_and_one_that_is_kept_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(any_network_ours, "_LARGEST", 100)
    planned: dict[str, Any] = {}
    any_network_ours.measure_ours(case_of(Tiny(), monkeypatch), planned)
    assert planned["verdict"] == "planned"
    assert planned["dropped"] == int(0.3 * planned["prunable"])
    only_outputs = nn.Sequential(nn.Conv2d(3, 8, 3))
    large: dict[str, Any] = {}
    any_network_ours.measure_ours(case_of(only_outputs, monkeypatch), large)
    assert (large["verdict"], large["is_planned_only"]) == ("nothing to prune", True)
    monkeypatch.undo()
    kept: dict[str, Any] = {}
    any_network_ours.measure_ours(case_of(only_outputs, monkeypatch), kept)
    assert (kept["verdict"], kept["share"], kept["kept_because"]) == ("nothing to prune", 0.0, {"output": 8})


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 10, 3))


def chain_without(model: nn.Module, *, made: list[int], read: list[int]) -> nn.Module:
    """The chain cut by hand: `made` is kept of what the first layers make, `read` of what the last one reads."""
    small: Any = copy.deepcopy(model)
    for tensors in (small[0], small[1]):
        tensors.weight.data, tensors.bias.data = tensors.weight.data[made], tensors.bias.data[made]
    for name in ("running_mean", "running_var"):
        setattr(small[1], name, getattr(small[1], name)[made])
    small[3].weight.data = small[3].weight.data[:, read]
    return small.eval()


def peer_error(dense: nn.Module, small: nn.Module) -> float:
    masked = copy.deepcopy(dense)
    mask_removed_(masked, list(removed_indices(masked, small)))
    return largest_difference(outputs_at(small, CHW), outputs_at(masked, CHW))


def test_peer_cut_is_compared_by_the_values_that_are_left() -> None:
    dense = settled(chain())
    kept = [0, 2, 3, 5]
    right = chain_without(dense, made=kept, read=kept)
    found = {item.name: item.by_dimension for item in removed_indices(dense, right)}
    assert {name: {d: i.tolist() for d, i in by.items()} for name, by in found.items()} == {
        **{key: {0: [1, 4]} for key in ("0.weight", "0.bias", "1.weight", "1.bias")},
        "3.weight": {1: [1, 4]},
    }
    assert peer_error(dense, right) < EXACT
    # The last layer reads another channel than the one that was kept.
    assert peer_error(dense, chain_without(dense, made=kept, read=[0, 1, 3, 5])) > 1e-3


def test_peer_cut_whose_values_changed_is_not_compared() -> None:
    dense = settled(chain())
    small: Any = chain_without(dense, made=[0, 1], read=[0, 1])
    small[0].weight.data *= 1.5
    with pytest.raises(LookupError, match="0.weight: the values left are not a part of those before"):
        list(removed_indices(dense, small))


def test_peer_cut_through_layer_norm_and_stored_tensors_is_compared_over_the_channels_left() -> None:
    dense: Any = settled(Normed())
    kept = [0, 1, 2, 4, 5, 7]
    small = copy.deepcopy(dense)
    small.first.weight.data, small.first.bias.data = dense.first.weight.data[kept], dense.first.bias.data[kept]
    small.norm.weight.data, small.norm.bias.data = dense.norm.weight.data[kept], dense.norm.bias.data[kept]
    small.norm.normalized_shape = (len(kept),)
    small.scale.data, small.shift.data = dense.scale.data[:, kept], dense.shift.data[:, kept]
    small.last.weight.data = dense.last.weight.data[:, kept]
    assert peer_error(dense, small) < EXACT


def test_peer_cut_through_group_norm_is_not_compared() -> None:
    dense = settled(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)))
    small: Any = copy.deepcopy(dense)
    small[1].weight.data = small[1].weight.data[:6]
    with pytest.raises(LookupError, match="1.weight: the groups of a group norm changed"):
        mask_removed_(dense, list(removed_indices(dense, small)))


def test_peer_prunes_all_but_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(*chain()[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    result: dict[str, Any] = {}
    measure_peer(case_of(network, monkeypatch), result)
    assert (result["verdict"], result["error"] < EXACT) == ("exact", True)
    assert result["left"] == pytest.approx((4 * 28 + 2 * 4 + 4 * 10 + 10) / (6 * 28 + 2 * 6 + 6 * 10 + 10), abs=0.2)
    alone: dict[str, Any] = {}
    measure_peer(case_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), monkeypatch), alone)
    assert alone["verdict"] == "cuts nothing"
    features: dict[str, Any] = {}
    measure_peer(case_of(nn.Sequential(nn.Conv2d(3, 8, 3)), monkeypatch), features)
    assert features["message"] == "its outputs lost channels"


def test_peer_whose_cut_does_not_run_leaves_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(*chain()[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    result: dict[str, Any] = {}
    with pytest.raises(RuntimeError, match="must match the size"):
        measure_peer(case_of(network, monkeypatch, name="frozen:tiny"), result)
    assert result["stage"] == "run the cut network"


def test_child_measures_refuses_and_is_ended_by_its_limits(tmp_path: Path) -> None:
    enough = Limits(seconds=100, gib=12)
    exact = measure_apart(Case(name="torchvision:mnasnet0_5"), "ours", tmp_path, enough)
    assert (exact["verdict"], exact["layers_unseen"]) == ("exact", 0)
    assert read_result(result_path(tmp_path, Case(name="torchvision:mnasnet0_5"), "ours")) == exact
    unknown = measure_apart(Case(name="torchvision:resnet19"), "ours", tmp_path, enough)
    assert unknown["verdict"] == "refused"
    assert "no such classifier in torchvision" in unknown["message"]
    small = measure_apart(Case(name="torchvision:squeezenet1_1", side=8), "ours", tmp_path, enough)
    assert small["verdict"] == "crash"
    assert small["message"].startswith("RuntimeError: ")
    assert "Traceback" in (tmp_path / "torchvision_squeezenet1_1.ours.log").read_text()
    slow = measure_apart(Case(name="torchvision:vgg11"), "peer", tmp_path, Limits(seconds=1, gib=12))
    assert slow == {"verdict": "crash", "message": "takes more than 1 s"}
    large = measure_apart(Case(name="torchvision:vgg11"), "ours", tmp_path, Limits(seconds=100, gib=0.5))
    assert is_fault(large)


EXACT_RESULT = {
    **{"verdict": "exact", "parameters": 12_300_000, "share": 0.75, "positions_share": 0.8, "left": 0.5},
    **{"error": 1e-15, "further_error": 3e-15, "kept_because": {"output": 10}},
}


def test_table_shows_share_errors_and_what_is_short_of_the_wanted_share() -> None:
    short = Case(name="timm:repvgg_a0")
    assert WANTED[short.name] == 0.8
    crashed = {"verdict": "crash", "stage": "cut", "message": "KeyError: 'a|b'", "parameters": 12_300_000}
    body = body_of(
        [
            Entry(case=Case(name="timm:dla34"), results={"ours": EXACT_RESULT, "peer": crashed}),
            Entry(case=short, results={"ours": EXACT_RESULT}),
        ]
    )
    lines = body.splitlines()
    assert lines[2] == (
        "| timm:dla34 | 64 | 12.3 | 75% | 80% | exact | 3e-15 | 50% | crash (cut): KeyError: 'a/b' |  |  |"
    )
    assert lines[3].startswith("| timm:repvgg_a0 | 64 | 12.3 | 75% (wanted 80%) | 80% | exact |")
    assert lines[-1] == "- timm:repvgg_a0: 75%; 10 channels: output"
    assert sum(line.startswith("- ") for line in lines) == 1


def test_pattern_without_a_network_is_refused() -> None:
    assert [case.name for case in chosen(all_cases(), ("timm:dla*", "frozen:resnet18"))] == [
        "frozen:resnet18",
        "timm:dla34",
    ]
    with pytest.raises(ConfigError, match="--only resnet18: no such network"):
        chosen(all_cases(), ("resnet18",))


def test_list_has_every_classifier_of_torchvision_and_forty_of_timm() -> None:
    names = [case.name for case in all_cases()]
    kinds = {kind: sum(name.startswith(f"{kind}:") for name in names) for kind in ("torchvision", "timm", "backbone")}
    assert kinds == {"torchvision": 80, "timm": 40, "backbone": 8}
    assert len(set(names)) == len(names)
    assert set(WANTED) <= set(names)


def test_known_results_are_not_measured_again_and_the_report_needs_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.report.RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    folder = tmp_path / "runs"
    folder.mkdir()

    def write(case: Case, way: str, result: dict[str, Any]) -> None:
        result_path(folder, case, way).write_text(json.dumps(result))

    first, *others = all_cases()
    for way in ("ours", "peer"):
        write(first, way, EXACT_RESULT)
    config = AnyNetworkConfig(only=(first.name,), folder=str(folder))
    assert measure(config)
    assert "1 exact" in capsys.readouterr().out
    assert list((tmp_path / "results").iterdir()) == []
    for case in others:
        write(case, "ours", {"verdict": "planned", "is_planned_only": True})
    write(others[0], "ours", {**EXACT_RESULT, "verdict": "differs", "error": 0.1})
    write(others[0], "peer", EXACT_RESULT)
    assert not measure(config)
    (json_path, report) = sorted((tmp_path / "results").iterdir())
    listed = json.loads(json_path.read_text())
    assert [entry["ours"]["verdict"] for entry in listed[:3]] == ["exact", "differs", "planned"]
    assert f"- ours: {len(others) - 1} planned, 1 exact, 1 differs" in report.read_text()
    entries = [Entry.read(case, folder) for case in all_cases()]
    assert summary(entries, "peer") == "2 exact"


class Shifted(nn.Module):
    """Adds one number to all channels, so that a masked channel is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.shift = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(x) + self.shift)
        return y


def test_constant_that_a_masked_channel_leaves_is_told_from_a_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    result: dict[str, Any] = {}
    measure_ours(case_of(Shifted(), monkeypatch), result)
    assert result["verdict"] == "exact, constants aside"
    assert result["error"] < EXACT
