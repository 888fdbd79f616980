"""Which layers the int8 search ranks first, when it ends, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import network
from int8_exports import HEADS, exported, int8_layers, pictures

from deploy.ncnn.int8 import Calibrated, Int8Settings, calibrate
from deploy.ncnn.int8_search import (
    Int8Search,
    Int8SearchSettings,
    Int8Trial,
    int8_errors,
    search_int8_skips,
)
from deploy.outputs.heads import head_change
from utils.errors import ConfigError

pytest.importorskip("ncnn", reason="the ncnn package is not installed")
pytest.importorskip("pnnx", reason="the pnnx package is not installed")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector in fp32, not to be changed."""
    return exported(network("tiny"), tmp_path_factory.mktemp("fp32") / "tiny_ncnn_model")


@pytest.fixture(scope="module")
def calibrated(plain: Path) -> Calibrated:
    return calibrate(plain, images=pictures(), method="minmax")


def test_errors_rank_the_layer_whose_range_is_spoilt_first(calibrated: Calibrated) -> None:
    spoilt = {**calibrated.ranges, "model.4.conv": 100 * calibrated.ranges["model.4.conv"]}
    source = Calibrated(folder=calibrated.folder, layers=calibrated.layers, arrays=calibrated.arrays, ranges=spoilt)
    errors = int8_errors(source, images=pictures(1))
    assert next(iter(errors)) == "model.4.conv"
    assert list(errors.values()) == sorted(errors.values(), reverse=True)


def search(plain: Path, metric_of: Callable[[Path], float], **settings: Any) -> Int8Search:
    return search_int8_skips(plain, images=pictures(1), metric_of=metric_of, search=Int8SearchSettings(**settings))


def test_search_skips_the_worst_layers_until_the_drop_is_tolerated(plain: Path, calibrated: Calibrated) -> None:
    num_unskipped = len(calibrated.convolutions) - 2  # but for the two heads

    def metric_of(folder: Path) -> float:
        """.60 in fp32; in int8 .02 less for each layer beyond all but two."""
        return 0.6 - 0.02 * max(0, len(int8_layers(folder)) - (num_unskipped - 2))

    found = search(plain, metric_of, tolerance=0.01)
    worst = tuple(found.errors)
    assert set(worst) == set(calibrated.convolutions) - HEADS
    assert found.is_within
    assert found.best == Int8Trial(skip=worst[:2], value=0.6, drop=0.0)
    assert [trial.skip for trial in found.trials] == [(), worst[:1], worst[:2]]
    assert [trial.drop for trial in found.trials] == pytest.approx([0.04, 0.02, 0.0])
    assert found.settings == Int8Settings(skip=worst[:2])
    assert search(plain, metric_of, tolerance=0.01) == found


def test_search_ranks_nothing_where_int8_costs_little(plain: Path) -> None:
    scores = iter([0.6, 0.595])
    found = search(plain, lambda _: next(scores))
    assert (found.best.skip, found.is_within, found.errors) == ((), True, {})


def test_search_that_fails_gives_the_best_it_saw_and_says_so(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    scores = iter([0.6, 0.3, 0.5, 0.4])
    found = search(plain, lambda _: next(scores), max_skips=2)
    assert not found.is_within
    assert found.best == found.trials[1]
    assert "int8 loses 0.1000 mAP with 1 layers skipped, more than allowed" in caplog.text


def test_change_of_a_head_counts_only_where_there_are_objects() -> None:
    exact = torch.full((1, 1, 1, 2, 6), -2.0)
    exact[..., 4] = torch.tensor([20.0, -20.0])
    background, objects = exact.clone(), exact.clone()
    background[..., 1, :4] = 5.0
    objects[..., 0, 5] = 2.0
    assert head_change(background, exact) == pytest.approx(0, abs=1e-6)
    # One of six outputs of the one object goes from sigmoid(-2) to sigmoid(2).
    assert head_change(objects, exact) == pytest.approx((0.8808 - 0.1192) / 6, abs=1e-4)


@pytest.mark.parametrize("settings", [{"tolerance": -0.1}, {"max_skips": -1}, {"num_images": 0}])
def test_search_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"int8 search: \w+ is -?\d.*expected at least"):
        Int8SearchSettings(**settings)  # type: ignore[arg-type]
