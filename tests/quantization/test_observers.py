"""Ranges from what was seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quantization.ranges.config import Observer
from quantization.ranges.observers import RangeObserver
from utils.errors import DataError


def observed(*batches: torch.Tensor) -> RangeObserver:
    observer = RangeObserver("layer")
    for batch in batches:
        observer.observe(batch)
    return observer


def ends(observer: RangeObserver, kind: Observer, *, bits: int = 8, percentile: float = 99.0) -> tuple[float, float]:
    return observer.range(kind, bits=bits, percentile=percentile, symmetric=False)


def test_minmax_holds_the_extremes_of_all_batches_and_zero() -> None:
    assert ends(observed(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.5])), "minmax") == (0.0, 3.0)


def test_histogram_grows_and_loses_no_count() -> None:
    # The second batch is a million times as large: bins are merged twenty times.
    observer = observed(torch.linspace(-1, 1, 1000), torch.linspace(-1e6, 1e6, 1000), torch.zeros(7))
    centres, counts = observer.histogram()
    assert counts.sum() == 2007
    assert counts.min() == 0
    assert len(centres) <= 4097
    assert counts[centres == 0] == 7


def test_bins_count_what_lies_in_them() -> None:
    observer = observed(torch.tensor([1.0, 1.0, -1.0, 0.0, 0.5]))
    centres, counts = observer.histogram()
    found = {round(float(centre), 2): int(count) for centre, count in zip(centres, counts, strict=True) if count}
    assert found == {1.0: 2, -1.0: 1, 0.0: 1, 0.5: 1}


def test_percentile_leaves_out_what_is_rare() -> None:
    # One percent of 1000 values is ten on each side; outliers are five.
    values = torch.cat((torch.linspace(0, 1, 995), torch.full((5,), 1000.0)))
    low, high = ends(observed(values), "percentile")
    assert low == 0.0
    assert high == pytest.approx(1.0, abs=0.5)
    assert ends(observed(values), "percentile", percentile=100.0) == (0.0, 1000.0)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_search_cuts_a_tail_off_for_few_bits(kind: Observer) -> None:
    values = torch.cat((torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([30.0])))
    low, high = ends(observed(values), kind, bits=4)
    assert 1.0 < high < 8.0
    assert -8.0 < low < -1.0


@pytest.mark.parametrize("kind", ["mse", "kl", "percentile"])
def test_values_far_from_zero_keep_their_range(kind: Observer) -> None:
    values = torch.linspace(0.3, 0.6, 1000)  # as the gates of a sigmoid
    for sign in (1, -1):
        assert max(map(abs, ends(observed(sign * values), kind))) > 0.55


def test_mse_of_many_bits_keeps_the_extremes() -> None:
    low, high = ends(observed(torch.linspace(-1, 2, 5000)), "mse", bits=8)
    assert (low, high) == (pytest.approx(-1, abs=0.03), pytest.approx(2, abs=0.05))


@pytest.mark.parametrize("kind", ["minmax", "percentile", "mse", "kl"])
def test_zeros_alone_are_a_range_of_zero(kind: Observer) -> None:
    assert ends(observed(torch.zeros(10)), kind) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_number_that_is_none_names_the_layer(bad: float) -> None:
    with pytest.raises(DataError, match="layer: calibration images lead to NaN"):
        observed(torch.tensor([0.0, bad]))


def test_nothing_seen_is_an_error() -> None:
    with pytest.raises(DataError, match="no calibration images"):
        ends(RangeObserver("layer"), "minmax")


def test_counts_are_those_of_numpy() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    centres, counts = observed(*values.split(1000)).histogram()
    width = float(np.diff(centres).max())
    expected, _ = np.histogram(values.numpy(), bins=np.append(centres - width / 2, centres[-1] + width / 2)[::64])
    found = np.add.reduceat(counts, np.arange(0, len(counts), 64))[: len(expected)]
    assert np.abs(found - expected).max() <= 80
