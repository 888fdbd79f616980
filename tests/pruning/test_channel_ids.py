"""Union-find over whole arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pruning.channels.ids import ChannelIds


def ids_of(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_each_request_gets_the_next_integers() -> None:
    ids = ChannelIds()
    assert ids.new(2).tolist() == [0, 1]
    assert ids.new(3).tolist() == [2, 3, 4]
    assert ids.labels().tolist() == [0, 1, 2, 3, 4]


def test_tied_ids_take_the_smallest_of_them_through_any_chain() -> None:
    ids = ChannelIds()
    ids.new(7)
    ids.tie(ids_of(6, 5), ids_of(4, 2))
    ids.tie(ids_of(4), ids_of(1))
    assert ids.labels().tolist() == [0, 1, 2, 3, 1, 2, 1]


def test_protection_reaches_all_tied_ids_and_the_first_reason_counts() -> None:
    ids = ChannelIds()
    ids.new(5)
    ids.protect(ids_of(3, 4), "output")
    ids.protect(ids_of(1), "input")
    ids.tie(ids_of(1, 2), ids_of(3, 4))
    labels = ids.labels()
    assert ids.protected(labels) == {1: "output", 2: "output"}


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60))
def test_labels_are_those_of_plain_union_find(pairs: list[tuple[int, int]]) -> None:
    ids = ChannelIds()
    ids.new(30)
    expected = list(range(30))
    for first, second in pairs:
        ids.tie(ids_of(first), ids_of(second))
        low, high = sorted((expected[first], expected[second]))
        expected = [low if label == high else label for label in expected]
    assert ids.labels().tolist() == expected
