"""The sweep over percents, with a made-up mAP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import TINY_CFG
from torch import nn

from commands.prune_config import PruneConfig
from models.complexity import count_parameters
from models.detector import build_model
from models.spec import ModelSpec
from pruning.selection.planner import Planner
from pruning.selection.scan import Scan, scan
from utils.errors import PruningError


@pytest.fixture(scope="module")
def planner() -> Planner:
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml(TINY_CFG))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0, 1)
    return Planner.of(model, PruneConfig(weights="a.pt", round="none").plan_settings((3, 640, 640)))


def scores(ap50: float, ap: float) -> dict[str, float]:
    return {"AP50": ap50, "AP": ap}


def cliff_at(planner: Planner, percent: float) -> Callable[[nn.Module], dict[str, float]]:
    """.5 mAP until more than this share of channels is gone, then .05."""
    allocation = planner.allocator.at(planner.allocator.threshold_at(percent))
    gone, whole = len(allocation.dropped), _width(planner.model)

    def measure(model: nn.Module) -> dict[str, float]:
        ap = 0.5 if whole - _width(model) <= gone else 0.05
        return scores(1.5 * ap, ap)

    return measure


def _width(model: nn.Module) -> int:
    return sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def swept(planner: Planner, percent: float) -> Scan:
    return scan(planner, cliff_at(planner, percent), tolerance=0.01, carry=True)


@pytest.mark.parametrize("percent", [0.33, 0.5, 0.72])
def test_recommended_percent_lies_just_before_the_cliff(planner: Planner, percent: float) -> None:
    found = swept(planner, percent)
    assert percent - 0.011 <= found.recommended <= percent + 0.011
    assert found.cliff[0] == found.recommended
    assert 0 < found.cliff[1] - found.recommended < 0.011
    assert found.limit == planner.allocator.limit.percent


def test_cliff_beyond_the_recommended_percent_is_narrowed_down(planner: Planner) -> None:
    """mAP falls a little at .3, which is more than the tolerance, and altogether at .66."""
    slight, steep = cliff_at(planner, 0.3), cliff_at(planner, 0.66)

    def measure(model: nn.Module) -> dict[str, float]:
        ap = steep(model)["AP"] - (0.02 if slight(model)["AP"] < 0.5 else 0.0)
        return scores(ap, ap)

    found = scan(planner, measure, tolerance=0.01, carry=True)
    assert found.recommended == pytest.approx(0.3, abs=0.011)
    low, high = found.cliff
    assert low - 0.011 < 0.66 < high + 0.011
    assert high - low <= 0.02


def test_points_start_at_the_uncut_network_and_stop_when_all_is_lost(planner: Planner) -> None:
    points = swept(planner, 0.33).points
    percents = [point.percent for point in points]
    assert percents[0] == 0.0
    assert percents == sorted(percents)
    assert max(percents) == 0.4
    assert (points[0].headline, points[-1].headline["AP"]) == ({"AP50": 0.75, "AP": 0.5}, 0.05)


def test_network_that_stands_every_cut_is_cut_nearly_whole(planner: Planner) -> None:
    found = scan(planner, lambda model: scores(0.6, 0.5), tolerance=0.01, carry=True)
    assert found.recommended > 0.99


def test_every_cut_starts_from_the_whole_network(planner: Planner) -> None:
    sizes: list[int] = []

    def measure(model: nn.Module) -> dict[str, float]:
        sizes.append(count_parameters(model))
        return scores(0.6, 0.5)

    before = count_parameters(planner.model)
    scan(planner, measure, tolerance=0.01, carry=False)
    assert sizes[0] == before == count_parameters(planner.model)
    assert sizes == sorted(sizes, reverse=True)


def test_network_that_finds_nothing_has_no_cliff(planner: Planner) -> None:
    with pytest.raises(PruningError, match="mAP 0.000 on this data before any channel is cut.*check --data"):
        scan(planner, lambda model: scores(0.0, 0.0), tolerance=0.01, carry=True)


def test_sweep_is_told_and_drawn(planner: Planner, tmp_path: Path) -> None:
    found = swept(planner, 0.5)
    assert f"recommended: --percent {found.recommended:.3f}; steepest fall from" in found.as_text()
    assert found.to_dict()["points"][0] == {"percent": 0.0, "AP50": 0.75, "AP": 0.5}
    found.plot(tmp_path / "scan.png")
    assert (tmp_path / "scan.png").stat().st_size > 1000
